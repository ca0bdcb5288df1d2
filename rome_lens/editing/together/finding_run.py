"""The values of many requests, found side by side and kept in a folder that survives."""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from rome_lens.backends import as_backend
from rome_lens.checks import whole_number
from rome_lens.editing.together.finding import (
    KIND,
    FactMaker,
    Finding,
    FindingWork,
    FoundFact,
    failure_of,
    key_of,
    tasks_of,
)
from rome_lens.errors import EditError, SettingError
from rome_lens.facts import EditRequest
from rome_lens.loading.source import ModelSource
from rome_lens.progress import Progress
from rome_lens.runs import Folder, HeldWork, Shard, Task, can_fork, forked_pool, merge, open_folder, run
from rome_lens.runs.runner import UNIT
from rome_lens.runs.side_by_side import side_by_side
from rome_lens.version import __version__

# Of the requests that cannot be edited an error names so many.
_NAMED = 3


@dataclass(frozen=True)
class FindingRun:
    """How the work is done; nothing of it decides what is found.

    Attributes:
        out: the folder that keeps what is found; None keeps it in memory.
        workers: processes on this machine; None is as many as pay.
        executor: an executor of the caller's.
        source: where other processes load the model from; None is where the editor has it from.
        shard: the part of the requests that is worked on.
        skip_failed: leave out requests that cannot be edited.
        progress: called with (done, total, what).
    """

    out: str | os.PathLike[str] | None = None
    workers: int | None = None
    executor: Executor | None = None
    source: ModelSource | None = None
    shard: Shard | None = None
    skip_failed: bool = False
    progress: Progress | None = None

    def __post_init__(self) -> None:
        if self.workers is not None:
            whole_number("workers", self.workers, least=1, expected="a whole number of processes, or None")


def find_facts(
    source: ModelSource,
    model: Any,
    finding: Finding,
    requests: Sequence[EditRequest],
    how: FindingRun,
    *,
    batch_size: int,
) -> tuple[list[FoundFact], list[tuple[EditRequest, str]]]:
    """Find the values of requests.

    Args:
        source: where the editor has the model from.
        model: the model in this process.
        finding: what decides what is found.
        requests: each once.
        how: how the work is done.
        batch_size: requests that are optimised together.

    Returns:
        What was found, in the requests' order, and the requests that were left out, each with the reason.

    Raises:
        EditError: requests cannot be edited. SettingError: the folder holds facts found in another way.
        RunError: a worker was lost.
    """
    shared = source if how.source is None else how.source
    shared.check_executor(how.executor)
    settings = {"kind": KIND, "model": source.to_dict(), **finding.to_dict(), "version": __version__}
    tasks = tasks_of(requests, batch_size=batch_size)
    with open_folder(how.out, settings) as folder:
        maker = FactMaker(model, finding)
        # Also where all that is asked for is there: a run that has nothing left to do looks at no model.
        folder.note_prepared(maker.prepare())
        if how.executor is not None:
            run(
                FindingWork(shared, finding),
                tasks,
                folder,
                executor=how.executor,
                shard=how.shard,
                progress=_saying("facts", how.progress),
            )
        else:
            _run_here(maker, tasks, folder, how)
        mine = tasks if how.shard is None else how.shard.mine(tasks)
        asked = [request for task in mine for request in task.payload]
        held = [(request, folder.read(key_of(request))) for request in asked]
    failed = [(request, reason) for request, record in held if (reason := failure_of(record)) is not None]
    if failed and (not how.skip_failed or len(failed) == len(held)):
        raise EditError(
            f"{len(failed)} of {len(held)} requests cannot be edited: {_named(failed)}; "
            f"{'what was found of the others is kept in ' + repr(os.fspath(how.out)) + '; ' if how.out else ''}leave "
            "them out, or give skip_failed=True (in a shell: --skip-failed)"
        )
    return [FoundFact.from_dict(record) for _, record in held if failure_of(record) is None], failed


def merge_facts(folders: Sequence[str | os.PathLike[str]], out: str | os.PathLike[str]) -> list[str]:
    """Join folders of `edit_together(out=…)`: shards of one call, or calls with other requests.

    `edit_together(requests, out=out)` then finds them all there.

    Args:
        folders: the folders; they are only read.
        out: the folder to make.

    Returns:
        The names of the facts that no folder has.

    Raises:
        SettingError, RunError, ArtefactError: the folders do not belong together, or cannot be read or written.
    """
    with merge(folders, out, kinds=(KIND,)) as folder:
        return folder.missing()


def _run_here(maker: FactMaker, tasks: Sequence[Task], folder: Folder, how: FindingRun) -> None:
    """In this process, or in processes forked from it, one thread each on a CPU."""
    device, there = as_backend(maker.model).device, folder.finished()
    left = [task for task in tasks if not set(task.keys) <= there]
    work = HeldWork(maker)
    n_workers = side_by_side(len(left), device)
    if how.workers is not None:
        n_workers = min(how.workers, len(left))
        if n_workers > 1 and not (device.type == "cpu" and can_fork()):
            raise SettingError(
                f"workers is {how.workers}, and processes can share the model on a CPU under Linux alone; give 1, or "
                "an executor and the model's name"
            )
    if n_workers > 1:
        with forked_pool(work, n_workers) as pool:
            told = _saying(f"facts in {n_workers} processes", how.progress)
            run(work, tasks, folder, executor=pool, shard=how.shard, progress=told)
        return
    with _one_thread(device):
        run(work, tasks, folder, shard=how.shard, progress=_saying("facts", how.progress))


def _saying(unit: str, progress: Progress | None) -> Progress | None:
    """Progress that calls a run's records by another name."""
    if progress is None:
        return None
    return lambda done, total, what: progress(done, total, unit + what.removeprefix(UNIT))


@contextmanager
def _one_thread(device: torch.device) -> Iterator[None]:
    """PyTorch with one thread, as forked processes have it: sums depend on their number in the last digits."""
    n_threads = torch.get_num_threads()
    if device.type != "cpu" or n_threads == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(n_threads)


def left_out(request: EditRequest, reason: str) -> str:
    """What is noted of a request that is no part of the set."""
    return f"left out, since it cannot be edited: {request.words!r} ({reason})"


def _named(failed: Sequence[tuple[EditRequest, str]]) -> str:
    """The first requests that failed, each with its reason."""
    said = [f"{request.words!r}: {reason}" for request, reason in failed[:_NAMED]]
    more = len(failed) - len(said)
    return "; ".join(said) + (f"; and {more} more" if more else "")
