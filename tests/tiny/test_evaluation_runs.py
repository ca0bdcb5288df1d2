"""Evaluations as runs: killed, shared out, joined and refused, and always the same numbers."""

import ast
import json
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from architectures import BACKENDS, architecture
from earlier_files import StoppedError, no_model, stop_after
from effort import slow
from left_alone import left_alone
from refused import refused
from tiny_evaluation import EDITORS, evaluate, make_model, make_records, save_moment

import rome_lens as rl
from rome_lens.errors import RunError, SettingError
from rome_lens.runs import dask_executor, process_pool

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


def contents(folder, *, names=("records/**/*.json", "summary.json")):
    """What the files of a run hold, times left out: they tell how long an edit took."""
    found = {}
    for name in names:
        for path in sorted(folder.glob(name)):
            value = json.loads(path.read_text())
            if value.get("edit"):
                value["edit"].pop("seconds")
            found[path.relative_to(folder).as_posix()] = value
    return found


def test_a_run_keeps_a_file_a_record_and_a_summary(whole):
    found = contents(whole)
    records = {f"records/{editor}/{number:06d}.json" for editor in EDITORS for number in range(6)}
    references = {f"records/references/{number:06d}.json" for number in range(5)}
    assert set(found) == {*records, *references, "summary.json"}
    assert list(found["summary.json"]["editors"]) == sorted(EDITORS)
    assert found["records/references/000000.json"]["object"] == "one"
    assert len(found["records/references/000000.json"]["texts"]) == 5


def test_memory_and_folder_give_the_same_report(whole, moment):
    report = evaluate(None, moment)
    assert list(report.editors) == list(EDITORS)
    assert json.loads(json.dumps(report.summary())) == contents(whole)["summary.json"]
    again = rl.read_run(whole)
    assert list(again.editors) == list(EDITORS)
    assert again.summary() == report.summary()


@pytest.mark.parametrize("records", [1, slow(7), 15])
def test_a_run_that_was_stopped_goes_on_and_ends_with_the_same_numbers(whole, moment, tmp_path, records):
    with pytest.raises(StoppedError):
        evaluate(tmp_path / "run", moment, progress=stop_after(records))
    kept = contents(tmp_path / "run", names=["records/**/*.json"])
    assert len(kept) == records
    begun = rl.read_run(tmp_path / "run")
    assert sum(editor.n_records for editor in begun.editors.values()) == records
    counted = []
    evaluate(tmp_path / "run", moment, progress=lambda done, total, what: counted.append(done))
    assert counted[0] == records
    assert contents(tmp_path / "run") == contents(whole)


def test_a_run_that_is_over_loads_no_model(whole, moment):
    assert evaluate(whole, moment, model=no_model).summary() == rl.read_run(whole).summary()


