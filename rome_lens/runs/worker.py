"""What a worker does with a task: it opens the run's maker of records once and keeps it; and whether one was lost."""

import concurrent.futures
import sys
import threading
from dataclasses import dataclass
from typing import Any

from rome_lens.progress import silent
from rome_lens.runs.work import RecordMaker, Task, Work


@dataclass(frozen=True)
class Outcome:
    """What a worker sends back.

    Attributes:
        prepared: what the maker said of itself: the sender may be another machine, with another model of that name.
        records: the task's records.
    """

    prepared: dict[str, Any]
    records: list[tuple[str, dict[str, Any]]]


class _Station:
    """A worker's place for one maker at a time; its threads take turns."""

    def __init__(self) -> None:
        self._turn = threading.Lock()
        self._token: str | None = None
        self._maker: RecordMaker | None = None
        self._prepared: dict[str, Any] = {}

    def compute(self, work: Work, task: Task) -> Outcome:
        with self._turn:
            if self._maker is None or self._token != work.token:
                self._drop()  # before the next is loaded: two models may not fit
                self._maker = work.open(silent)
                self._prepared = self._maker.prepare()
                self._token = work.token
            return Outcome(self._prepared, list(self._maker.run(task, silent)))

    def forget(self, token: str) -> None:
        with self._turn:
            if self._token == token:
                self._drop()

    def _drop(self) -> None:
        maker, self._token, self._maker = self._maker, None, None
        if maker is not None:
            maker.close()

    def rest(self) -> None:
        if self._turn.acquire(blocking=False):
            self._token = self._maker = None
            self._turn.release()


# An executor hands a worker nothing but a function and its arguments, so what a worker keeps between two calls has to
# be reached from a module. It is no cache that outlives a change of model: the token is fresh for every run that is
# started, a maker is used under its own token only, and the next token's takes its place.
_STATION = _Station()


def compute(work: Work, task: Task) -> Outcome:
    """Do a task in whatever process or thread this is called."""
    return _STATION.compute(work, task)


def forget(token: str) -> None:
    """Let go of the maker of a run that has ended, in this process."""
    _STATION.forget(token)


def rest() -> None:
    """Let go of whatever maker this process has, unless a task is being done on it: then that goes on undisturbed."""
    _STATION.rest()


def lost_worker(error: BaseException) -> bool:
    """Whether an error says that a worker, or the whole cluster, was lost rather than that a task failed."""
    return isinstance(error, (concurrent.futures.BrokenExecutor, concurrent.futures.CancelledError, *_errors_of_dask()))


def _errors_of_dask() -> tuple[type[BaseException], ...]:
    if "distributed" not in sys.modules:  # then no executor of dask's can have been given
        return ()
    from distributed.comm.core import CommClosedError
    from distributed.scheduler import KilledWorker

    return KilledWorker, CommClosedError
