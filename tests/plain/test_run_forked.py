"""Forked workers: they have what this process has, send back what they make, and none is left behind."""

import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
from refused import refused
from toy_run import ToyMaker, ToyWork, contents, noted, toy_tasks

from rome_lens.errors import ModelError, RunError
from rome_lens.progress import silent
from rome_lens.runs import HeldWork, RunFolder, forked_map, forked_pool, may_fork, run

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="processes are forked on Linux alone"),
    pytest.mark.usefixtures("no_child_left"),
]

HELPERS = Path(__file__).parents[1] / "helpers"
# The parent of two workers that are slow; it is killed when both have begun.
PARENT = """
import sys
from pathlib import Path
from rome_lens.progress import silent
from rome_lens.runs import Folder, HeldWork, forked_pool, run
from toy_run import ToyMaker, ToyWork, toy_tasks
work = HeldWork(ToyMaker(ToyWork(pause=60, diary=Path(sys.argv[1]))))
with forked_pool(work, 2) as pool:
    run(work, toy_tasks(4), Folder(), executor=pool)
"""


def _held(**how):
    maker = ToyMaker(ToyWork(**how))
    maker.unpicklable = lambda: None  # a model with hooks is no more to be pickled than this
    return HeldWork(maker)


def _forked(path, work, n_tasks=4):
    with RunFolder.open(path, {"data": "numbers"}) as folder, forked_pool(work, 2) as pool:
        run(work, toy_tasks(n_tasks), folder, executor=pool)


def test_forked_workers_have_the_maker_and_make_the_same_files(tmp_path, diary):
    _forked(tmp_path / "forked", _held(diary=diary, pause=0.02))
    with RunFolder.open(tmp_path / "here", {"data": "numbers"}) as folder:
        run(_held(), toy_tasks(4), folder)
    assert contents(tmp_path / "forked") == contents(tmp_path / "here")
    assert len(noted(diary, "ran")) == 4
    assert not noted(diary, "opened")
    pids = {int(path.name.split(" ")[-2]) for path in diary.glob("ran *")}
    assert len(pids) == 2
    assert os.getpid() not in pids


def test_a_task_that_fails_in_a_forked_worker_raises_its_own_error(tmp_path):
    work = _held(fails_at=4)
    assert refused(ModelError, _forked, tmp_path / "run", work) == "the number 4 has no square here"


def test_a_forked_worker_that_is_killed_ends_the_run_and_the_folder_goes_on(tmp_path, diary):
    work = _held(dies_at=7, diary=diary)
    said = refused(RunError, _forked, tmp_path / "run", work)
    assert said.startswith("a worker was lost (killed, or out of memory): ")
    _forked(tmp_path / "run", work)
    _forked(tmp_path / "whole", _held())
    assert contents(tmp_path / "run") == contents(tmp_path / "whole")


def test_held_work_is_pickled_without_its_maker():
    work = _held()
    sent = pickle.loads(pickle.dumps(work))
    assert (sent.token, work.open(silent)) == (work.token, work.maker)
    assert refused(RunError, sent.open, silent) == (
        "a worker was not given what makes the records; expected one of forked_pool for this work"
    )


def test_forked_workers_end_when_their_parent_is_killed(tmp_path, diary):
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HELPERS), *filter(None, sys.path)])}
    with subprocess.Popen([sys.executable, str(script), str(diary)], env=environment) as parent:
        try:
            _wait_until(lambda: len(list(diary.glob("ran *"))) == 2)
        finally:
            parent.kill()
    workers = [int(path.name.split(" ")[-2]) for path in diary.glob("ran *")]
    assert len({*workers, parent.pid}) == 3
    try:
        _wait_until(lambda: not any(_runs(pid) for pid in workers))
    finally:
        for pid in filter(_runs, workers):
            os.kill(pid, signal.SIGKILL)


def test_a_map_gives_what_any_function_gives_in_order_and_says_how_far_it_is():
    heard, here = [], os.getpid()

    def slow_at_first(number):
        time.sleep(0.1 if number == 1 else 0)
        return number**2, os.getpid() == here, may_fork()

    assert forked_map(slow_at_first, [1, 2, 3], n_workers=2, done=heard.append) == [
        (1, False, False),
        (4, False, False),
        (9, False, False),
    ]
    assert heard == [1, 2, 3]
    assert forked_map(slow_at_first, [2], n_workers=2) == [(4, False, False)]
    assert forked_map(slow_at_first, [], n_workers=2) == []


def test_a_map_raises_what_was_raised_for_the_first_item_of_all_that_fail():
    def fail(number):
        time.sleep(0 if number == 3 else 0.1)
        if number > 1:
            raise ModelError(f"no {number}")

    assert refused(ModelError, forked_map, fail, [1, 2, 3, 4], n_workers=2) == "no 2"


def test_a_map_whose_process_is_killed_ends_with_an_error():
    def die(number):
        if number == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(60)

    assert refused(RunError, forked_map, die, [1, 2], n_workers=2) == (
        "one of 2 processes that worked side by side was lost (killed, or out of memory); on one thread of PyTorch, "
        "torch.set_num_threads(1), all is done in this process"
    )


def test_a_map_that_is_interrupted_ends_its_processes():
    def interrupt(done):
        raise KeyboardInterrupt

    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        forked_map(lambda number: time.sleep(60 * number), [0, 1, 1], n_workers=2, done=interrupt)
    assert time.monotonic() - started < 50


def test_processes_that_cannot_be_started_are_an_error(monkeypatch):
    def full():
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(os, "fork", full)
    assert refused(RunError, forked_map, abs, [1, 2], n_workers=2).startswith(
        "cannot start processes to work side by side: Resource temporarily unavailable; "
    )


def test_nothing_is_forked_beside_another_thread():
    end = threading.Event()
    other = threading.Thread(target=end.wait)
    other.start()
    assert not may_fork()
    end.set()
    other.join()


def test_a_worker_forks_nothing(monkeypatch):
    monkeypatch.setattr(multiprocessing, "parent_process", lambda: "the one that evaluates")
    assert not may_fork()


def test_what_is_forked_ignores_ctrl_c_and_has_the_usual_way_to_be_ended():
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        found = forked_map(signal.getsignal, [signal.SIGINT, signal.SIGTERM], n_workers=1)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert found == [signal.SIG_IGN, signal.SIG_DFL]


def _runs(pid):
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def _wait_until(true):
    end = time.monotonic() + 60
    while not true():
        assert time.monotonic() < end, "it did not come to be"
        time.sleep(0.01)
