"""A part of a run, for a machine that shares no executor with the others."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from rome_lens.checks import as_whole, keep, shown
from rome_lens.errors import SettingError
from rome_lens.runs.work import Task


@dataclass(frozen=True)
class Shard:
    """Every `count`-th task, from the `number`-th on.

    Attributes:
        number: from 1 to `count`.
        count: how many shards there are.
    """

    number: int
    count: int

    def __post_init__(self) -> None:
        number, count = as_whole(self.number, least=1), as_whole(self.count)
        if number is None or count is None or number > count:
            raise SettingError(
                f"shard {self.number}/{self.count}; expected i/n with i from 1 to n, such as 2/4 for the second of four"
            )
        keep(self, number=number, count=count)

    def __str__(self) -> str:
        """As `parse` reads it."""
        return f"{self.number}/{self.count}"

    @classmethod
    def of(cls, asked: "Self | str | None") -> "Self | None":
        """What a caller gave: a shard, its text, or None for all of the run.

        Raises:
            SettingError: as `parse` does.
        """
        if not isinstance(asked, cls | str | None):
            raise SettingError(f"shard is {shown(asked)}; expected a text such as 2/4, for the second of four")
        return cls.parse(asked) if isinstance(asked, str) else asked

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a shard from `2/4`.

        Raises:
            SettingError: it is not of that form, or there is no such shard.
        """
        match = re.fullmatch(r"\s*([0-9]{1,9})\s*/\s*([0-9]{1,9})\s*", text)
        if match is None:
            raise SettingError(f"shard {text!r}; expected i/n with i from 1 to n, such as 2/4 for the second of four")
        return cls(int(match[1]), int(match[2]))

    def mine(self, tasks: Sequence[Task]) -> list[Task]:
        """The tasks of this shard, in their order. Every task is in exactly one shard of a count."""
        # A task that names no part is dealt out by its place.
        parts = [place if task.part is None else task.part for place, task in enumerate(tasks)]
        return [task for task, part in zip(tasks, parts, strict=True) if self.has(part)]

    def has(self, place: int) -> bool:
        """Whether what comes at a place, from 0, is this shard's."""
        return (place - self.number + 1) % self.count == 0
