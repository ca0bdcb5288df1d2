"""Answers of many tokens, whose joint probability float32 does not hold, or nothing does."""

import json

import pytest
import torch
from architectures import BACKENDS, own
from rich.console import Console
from tiny_rome import TEMPLATES, moment

import rome_lens as rl
from rome_lens.figures import render_heat_map

PROMPT, SUBJECT = "a cd fg", "cd"
ANSWER = "an answer that nobody expects"  # 30 tokens of about 1/258


def trace(model, answer=ANSWER, **settings):
    return rl.causal_trace(model, PROMPT, subject=SUBJECT, answer=answer, samples=2, noise=2.0, window=3, **settings)


def log_probability(model, answer):
    """By a forward of the model itself, in float64 from the logits on."""
    ids = torch.tensor([model.tokenizer(PROMPT + " " + answer)["input_ids"]])
    n = len(answer) + 1
    with torch.no_grad():
        logits = model(ids)[0, -n - 1 : -1].double()
    return logits.log_softmax(dim=-1).gather(1, ids[0, -n:, None]).sum()


@pytest.mark.parametrize("engine", ["auto", "plain", "attribution"])
def test_a_trace_of_what_float32_does_not_hold(backend, engine, tmp_path):
    model = own("gpt2", backend, dtype=torch.float32)
    traced = trace(model, engine=engine)
    assert 0 < traced.high < 1e-46
    assert traced.high == pytest.approx(log_probability(model, ANSWER).exp().item(), rel=1e-4)
    assert traced.low > 0
    for stream, grid in traced.scores.items():
        assert grid.dtype == torch.float64
        if engine != "attribution":
            assert (grid > 0).all()
        # Not all are alike: there is a peak to be found.
        assert grid.max() - grid.min() > 1e-3 * traced.high
        assert traced.effect(stream).abs().max() > 0
    traced.save(tmp_path / "trace.safetensors")
    again = rl.CausalTrace.load(tmp_path / "trace.safetensors")
    assert (again.high, again.low) == (traced.high, traced.low)
    torch.testing.assert_close(again.scores, traced.scores, rtol=0, atol=0)
    assert json.loads(json.dumps(traced.to_dict()))["high"] == traced.high
    table = traced.to_dataframe()
    assert (table["score"] == torch.cat([grid.flatten() for grid in traced.scores.values()]).tolist()).all()
    assert f"high {traced.high:.1e}" in repr(traced)


def test_both_engines_agree_on_it(backend):
    model = own("gpt2", backend, dtype=torch.float32)
    torch.testing.assert_close(trace(model).scores, trace(model, engine="plain").scores, rtol=1e-4, atol=0)


def test_a_trace_of_what_no_number_holds_says_so(capsys):
    model = own("gpt2", BACKENDS[0])
    with torch.no_grad():
        for parameter in model.unembed.parameters():
            parameter.mul_(60)
    traced = trace(model, answer=ANSWER)
    assert traced.high == traced.low == 0
    assert [note for note in traced.notes if "below 1e-323" in note and "name a shorter answer" in note]
    assert repr(traced).endswith("peaks by (layer, pos): none, all scores are 0)")
    Console(width=100).print(render_heat_map(traced.heat_maps()[0], width=100))
    printed = capsys.readouterr().out
    assert "no peak: every score is 0" in printed
    assert "×" not in printed
    texts = [annotation.text for annotation in traced.figure().layout.annotations]
    assert sum("no peak: every score is 0" in text for text in texts) == 3
    assert not traced.figure().layout.shapes


def test_edits_to_what_float32_does_not_hold(backend):
    model = own("gpt2", backend, dtype=torch.float32)
    request = rl.EditRequest("a {} fg", SUBJECT, ANSWER)
    editor = rl.ROME(model, layer=1, second_moment=moment(64), context_templates=TEMPLATES, v_num_grad_steps=2)
    edits = [editor.edit(request), rl.FineTuning(model, layer=1, num_steps=2).edit(request)]
    for edit in edits:
        assert edit.before.target == pytest.approx(log_probability(model, ANSWER).exp().item(), rel=1e-4)
        assert 0 < edit.before.target < edit.after.target
