"""Evaluations with checkpoints as runs: killed, shared out, joined and refused, and always the same numbers."""

import ast
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import tiny_together
import torch
from earlier_files import StoppedError, no_model, stop_after
from left_alone import left_alone
from refused import refused
from tiny_evaluation import make_model, make_records, save_moment
from tiny_together import AT, EDITORS, KILLED, evaluate, settings_for

import rome_lens as rl
from rome_lens.errors import EditStateError, SettingError
from rome_lens.runs import dask_executor

HELPERS = Path(__file__).parents[1] / "helpers"

# Runs and folders are under test here; what is computed has tests of its own.
pytestmark = pytest.mark.usefixtures("unchecked", "one_thread_everywhere")


@pytest.fixture(scope="module")
def moment(tmp_path_factory):
    return save_moment(tmp_path_factory.mktemp("moment"))


@pytest.fixture(scope="module")
def whole(moment, tmp_path_factory):
    """The folder of a run that nobody disturbed."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    evaluate(folder, moment)
    return folder


def contents(folder):
    """What the files of a run hold."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*.json"))}


def summary(folder):
    return (folder / "summary.json").read_bytes()


def test_a_run_keeps_records_states_steps_and_values_that_editors_share(whole):
    names = set(contents(whole))
    asked = {f"records/{name}@{n}/{number:06d}.json" for name in EDITORS for n in AT for number in range(n)}
    kept = {f"records/{part}/{name}@{n}.json" for part in ("states", "texts") for name in EDITORS for n in AT}
    steps = {f"records/steps-{name}/{begin:06d}.json" for name in ("sequence", "ft") for begin in (0, 2, 5)}
    files = {"settings.json", "prepared.json", "plan.json", "summary.json"}
    assert {name for name in names if not name.startswith("values/")} == {*asked, *kept, *steps, *files}
    (values,) = (whole / "values").iterdir()
    assert len(list(values.glob("records/facts/*.json"))) == 12


def test_memory_and_folder_give_the_same_report(whole, moment):
    report = evaluate(None, moment)
    assert json.loads(json.dumps(report.summary())) == json.loads(summary(whole))
    assert rl.read_run(whole).summary() == report.summary()
    assert report.at == AT
    assert set(report.to_dataframe()["editor"]) == {"none", *EDITORS}


def test_the_report_says_where_values_were_found(whole):
    said = rl.read_run(whole).descriptions
    assert {name for name in EDITORS if "found_on edited" in said[name]} == {"sequence", "ft"}
    assert {name for name in EDITORS if "found_on base" in said[name]} == {"memit", "emmet", "stacked"}


def test_found_on_holds_for_all_of_an_editor_without_a_setting_of_its_own(moment):
    how = {"editors": ["stacked"], "at": (2,), "count": 2}
    base, edited = (evaluate(None, moment, together={"found_on": where}, **how) for where in ("base", "edited"))
    assert "found_on base" in base.descriptions["stacked"]
    assert "found_on edited" in edited.descriptions["stacked"]


def test_a_run_that_is_over_loads_no_model(whole, moment):
    before = summary(whole)
    evaluate(whole, moment, model=no_model)
    assert summary(whole) == before


@pytest.mark.parametrize("steps", [1, 40])
def test_a_run_that_was_stopped_goes_on_and_ends_with_the_same_numbers(whole, moment, tmp_path, steps):
    with pytest.raises(StoppedError):
        evaluate(tmp_path / "run", moment, progress=stop_after(steps))
    evaluate(tmp_path / "run", moment)
    assert contents(tmp_path / "run") == contents(whole)


def test_ten_kills_lose_no_record_and_change_no_bit(moment, tmp_path):
    script = [sys.executable, str(HELPERS / "tiny_together.py"), str(tmp_path / "run"), str(moment), "10", "3"]
    done = subprocess.run(script, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(ast.literal_eval(done.stdout.splitlines()[-1])) == 10
    evaluate(tmp_path / "whole", moment, editors=KILLED)
    assert summary(tmp_path / "run") == summary(tmp_path / "whole")


@pytest.mark.slow  # test_run_dask loses workers of a cluster at every landing
def test_a_dask_cluster_that_loses_a_worker_gives_the_same_numbers(whole, moment, tmp_path):
    distributed = pytest.importorskip("distributed")
    killed = []
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address="127.0.0.1:0", silence_logs=50
        ) as cluster,
        dask_executor(cluster.scheduler_address) as executor,
    ):

        def kill_one(done, total, what):
            if done >= 3 and what.startswith("records") and not killed:
                killed.append(next(iter(cluster.workers.values())).process.pid)
                os.kill(killed[0], signal.SIGKILL)

        evaluate(tmp_path / "run", moment, executor=executor, progress=kill_one)
    assert killed
    assert summary(tmp_path / "run") == summary(whole)