@pytest.mark.slow  # test_run_killed kills a run ten times at every landing
def test_ten_kills_lose_no_record_and_change_no_score(tmp_path, moment):
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    kills, records = 10, 24
    numbers = [str(number) for number in (records, kills, 5)]
    script = [sys.executable, str(HELPERS / "tiny_evaluation.py"), str(killed), str(moment), *numbers]
    done = subprocess.run(script, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    counts = ast.literal_eval(done.stdout.splitlines()[-1])
    assert len(counts) == kills
    assert counts == sorted(counts)
    assert counts[-1] < records * 4 + 5
    evaluate(whole, moment, count=records)
    assert contents(killed) == contents(whole)


def test_shards_joined_are_the_run(whole, moment, tmp_path):
    for number in (1, 2, 3):
        report = evaluate(tmp_path / str(number), moment, shard=f"{number}/3")
        # A batch is in one shard with all of its editors, which share what the unedited model gives.
        assert {editor.n_records for editor in report.editors.values()} == {2}
    report, missing = rl.merge_runs([tmp_path / "1", tmp_path / "3"], tmp_path / "some")
    assert len(missing) == 4 * 2
    assert report.editors["ft"].n_records == 4
    report, missing = rl.merge_runs([tmp_path / str(number) for number in (1, 2, 3)], tmp_path / "all")
    assert missing == []
    assert list(report.editors) == list(EDITORS)
    assert contents(tmp_path / "all") == contents(whole)


def test_runs_of_other_editors_are_joined(whole, moment, tmp_path):
    evaluate(tmp_path / "a", moment, editors=["none", "r-rome", "identity"])
    evaluate(tmp_path / "b", moment, editors=["ft"])
    report, missing = rl.merge_runs([tmp_path / "a", tmp_path / "b"], tmp_path / "both")
    assert (list(report.editors), missing) == (["none", "r-rome", "identity", "ft"], [])
    expected = rl.read_run(whole)
    assert {n: e.scores for n, e in report.editors.items()} == {n: e.scores for n, e in expected.editors.items()}


def test_runs_of_other_records_are_not_joined(moment, tmp_path):
    evaluate(tmp_path / "a", moment, editors=["none"], count=2)
    evaluate(tmp_path / "b", moment, editors=["none"], count=4)
    with pytest.raises(SettingError, match="only runs with the same settings can be merged"):
        rl.merge_runs([tmp_path / "a", tmp_path / "b"], tmp_path / "both")


def test_other_settings_are_refused_in_the_same_folder(whole, moment):
    assert "data" in refused(SettingError, evaluate, whole, moment, count=4)
    with pytest.raises(SettingError):
        evaluate(whole, moment, editors=["none"])


def test_another_model_of_the_same_name_is_refused(moment, tmp_path):
    def other():
        return architecture("neo", BACKENDS[0])

    other.__qualname__ = make_model.__qualname__
    evaluate(tmp_path / "run", moment, editors=["none"], count=2)
    with pytest.raises(StoppedError):
        evaluate(tmp_path / "stopped", moment, editors=["none"], count=4, progress=stop_after(2))
    with pytest.raises(RunError, match="what is behind the same settings has changed"):
        evaluate(tmp_path / "stopped", moment, editors=["none"], count=4, model=other)


def test_values_are_found_once_for_two_second_moments(whole, moment):
    alone = evaluate(None, moment, editors=["identity"])
    together = rl.read_run(whole)
    for name, score in alone.editors["identity"].scores.items():
        assert together.editors["identity"].scores[name] == pytest.approx(score, abs=1e-6), name


def test_threads_take_turns_with_one_model(whole, moment):
    with ThreadPoolExecutor(3) as executor:
        report = evaluate(None, moment, executor=executor)
    assert json.loads(json.dumps(report.summary())) == contents(whole)["summary.json"]


def test_a_model_object_in_other_processes_is_refused(moment):
    with process_pool(1) as pool, pytest.raises(SettingError) as refused:
        evaluate(None, moment, model=make_model(), executor=pool)
    assert str(refused.value) == (
        "the model is an object, and other processes cannot share it; give its name, or a function without arguments "
        "that makes it"
    )


@pytest.mark.slow  # the shell's test of two workers is run at every landing
def test_workers_of_this_machine_give_the_same_numbers(whole, moment, tmp_path):
    with process_pool(2) as pool:
        evaluate(tmp_path / "run", moment, executor=pool)
    assert contents(tmp_path / "run") == contents(whole)


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
            if done >= 4 and not killed:
                killed.append(next(iter(cluster.workers.values())).process.pid)
                os.kill(killed[0], signal.SIGKILL)

        evaluate(tmp_path / "run", moment, executor=executor, progress=kill_one)
    assert killed
    assert contents(tmp_path / "run") == contents(whole)


def test_an_evaluation_leaves_the_model_as_it_was(moment):
    model = make_model()
    with left_alone(model):
        evaluate(None, moment, model=model, count=2)
    assert rl.applied_edits(model) == ()


def test_nothing_to_evaluate_is_refused(moment):
    with pytest.raises(SettingError, match="there are no records; expected one or more"):
        rl.evaluate_counterfact(make_model(), "none", make_records(3)[:0])
    with pytest.raises(SettingError, match="batch_size is 0; expected a whole number of records, 1 or more"):
        rl.evaluate_counterfact(make_model(), "none", make_records(3), batch_size=0)
