"""Names of `W_out` in Hugging Face's model, against the plain model's own, for every architecture."""

from types import SimpleNamespace

import pytest
import torch
from architectures import BRIDGE, CONFIGS, HOOKED, architecture, hugging_face_model, own
from hosts import needs_hooked
from torch import nn

from rome_lens.backends import as_backend
from rome_lens.backends.modules import hugging_face_module, hugging_face_tree, is_wrapped
from rome_lens.errors import ModelError


@pytest.mark.parametrize("name", CONFIGS)
def test_names_the_module_that_holds_w_out(name, backend):
    try:
        model = as_backend(architecture(name, backend))
    except ModelError:
        pytest.skip("no HookedTransformer of this architecture")
    found = hugging_face_module(model, 2)
    if name == "mixtral":  # a mixture of experts has no W_out
        assert found is None
        return
    assert found is not None
    module_name, transposed = found
    module = dict(hugging_face_model(name).named_modules())[module_name]
    assert transposed == isinstance(module, nn.Linear)
    assert torch.equal(module.weight.t() if transposed else module.weight, model.w_out(2).matrix)


@pytest.mark.parametrize("no_processing", [True, False])
@pytest.mark.parametrize("name", ["gpt2", "llama", "opt"])
def test_compatibility_mode_does_not_hide_the_module(name, no_processing):
    model = own(name, BRIDGE)
    before = hugging_face_module(as_backend(model), 1)
    model.enable_compatibility_mode(disable_warnings=True, no_processing=no_processing)
    assert hugging_face_module(as_backend(model), 1) == before is not None


def test_tree_of_a_bridge_is_the_plain_models():
    for name in ("gpt2", "opt", "gemma2"):
        plain = hugging_face_model(name)
        wrapped = architecture(name, BRIDGE).original_model
        assert {name for name, _ in hugging_face_tree(wrapped)} == {name for name, _ in plain.named_modules()}
        assert (is_wrapped(plain), is_wrapped(wrapped)) == (False, True)


def test_a_layer_that_does_not_exist_has_no_name():
    assert hugging_face_module(as_backend(architecture("gpt2", BRIDGE)), 4) is None


@needs_hooked
@pytest.mark.parametrize("origin", [None, "", "neel", "NoSuchForCausalLM", 3])
def test_unknown_origin_has_no_name(origin):
    model = architecture("gpt2", HOOKED)
    backend = as_backend(model)
    odd = SimpleNamespace(cfg=SimpleNamespace(**vars(model.cfg) | {"original_architecture": origin}))
    odd.w_out = backend.w_out
    odd.model = odd
    assert hugging_face_module(odd, 1) is None


@needs_hooked
def test_configuration_stays_as_it_was():
    model = architecture("bloom", HOOKED)  # its table's maker writes into the configuration
    before = repr(sorted(vars(model.cfg).items(), key=lambda item: item[0]))
    assert hugging_face_module(as_backend(model), 0) == ("transformer.h.0.mlp.dense_4h_to_h", True)
    assert repr(sorted(vars(model.cfg).items(), key=lambda item: item[0])) == before