def test_shards_find_their_facts_and_joined_they_go_on_together(whole, moment, tmp_path):
    folders = [tmp_path / str(number) for number in (1, 2)]
    for number, folder in enumerate(folders, start=1):
        evaluate(folder, moment, shard=f"{number}/2")
    _, missing = rl.merge_runs(folders, tmp_path / "found")
    assert missing
    evaluate(tmp_path / "found", moment)
    assert summary(tmp_path / "found") == summary(whole)


def test_values_of_an_earlier_call_serve(whole, moment, tmp_path):
    model = make_model()
    editor = rl.MEMIT(
        model,
        layers=1,
        second_moments=rl.SecondMoment.load(moment),
        context_templates=["{}", "so. {}"],
        v_num_grad_steps=2,
    )
    requests = [record.request for record in make_records(12)]
    editor.edit_together(requests, out=tmp_path / "values", workers=1, allow_conflicts=True)
    before = contents(tmp_path / "values")
    report = evaluate(None, moment, model=model, editors=["memit"], together={"values": tmp_path / "values"})
    assert contents(tmp_path / "values") == before
    expected = rl.read_run(whole).editors["memit"]
    assert [point.to_dict() for point in report.editors["memit"]] == [point.to_dict() for point in expected]


def test_a_sample_is_the_same_at_all_checkpoints(moment):
    report = evaluate(None, moment, editors=["memit"], together={"sample": 6})
    numbers = {n: [record["number"] for record in several] for n, several in report.records["memit"].items()}
    assert numbers[12][:3] == [0, 1, 2]
    assert numbers[12][-3:] == [9, 10, 11]
    assert len(numbers[12]) == 6
    assert numbers[5] == [number for number in numbers[12] if number < 5]


def test_a_collapse_is_named_and_stops_an_editor_where_that_is_asked(moment):
    collapse = {"perplexity": 1.0001, "score": 0.0}
    going = evaluate(None, moment, editors=["memit", "sequence"], together=collapse)
    assert [point.n for point in going.editors["sequence"]] == list(AT)
    first = going.collapse["sequence"]
    assert first is not None
    ratio = going.checkpoint("sequence", first).perplexity
    assert ratio > 1.0001
    assert going.checkpoint("sequence", first).collapse == f"perplexity {ratio:.3g} times that of the unedited model"
    stopped = evaluate(None, moment, editors=["memit", "sequence"], together={**collapse, "at_collapse": "stop"})
    assert [point.n for point in stopped.editors["sequence"]] == [n for n in AT if n <= first]


def test_a_stopped_run_is_over_where_it_stopped(moment, tmp_path):
    together = {"perplexity": 1.0001, "score": 0.0, "at_collapse": "stop"}
    report = evaluate(tmp_path / "run", moment, editors=["sequence"], together=together)
    again = evaluate(tmp_path / "run", moment, editors=["sequence"], together=together, model=no_model)
    assert again.summary() == report.summary()
    assert rl.read_run(tmp_path / "run").summary() == report.summary()


def with_a_misfit(moment, count, *, at, place, editors):
    """A report on records of which one is too long for the model."""
    records = list(make_records(count))
    bad = rl.EditRequest("{} is in", "the tower" * 12, "rome", "paris")
    records[place] = replace(records[place], request=bad)
    return rl.evaluate_counterfact(
        make_model(),
        {name: EDITORS[name] for name in editors},
        records,
        together=at,
        settings=settings_for(editors),
        second_moments=[moment],
    )


def test_a_fact_that_cannot_be_put_in_is_named_and_asked_all_the_same(moment):
    report = with_a_misfit(moment, 4, at=(4,), place=1, editors=("memit", "ft"))
    for name in ("memit", "ft"):
        point = report.checkpoint(name, 4)
        assert list(point.failed) == [1], name
        # It does not fit the model's context, so nothing can be asked of it either.
        assert list(report.unevaluated) == [1]
        assert point.n_records == 3


def test_a_first_fact_that_cannot_be_put_in_stops_nobody(moment):
    report = with_a_misfit(moment, 3, at=(1, 3), place=0, editors=("memit", "stacked"))
    for name in ("memit", "stacked"):
        first, last = report.editors[name]
        assert (list(first.failed), first.relative_norm, first.n_records) == ([0], 0.0, 0)
        assert (list(last.failed), last.n_records) == ([0], 2)
        assert last.relative_norm > 0


def test_facts_behind_the_checkpoint_at_which_an_editor_stops_are_not_found(whole, moment, tmp_path):
    ratios = {name: [point.perplexity for point in points] for name, points in rl.read_run(whole).editors.items()}
    name = next(name for name in ("memit", "emmet", "stacked") if max(ratios[name][:2]) > 1.00001)
    together = {"perplexity": 1.00001, "score": 0.0, "at_collapse": "stop"}
    last = evaluate(tmp_path / "run", moment, editors=[name], together=together).editors[name][-1].n
    assert last < 12
    (values,) = (tmp_path / "run" / "values").iterdir()
    assert len(list(values.glob("records/facts/*.json"))) == last


