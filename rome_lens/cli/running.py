"""Options of the commands that run for long, and the workers that they ask for."""

from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from typing import Annotated, Any

import typer

from rome_lens.errors import RunError, SettingError

RUN: dict[str, Any] = {"rich_help_panel": "How it is run"}
_MOST_NAMED = 5

Workers = Annotated[
    int | None,
    typer.Option(help="Processes on this machine, each with its model.", show_default="none", metavar="N", **RUN),
]
ShardOf = Annotated[
    str | None,
    typer.Option("--shard", help="Do the i-th of n parts; the command's 'merge' joins them.", metavar="i/n", **RUN),
]
Dask = Annotated[
    str | None,
    typer.Option(help="Let the workers of this dask scheduler compute (extra 'dask').", metavar="ADDRESS", **RUN),
]


@contextmanager
def executor_of(workers: int | None, dask: str | None) -> Iterator[Executor | None]:
    """The workers that were asked for, for as long as the block lasts; None where none were.

    Raises:
        SettingError: both kinds were. RunError: they cannot be had.
    """
    from rome_lens.runs import dask_executor, process_pool

    if workers is not None and dask is not None:
        raise SettingError("--workers and --dask are given; choose one of them")
    if workers is not None:
        with process_pool(workers) as pool:
            yield pool
    elif dask is not None:
        with dask_executor(dask) as cluster:
            yield cluster
    else:
        yield None


def refuse_missing(missing: Sequence[str], of: str) -> None:
    """Say that merged folders do not make a whole.

    Args:
        missing: names of the records that no folder has.
        of: what they are, in the plural.

    Raises:
        RunError: there are some.
    """
    if missing:
        named = ", ".join(missing[:_MOST_NAMED]) + (", …" if len(missing) > _MOST_NAMED else "")
        raise RunError(f"{len(missing)} {of} are in none of the folders ({named}); run the parts that lack them")
