"""Long work without a model, for the tests of `rome_lens.runs`; importable by the processes that they start."""

import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rome_lens.errors import ModelError
from rome_lens.progress import Progress
from rome_lens.runs import RecordMaker, RunFolder, Task, Work

BATCH = 3


def toy_tasks(n_tasks: int, *, batch: int = BATCH) -> list[Task]:
    """Tasks of some records each; the payload is the numbers that the records are about."""
    numbers = [list(range(start, start + batch)) for start in range(0, n_tasks * batch, batch)]
    return [Task(f"numbers from {few[0]}", tuple(toy_key(number) for number in few), few) for few in numbers]


def toy_key(number: int) -> str:
    return f"toy/{number:06d}"


@dataclass(frozen=True)
class ToyWork(Work):
    """Squares numbers. What a record holds depends on its whole task, as it does where a batch is computed at once.

    Attributes:
        pause: seconds that a record takes.
        diary: a folder for what was done: a file for each opening, task and process.
        fails_at: the number at which the task fails.
        dies_at: the number at which the process is killed, once for each diary.
        fingerprint: of the model that there is not.
        anything: carried along.
        maker: makes the records; a ToyMaker where there is none.
    """

    pause: float = 0.0
    diary: Path | None = None
    fails_at: int | None = None
    dies_at: int | None = None
    fingerprint: str = "one"
    anything: Any = None
    maker: type["ToyMaker"] | None = None

    def open(self, progress: Progress) -> RecordMaker:
        progress(1, 1, "loading")
        time.sleep(min(self.pause, 0.02))
        self.note("opened")
        return (self.maker or ToyMaker)(self)

    def note(self, what: str) -> None:
        if self.diary is not None:
            (self.diary / f"{what} {os.getpid()} {time.monotonic_ns()}").touch()


class ToyMaker(RecordMaker):
    def __init__(self, work: ToyWork) -> None:
        self.work = work
        self.busy = False

    def prepare(self) -> dict[str, Any]:
        return {"fingerprint": self.work.fingerprint}

    def run(self, task: Task, progress: Progress) -> Iterator[tuple[str, dict[str, Any]]]:
        assert not self.busy, "two threads use one maker"
        self.busy = True
        try:
            yield from self._squares(task, progress)
        finally:
            self.busy = False

    def _squares(self, task: Task, progress: Progress) -> Iterator[tuple[str, dict[str, Any]]]:
        self.work.note(f"ran {task.name}")
        for place, number in enumerate(task.payload):
            progress(place, len(task.payload), "squaring")
            time.sleep(self.work.pause)
            if number == self.work.fails_at:
                raise ModelError(f"the number {number} has no square here")
            if number == self.work.dies_at:
                self._die()
            yield (
                toy_key(number),
                {"number": number, "square": number**2, "of the task": sum(task.payload), "word": "é\ud800"},
            )

    def _die(self) -> None:
        assert self.work.diary is not None
        try:
            (self.work.diary / "died").touch(exist_ok=False)
        except FileExistsError:
            return
        os.kill(os.getpid(), signal.SIGKILL)


def noted(diary: Path, what: str) -> list[str]:
    """What the diary says of something, with the processes and the instants left away."""
    return sorted(path.name.rsplit(" ", 2)[0] for path in diary.iterdir() if path.name.startswith(what))


def toy_summary(folder: RunFolder) -> dict[str, Any]:
    return {"sum": sum(record["square"] for _, record in folder.read_all("toy/"))}


def record_files(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Record file -> what it holds and when it was written."""
    return {
        str(path): (path.read_bytes(), path.stat().st_mtime_ns) for path in sorted(folder.rglob("records/**/*.json"))
    }


def contents(folder: Path) -> dict[Path, bytes]:
    """Every file of JSON -> what it holds."""
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.json")}
