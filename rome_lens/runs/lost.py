"""How executors say that a worker is gone: each has an error of its own for it."""

import concurrent.futures
import sys


def lost_worker(error: BaseException) -> bool:
    """Whether an error says that a worker, or the whole cluster, was lost rather than that a task failed."""
    return isinstance(error, (concurrent.futures.BrokenExecutor, concurrent.futures.CancelledError, *_errors_of_dask()))


def _errors_of_dask() -> tuple[type[BaseException], ...]:
    if "distributed" not in sys.modules:  # then no executor of dask's can have been given
        return ()
    from distributed.comm.core import CommClosedError
    from distributed.scheduler import KilledWorker

    return KilledWorker, CommClosedError
