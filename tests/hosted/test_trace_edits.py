"""Traces before and after edits: the same answer, the same noise, the weights put back."""

import copy
import json
from dataclasses import replace

import pytest
import torch
from architectures import architecture
from edits import random_edit
from hosts import EACH_BACKEND
from left_alone import left_alone
from refused import refused
from tiny_shell import TinyHouse

import rome_lens as rl

PROMPT, SUBJECT = "The tower is in", "tower"
SETTINGS = {"subject": SUBJECT, "noise": 1.0, "samples": 3, "window": 2}


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    return TinyHouse(tmp_path_factory.mktemp("trace_edits"))


@pytest.mark.parametrize("backend", EACH_BACKEND)
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_before_is_the_model_as_it_is_and_after_is_the_edited_one(name, backend):
    model = architecture(name, backend)
    edits = [random_edit(model, layer=layer, seed=layer) for layer in (1, 2)]
    with left_alone(model):
        trace = rl.causal_trace(model, PROMPT, answer="xy", edits=edits, **SETTINGS)
    assert rl.applied_edits(model) == ()
    with edits[0].applied(model), edits[1].applied(model):
        edited = rl.causal_trace(model, PROMPT, answer="xy", **SETTINGS)
    unedited = rl.causal_trace(model, PROMPT, answer="xy", **SETTINGS)
    assert trace.answer_ids == edited.answer_ids == trace.unedited.answer_ids
    assert trace.edits == ("The tower is in → Rome 1", "The tower is in → Rome 2")
    for stream in ("resid", "mlp", "attn"):
        assert torch.equal(trace.scores[stream], edited.scores[stream])
        assert torch.equal(trace.unedited.scores[stream], unedited.scores[stream])
        assert not torch.equal(trace.scores[stream], trace.unedited.scores[stream])
    assert (trace.low, trace.high) == (edited.low, edited.high)
    assert (trace.unedited.low, trace.unedited.high) == (unedited.low, unedited.high)
    assert trace.unedited.edits == ()
    assert trace.unedited.unedited is None
    assert edited.unedited is None
    assert trace.noise == trace.unedited.noise


def test_without_an_answer_it_is_what_the_edited_model_says(llama):
    edit = random_edit(llama, seed=3)
    trace = rl.causal_trace(llama, PROMPT, edits=[edit], **SETTINGS)
    with edit.applied(llama):
        said = rl.causal_trace(llama, PROMPT, **SETTINGS)
    assert trace.answer_ids == trace.unedited.answer_ids == said.answer_ids
    assert rl.causal_trace(llama, PROMPT, **SETTINGS).answer_ids != said.answer_ids


def test_it_is_saved_shown_and_tabled_with_both(gpt2, tmp_path):
    trace = rl.causal_trace(gpt2, PROMPT, edits=[random_edit(gpt2)], streams=("resid", "mlp"), **SETTINGS)
    trace.save(tmp_path / "t")
    loaded = rl.CausalTrace.load(tmp_path / "t")
    assert loaded.to_dict() == trace.to_dict()
    assert loaded.unedited.to_dict() == trace.unedited.to_dict()
    assert json.loads(json.dumps(trace.to_dict()))["unedited"]["low"] == trace.unedited.low
    titles = [heat_map.title for heat_map in trace.heat_maps()]
    assert titles == [
        "Restoring the residual state, before the edit",
        "Restoring the MLP outputs, before the edit",
        "Restoring the residual state, after the edit",
        "Restoring the MLP outputs, after the edit",
    ]
    assert trace.heat_maps()[1].scores == trace.unedited.scores["mlp"].tolist()
    figure = trace.figure()
    panels = [data for data in figure.data if data.type == "heatmap"]
    assert len(panels) == 4
    # A row before and a row after: the panels of one stream share their column.
    assert figure.layout.xaxis.domain == figure.layout.xaxis3.domain
    assert figure.layout.yaxis.domain[0] > figure.layout.yaxis3.domain[1]
    assert "edited: The tower is in → Rome 0" in figure.layout.title.text.replace("<br>", " ")
    table = trace.to_dataframe()
    assert table["unedited_score"].tolist() == trace.unedited.to_dataframe()["score"].tolist()
    assert "unedited_score" not in trace.unedited.to_dataframe()


def test_edits_that_do_not_fit_are_refused_and_nothing_is_left_behind(llama, gpt2):
    good, other = random_edit(gpt2, layer=1), random_edit(llama, layer=2)
    with left_alone(gpt2):
        said = refused(rl.ModelMismatchError, rl.causal_trace, gpt2, PROMPT, edits=[good, other], **SETTINGS)
    assert "another model" in said
    edited = copy.deepcopy(gpt2)
    good.apply(edited)
    assert "applied already" in refused(rl.EditStateError, rl.causal_trace, edited, PROMPT, edits=[good], **SETTINGS)


def test_the_shell_traces_an_edit_file(house, monkeypatch):
    shell = house.shell(monkeypatch)
    result = shell.run("trace", "--edit", "EDIT", "--noise", "1", "--samples", "2")
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0].startswith("where stands the tower → ")
    assert "edited: where stands the tower → rome" in lines
    assert lines.index("Before the edit") < lines.index("After the edit")
    assert sum("Restoring the" in line for line in lines) == 6
    assert sum(line.startswith("high ") for line in lines) == 2
    assert max(map(len, lines)) <= 80
    both = json.loads(shell.run("trace", "--edit", "EDIT", "--noise", "1", "--samples", "2", "--json").stdout)
    assert both["high"] != both["unedited"]["high"]
    refused = shell.run("trace", "--edit", "nowhere")
    assert refused.exit_code == 1
    assert refused.stderr == "rome-lens: there is no file 'nowhere'; expected one that rome_lens saved\n"


def test_traces_are_equal_when_all_that_they_hold_is(gpt2, tmp_path):
    edit = random_edit(gpt2)
    ask = {"prompt": "ab cde fgh", "subject": "cde", "noise": 0.3, "samples": 2, "answer": "x"}
    trace = rl.causal_trace(gpt2, **ask, edits=[edit], severed="mlp")
    trace.save(tmp_path / "trace.safetensors")
    loaded = rl.CausalTrace.load(tmp_path / "trace.safetensors")
    assert (trace == trace, loaded == trace, hash(loaded) == hash(trace)) == (True, True, True)
    changed = {name: grid.clone() for name, grid in trace.scores.items()}
    changed["mlp"][0, 0] += 1e-6
    fewer = {name: grid for name, grid in changed.items() if name != "mlp"}
    for other in (
        replace(trace, scores=changed),
        replace(trace, scores=fewer),
        replace(trace, severed={}),
        replace(trace, unedited=None),
        replace(trace, seed=2),
        "a trace",
    ):
        assert trace != other
