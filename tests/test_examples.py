"""The files that the docs quote run as they stand, on tiny models."""

import runpy
from pathlib import Path

import pytest
import torch
from architectures import byte_tokenizer, hugging_face_model

import rome_lens as rl
from rome_lens.loading.tiny import TINY_PROMPT, TINY_SUBJECT, tiny_model

EXAMPLES = Path(__file__).parents[1] / "examples"


def test_trace_a_fact(capsys):
    trace_a_fact = runpy.run_path(str(EXAMPLES / "trace_a_fact.py"))["trace_a_fact"]
    trace = trace_a_fact(tiny_model("auto"), TINY_PROMPT, TINY_SUBJECT, noise=1.0)
    first, *streams = capsys.readouterr().out.splitlines()
    assert first.startswith(f"{TINY_PROMPT} → {trace.answer.strip()}: high {trace.high:.3f}")
    assert [line.split()[0] for line in streams] == ["resid", "mlp", "attn"]


@pytest.mark.filterwarnings("ignore::UserWarning:transformer_lens")
def test_trace_your_own_model():
    trace_model = runpy.run_path(str(EXAMPLES / "trace_your_own_model.py"))["trace_hugging_face_model"]
    trace = trace_model(hugging_face_model("llama"), byte_tokenizer(), "ab cde fgh", "cde", noise=1.0)
    assert (trace.backend, trace.engine) == ("transformer-bridge", "blocks")


@pytest.fixture
def editor():
    """Edits a tiny model with no templates, for whose context they are too long."""
    moment = rl.SecondMoment.from_matrix(torch.eye(64), layer=0)
    return rl.ROME(tiny_model("auto"), layer=0, second_moment=moment, context_templates=["{}"])


REQUEST = rl.EditRequest(TINY_PROMPT.replace(TINY_SUBJECT, "{}"), TINY_SUBJECT, target_new="tower")


def test_edit_a_fact(editor, capsys):
    edit_a_fact = runpy.run_path(str(EXAMPLES / "edit_a_fact.py"))["edit_a_fact"]
    edit = edit_a_fact(editor, REQUEST)
    first, *said = capsys.readouterr().out.splitlines()
    assert first == f"p(tower) {edit.before.target:.3f} → {edit.after.target:.3f}"
    before, edited, after, hooked = (line.rpartition(":")[2].strip() for line in said)
    assert before == after != edited == hooked == "tower"
    assert rl.applied_edits(editor.model) == ()


def test_trace_an_edit(editor, capsys):
    edit = editor.edit(REQUEST)
    trace_an_edit = runpy.run_path(str(EXAMPLES / "trace_an_edit.py"))["trace_an_edit"]
    trace = trace_an_edit(editor.model, edit, noise=1.0)
    first, *grids = capsys.readouterr().out.splitlines()
    assert first == f"{TINY_PROMPT} → tower, edited at layer 0"
    assert [line.split()[0] for line in grids] == ["before", "after"]
    assert trace.unedited.answer == trace.answer
    assert trace.unedited.edits == ()
    assert len(trace.figure().data) == 6
