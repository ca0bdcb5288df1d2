"""Peak memory of a process with all that it forks, watched from another one: python benchmarks/memory.py PID.

What processes share counts once (the kernel's proportional set size), so weights that forked workers read are not
counted for each of them.
"""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

# Seconds between two looks, and how many times as long as a look takes.
_EVERY, _SHARE = 0.1, 20


@dataclass
class Peak:
    """What `watched` found: bytes held before and at most."""

    before: int = 0
    most: int = 0

    @property
    def above(self) -> int:
        return self.most - self.before


@contextmanager
def watched() -> Iterator[Peak]:
    """Watch this process and those that it starts for as long as the block lasts."""
    peak = Peak()
    command = [sys.executable, __file__, str(psutil.Process().pid)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as watcher:
        assert watcher.stdin is not None
        assert watcher.stdout is not None
        watcher.stdout.readline()
        yield peak
        watcher.stdin.close()
        peak.before, peak.most = json.loads(watcher.stdout.readline())


def _watch(pid: int) -> tuple[int, int]:
    """Until this process's input is closed; it has said a line as soon as it knows what is held before."""
    import select

    process, myself = psutil.Process(pid), psutil.Process().pid

    def held() -> int:
        family = [pid, *(child.pid for child in process.children(recursive=True) if child.pid != myself)]
        return sum(map(_held, family))

    before = most = held()
    print("watching", flush=True)
    while not select.select([sys.stdin], [], [], 0)[0]:
        started = time.perf_counter()
        most = max(most, held())
        # Of large processes a look takes long, and who looks all the time takes a core from them.
        time.sleep(max(_EVERY, _SHARE * (time.perf_counter() - started)))
    return before, most


def _held(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:  # it has ended
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), 0)


if __name__ == "__main__":
    print(json.dumps(_watch(int(sys.argv[1]))), flush=True)
