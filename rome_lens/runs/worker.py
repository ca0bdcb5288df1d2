"""What a worker does with a task: opens the bench of the run once, and keeps it for the tasks that follow."""

import threading
from dataclasses import dataclass
from typing import Any

from rome_lens.progress import silent
from rome_lens.runs.work import Bench, Task, Work


@dataclass(frozen=True)
class Outcome:
    """What a worker sends back.

    Attributes:
        prepared: what the bench said of itself: the sender may be another machine, with another model of that name.
        records: the task's records.
    """

    prepared: dict[str, Any]
    records: list[tuple[str, dict[str, Any]]]


class _Station:
    """A worker's place for one bench at a time; its threads take turns."""

    def __init__(self) -> None:
        self._turn = threading.Lock()
        self._token: str | None = None
        self._bench: Bench | None = None
        self._prepared: dict[str, Any] = {}

    def compute(self, work: Work, task: Task) -> Outcome:
        with self._turn:
            if self._bench is None or self._token != work.token:
                self._drop()  # before the next is loaded: two models may not fit
                self._bench = work.open(silent)
                self._prepared = self._bench.prepare()
                self._token = work.token
            return Outcome(self._prepared, list(self._bench.run(task, silent)))

    def forget(self, token: str) -> None:
        with self._turn:
            if self._token == token:
                self._drop()

    def _drop(self) -> None:
        bench, self._token, self._bench = self._bench, None, None
        if bench is not None:
            bench.close()

    def rest(self) -> None:
        if self._turn.acquire(blocking=False):
            self._token = self._bench = None
            self._turn.release()


# An executor hands a worker nothing but a function and its arguments, so what a worker keeps between two calls has to
# be reached from a module. It is no cache that outlives a change of model: the token is fresh for every run that is
# started, a bench is used under its own token only, and the next token's takes its place.
_STATION = _Station()


def compute(work: Work, task: Task) -> Outcome:
    """Do a task in whatever process or thread this is called."""
    return _STATION.compute(work, task)


def forget(token: str) -> None:
    """Let go of the bench of a run that has ended, in this process."""
    _STATION.forget(token)


def rest() -> None:
    """Let go of whatever bench this process has, unless a task is being done on it: then that goes on undisturbed."""
    _STATION.rest()
