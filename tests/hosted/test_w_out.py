"""`W_out` where the model keeps it, its key and its value, and by what a layer is known again."""

import copy
import dataclasses

import pytest
import torch
from architectures import BRIDGE, HOOKED, architecture
from hosts import hosted, needs_hooked
from refused import refused

import rome_lens as rl
from rome_lens.backends import Fingerprint, as_backend

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:transformer_lens")

TOKENS = torch.tensor([[70, 101, 120, 33, 68], [80, 90, 75, 100, 99]])
WITH_W_OUT = hosted(without=["mixtral"])


@pytest.mark.parametrize(("name", "backend"), WITH_W_OUT)
def test_keys_times_w_out_are_values_and_writing_changes_the_model(name, backend):
    # Not on a copy: TransformerLens's Falcon goes on reading the weights of what it was copied from.
    wrapped = as_backend(architecture(name, backend))
    wrapped.check_w_out(2, TOKENS)
    key, value = wrapped.keys_and_values(2, TOKENS)
    w_out = wrapped.w_out(2)
    assert w_out.matrix.shape == (key.shape[-1], value.shape[-1])
    bias = 0 if w_out.bias is None else w_out.bias
    torch.testing.assert_close(key @ w_out.matrix + bias, value, rtol=1e-9, atol=1e-9)
    original = w_out.matrix.clone()
    try:
        w_out.write(2 * original)
        _, doubled = wrapped.keys_and_values(2, TOKENS)
    finally:
        w_out.write(original)
    torch.testing.assert_close(doubled - bias, 2 * (value - bias), rtol=1e-9, atol=1e-9)
    assert not w_out.matrix.requires_grad


def test_a_mixture_of_experts_has_none():
    with pytest.raises(rl.ModelError, match=r"layer 1 of mixtral has no W_out of its own \(a mixture of experts"):
        as_backend(architecture("mixtral", BRIDGE)).w_out(1)


@pytest.mark.parametrize("name", ["gemma2", "granite", "olmo2"])
def test_a_value_behind_a_norm_or_a_scale_is_refused(name, monkeypatch):
    wrapped = as_backend(architecture(name, BRIDGE))
    monkeypatch.setattr(wrapped, "value_hook", lambda layer: f"blocks.{layer}.hook_mlp_out")
    with pytest.raises(rl.ModelError, match=r"is not its key times W_out plus b_out \(relative difference"):
        wrapped.check_w_out(1, TOKENS)


@needs_hooked
def test_a_hooked_transformer_that_norms_its_values_is_refused():
    model = copy.deepcopy(architecture("llama", HOOKED))
    model.cfg.use_normalization_before_and_after = True
    assert "load the model as a TransformerBridge" in refused(rl.ModelError, as_backend(model).value_hook, 1)


@pytest.mark.parametrize("layer", [-1, 4, 1.0, True, "1"])
def test_layers_that_are_none_are_refused(gpt2, layer):
    with pytest.raises(rl.SettingError, match=r"has layers 0 to 3, counted from 0"):
        as_backend(gpt2).w_out(layer)


@needs_hooked
@pytest.mark.parametrize("name", ["gpt2", "llama", "opt"])
def test_a_layer_is_known_again_in_the_other_class_processed_or_in_half_precision(name):
    hooked, bridge = (as_backend(architecture(name, backend)) for backend in (HOOKED, BRIDGE))
    found = hooked.fingerprint(1)
    assert found.difference(bridge.fingerprint(1)) is None
    model = copy.deepcopy(architecture(name, HOOKED))
    model.process_weights_(fold_ln=True, center_writing_weights=name != "llama", center_unembed=True)
    assert found.difference(as_backend(model).fingerprint(1)) is None
    half = architecture(name, HOOKED, torch.bfloat16)
    assert found.difference(as_backend(half).fingerprint(1)) is None


def test_other_layers_models_and_shapes_are_told_apart(llama, gpt2):
    wrapped = as_backend(gpt2)
    found = wrapped.fingerprint(1)
    assert found.difference(wrapped.fingerprint(2)) == "layer 1 against 2"
    assert found.difference(as_backend(llama).fingerprint(1)) == "d_model 16 against 32"
    matrix = wrapped.w_out(1).matrix
    assert found.difference(wrapped.fingerprint(1, wrapped.w_out(2).matrix)) == "other weights in layer 1"
    assert found.difference(wrapped.fingerprint(1, 1.1 * matrix)) == "other weights in layer 1"
    noise = torch.randn(matrix.shape, generator=torch.Generator().manual_seed(0), dtype=matrix.dtype)
    assert found.difference(wrapped.fingerprint(1, matrix + 0.1 * noise * matrix.std())) == "other weights in layer 1"
    assert found.difference(wrapped.fingerprint(1, matrix + 1e-4 * noise * matrix.std())) is None


def test_a_fingerprint_is_read_back_and_a_damaged_one_refused(gpt2):
    found = as_backend(gpt2).fingerprint(1)
    assert Fingerprint.from_dict(found.to_dict() | {"later": 1}) == found
    damaged = [{"layer": "x"}, {"sketch": [1.0]}, {"sketch": 3}, {"norm": float("nan")}, {"d_mlp": None}]
    for change in damaged:
        with pytest.raises(rl.ArtefactError, match="the fingerprint of a model is damaged"):
            Fingerprint.from_dict(found.to_dict() | change)
    for field in dataclasses.fields(Fingerprint):
        with pytest.raises(rl.ArtefactError, match=field.name):
            Fingerprint.from_dict({k: v for k, v in found.to_dict().items() if k != field.name})


@pytest.mark.parametrize(("name", "backend"), hosted())
def test_blocks_called_for_rows_that_begin_apart_give_the_models_numbers(name, backend):
    wrapped, n_layers = as_backend(architecture(name, backend)), 4
    tokens = torch.randint(1, 250, (3, 9), generator=torch.Generator().manual_seed(0))
    # The second row's last position lies behind the text, and is nobody's.
    first, n_pos = torch.tensor([2, 5, 0]), 5
    columns = first[:, None] + torch.arange(n_pos)
    inside, rows = columns < tokens.shape[1], torch.arange(3)[:, None]
    columns = columns.clamp(max=tokens.shape[1] - 1)
    entering, final = [], []
    hooks = [(f"blocks.{layer}.hook_resid_pre", lambda x: entering.append(x.clone())) for layer in range(n_layers)]
    hooks.append((f"blocks.{n_layers - 1}.hook_resid_post", lambda x: final.append(x.clone())))
    with torch.no_grad():
        with wrapped.recording() as replay, wrapped.hooked(hooks):
            wrapped.logits(tokens, keep=1)
        pasts = [replay.run(layer, x, first=0, past=None)[1].ending_at(first) for layer, x in enumerate(entering)]
        state = entering[0][rows, columns]
        for layer, past in enumerate(pasts):
            state, _ = replay.run(layer, state, first=first, past=past)
    torch.testing.assert_close(state[inside], final[0][rows, columns][inside], rtol=1e-9, atol=1e-9)
