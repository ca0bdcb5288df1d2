"""Kills a run at random instants, starts it again each time, and checks that nothing that was finished is lost.

As a script: `python tests/helpers/kill_and_resume.py FOLDER KILLS SEED` does it to a toy run.
"""

import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from toy_run import ToyWork, record_files, toy_summary, toy_tasks

from rome_lens.runs import RunFolder, run


def kill_and_resume(
    start: Callable[[], None], kills: int, seed: int, folder: Path, *, most: int = 4, pause: float = 0.05
) -> list[int]:
    """Run something in a forked child, kill it with SIGKILL again and again, and let it end at last.

    Call it in a process that has no threads yet (torch makes some when it first computes): a fork copies only one.

    Args:
        start: starts the run, or goes on with it; called in the child.
        kills: how often it is killed before it may end.
        seed: of the instants.
        folder: the run folder.
        most: new records that a child may make before it is killed; the run needs more than kills * (most + 1).
        pause: seconds that it may go on after that.

    Returns:
        How many records there were after each kill.

    Raises:
        AssertionError: a record that was finished before a kill was lost or written again, or a child ended otherwise.
    """
    instants = random.Random(seed)
    counts: list[int] = []
    for _ in range(kills):
        before = record_files(folder)
        child = _fork(start)
        _wait_for(child, folder, len(before) + instants.randint(0, most))
        time.sleep(instants.uniform(0, pause))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status), "the run ended before it was killed; give it more records, or kill it earlier"
        _check_kept(before, folder)
        counts.append(len(record_files(folder)))
    before = record_files(folder)
    _, status = os.waitpid(_fork(start), 0)
    assert status == 0, "the run did not end well when it was let"
    _check_kept(before, folder)
    return counts


def _fork(start: Callable[[], None]) -> int:
    child = os.fork()
    if child == 0:
        try:
            start()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return child


def _wait_for(child: int, folder: Path, n_records: int) -> None:
    while sum(1 for _ in folder.rglob("records/**/*.json")) < n_records:
        state = os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        assert state is None, "the run ended before it was killed; give it more records, or kill it earlier"
        time.sleep(0.002)


def _check_kept(before: dict[str, tuple[bytes, int]], folder: Path) -> None:
    now = record_files(folder)
    changed = [name for name, content in before.items() if now.get(name) != content]
    assert not changed, f"records that were finished were lost or written again: {changed}"


def toy_start(folder: Path, *, pause: float) -> None:
    """A run as a command does it: the folder, the records, the summary."""
    with RunFolder.open(folder, {"numbers": 72}) as kept:
        run(ToyWork(pause=pause), toy_tasks(24), kept)
        kept.write_summary(toy_summary(kept))


if __name__ == "__main__":
    path = Path(sys.argv[1])
    counts = kill_and_resume(lambda: toy_start(path, pause=0.01), int(sys.argv[2]), int(sys.argv[3]), path)
    sys.stdout.write(f"{counts}\n")
