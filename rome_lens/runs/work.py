"""What a long run computes: tasks, and who makes the records of each.

A task is fixed by the settings of the run and never by who runs it or where the last run was cut: a task that was
interrupted half-way is computed again in whole, and only the records of it that are missing are written. So no number
depends on an interruption.
"""

import re
import secrets
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from rome_lens.checks import whole_number
from rome_lens.errors import RunError, SettingError
from rome_lens.progress import Progress

_PART = re.compile(r"[A-Za-z0-9_+=@][A-Za-z0-9_+=@.,-]{0,120}")


def check_name(name: str, called: str, *, parts: int = 1) -> None:
    """Refuse what cannot name a file or a folder of a run, wherever the run may be copied to.

    Args:
        name: the name.
        called: what of, for people.
        parts: how many parts it may have at most, with `/` between them.

    Raises:
        SettingError: it cannot.
    """
    if name.count("/") >= parts or not all(map(_PART.fullmatch, name.split("/"))):
        raise SettingError(
            f"the {called} {name!r} cannot be a file name; expected letters, digits and any of _+=@.,- (none of .,- "
            f"first){', with one / at most' if parts > 1 else ''}"
        )


@dataclass(frozen=True)
class Task:
    """What is computed together.

    Attributes:
        name: for people.
        keys: the records that it makes, such as `r-rome/000017`: each becomes a file, below one folder at most.
        payload: the task's own input; small, and such that it can be pickled.
        part: tasks of one part go into one shard; None deals each out by itself.
    """

    name: str
    keys: tuple[str, ...]
    payload: Any = None
    part: int | None = None

    def __post_init__(self) -> None:
        for key in self.keys:
            check_name(key, "record name", parts=2)


class RecordMaker(ABC):
    """What is loaded once (a model) and makes the records of one task after another. One thread at a time uses it."""

    @abstractmethod
    def prepare(self) -> dict[str, Any]:
        """What the settings turned out to mean here: values that were looked up, the model's fingerprint.

        The run folder keeps it, and every maker of the run, in whatever process, has to say the same.

        Returns:
            Whatever JSON can hold.
        """

    @abstractmethod
    def run(self, task: Task, progress: Progress) -> Iterator[tuple[str, dict[str, Any]]]:
        """Do a task.

        Args:
            task: the task; of its keys those that are missing. It may make the others again, which are not written.
            progress: called with how far the task is, in steps of its own; not called in a worker process.

        Yields:
            Each of the task's keys, as soon as its record is whole, and the record, as JSON can hold it.
        """

    def close(self) -> None:  # noqa: B027 (most makers have nothing to put back)
        """Put back what was changed for the tasks; called when the last one is done or has failed."""


@dataclass(frozen=True)
class Work(ABC):
    """Where the makers of a run come from. It is pickled and sent along with every task: names, no weights.

    Attributes:
        token: a name that no other work has: a worker process keeps a maker for as long as it is given tasks of the
            same token.
    """

    token: str = field(default_factory=secrets.token_hex, init=False)

    @abstractmethod
    def open(self, progress: Progress) -> RecordMaker:
        """Load whatever the tasks need.

        Args:
            progress: called with how far the loading is.
        """


@dataclass(frozen=True)
class HeldWork(Work):
    """Work whose maker is there already, such as one around a model that a caller gave.

    It is pickled without the maker: among other processes, those of `forked_pool` alone can do its tasks.

    Attributes:
        maker: makes the records; None where this was unpickled.
    """

    maker: RecordMaker | None = field(repr=False)

    def open(self, progress: Progress) -> RecordMaker:
        if self.maker is None:
            raise RunError("a worker was not given what makes the records; expected one of forked_pool for this work")
        return self.maker

    def __getstate__(self) -> dict[str, Any]:
        """The name alone."""
        return {**vars(self), "maker": None}


def check_batches(batch_size: int, n_inputs: int, *, of: str) -> int:
    """Refuse what tasks cannot be made of; the batch size as Python's own number.

    Args:
        batch_size: inputs a task.
        n_inputs: how many inputs there are.
        of: what they are, in the plural.

    Raises:
        SettingError: there is nothing to do, or a task would be empty.
    """
    number = whole_number("batch_size", batch_size, least=1, expected=f"a whole number of {of}")
    if not n_inputs:
        raise SettingError(f"there are no {of}; expected one or more")
    return number
