"""CounterFact and zsRE as they were published: what breaks the schema is named and left out."""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Generic, TypeVar, overload

from rome_lens.checks import as_path, as_text, as_texts, keep, whole_number
from rome_lens.data.fields import (
    REWRITE,
    FieldError,
    in_question,
    joined_in,
    joined_of_rewrite,
    member,
    request_from,
    text_in,
    texts_in,
)
from rome_lens.data.sources import HUB, JSON_LINES, hub_records, json_lines, parsed, reading
from rome_lens.errors import ArtefactError
from rome_lens.facts import EditRequest
from rome_lens.kinds import request_of


@dataclass(frozen=True)
class CounterFactRecord:
    """A fact that a model is to unlearn for another, and the prompts that show what else changed (paper, section 3.4).

    Attributes:
        number: place in the data set, from 0.
        case_id: the data set's own name for it.
        relation: such as `P176`; None where the data set names none.
        request: the edit that is asked for; `target_true` is the fact. Its `answer_joined`, which a file may give
            beside the prompt or beside the rewrite, holds for all prompts of the record.
        paraphrases: whole prompts that ask the same in other words.
        neighbours: whole prompts about other subjects of which `target_true` is true as well.
        generation_prompts: beginnings of texts about the subject.

    Raises:
        SettingError: a field is of another kind.
    """

    number: int
    case_id: int | str
    relation: str | None
    request: EditRequest
    paraphrases: tuple[str, ...]
    neighbours: tuple[str, ...]
    generation_prompts: tuple[str, ...]

    def __post_init__(self) -> None:
        _keep_names(self)
        names = ("paraphrases", "neighbours", "generation_prompts")
        keep(self, request=request_of(self.request), **{name: as_texts(name, getattr(self, name)) for name in names})


@dataclass(frozen=True)
class ZsreRecord:
    """A question with its answer, as MEND's files hold them (paper, section 3.3).

    Attributes:
        number: place in the data set, from 0.
        case_id: the same; zsRE has no names for its records.
        request: the question and its first answer. Its `answer_joined`, which a file may give beside the question,
            holds for it and its rephrasing.
        rephrase: the question in other words.
        unrelated: a question about something else, with its question mark.
        unrelated_answer: the answer to that.

    Raises:
        SettingError: a field is of another kind.
    """

    number: int
    case_id: int | str
    request: EditRequest
    rephrase: str
    unrelated: str
    unrelated_answer: str

    def __post_init__(self) -> None:
        _keep_names(self)
        keep(self, request=request_of(self.request))
        for name in ("rephrase", "unrelated", "unrelated_answer"):
            as_text(name, getattr(self, name))

    @property
    def relation(self) -> None:
        """None: the files name no relations."""
        return


def _keep_names(record: CounterFactRecord | ZsreRecord) -> None:
    """By what a record is known, as files hold it: Python's own numbers."""
    keep(record, number=whole_number("number", record.number))
    if not isinstance(record.case_id, str):
        keep(record, case_id=whole_number("case_id", record.case_id, expected="a whole number or a text"))


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


R = TypeVar("R", CounterFactRecord, ZsreRecord)


@dataclass(frozen=True)
class RecordSet(Sequence[R], Generic[R]):
    """Records of one data set, in its order.

    Attributes:
        records: those that keep to the schema.
        rejected: those that do not.
        source: where they come from, for people.
    """

    records: tuple[R, ...]
    rejected: tuple[Rejected, ...]
    source: str

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
        content = json.dumps(
            [{**asdict(record), "request": record.request.as_dict()} for record in self.records], sort_keys=True
        )
        return hashlib.sha256(content.encode()).hexdigest()


def read_counterfact(source: str | os.PathLike[str]) -> RecordSet[CounterFactRecord]:
    """Read CounterFact in the form in which it was published (kmeng01/rome), all of it or a part.

    Args:
        source: a JSON file (a list of records), JSON lines (`.jsonl`), or a data set in the notation `hub:NAME`,
            `hub:NAME:CONFIGURATION:SPLIT`.

    Returns:
        The records. Those that break the schema are in `rejected`, by number and field.

    Raises:
        ArtefactError: there is no such file or data set, it is not JSON, or not one of its records can be used.
        SettingError: the notation of a data set is wrong.
    """
    return _read(source, _counterfact, "CounterFact")


