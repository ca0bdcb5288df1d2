"""Commands that run for long: the options for their workers, and what a merge of their folders says that it lacks."""

from collections.abc import Sequence
from concurrent.futures import Executor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import MISSING, dataclass
from pathlib import Path

from rome_lens.cli.options import OUT, Panel, argument
from rome_lens.errors import RunError, SettingError

RUN = Panel("How it is run")
_MOST_NAMED = 5


@dataclass(frozen=True)
class RunOptions:
    """Which processes compute, and which part of the whole."""

    workers: int | None = RUN("Processes on this machine, each with its own copy of the model.", shown="none")
    shard: str | None = RUN("Do the i-th of n parts; the command's 'merge' joins them.", metavar="i/n")
    dask: str | None = RUN("Let the workers of this dask scheduler compute (extra 'dask').", metavar="ADDRESS")

    def executor(self) -> AbstractContextManager[Executor | None]:
        """The workers that were asked for, for as long as the block lasts; None where none were.

        Raises:
            SettingError: both kinds were asked for. RunError: they cannot be had.
        """
        from rome_lens.runs import dask_executor, process_pool

        if self.workers is not None and self.dask is not None:
            raise SettingError("--workers and --dask are given; choose one of them")
        if self.workers is not None:
            return process_pool(self.workers)
        return nullcontext() if self.dask is None else dask_executor(self.dask)


@dataclass(frozen=True)
class MergeOptions:
    """Which folders become one."""

    folders: list[Path] = argument("Folders to join.", "DIR", default=MISSING)
    out: Path = OUT("The folder to make.", "-o", metavar="DIR", default=MISSING)


def first_few(names: Sequence[object], most: int = _MOST_NAMED) -> str:
    """The first names of a list, and an ellipsis where there are more."""
    return ", ".join(map(str, names[:most])) + (", …" if len(names) > most else "")


def refuse_missing(missing: Sequence[str], of: str) -> None:
    """Say that merged folders do not make a whole.

    Args:
        missing: names of the records that no folder has.
        of: what they are, in the plural.

    Raises:
        RunError: there are some.
    """
    if missing:
        named = f"{len(missing)} {of} are in none of the folders ({first_few(missing)})"
        raise RunError(f"{named}; run the parts that lack them")
