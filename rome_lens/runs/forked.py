"""Worker processes that are forked: they load nothing, and share what this process has, such as a model's weights."""

import multiprocessing
import os
import pickle
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from typing import Any, TypeVar

from rome_lens.errors import RunError
from rome_lens.progress import Progress
from rome_lens.runs.pool import begin_worker, ending
from rome_lens.runs.work import HeldWork, RecordMaker, Task
from rome_lens.runs.worker import Outcome, compute, hold, lost_worker

_T = TypeVar("_T")
_R = TypeVar("_R")

# Threads that take no lock that a worker needs: they stay away from the fork, and are not missed. Those that show
# progress, and those of a notebook's kernel, which goes on by itself and expects its processes to fork.
_HARMLESS = ("tqdm.", "ipykernel.", "IPython.")
# Seconds between two looks at how far processes are.
_EVERY = 0.2


def can_fork() -> bool:
    """Whether processes can be forked here at all: on Linux, in a process that is no worker itself."""
    return sys.platform == "linux" and multiprocessing.parent_process() is None


def may_fork() -> bool:
    """Whether processes can be forked here without fear of a lock that another thread held.

    So it is where `can_fork`, in the main thread of a process that has no other threads of Python's than those of a
    notebook's kernel and of progress bars; those of PyTorch's own are no obstacle to workers that compute with one
    thread.
    """
    main = threading.main_thread()
    others = [thread for thread in threading.enumerate() if thread is not main]
    return (
        can_fork()
        and threading.current_thread() is main
        and all(_whose(thread).startswith(_HARMLESS) for thread in others)
    )


def _whose(thread: threading.Thread) -> str:
    """The module that a thread is of: its own, or that of what it runs."""
    own = type(thread).__module__
    return own if own != "threading" else getattr(getattr(thread, "_target", None), "__module__", None) or own


@contextmanager
def forked_pool(work: HeldWork, n_workers: int) -> Iterator[ProcessPoolExecutor]:
    """Processes for the tasks of one work, each with a copy of its maker that shares this process's memory.

    Each computes with one thread: PyTorch's threads do not survive a fork. All are forked when the first task is given,
    and have what the maker has then. They end with this process, however that ends, and at once when the block is left
    by an error. Nobody closes the maker.

    Args:
        work: the work, with its maker; the executor is for no other.
        n_workers: how many, at least 1; `may_fork` says whether there can be any.
    """
    assert work.maker is not None
    pool = ProcessPoolExecutor(
        n_workers,
        mp_context=multiprocessing.get_context("fork"),
        initializer=_begin,
        initargs=(work.token, work.maker),  # as they are: what is forked is not pickled
    )
    with ending(pool):
        yield pool


def forked_map(
    function: Callable[[_T], _R],
    items: Sequence[_T],
    *,
    n_workers: int,
    done: Callable[[int], None] | None = None,
    meanwhile: Callable[[], None] | None = None,
) -> list[_R]:
    """What a function gives for each of some items, in forked processes of one thread each.

    Args:
        function: any, since it is not pickled; what it changes is changed in its process alone.
        items: its arguments, one a call; pickled.
        n_workers: processes, at least 1.
        done: called with how many items are done, those in front of the first that is not.
        meanwhile: called now and then, so that the caller can say how far the functions are: what they are to write
            down of that goes into memory that was shared before (`multiprocessing.RawArray`).

    Returns:
        What it gave, pickled and unpickled, in the order of the items.

    Raises:
        RunError: a process was lost, or cannot be started.
        Exception: what the function raised, for the first item of those for which it did.
    """
    work = HeldWork(_Caller(function))
    tasks = [Task(str(number), (str(number),), item) for number, item in enumerate(items)]
    found: list[_R] = []
    try:
        with forked_pool(work, max(1, min(n_workers, len(items)))) as pool:
            for future in [_submit(pool, work, task) for task in tasks]:
                while meanwhile is not None and not wait([future], timeout=_EVERY).done:
                    meanwhile()
                ((_, record),) = future.result().records
                found.append(pickle.loads(record["pickled"]))
                if done is not None:
                    done(len(found))
    except Exception as error:
        if lost_worker(error):
            raise RunError(
                f"one of {n_workers} processes that worked side by side was lost (killed, or out of memory); on one "
                "thread of PyTorch, torch.set_num_threads(1), all is done in this process"
            ) from error
        raise
    return found


def _submit(pool: ProcessPoolExecutor, work: HeldWork, task: Task) -> "Future[Outcome]":
    try:
        return pool.submit(compute, work, task)
    except OSError as error:  # the first task is what starts the processes
        raise RunError(
            f"cannot start processes to work side by side: {error.strerror or error}; on one thread of PyTorch, "
            "torch.set_num_threads(1), all is done in this process"
        ) from error


def _begin(token: str, maker: RecordMaker) -> None:
    os.environ["OMP_NUM_THREADS"] = "1"  # for a PyTorch that this worker would be the first to load
    begin_worker(1 if "torch" in sys.modules else None)
    hold(token, maker)


class _Caller(RecordMaker):
    """Calls a function with what a task brings along."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self._function = function

    def prepare(self) -> dict[str, Any]:
        return {}

    def run(self, task: Task, progress: Progress) -> Iterator[tuple[str, dict[str, Any]]]:
        # Pickled here and not by the queue, which would send tensors as open files.
        yield task.keys[0], {"pickled": pickle.dumps(self._function(task.payload))}
