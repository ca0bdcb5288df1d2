"""The files that the docs quote run as they stand, on tiny models."""

import runpy
from pathlib import Path

import pytest
import torch
from architectures import BACKENDS, byte_tokenizer, hugging_face_model
from known_facts import known_facts
from tiny_shell import write_tiny_model

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


def _records(*prompts):
    """Records in the tiny models' words."""
    return [
        rl.CounterFactRecord(
            number=number,
            case_id=number,
            relation=None,
            request=rl.EditRequest(prompt, TINY_SUBJECT, target_new="tower", target_true="city"),
            paraphrases=("the city is in the",),
            neighbours=("the city of the", "in the tower is the"),
            generation_prompts=("the tower is",),
        )
        for number, prompt in enumerate(prompts)
    ]


@pytest.mark.parametrize("backend", BACKENDS)
def test_evaluate_an_editor(backend, capsys, tmp_path):
    example = runpy.run_path(str(EXAMPLES / "evaluate_an_editor.py"))
    model = tiny_model(backend)
    weights = {name: weight.clone() for name, weight in model.state_dict().items()}
    tuned = example["TunedMLP"](model, layer=0, length=2.0)
    records = _records("{} is in the city of", "the city of {} is")
    report = example["compare"](model, {"none": None, "tuned": tuned}, records, out=tmp_path / "run")
    lines = capsys.readouterr().out.splitlines()
    scores = report.editors["tuned"].scores
    assert [line.split()[0] for line in lines] == ["none", "tuned"]
    assert lines[1].startswith(f"tuned    S {scores['S']:5.1f} [")
    assert scores["EM"] > report.editors["none"].scores["EM"] + 20
    assert report.editors["tuned"].failed == {}
    assert all(weight.equal(weights[name]) for name, weight in model.state_dict().items())
    assert rl.read_run(tmp_path / "run").editors["tuned"].scores == scores


def test_evaluate_on_dask(capsys, tmp_path):
    distributed = pytest.importorskip("distributed")
    evaluate_on_dask = runpy.run_path(str(EXAMPLES / "evaluate_on_dask.py"))["evaluate_on_dask"]
    write_tiny_model(tmp_path / "tiny")
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=1, processes=True, dashboard_address="127.0.0.1:0", silence_logs=50
    ) as cluster:
        report = evaluate_on_dask(
            cluster.scheduler_address,
            str(tmp_path / "tiny"),
            ["none", "ft"],
            _records("{} is in the city of", "the city of {} is"),
            out=str(tmp_path / "run"),
            measures=rl.Measures(n_texts=0),
        )
        # A task goes through several states; without tasks there would be none.
        assert cluster.scheduler.transition_counter >= 2
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["none on 2 records", "ft on 2 records"]
    assert report.editors["ft"].scores["EM"] > report.editors["none"].scores["EM"]
    assert rl.read_run(tmp_path / "run").editors == report.editors


def test_average_facts(capsys):
    example = runpy.run_path(str(EXAMPLES / "average_facts.py"))
    model = tiny_model("auto")
    average = example["average_facts"](model, known_facts(model, 4), noise=1.0, samples=2)
    first, *peaks = capsys.readouterr().out.splitlines()
    assert first == f"4 facts known, 0 set aside; total effect {average.total_effect.mean:.3f}"
    assert [line.split()[0] for line in peaks] == ["resid", "resid", "mlp", "mlp", "attn", "attn"]
