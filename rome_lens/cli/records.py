"""Records that commands edit: which ones, read and cut to the first few."""

from dataclasses import MISSING, dataclass
from typing import Any

from rome_lens.checks import whole_number
from rome_lens.cli.options import Panel
from rome_lens.cli.output import say
from rome_lens.data import builtin_counterfact, read_counterfact, read_zsre

RECORDS = Panel("The records")
BUILT_IN = "built-in"


@dataclass(frozen=True)
class CounterFactOptions:
    """Which records of CounterFact's form."""

    data: str | None = RECORDS(
        "A file as published (a JSON list, or .jsonl), or a data set: hub:NAME or hub:NAME:CONFIGURATION:SPLIT.",
        metavar="SOURCE",
        shown=BUILT_IN,
    )
    limit: int | None = RECORDS("Take the first N records.", shown="all")

    def read(self) -> Any:
        """The first records of the data set; those that break its schema are named on stderr.

        Raises:
            SettingError: the limit is below 1. ArtefactError: the records cannot be read.
        """
        if self.limit is not None:
            whole_number("limit", self.limit, least=1, expected="a number of records")
        records = self._all()
        for rejected in records.rejected:
            say(f"left out {rejected}")
        return records[: self.limit]

    def _all(self) -> Any:
        return builtin_counterfact() if self.data is None else read_counterfact(self.data)


@dataclass(frozen=True)
class ZsreOptions(CounterFactOptions):
    """Which records of zsRE's form."""

    data: str = RECORDS(
        "A file in the schema of MEND's (a JSON list, or .jsonl), or a data set: hub:NAME.",
        metavar="SOURCE",
        default=MISSING,
    )

    def _all(self) -> Any:
        return read_zsre(self.data)
