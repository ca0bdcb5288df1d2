"""A run that is killed at any instant loses nothing that was finished, and ends as if it had not been killed."""

import ast
import os
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import psutil
from kill_and_resume import toy_start
from refused import refused
from toy_run import contents, record_files

from rome_lens.errors import RunError
from rome_lens.runs import RunFolder

HELPERS = Path(__file__).parents[1] / "helpers"
# The parent of two workers that are slow; it is killed when both have begun.
PARENT = """
import sys
from pathlib import Path
from rome_lens.runs import Folder, process_pool, run
from toy_run import ToyWork, toy_tasks
if __name__ == "__main__":
    with process_pool(2) as pool:
        run(ToyWork(pause=60, diary=Path(sys.argv[1])), toy_tasks(4), Folder(), executor=pool)
"""


def test_a_run_that_is_killed_ten_times_keeps_every_record_and_ends_with_the_same_summary(tmp_path):
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    script = [sys.executable, str(HELPERS / "kill_and_resume.py"), str(killed), "10", "3"]
    done = subprocess.run(script, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    counts = ast.literal_eval(done.stdout)
    assert counts == sorted(counts)
    assert 0 < counts[-1] < 72
    toy_start(whole, pause=0)
    assert contents(killed) == contents(whole)
    assert not list(killed.rglob("*.tmp"))


def test_a_folder_is_taken_while_another_process_runs_in_it_and_free_once_that_is_killed(tmp_path):
    folder = tmp_path / "run"
    code = f"import kill_and_resume, pathlib; kill_and_resume.toy_start(pathlib.Path({str(folder)!r}), pause=60)"
    with _started([sys.executable, "-c", code]) as other:
        _wait_until(lambda: (folder / "prepared.json").exists())
        said = refused(RunError, RunFolder.open, folder, {"numbers": 72})
        other.kill()
    assert said == (f"another process is running in {str(folder)!r}; wait until it has ended, or give another folder")
    toy_start(folder, pause=0)
    assert len(record_files(folder)) == 72


def test_workers_end_when_the_process_that_started_them_is_killed(tmp_path, diary):
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    with _started([sys.executable, str(script), str(diary)]) as parent:
        _wait_until(lambda: len(list(diary.glob("ran *"))) == 2)
        workers = [psutil.Process(int(path.name.split(" ")[-2])) for path in diary.glob("ran *")]
        assert len({worker.pid for worker in workers} | {parent.pid}) == 3
        parent.kill()
    gone, alive = psutil.wait_procs(workers, timeout=30)
    for worker in alive:
        worker.kill()
    assert not alive, gone


@contextmanager
def _started(command):
    """A process that does not outlive its test, whatever becomes of that."""
    with subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(HELPERS)}) as process:
        try:
            yield process
        finally:
            process.kill()


def _wait_until(true):
    end = time.monotonic() + 60
    while not true():
        assert time.monotonic() < end, "it did not begin"
        time.sleep(0.01)
