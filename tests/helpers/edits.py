"""Edits of random factors, and what they make of a model."""

from dataclasses import fields

import torch

import rome_lens as rl
from rome_lens.backends import as_backend
from rome_lens.backends.modules import hugging_face_module
from rome_lens.editing.edit import Edit
from rome_lens.editing.outcome import Earlier, Loss, Origin, Outcome, Probabilities
from rome_lens.editing.patch import EditedLayer
from rome_lens.editing.weight_update import Dense, LowRank

TOKENS = torch.tensor([[3, 141, 59, 26, 53], [58, 97, 93, 23, 84]])


def random_edit(model, layer=1, *, seed=0, size=1.0, **changes):
    """An edit of random factors, so long in units of the matrix that it changes."""
    backend = as_backend(model)
    matrix = backend.w_out(layer).matrix
    module, transposed = hugging_face_module(backend, layer) or (None, True)
    generator = torch.Generator().manual_seed(seed)
    dtype = torch.promote_types(matrix.dtype, torch.float32)
    u, v = (torch.randn(width, generator=generator, dtype=dtype) for width in matrix.shape)
    values = {
        "request": rl.EditRequest("{} is in", subject="The tower", target_new=f"Rome {seed}", target_true="Paris"),
        "layer": layer,
        "u": u / u.norm(),
        "v": v * size * matrix.norm().to(v) / v.norm(),
        "old_answer": " Paris",
        "before": Probabilities(0.1, 0.9),
        "after": Probabilities(0.9, 0.1),
        "key_norm": 1.5,
        "key_dot": -0.5,
        "relative_norm": 1.0,
        "loss_curve": (Loss(2.0, 1.0, 0.75, 0.25), Loss(1.0, 0.5, 0.25, 0.25)),
        "variant": "r-rome",
        "settings": {"seed": seed, "context_templates": ["{}", "Ü. {}"], "second_moment": {"layer": 1, "source": None}},
        "fingerprint": changes.get("fingerprint") or backend.fingerprint(layer),
        "notes": ("one", "two"),
        "module": module,
        "module_transposed": transposed,
        "backend": backend.name,
        "dtype": str(backend.dtype).removeprefix("torch."),
        "seconds": 0.5,
    }
    return flat_edit(**values | changes)


def flat_edit(*, layer, u=None, v=None, delta=None, made_on=(), **values):
    """An edit of one request and one layer, from what it says of itself."""
    update = LowRank(layer, u[None], v[None]) if delta is None else Dense(layer, delta)

    def some(kind):
        return {f.name: values[f.name] for f in fields(kind) if f.name in values}

    made_on = tuple(one if isinstance(one, Earlier) else Earlier(one) for one in made_on)
    return Edit(
        (Outcome(**some(Outcome)),),
        (EditedLayer(update, **some(EditedLayer)),),
        Origin(**some(Origin), made_on=made_on),
    )


def changed(edit, **changes):
    """The edit with other values in it, named as it says them of itself."""
    tensors = ("delta",) if edit.rank is None else ("u", "v")
    names = [
        f.name for kind in (Outcome, EditedLayer, Origin) for f in fields(kind) if f.name not in ("update", "made_on")
    ]
    values = {name: getattr(edit, name) for name in (*names, *tensors, "layer")} | {"made_on": edit.origin.made_on}
    return flat_edit(**values | changes)


def w_out(model, layer=1):
    return as_backend(model).w_out(layer).matrix


@torch.no_grad()
def logits(model, hooks=(), tokens=TOKENS):
    return model.run_with_hooks(tokens, fwd_hooks=list(hooks))


def assert_same(one, other):
    """Two edits that are one."""
    assert type(one) is type(other) is Edit
    assert (one.id, one.outcomes, one.origin) == (other.id, other.outcomes, other.origin)
    assert one.to_dict() == other.to_dict()
    for mine, theirs in zip(one.layers, other.layers, strict=True):
        assert mine.update.rank == theirs.update.rank
        torch.testing.assert_close(mine.update.tensors, theirs.update.tensors, rtol=0, atol=0)


def assert_close(one, other, rtol=1e-10):
    assert (one - other).abs().max() <= rtol * other.abs().max()
