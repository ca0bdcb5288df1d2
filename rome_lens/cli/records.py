"""Records that commands edit: which ones, read and cut to the first few."""

from dataclasses import MISSING, dataclass
from typing import Any, ClassVar

from rome_lens.checks import whole_number
from rome_lens.cli.options import Panel
from rome_lens.cli.output import say
from rome_lens.cli.printing import count
from rome_lens.data import builtin_counterfact, read_counterfact, read_zsre
from rome_lens.data.forms import COUNTERFACT, ZSRE

RECORDS = Panel("The records")
BUILT_IN = "built-in"
# Of MQuAKE's cases more than half are left out.
_MOST_NAMED = 20


@dataclass(frozen=True)
class CounterFactOptions:
    """Which records of CounterFact's form."""

    published: ClassVar[str] = COUNTERFACT.name
    data: str | None = RECORDS(
        "A file of CounterFact, EasyEdit, KnowEdit, MQuAKE or RippleEdits (JSON or JSON lines, .gz or not), or a data "
        "set: hub:NAME or hub:NAME:CONFIGURATION:SPLIT.",
        metavar="SOURCE",
        shown=BUILT_IN,
    )
    limit: int | None = RECORDS("Take the first N records.", shown="all")

    def read(self) -> Any:
        """The first records of the data set. On stderr is said what else was in it.

        That is the form, where it is another than the published one, fields that nothing reads, and records that break
        the form.

        Raises:
            SettingError: the limit is below 1. ArtefactError: the records cannot be read.
        """
        if self.limit is not None:
            whole_number("limit", self.limit, least=1, expected="a number of records")
        records = self._all()
        if self.data is not None:
            self._say_what_was_read(records)
        for rejected in records.rejected[:_MOST_NAMED]:
            say(f"left out {rejected}")
        n_others = len(records.rejected) - _MOST_NAMED
        if n_others > 0:
            say(f"left out {count(n_others, 'more record')}")
        return records[: self.limit]

    def _say_what_was_read(self, records: Any) -> None:
        if records.form != self.published:
            say(f"read as {records.form}")
        if records.passed_over:
            fields = (f"{name} ({count(number, 'record')})" for name, number in records.passed_over.items())
            say(f"passed over {', '.join(fields)}")

    def _all(self) -> Any:
        return builtin_counterfact() if self.data is None else read_counterfact(self.data)


@dataclass(frozen=True)
class ZsreOptions(CounterFactOptions):
    """Which records of zsRE's form."""

    published: ClassVar[str] = ZSRE.name
    data: str = RECORDS(
        "A file in MEND's schema, EasyEdit's or KnowEdit's (JSON or JSON lines, .gz or not), or a data set: hub:NAME.",
        metavar="SOURCE",
        default=MISSING,
    )

    def _all(self) -> Any:
        return read_zsre(self.data)
