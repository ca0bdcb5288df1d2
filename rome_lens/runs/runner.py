"""Runs tasks, here or in workers, and keeps each record as soon as it is there.

Workers send what they computed back, and the process that started the run alone writes: no file system has to be
shared, and no two processes write one file.
"""

import concurrent.futures
import pickle
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any

from rome_lens.errors import RomeLensError, RunError
from rome_lens.progress import DETAIL, Progress, silent
from rome_lens.runs.folder import Folder
from rome_lens.runs.shard import Shard
from rome_lens.runs.work import Task, Work
from rome_lens.runs.worker import Outcome, compute, forget, lost_worker

UNIT = "records"


def run(
    work: Work,
    tasks: Iterable[Task],
    folder: Folder,
    *,
    executor: concurrent.futures.Executor | None = None,
    shard: Shard | None = None,
    plan: Iterable[str] | None = None,
    progress: Progress | None = None,
) -> None:
    """Do all tasks whose records are not there yet.

    Args:
        work: where the maker comes from.
        tasks: all of them, in the same order whenever the run is started; no record is made by two.
        folder: where the records go; those that are there already are not made again.
        executor: computes the tasks, one call each; in this thread without one.
        shard: do these tasks only.
        plan: the names of all records that will be made, where these tasks are only the first of several.
        progress: called with how many of the records of these tasks are there, at first with those there already.

    Raises:
        RomeLensError: a task failed. What was finished is kept, and no other task is begun.
        RunError: a worker was lost, or the maker is not the one that the run was begun with.
    """
    tasks = list(tasks)
    keys = _keys(tasks)
    folder.note_plan(keys if plan is None else plan)
    mine = tasks if shard is None else shard.mine(tasks)
    ledger = _Ledger(folder, mine, progress)
    left = [task for task in mine if ledger.lacking(task).keys]
    ledger.tell()
    if not left:
        return
    if executor is None:
        with closing(work.open(progress or silent)) as maker:
            folder.note_prepared(maker.prepare())
            ledger.tell()
            for task in left:
                ledger.take(task, maker.run(ledger.lacking(task), ledger.tell_step))
    else:
        _run_there(work, left, ledger, executor)


class _Ledger:
    """What is there and what is missing of the records of some tasks."""

    def __init__(self, folder: Folder, tasks: Sequence[Task], progress: Progress | None) -> None:
        self.folder = folder
        self.missing = set(_keys(tasks))
        self.total = len(self.missing)
        self.missing -= folder.finished()
        self.progress = progress or silent

    def lacking(self, task: Task) -> Task:
        """The task with the keys that are missing alone: what else it would make need not be made."""
        return replace(task, keys=tuple(key for key in task.keys if key in self.missing))

    def take(self, task: Task, records: Iterable[tuple[str, dict[str, Any]]]) -> None:
        """Keep the records of a task, each as it comes."""
        for key, record in records:
            if key in self.missing:  # a task that was cut half-way makes again what is there already
                self.folder.write(key, record)
                self.missing.remove(key)
                self.tell()
        lacking = self.lacking(task).keys
        if lacking:
            raise RunError(f"the task {task.name!r} ended without making the record {lacking[0]!r}")

    def tell(self, detail: str = "") -> None:
        self.progress(self.total - len(self.missing), self.total, UNIT + detail)

    def tell_step(self, done: int, total: int, what: str) -> None:
        self.tell(f"{DETAIL}{what} {done}/{total}" if total else f"{DETAIL}{what}")


def _run_there(work: Work, tasks: list[Task], ledger: _Ledger, executor: concurrent.futures.Executor) -> None:
    if isinstance(executor, concurrent.futures.ProcessPoolExecutor):
        _check_pickles(work)
    waiting: dict[concurrent.futures.Future[Outcome], Task] = {}
    try:
        for task in tasks:
            waiting[executor.submit(compute, work, ledger.lacking(task))] = task
        for future in concurrent.futures.as_completed(list(waiting)):
            _take(future, waiting.pop(future), ledger)
    except BaseException as error:
        for future in waiting:
            future.cancel()
        _keep_finished(waiting, ledger)
        if lost_worker(error):
            raise RunError(
                f"a worker was lost (killed, or out of memory): {ledger.total - len(ledger.missing)} of {ledger.total} "
                f"records are finished; {ledger.folder.kept}"
            ) from error
        raise
    finally:
        forget(work.token)  # threads of this process had the maker too


def _take(future: "concurrent.futures.Future[Outcome]", task: Task, ledger: _Ledger) -> None:
    outcome = future.result()
    ledger.folder.note_prepared(outcome.prepared)
    ledger.take(task, outcome.records)


def _keep_finished(waiting: "dict[concurrent.futures.Future[Outcome], Task]", ledger: _Ledger) -> None:
    """Keep what other tasks have finished by now; whatever is wrong with them too is not what is reported."""
    for future, task in waiting.items():
        if future.done() and not future.cancelled() and future.exception() is None:
            try:
                _take(future, task, ledger)
            except RomeLensError:
                return


def _check_pickles(work: Work) -> None:
    try:
        pickle.dumps(work)
    except Exception as error:  # pickle raises whatever the object's own methods do
        raise RunError(
            f"the work cannot be sent to another process ({error}); name the model instead of giving the object"
        ) from error


def _keys(tasks: Sequence[Task]) -> list[str]:
    keys = [key for task in tasks for key in task.keys]
    if len(set(keys)) < len(keys):
        twice = next(key for number, key in enumerate(keys) if key in keys[:number])
        raise RunError(f"two tasks make the record {twice!r}; expected every record once")
    return keys
