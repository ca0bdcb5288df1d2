"""The files that the docs quote run as they stand, on tiny models."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from architectures import BACKENDS, byte_tokenizer, hugging_face_model
from known_facts import known_facts
from published import published
from tiny_shell import write_tiny_model

import rome_lens as rl
from rome_lens.loading.tiny import TINY_PROMPT, TINY_SUBJECT, tiny_model

EXAMPLES = Path(__file__).parents[2] / "examples"


def _example(name):
    return runpy.run_path(str(EXAMPLES / name))


def test_trace_a_fact(capsys):
    trace_a_fact = _example("trace_a_fact.py")["trace_a_fact"]
    trace = trace_a_fact(tiny_model("auto"), TINY_PROMPT, TINY_SUBJECT, noise=1.0)
    first, *streams = capsys.readouterr().out.splitlines()
    assert first.startswith(f"{TINY_PROMPT} → {trace.answer.strip()}: high {trace.high:.3f}")
    assert [line.split()[0] for line in streams] == ["resid", "mlp", "attn"]


@pytest.mark.filterwarnings("ignore::UserWarning:transformer_lens")
def test_trace_your_own_model():
    trace_model = _example("trace_your_own_model.py")["trace_hugging_face_model"]
    trace = trace_model(hugging_face_model("llama"), byte_tokenizer(), "ab cde fgh", "cde", noise=1.0)
    assert (trace.backend, trace.engine) == ("transformer-bridge", "blocks")


@pytest.fixture
def editor():
    """Edits a tiny model with no templates, for whose context they are too long."""
    moment = rl.SecondMoment.from_matrix(torch.eye(64), layer=0)
    return rl.ROME(tiny_model("auto"), layer=0, second_moment=moment, context_templates=["{}"])


REQUEST = rl.EditRequest(TINY_PROMPT.replace(TINY_SUBJECT, "{}"), TINY_SUBJECT, target_new="tower")


def test_edit_a_fact(editor, capsys):
    edit_a_fact = _example("edit_a_fact.py")["edit_a_fact"]
    edit = edit_a_fact(editor, REQUEST)
    first, *said = capsys.readouterr().out.splitlines()
    assert first == f"p(tower) {edit.before.target:.3f} → {edit.after.target:.3f}"
    before, edited, after, hooked = (line.rpartition(":")[2].strip() for line in said)
    assert before == after != edited == hooked == "tower"
    assert rl.applied_edits(editor.model) == ()


def test_trace_an_edit(editor, capsys):
    edit = editor.edit(REQUEST)
    trace_an_edit = _example("trace_an_edit.py")["trace_an_edit"]
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
    example = _example("evaluate_an_editor.py")
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


@pytest.mark.slow
def test_evaluate_on_dask(capsys, tmp_path):
    distributed = pytest.importorskip("distributed")
    evaluate_on_dask = _example("evaluate_on_dask.py")["evaluate_on_dask"]
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=1, processes=True, dashboard_address="127.0.0.1:0", silence_logs=50
    ) as cluster:
        report = evaluate_on_dask(
            cluster.scheduler_address,
            str(write_tiny_model(tmp_path / "tiny")),
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
    example = _example("average_facts.py")
    model = tiny_model("auto")
    average = example["average_facts"](model, known_facts(model, 4), noise=1.0, samples=2)
    first, *peaks = capsys.readouterr().out.splitlines()
    assert first == f"4 facts known, 0 set aside; total effect {average.total_effect.mean:.3f}"
    assert [line.split()[0] for line in peaks] == ["resid", "resid", "mlp", "mlp", "attn", "attn"]


def test_trace_prompts(capsys, tmp_path, monkeypatch):
    example = _example("trace_prompts.py")
    model = tiny_model("auto")
    known, *_ = known_facts(model, 1)
    row, failed = example["trace_prompts"](model, [(known.text, known.subject), (known.text, "nobody")], noise=1.0)
    trace = rl.causal_trace(model, known.text, subject=known.subject, noise=1.0)
    layer, pos = trace.peak("mlp", positions=range(*trace.subject_span))
    assert (row["answer"], row["high"], row["mlp_layer"]) == (trace.answer.strip(), trace.high, layer)
    assert (row["mlp_token"], row["mlp_score"]) == (trace.tokens[pos], trace.scores["mlp"][layer, pos])
    assert "'nobody'" in failed["error"]
    assert [*row, "error"] == example["COLUMNS"]
    write_tiny_model(tmp_path / "tiny")
    (tmp_path / "prompts.csv").write_text("subject,prompt\nthe tower,the tower is in\nnobody,the city is a\na,a b\n")
    monkeypatch.chdir(tmp_path)
    example["main"](["found.csv", "--prompts", "prompts.csv", "--model", "tiny", "--limit", "2"])
    head, row, failed = (tmp_path / "found.csv").read_text().splitlines()
    assert head == ",".join(example["COLUMNS"])
    assert row.startswith("the tower is in,the tower,")
    assert failed.startswith("the city is a,nobody,,,,,,,,,,,,,,")
    assert len(capsys.readouterr().err.splitlines()) >= 2
    (tmp_path / "prompts.csv").write_text("text\nthe tower is in\n")
    with pytest.raises(SystemExit, match=r"prompts\.csv: no column prompt and no column subject; its first line names"):
        example["main"](["found.csv", "--prompts", "prompts.csv", "--model", "tiny"])


def test_sweep_layers(capsys, tmp_path):
    sweep_layers = _example("sweep_layers.py")["sweep_layers"]
    model = rl.load_model(write_tiny_model(tmp_path / "tiny"))
    records, out = _records("{} is in the city of"), str(tmp_path / "run")
    report = sweep_layers(model, [0, 1], records, tokens=400, out=out)
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["layer-0", "layer-1"]
    assert report.to_dataframe()["layer"].tolist() == [0, 1]
    assert {record["error"] for found in report.records.values() for record in found} == {None}
    (lost,) = (tmp_path / "run" / "records" / "layer-1").iterdir()
    lost.unlink()
    again = sweep_layers(model, [0, 1], records, tokens=400, out=out)
    assert lost.is_file()
    assert again.to_dataframe().equals(report.to_dataframe())


def test_compare_variants(capsys, tmp_path):
    compare_variants = _example("compare_variants.py")["compare_variants"]
    rl.SecondMoment.from_matrix(torch.eye(64), layer=0).save(tmp_path / "identity.safetensors")
    moments = [str(tmp_path / "identity.safetensors")]
    model, records = rl.load_model(write_tiny_model(tmp_path / "tiny")), _records("{} is in the city of")
    table = compare_variants(model, records, second_moments=moments)
    assert table.index.tolist() == ["r-rome", "rome", "p-rome", "identity"]
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[1:]] == table.index.tolist()
    assert (table["largest update"] > 0).all()
    # With the identity as second moment, that is what r-rome does.
    assert table.loc["r-rome"].equals(table.loc["identity"])
    assert (table["perplexity"] > 0).all()
    assert (table["perplexity"] != 1).all()
    # One record: it is flagged or it is not.
    moved = (table["perplexity"] > 1.2) | (table["perplexity"] < 1 / 1.2)
    assert table["flagged"].astype(bool).tolist() == moved.tolist()


def test_edit_in_bfloat16(capsys, tmp_path):
    edit_in_bfloat16 = _example("edit_in_bfloat16.py")["edit_in_bfloat16"]
    moment = rl.SecondMoment.from_matrix(torch.eye(64), layer=0)
    request = rl.EditRequest("where stands {}", "the tower", target_new="rome")
    edit = edit_in_bfloat16(str(write_tiny_model(tmp_path / "tiny")), request, second_moment=moment)
    lines = capsys.readouterr().out.splitlines()
    exact, half = ([float(p) for p in line.rpartition(": ")[2].split(" → ")] for line in lines)
    assert [line[:8].strip() for line in lines] == ["float32", "bfloat16"]
    assert (edit.dtype, edit.layer) == ("float32", 0)
    assert exact == pytest.approx([edit.before.target, edit.after.target], abs=1e-3)
    assert half == pytest.approx(exact, abs=0.05)
    assert half != exact
    assert half[1] > half[0] + 0.3


@pytest.mark.slow
def test_slurm_array(tmp_path):
    write_tiny_model(tmp_path / "tiny")
    bin_folder = Path(sys.executable).parent
    environment = {**os.environ, "PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}", "PARTS": "2"}
    prompts, paraphrases = ("{} is in the city of", "{} stands in"), ("where stands the tower",)
    records = [
        rl.CounterFactRecord(
            0, 0, None, rl.EditRequest(p, "the tower", "rome", "paris"), paraphrases, ("the museum stands in",), ()
        )
        for p in prompts
    ]
    (tmp_path / "records.json").write_text(json.dumps(list(map(published, records))))
    asked = ["--model=tiny", "--data=records.json", "--editor=none", "--texts=0", "--perplexity=none", "--batch=1"]
    for task in ("1", "2"):
        command = [str(EXAMPLES / "slurm_array.sh"), *asked]
        subprocess.run(command, cwd=tmp_path, env={**environment, "SLURM_ARRAY_TASK_ID": task}, check=True)
    script = (EXAMPLES / "slurm_array.sh").read_text("utf-8")
    assert "--array=1-8" in script
    assert "PARTS:-8" in script
    _, _, join = script.partition('--wrap "')
    subprocess.run(join.partition('"')[0], shell=True, cwd=tmp_path, env=environment, check=True)
    assert rl.read_run(tmp_path / "whole").editors["none"].n_records == 2