def read_zsre(source: str | os.PathLike[str]) -> RecordSet[ZsreRecord]:
    """Read zsRE in the schema of MEND's files.

    Args:
        source: as `read_counterfact` takes it.

    Returns:
        The records. Those that break the schema are in `rejected`, by number and field.

    Raises:
        ArtefactError: there is no such file or data set, it is not JSON, or not one of its records can be used.
        SettingError: the notation of a data set is wrong.
    """
    return _read(source, _zsre, "zsRE")


@cache
def builtin_counterfact() -> RecordSet[CounterFactRecord]:
    """Our own records in CounterFact's form, whose facts the default model knows: an evaluation needs no data."""
    content = json.loads(files("rome_lens.data").joinpath("counterfact.json").read_text(encoding="utf-8"))
    return _collect(content, _counterfact, "CounterFact", "built-in")


def _read(source: str | os.PathLike[str], convert: Callable[[int, Any], R], what: str) -> RecordSet[R]:
    name = as_path("the file", source)
    if name.startswith(HUB):
        return _collect((record for record, _ in hub_records(name, instead="a file")), convert, what, name)
    return _collect(_from_file(Path(name), what), convert, what, name)


def _from_file(path: Path, what: str) -> Iterator[Any]:
    name = repr(str(path))
    if path.is_dir():
        raise ArtefactError(f"{name} is a folder; name the {what} file in it, or write {HUB}{path} for a data set")
    with reading(what, str(path)):
        try:
            text = path.read_text(encoding="utf-8-sig")
        except FileNotFoundError as error:
            raise ArtefactError(
                f"there is no file {name} to read {what} from; a data set is written {HUB}NAME"
            ) from error
    if path.suffix.lower() in JSON_LINES:
        # JSON may hold the other characters that `splitlines` takes for the end of a line.
        return (record for record, _ in json_lines(text.split("\n"), str(path)))
    content = parsed(text, name, kept=f", which {what} is kept in")
    if not isinstance(content, list):
        raise ArtefactError(f"{name} holds no {what}: expected a JSON list of records")
    return iter(content)


def _collect(found: Iterable[Any], convert: Callable[[int, Any], R], what: str, source: str) -> RecordSet[R]:
    records: list[R] = []
    rejected: list[Rejected] = []
    for number, record in enumerate(found):
        try:
            records.append(convert(number, record))
        except FieldError as error:
            rejected.append(Rejected(number, *error.args))
    if not records:
        first = f"; {rejected[0]}" if rejected else ""
        raise ArtefactError(f"{source!r} holds no {what} record that can be used{first}")
    return RecordSet(tuple(records), tuple(rejected), source)


def _counterfact(number: int, record: Any) -> CounterFactRecord:
    rewrite, inside = member(record, REWRITE, "", Mapping, "an object"), f"{REWRITE}."
    targets = [
        text_in(member(rewrite, name, inside, Mapping, "an object with the text str"), "str", f"{inside}{name}.")
        for name in ("target_new", "target_true")
    ]
    asked = text_in(rewrite, "prompt", inside), text_in(rewrite, "subject", inside)
    joined = joined_of_rewrite(record, rewrite)
    request = request_from(*asked, *targets, joined, inside=inside)
    relation = rewrite.get("relation_id")
    if relation is not None and not isinstance(relation, str):
        raise FieldError(f"{inside}relation_id", f"is {type(relation).__name__}; expected a text")
    case_id = number if record.get("case_id") is None else record["case_id"]
    if isinstance(case_id, bool) or not isinstance(case_id, int | str):
        raise FieldError("case_id", f"is {type(case_id).__name__}; expected a whole number or a text")
    return CounterFactRecord(
        number=number,
        case_id=case_id,
        relation=relation,
        request=request,
        paraphrases=texts_in(record, "paraphrase_prompts"),
        neighbours=texts_in(record, "neighborhood_prompts"),
        generation_prompts=texts_in(record, "generation_prompts", least=0),
    )


def _zsre(number: int, record: Any) -> ZsreRecord:
    question, subject = text_in(record, "src", ""), text_in(record, "subject", "")
    answers = texts_in(record, "answers")
    prompt, named = in_question(question, subject)
    return ZsreRecord(
        number=number,
        case_id=number,
        request=request_from(prompt, named, answers[0], None, joined_in(record, ""), field="src"),
        rephrase=text_in(record, "rephrase", ""),
        unrelated=text_in(record, "loc", "") + "?",
        unrelated_answer=text_in(record, "loc_ans", ""),
    )
