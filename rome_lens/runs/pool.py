"""Worker processes on this machine."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager

from rome_lens.checks import whole_number


@contextmanager
def process_pool(n_workers: int) -> Iterator[ProcessPoolExecutor]:
    """Processes that share the cores of this machine out among themselves. Each loads a model of its own.

    A worker computes with as many threads as there are cores for it, or with `OMP_NUM_THREADS` where the environment
    says so. Sums of floats depend on the number of threads, in their last digits: who wants the same bits from a pool
    as from one process gives both the same number.

    They are started afresh, not forked, so a script that uses this needs `if __name__ == "__main__":`. They end with
    the process that started them, however that ends, and at once when the block is left by an error.

    Args:
        n_workers: how many.

    Raises:
        SettingError: less than one.
    """
    n_workers = whole_number("workers", n_workers, least=1, expected="a whole number of processes")
    pool = ProcessPoolExecutor(
        n_workers,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=begin_worker,
        initargs=(None if "OMP_NUM_THREADS" in os.environ else max(1, n_cores() // n_workers),),
    )
    with ending(pool):
        yield pool


@contextmanager
def ending(pool: ProcessPoolExecutor) -> Iterator[None]:
    """Ends a pool's processes: when they are done, or in the midst of their tasks where the block is left by an error.

    Args:
        pool: the pool.
    """
    try:
        yield
    except BaseException:
        _end_workers(pool)
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def begin_worker(n_threads: int | None) -> None:
    """What a worker process does first.

    Args:
        n_threads: how many it computes with; None is what the environment says.
    """
    if n_threads is not None:  # else PyTorch has read the environment
        import torch

        torch.set_num_threads(n_threads)  # of this worker process, which is ours alone
    # Ctrl-C reaches every process of the terminal: the one that started the run decides what is done about it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a forked one has its parent's handlers
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A pool's worker waits for ever for its next task when its parent was killed: its own queue keeps itself open."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _end_workers(pool: ProcessPoolExecutor) -> None:
    """End the workers in the midst of their tasks: what they compute would not be kept."""
    for process in list((getattr(pool, "_processes", None) or {}).values()):  # public from Python 3.14 on
        process.terminate()


def n_cores() -> int:
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
