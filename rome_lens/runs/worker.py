"""What a worker does with a task: it opens the run's maker of records once and keeps it; and whether one was lost."""

import concurrent.futures
import sys
import threading
from dataclasses import dataclass, field
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


@dataclass
class _Station:
    """A worker's place for one maker at a time; its threads take turns."""

    turn: threading.Lock = field(default_factory=threading.Lock)
    token: str | None = None
    maker: RecordMaker | None = None
    prepared: dict[str, Any] | None = None

    def take(self, token: str, maker: RecordMaker) -> RecordMaker:
        self.token, self.maker, self.prepared = token, maker, None
        return maker

    def drop(self) -> None:
        maker, self.token, self.maker = self.maker, None, None
        if maker is not None:
            maker.close()


# An executor hands a worker nothing but a function and its arguments, so what a worker keeps between two calls has to
# be reached from a module. It is no cache that outlives a change of model: the token is fresh for every run that is
# started, a maker is used under its own token only, and the next token's takes its place.
_STATION = _Station()


def compute(work: Work, task: Task) -> Outcome:
    """Do a task in whatever process or thread this is called."""
    with _STATION.turn:
        maker = _STATION.maker
        if maker is None or _STATION.token != work.token:
            _STATION.drop()  # before the next is loaded: two models may not fit
            maker = _STATION.take(work.token, work.open(silent))
        if _STATION.prepared is None:
            _STATION.prepared = maker.prepare()
        return Outcome(_STATION.prepared, list(maker.run(task, silent)))


def hold(token: str, maker: RecordMaker) -> None:
    """Keep a maker that this process has already for the tasks of a token."""
    _STATION.take(token, maker)


def forget(token: str) -> None:
    """Let go of the maker of a run that has ended, in this process."""
    with _STATION.turn:
        if _STATION.token == token:
            _STATION.drop()


def rest() -> None:
    """Let go of whatever maker this process has, unless a task is being done on it: then that goes on undisturbed."""
    if _STATION.turn.acquire(blocking=False):
        _STATION.token = _STATION.maker = None
        _STATION.turn.release()


def lost_worker(error: BaseException) -> bool:
    """Whether an error says that a worker, or the whole cluster, was lost rather than that a task failed."""
    return isinstance(error, (concurrent.futures.BrokenExecutor, concurrent.futures.CancelledError, *_errors_of_dask()))


def _errors_of_dask() -> tuple[type[BaseException], ...]:
    if "distributed" not in sys.modules:  # then no executor of dask's can have been given
        return ()
    from distributed.comm.core import CommClosedError
    from distributed.scheduler import KilledWorker

    return KilledWorker, CommClosedError
