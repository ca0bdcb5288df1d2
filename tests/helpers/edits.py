"""Edits of random factors, models that a test may change, and what both give."""

import torch
from architectures import byte_tokenizer, hugging_face_model

import rome_lens as rl
from rome_lens.backends import as_backend
from rome_lens.editing.edit import Edit, Loss, Probabilities
from rome_lens.loading.convert import to_transformer_lens
from rome_lens.loading.hugging_face import Pretrained

TOKENS = torch.tensor([[3, 141, 59, 26, 53], [58, 97, 93, 23, 84]])


def random_edit(model, layer=1, *, seed=0, **changes):
    """An edit of random factors, as long as the matrix that it changes."""
    backend = as_backend(model)
    matrix = backend.w_out(layer).matrix
    generator = torch.Generator().manual_seed(seed)
    dtype = torch.promote_types(matrix.dtype, torch.float32)
    u, v = (torch.randn(width, generator=generator, dtype=dtype) for width in matrix.shape)
    fields = {
        "request": rl.EditRequest("{} is in", subject="The tower", target_new=f"Rome {seed}", target_true="Paris"),
        "layer": layer,
        "u": u / u.norm(),
        "v": v * matrix.norm().to(v) / v.norm(),
        "old_answer": " Paris",
        "before": Probabilities(0.1, 0.9),
        "after": Probabilities(0.9, 0.1),
        "key_norm": 1.5,
        "key_dot": -0.5,
        "relative_norm": 1.0,
        "loss_curve": (Loss(2.0, 1.0, 0.75, 0.25), Loss(1.0, 0.5, 0.25, 0.25)),
        "variant": "r-rome",
        "settings": {"seed": seed, "context_templates": ["{}", "Ü. {}"], "second_moment": {"layer": 1, "source": None}},
        "fingerprint": backend.fingerprint(layer),
        "notes": ("one", "two"),
        "module": "model.layers.1.mlp.down_proj",
        "module_transposed": False,
        "backend": backend.name,
        "dtype": "float64",
        "seconds": 0.5,
    }
    return Edit(**fields | changes)


def own(name, backend, *, dtype=torch.float64):
    """A model that the test may change."""
    hugging_face = hugging_face_model(name, dtype=dtype)
    return to_transformer_lens(Pretrained(name=name, model=hugging_face, tokenizer=byte_tokenizer()), backend=backend)


def w_out(model, layer=1):
    return as_backend(model).w_out(layer).matrix


@torch.no_grad()
def logits(model, hooks=(), tokens=TOKENS):
    return model.run_with_hooks(tokens, fwd_hooks=list(hooks))


def assert_close(one, other, rtol=1e-10):
    assert (one - other).abs().max() <= rtol * other.abs().max()
