"""Records that commands edit: which ones, read and cut to the first few."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rome_lens.checks import whole_number
from rome_lens.cli.options import Panel
from rome_lens.cli.output import say

RECORDS = Panel("The records")
BUILT_IN = "built-in"


def read_records(read: Callable[[], Any], limit: int | None) -> Any:
    """The first records of a data set; those that break its schema are named on stderr.

    Args:
        read: gives all of them.
        limit: how many to take; None takes all.

    Raises:
        SettingError: the limit is below 1. ArtefactError: the records cannot be read.
    """
    if limit is not None:
        whole_number("limit", limit, least=1, expected="a number of records")
    records = read()
    for rejected in records.rejected:
        say(f"left out {rejected}")
    return records[:limit]


@dataclass(frozen=True)
class CounterFactOptions:
    """Which records of CounterFact's form."""

    data: str | None = RECORDS(
        "A file as published (a JSON list, or .jsonl), or a data set: hub:NAME or hub:NAME:CONFIGURATION:SPLIT.",
        "SOURCE",
        shown=BUILT_IN,
    )
    limit: int | None = RECORDS("Take the first N records.", "N", shown="all")

    def read(self) -> Any:
        """The records.

        Raises:
            SettingError: the limit is below 1. ArtefactError: they cannot be read.
        """
        from rome_lens.data.records import builtin_counterfact, read_counterfact

        return read_records(
            lambda: builtin_counterfact() if self.data is None else read_counterfact(self.data), self.limit
        )