def test_the_plan_names_all_from_the_beginning(moment, tmp_path):
    with pytest.raises(StoppedError):
        evaluate(tmp_path / "run", moment, progress=stop_after(1))
    planned = set(json.loads((tmp_path / "run" / "plan.json").read_text())["records"])
    assert {"memit@12/000011", "ft@5/000004", "texts/emmet@2", "states/stacked@12"} <= planned


def test_the_model_is_left_as_it_was(moment):
    model = make_model()
    with left_alone(model):
        evaluate(None, moment, model=model, at=(3,), count=3)


def test_an_editor_of_ones_own_goes_one_fact_after_the_other(moment):
    model = make_model()

    class Half:
        layer = 1

        def __init__(self):
            self.inner = rl.FineTuning(model, layer=1, num_steps=2)

        def edit(self, request):
            return self.inner.edit(request).scaled(0.5)

    report = rl.evaluate_counterfact(model, {"half": Half()}, make_records(3), together=(1, 3))
    sizes = [point.relative_norm for point in report.editors["half"]]
    assert 0 < sizes[0] < sizes[1]


def test_an_editor_of_sets_of_ones_own_is_solved_as_a_set(whole, moment):
    model = make_model()
    editor = rl.MEMIT(
        model,
        layers=1,
        second_moments=rl.SecondMoment.load(moment),
        context_templates=["{}", "so. {}"],
        v_num_grad_steps=2,
    )
    report = rl.evaluate_counterfact(model, {"mine": editor}, make_records(5), together=(2, 5), batch_size=2)
    expected = rl.read_run(whole)
    for n in (2, 5):
        assert report.checkpoint("mine", n).scores == expected.checkpoint("memit", n).scores


@pytest.mark.parametrize("together", [None, (2,)])
def test_a_function_may_make_an_editor_of_sets(moment, monkeypatch, together):
    def make(model):
        given = rl.SecondMoment.load(moment)
        return rl.MEMIT(model, layers=1, second_moments=given, context_templates=["{}", "so. {}"], v_num_grad_steps=2)

    monkeypatch.setattr(tiny_together, "make_editor", make, raising=False)
    report = rl.evaluate_counterfact(
        make_model(), "tiny_together:make_editor", make_records(2), together=together, measures=rl.Measures(n_texts=0)
    )
    records = report.records["make_editor"]
    assert len(records[2] if together else records) == 2
    assert not any(record["error"] for record in (records[2] if together else records))


def test_sets_by_name_edit_one_fact_where_records_are_edited_by_themselves(moment):
    report = rl.evaluate_counterfact(
        make_model(),
        ["memit", "r-rome"],
        make_records(3),
        settings=['context_templates=["{}", "so. {}"]', "v_num_grad_steps=2", "r-rome.layer=1", "memit.layers=[1]"],
        second_moments=[moment],
        measures=rl.Measures(n_texts=0),
    )
    assert report.editors["memit"].n_records == 3
    assert report.records["memit"][0]["edit"]["variant"] == "memit"


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"at": (1, 13)}, "together asks for 13 facts, and there are 12 records; give numbers up to that"),
        ({"at": (5, 2)}, "together is (5, 2); expected numbers in rising order, each once"),
        ({"at": (0,)}, "together is (0,); expected numbers of facts from 1, such as (1, 10, 100)"),
        ({"together": {"found_on": "both"}}, "found_on is 'both'; choose one of base, edited"),
        ({"together": {"perplexity": 1}}, "perplexity is 1; expected a factor above 1, such as 2"),
        (
            {"together": {"at_collapse": "stop"}, "shard": "1/2"},
            "a shard does not see the other records, by which a collapse is told; give at_collapse='go_on' with it",
        ),
    ],
)
def test_what_cannot_be_done_is_refused(moment, changed, said):
    assert refused(SettingError, evaluate, None, moment, model=no_model, **changed) == said


def test_editors_that_cannot_put_many_facts_into_a_model_are_refused():
    records = make_records(2)
    said = refused(SettingError, rl.evaluate_counterfact, no_model, ["random-layer"], records, together=(2,))
    assert "it edits one fact, and cannot be asked for many together" in said
    said = refused(SettingError, rl.evaluate_counterfact, no_model, ["none"], records, together=(2,))
    assert said == "together compares ways of editing, and the run has none; give an editor, such as memit"


def test_a_model_that_carries_edits_is_refused(moment):
    model = make_model()
    edit = rl.FineTuning(model, layer=1, num_steps=2).edit(make_records(1)[0].request)
    with edit.applied(model), pytest.raises(EditStateError, match="the model carries edits"):
        evaluate(None, moment, model=model, at=(2,), count=2)


def test_other_checkpoints_are_refused_in_the_same_folder(whole, moment):
    assert "together" in refused(SettingError, evaluate, whole, moment, at=(2, 12))


def test_a_bfloat16_tensor_is_kept_to_the_bit():
    from rome_lens.editing.tensor_text import as_tensor, as_text

    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        numbers = torch.randn(3, 5).to(dtype)
        assert torch.equal(as_tensor(as_text(numbers)).reshape(3, 5), numbers)
        assert as_tensor(as_text(numbers)).dtype == dtype
