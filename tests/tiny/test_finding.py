"""Facts are found once and kept: in folders, by workers, in shards, by whatever editor, whoever is killed meanwhile."""

import ast
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from effort import slow
from facts_run import REQUESTS, facts_editor, make_model
from refused import refused

import rome_lens as rl
from rome_lens.editing.together import finding
from rome_lens.errors import EditError, SettingError
from rome_lens.runs import dask_executor, process_pool

HELPERS = Path(__file__).parents[1] / "helpers"
pytestmark = [
    pytest.mark.usefixtures("unchecked", "one_thread_everywhere"),
    pytest.mark.filterwarnings("ignore::UserWarning:transformer_lens"),
]


@pytest.fixture(scope="module")
def model():
    return make_model()


@pytest.fixture(scope="module")
def whole(model, tmp_path_factory):
    """A folder of four facts, and their set."""
    folder = tmp_path_factory.mktemp("facts") / "whole"
    return folder, facts_editor(model).edit_together(REQUESTS[:4], out=folder, workers=1)


@pytest.fixture
def looked_for(monkeypatch):
    """Targets of the requests that were optimised since."""
    found, real = [], finding.solve_requests

    def counted(backend, requests, **settings):
        found.extend(request.subject for request in requests)
        return real(backend, requests, **settings)

    monkeypatch.setattr(finding, "solve_requests", counted)
    return found


def same_bits(one, other):
    pairs = zip(one.layers, other.layers, strict=True)
    return all(
        torch.equal(mine.update.tensors[name], theirs.update.tensors[name])
        for mine, theirs in pairs
        for name in mine.update.tensors
    )


def test_what_was_found_is_not_looked_for_again(model, whole, looked_for):
    folder, first = whole
    again = facts_editor(model).edit_together(REQUESTS[:4], out=folder)
    assert looked_for == []
    assert again == first
    assert again.facts == first.facts
    assert again.outcomes == first.outcomes
    assert same_bits(again, first)
    # Others in the same folder, and in another order.
    more = facts_editor(model).edit_together(REQUESTS[4:1:-1], out=folder)
    assert looked_for == [REQUESTS[4].subject]
    assert [fact.id for fact in more[1:]] == [first[3].id, first[2].id]
    # What they are weighed by has no part in it.
    facts_editor(model, rl.AlphaEdit, energy=0.3).edit_together(REQUESTS[:5], out=folder)
    facts_editor(model, rl.EMMET, epsilon=3.0, ridge=0.1).edit_together(REQUESTS[:5], out=folder)
    facts_editor(model, preserve=0.7).edit_together(REQUESTS[:5], out=folder)
    assert len(looked_for) == 1
    # A fact does not depend on the others that are found with it.
    assert facts_editor(model).edit_together(REQUESTS[2:3])[0] == first[2]


@pytest.mark.parametrize(
    "changes", [{"v_lr": 0.3}, {"stop_said": 0}, {"least_scale": 1.2}, {"seed": 3}, {"context_templates": ["{}"]}]
)
def test_other_settings_need_another_folder(model, whole, changes):
    folder, _ = whole
    if "seed" in changes:
        changes = {"seed": 3, "context_templates": ["{}", "So. {}"]}
    said = refused(SettingError, lambda: facts_editor(model, **changes).edit_together(REQUESTS[:1], out=folder))
    assert repr(str(folder)) in said


def test_another_model_needs_another_folder(whole):
    folder, _ = whole
    other = make_model()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.01)
    with pytest.raises(rl.errors.RomeLensError) as caught:
        facts_editor(other).edit_together(REQUESTS[:1], out=folder)
    assert "changed" in str(caught.value)


