"""CounterFact and zsRE in the forms that people have them in: what breaks a form is named and left out."""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Generic, overload

from rome_lens.checks import as_path
from rome_lens.data.entries import PROMPT
from rome_lens.data.fields import REWRITE, FieldError
from rome_lens.data.forms import Form, R, counterfact_form, zsre_form
from rome_lens.data.record import CounterFactRecord as CounterFactRecord
from rome_lens.data.record import FollowUp as FollowUp
from rome_lens.data.record import ZsreRecord as ZsreRecord
from rome_lens.data.ripple import EDIT
from rome_lens.data.sources import HUB, JSON_LINES, hub_records, json_entries, kind_of_file, text_of_file
from rome_lens.errors import ArtefactError

# What a record that came later may hold; where it does not, the digest is that of the records before.
_LATER = ("neighbour_answers", "follows")


@dataclass(frozen=True)
class Rejected:
    """A record that breaks the schema.

    Attributes:
        number: its place in the data set, from 0.
        field: the field that is at fault, such as `requested_rewrite.target_new.str`.
        problem: what is wrong with it.
    """

    number: int
    field: str
    problem: str

    def __str__(self) -> str:
        return f"record {self.number}: {self.field} {self.problem}"


@dataclass(frozen=True)
class RecordSet(Sequence[R], Generic[R]):
    """Records of one data set, in its order.

    Attributes:
        records: those that keep to the schema.
        rejected: those that do not.
        source: where they come from, for people.
        form: the form that they were read in, in words, such as `EasyEdit's CounterFact`; empty where none was.
        passed_over: field -> in how many of the records it holds something that nothing reads.
    """

    records: tuple[R, ...]
    rejected: tuple[Rejected, ...]
    source: str
    form: str = ""
    passed_over: Mapping[str, int] = field(default_factory=dict, hash=False)

    def __len__(self) -> int:
        return len(self.records)

    @overload
    def __getitem__(self, index: int) -> R: ...
    @overload
    def __getitem__(self, index: slice) -> "RecordSet[R]": ...
    def __getitem__(self, index: int | slice) -> "R | RecordSet[R]":
        if isinstance(index, slice):
            return replace(self, records=self.records[index])
        return self.records[index]

    @property
    def digest(self) -> str:
        """SHA-256 of what the records say: by it a run knows its data again, wherever the file lies."""
        content = json.dumps([_said(record) for record in self.records], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()


def _said(record: CounterFactRecord | ZsreRecord) -> dict[str, Any]:
    """What a record says, as JSON holds it."""
    said = {**asdict(record), "request": record.request.as_dict()}
    return {name: value for name, value in said.items() if value or name not in _LATER}


def read_counterfact(source: str | os.PathLike[str]) -> RecordSet[CounterFactRecord]:
    """Read CounterFact, or what is kept in another data set's form, all of it or a part.

    The form of each record is known by its fields: CounterFact as published (kmeng01/rome), which is MultiCounterFact's
    as well; EasyEdit's (`prompt`, `target_new`, `ground_truth`, `rephrase_prompt`, `locality_prompt`, ...); KnowEdit's,
    with its blocks `portability` and `locality`; MQuAKE's, of which the cases with one rewrite are read; and
    RippleEdits'.

    Args:
        source: a file in JSON (a list of records, or an object with one in `requests`, `edits`, `facts`, `records` or
            `data`) or JSON lines, packed with gzip or not, or a data set in the notation `hub:NAME`,
            `hub:NAME:CONFIGURATION:SPLIT`.

    Returns:
        The records. Those that break their form are in `rejected`, by number and field.

    Raises:
        ArtefactError: there is no such file or data set, it is not JSON, or not one of its records can be used.
        SettingError: the notation of a data set is wrong.
    """
    return _read(source, counterfact_form, "CounterFact")


def read_zsre(source: str | os.PathLike[str]) -> RecordSet[ZsreRecord]:
    """Read zsRE in the schema of MEND's files, or in EasyEdit's or KnowEdit's form.

    Args:
        source: as `read_counterfact` takes it.

    Returns:
        The records. Those that break their form are in `rejected`, by number and field.

    Raises:
        ArtefactError: there is no such file or data set, it is not JSON, or not one of its records can be used.
        SettingError: the notation of a data set is wrong.
    """
    return _read(source, zsre_form, "zsRE")


@cache
def builtin_counterfact() -> RecordSet[CounterFactRecord]:
    """Our own records in CounterFact's form, whose facts the default model knows: an evaluation needs no data."""
    content = json.loads(files("rome_lens.data").joinpath("counterfact.json").read_text(encoding="utf-8"))
    return _collect(content, counterfact_form, "CounterFact", "built-in")


def _read(source: str | os.PathLike[str], form_of: Callable[[Any], Form[R]], what: str) -> RecordSet[R]:
    name = as_path("the file", source)
    if name.startswith(HUB):
        return _collect((record for record, _ in hub_records(name, instead="a file")), form_of, what, name)
    return _collect(_from_file(Path(name), what), form_of, what, name)


def _from_file(path: Path, what: str) -> Iterator[Any]:
    if path.is_dir():
        raise ArtefactError(
            f"{str(path)!r} is a folder; name the {what} file in it, or write {HUB}{path} for a data set"
        )
    text = text_of_file(path, what, instead=f"; a data set is written {HUB}NAME")
    entries = json_entries(
        text,
        str(path),
        what=f"{what} records",
        single=(REWRITE, EDIT, *PROMPT),
        by_lines=kind_of_file(path) in JSON_LINES,
        kept=f", which {what} is kept in",
    )
    return (entry for _, entry in entries)


def _collect(found: Iterable[Any], form_of: Callable[[Any], Form[R]], what: str, source: str) -> RecordSet[R]:
    records: list[R] = []
    rejected: list[Rejected] = []
    forms: dict[str, None] = {}
    passed_over: Counter[str] = Counter()
    for number, record in enumerate(found):
        form, passed = form_of(record), set[str]()
        try:
            records.append(form.convert(number, record, passed))
        except FieldError as error:
            rejected.append(Rejected(number, *error.args))
            continue
        forms[form.name] = None
        passed_over.update(passed | form.passed_over(record))
    if not records:
        first = f"; {rejected[0]}" if rejected else ""
        raise ArtefactError(f"{source!r} holds no {what} record that can be used{first}")
    passed_sorted = dict(sorted(passed_over.items()))
    return RecordSet(tuple(records), tuple(rejected), source, " and ".join(forms), passed_sorted)
