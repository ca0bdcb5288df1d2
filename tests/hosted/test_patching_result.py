"""Traces as TransformerLens's own result of activation patching, where it has one."""

import pytest
import torch
from refused import refused
from transformer_lens import patching

import rome_lens as rl

has_result = pytest.mark.skipif(not hasattr(patching, "PatchingResult"), reason="TransformerLens has it from 4.3 on")


def trace(model, **settings):
    return rl.causal_trace(model, "a cd fg", subject="cd", answer="x", noise=2.0, samples=2, window=2, **settings)


@has_result
def test_its_effects_are_the_traces(llama):
    traced = trace(llama, streams=("resid", "mlp", "heads"), measure="log_probability")
    found = traced.to_patching_result()
    assert (found.axis_names, found.patch_type_names) == (["patch_type", "layer", "pos"], ["resid", "mlp"])
    assert torch.equal(found.values, torch.stack([traced.scores["resid"], traced.scores["mlp"]]))
    assert torch.equal(found.effect()[1], traced.effect("mlp"))
    high = torch.tensor(traced.high, dtype=torch.float64)
    torch.testing.assert_close(found.normalized(high)[0], traced.normalized("resid"), rtol=1e-12, atol=0)
    heads = traced.to_patching_result("heads")
    assert (heads.axis_names, heads.metric_names) == (["layer", "head"], ["log_probability"])
    assert torch.equal(heads["log_probability"].mean(), traced.scores["heads"])
    table = found.to_dataframe()
    of_mlp = table[table["patch_type_name"] == "mlp"]
    assert of_mlp["value"].tolist() == traced.scores["mlp"].flatten().tolist()
    own = traced.to_dataframe()
    assert set(heads.to_dataframe().columns) <= set(own.columns)
    assert own[own["stream"] == "mlp"]["value"].tolist() == of_mlp["value"].tolist()


@has_result
def test_heads_alone(llama):
    traced = trace(llama, streams="heads")
    assert torch.equal(traced.to_patching_result().values, traced.scores["heads"])


def test_what_was_not_traced_is_refused(llama):
    said = refused(rl.SettingError, trace(llama, streams="mlp").to_patching_result, "attn")
    assert said == "the stream 'attn' was not traced; this trace has mlp"


@pytest.mark.skipif(hasattr(patching, "PatchingResult"), reason="of a TransformerLens that has none")
def test_an_older_transformer_lens_has_none(llama):
    said = refused(rl.ModelError, trace(llama, streams="mlp").to_patching_result)
    assert said.endswith("has no PatchingResult; install 4.3 or newer, or use to_dataframe")
