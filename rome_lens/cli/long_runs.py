"""Commands that run for long: the options for their workers, and what a merge of their folders says that it lacks."""

from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import MISSING, dataclass
from pathlib import Path

from rome_lens.cli.options import OUT, Panel, argument
from rome_lens.errors import RunError, SettingError

RUN = Panel("How it is run")
_MOST_NAMED = 5


@dataclass(frozen=True)
class RunOptions:
    """Which processes compute, and which part of the whole."""

    workers: int | None = RUN("Processes on this machine, each with its own copy of the model.", "N", shown="none")
    shard: str | None = RUN("Do the i-th of n parts; the command's 'merge' joins them.", "i/n", "--shard")
    dask: str | None = RUN("Let the workers of this dask scheduler compute (extra 'dask').", "ADDRESS")

    @contextmanager
    def executor(self) -> Iterator[Executor | None]:
        """The workers that were asked for, for as long as the block lasts; None where none were.

        Raises:
            SettingError: both kinds were asked for. RunError: they cannot be had.
        """
        from rome_lens.runs import dask_executor, process_pool

        if self.workers is not None and self.dask is not None:
            raise SettingError("--workers and --dask are given; choose one of them")
        if self.workers is not None:
            with process_pool(self.workers) as pool:
                yield pool
        elif self.dask is not None:
            with dask_executor(self.dask) as cluster:
                yield cluster
        else:
            yield None


@dataclass(frozen=True)
class MergeOptions:
    """Which folders become one."""

    folders: list[Path] = argument("Folders to join.", "DIR", default=MISSING)
    out: Path = OUT("The folder to make.", "DIR", "--out", "-o", default=MISSING)


def first_few(names: Sequence[object]) -> str:
    """The first names of a list, and an ellipsis where there are more."""
    return ", ".join(map(str, names[:_MOST_NAMED])) + (", …" if len(names) > _MOST_NAMED else "")


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