def test_requests_that_cannot_be_edited_are_named_and_the_others_kept(model, whole, tmp_path, monkeypatch, looked_for):
    real = finding.solve_requests

    def failing(backend, requests, **settings):
        if requests[0] == REQUESTS[1]:
            raise EditError("nothing comes of it")
        return real(backend, requests, **settings)

    monkeypatch.setattr(finding, "solve_requests", failing)
    folder, editor = tmp_path / "facts", facts_editor(model)
    said = refused(EditError, lambda: editor.edit_together(REQUESTS[:3], out=folder, workers=1))
    assert said.startswith(f"1 of 3 requests cannot be edited: {REQUESTS[1].words!r}: nothing comes of it; what was")
    assert said.endswith(
        f"is kept in {str(folder)!r}; leave them out, or give skip_failed=True (in a shell: --skip-failed)"
    )
    assert looked_for == [REQUESTS[0].subject, REQUESTS[2].subject]
    left = editor.edit_together(REQUESTS[:3], out=folder, skip_failed=True)
    assert len(looked_for) == 2
    assert left.requests == (REQUESTS[0], REQUESTS[2])
    assert left == whole[1].without(1, 3)
    assert f"left out, since it cannot be edited: {REQUESTS[1].words!r} (nothing comes of it)" in left.notes
    said = refused(EditError, lambda: editor.edit_together(REQUESTS[1:2], out=folder, skip_failed=True))
    assert said.startswith("1 of 1 requests cannot be edited")


def test_shards_joined_are_the_whole(model, whole, tmp_path, looked_for):
    editor = facts_editor(model)
    for number in (1, 2):
        part = editor.edit_together(REQUESTS[:4], out=tmp_path / str(number), shard=f"{number}/2", workers=1)
        assert len(part) == 2
    rl.merge_facts([tmp_path / "1", tmp_path / "2"], tmp_path / "all")
    assert len(looked_for) == 4
    joined = editor.edit_together(REQUESTS[:4], out=tmp_path / "all")
    assert len(looked_for) == 4
    assert joined == whole[1]
    assert same_bits(joined, whole[1])
    other = facts_editor(model, v_lr=0.3)
    other.edit_together(REQUESTS[:1], out=tmp_path / "other", workers=1)
    with pytest.raises(SettingError):
        rl.merge_facts([tmp_path / "1", tmp_path / "other"], tmp_path / "both")


def test_workers_find_the_same(model, whole, tmp_path):
    forked = facts_editor(model).edit_together(REQUESTS[:4], workers=2, out=tmp_path / "forked")
    assert forked == whole[1]
    assert same_bits(forked, whole[1])
    for workers in (0, -1, "2", True):
        with pytest.raises(SettingError, match="workers"):
            facts_editor(model).edit_together(REQUESTS[:4], workers=workers)


def test_threads_of_this_process(model, whole):
    with ThreadPoolExecutor(2) as executor:
        assert facts_editor(model).edit_together(REQUESTS[:4], executor=executor) == whole[1]


def test_other_processes_cannot_share_a_model(model):
    with process_pool(1) as pool:
        said = refused(SettingError, lambda: facts_editor(model).edit_together(REQUESTS[:2], executor=pool))
    assert "other processes cannot share it; give its name, or a function" in said


@pytest.mark.parametrize("kind", ["pool", slow("dask")])
def test_processes_that_load_the_model_themselves(whole, kind):
    editor = facts_editor(make_model_elsewhere())
    if kind == "pool":
        with process_pool(1) as pool:
            found = editor.edit_together(REQUESTS[:4], executor=pool)
    else:
        distributed = pytest.importorskip("distributed")
        with (
            distributed.LocalCluster(
                n_workers=2, threads_per_worker=1, processes=True, dashboard_address="127.0.0.1:0", silence_logs=50
            ) as cluster,
            dask_executor(cluster.scheduler_address) as executor,
        ):
            found = editor.edit_together(REQUESTS[:4], executor=executor)
    assert found == whole[1]
    assert same_bits(found, whole[1])


def make_model_elsewhere():
    return make_model


def test_killed_ten_times_it_loses_no_fact_and_ends_with_the_same(model, tmp_path, looked_for):
    killed = tmp_path / "killed"
    script = [sys.executable, str(HELPERS / "facts_run.py"), str(killed), "10", "3"]
    done = subprocess.run(script, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    counts = ast.literal_eval(done.stdout.splitlines()[-1])
    assert counts == sorted(counts)
    assert 0 < counts[-1] < len(REQUESTS)
    assert not list(killed.rglob("*.tmp"))
    kept = facts_editor(model).edit_together(REQUESTS, out=killed)
    assert looked_for == []
    at_once = facts_editor(model).edit_together(REQUESTS, workers=1)
    assert kept == at_once
    assert same_bits(kept, at_once)


def test_a_request_is_known_by_all_that_it_says():
    one = REQUESTS[0]
    others = [replace(one, target_new="Paris"), replace(one, subject="The town"), replace(one, target_true="Bonn")]
    assert len({finding.key_of(one), *map(finding.key_of, others)}) == 4
