"""Requests that somebody wrote into a file: as JSON, JSON lines or a table, in the fields of several toolkits."""

import csv
import io
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rome_lens.checks import as_path, shown
from rome_lens.data.fields import (
    REWRITE,
    FieldError,
    in_question,
    joined_in,
    joined_of_rewrite,
    member,
    request_from,
    text_in,
)
from rome_lens.data.sources import HUB, JSON_LINES, hub_records, json_lines, parsed, reading
from rome_lens.errors import ArtefactError, PromptError
from rome_lens.facts import EditRequest
from rome_lens.subjects import PLACE, placed

# What a request is made of, by the names that files have for it: ours first, then those of EasyEdit and zsRE.
_PROMPT = ("prompt", "src")
_SUBJECT = ("subject",)
_NEW = ("target_new", "target", "alt")
_TRUE = ("target_true", "old", "ground_truth", "answers")
_NEEDED = (_PROMPT, _SUBJECT, _NEW)
# Fields of an object that may hold the list.
_LISTS = ("requests", "edits", "facts", "records", "data")
_SEPARATORS = (",", ";", "\t")
_EXPECTED = "expected requests with prompt, subject and target_new, in JSON, JSON lines or CSV"
# Entries that an error names.
_NAMED = 3


def read_requests(source: str | os.PathLike[str]) -> list[EditRequest]:
    """Read requests from a file, all of them or none: what cannot be read is told, and nothing is left out.

    Of an entry are needed `prompt` (or `src`), `subject` and `target_new` (or `target`, `alt`); read where they are
    there are `target_true` (or `old`, `ground_truth`, `answers`; of a list the first) and `answer_joined`. A target is
    a text, or an object with the text `str`, as in the released code. The prompt holds `{}` or the subject itself
    (`rome-lens edit` takes it so); a question in `src` holds the subject itself, and braces in it are text. Also read
    are CounterFact's records, of which `requested_rewrite` holds the same fields. Other fields are passed over.

    Args:
        source: a file, whose form is known by what is in it: a JSON list, an object with one in `requests`, `edits`,
            `facts`, `records` or `data`, JSON lines, or a table with a line of names (CSV, with commas, semicolons or
            tabs; an empty cell says nothing). Or a data set in the notation `hub:NAME`, `hub:NAME:CONFIGURATION:SPLIT`.

    Returns:
        The requests, in the file's order; the same one twice where the file holds it twice.

    Raises:
        ArtefactError: there is no such file or data set, it is in no form that is read, it holds no requests, or one of
            its entries makes none. The first of those are named with the reason.
        SettingError: the notation of a data set is wrong.
    """
    name = as_path("the file", source)
    requests: list[EditRequest] = []
    faults: list[str] = []
    for place, entry in _entries(name):
        try:
            requests.append(_request(entry))
        except FieldError as error:
            faults.append(f"{place}: {' '.join(error.args)}")
    if faults:
        n_others = len(faults) - _NAMED
        more = [f"and {n_others} more"] if n_others > 0 else []
        n_all = len(faults) + len(requests)
        raise ArtefactError(
            f"{len(faults)} of {n_all} {'entry' if n_all == 1 else 'entries'} in {name!r} cannot be read, so none is: "
            f"{' | '.join([*faults[:_NAMED], *more])}"
        )
    if not requests:
        raise ArtefactError(f"{name!r} holds no requests; {_EXPECTED}")
    return requests


def _entries(name: str) -> Iterable[tuple[str, Any]]:
    """What a source holds, each with the words for its place in it."""
    if name.startswith(HUB):
        return ((f"record {index}", record) for index, (record, _) in enumerate(hub_records(name, instead="a file")))
    path = Path(name)
    if path.is_dir():
        raise ArtefactError(f"{name!r} is a folder; name the file of requests in it, or write {HUB}{name}")
    with reading("requests", name):
        try:
            text = path.read_bytes().decode("utf-8-sig")
        except FileNotFoundError as error:
            raise ArtefactError(f"there is no file {name!r} to read requests from") from error
    if not text.strip():
        raise ArtefactError(f"{name!r} is empty; {_EXPECTED}")
    if "\0" in text:
        raise ArtefactError(f"{name!r} is no text in UTF-8: it holds the character NUL; {_EXPECTED}")
    kind, first = path.suffix.lower(), text.strip().splitlines()[0]
    # A table that lacks its line of names may begin with a prompt, and that with the subject's place.
    is_json = first[0] in "[{" and (first == PLACE or not first.startswith(PLACE))
    if is_json or kind in (".json", *JSON_LINES):
        return _of_json(text, name, by_lines=kind in JSON_LINES)
    return _of_table(text, name)


def _of_json(text: str, name: str, *, by_lines: bool) -> list[tuple[str, Any]]:
    try:
        content = parsed(text, repr(name))
    except ArtefactError:
        lines = text.split("\n")  # JSON may hold the other characters that `splitlines` takes for the end of a line
        if not (by_lines or _is_json(next(filter(str.strip, lines)))):
            raise
        return [(where.removesuffix(f" of {name!r}"), entry) for entry, where in json_lines(lines, name)]
    if isinstance(content, Mapping):
        if any(field in content for field in (REWRITE, *_PROMPT)):
            return [("record 0", content)]
        lists = [field for field in _LISTS if isinstance(content.get(field), list)]
        if len(lists) != 1:
            raise ArtefactError(
                f"{name!r} holds an object with {shown(list(content))}; expected a JSON list of requests, or an object "
                f"with one in one of {', '.join(_LISTS)}"
            )
        content = content[lists[0]]
    if not isinstance(content, list):
        raise ArtefactError(f"{name!r} holds {shown(content)}; expected a JSON list of requests")
    return [(f"record {index}", entry) for index, entry in enumerate(content)]


def _is_json(text: str) -> bool:
    try:
        parsed(text, "")
    except ArtefactError:
        return False
    return True


def _of_table(text: str, name: str) -> Iterator[tuple[str, Any]]:
    separator = min(_SEPARATORS, key=lambda sign: len(_lacking(_header(text, sign, name))))
    lacking = _lacking(_header(text, separator, name))
    if lacking:
        first = text.strip().splitlines()[0]
        raise ArtefactError(
            f"{name!r} is no table of requests: its first line, {shown(first)}, names no column "
            f"{' or '.join(lacking[0])}; {_EXPECTED}"
        )
    names: list[str] = []
    for line, cells in _lines(text, separator, name):
        if not names:
            names = _named(cells)
            twice = [column for column in names if column and names.count(column) > 1]
            if twice:
                raise ArtefactError(f"{name!r} has several columns {twice[0]!r}; keep one of them")
        elif len(cells) != len(names):
            told = f"has {len(cells)} cells, and the first line {len(names)}"
            yield f"line {line}", FieldError("itself", f'{told}; write "…" around a text with {separator!r} in it')
        else:
            yield f"line {line}", {column: cell or None for column, cell in zip(names, cells, strict=True)}


def _lines(text: str, separator: str, name: str) -> Iterator[tuple[int, list[str]]]:
    """The rows of a table that are not blank, each with the number of the line on which it begins."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    begins = 1
    try:
        for cells in reader:
            if any(map(str.strip, cells)):
                yield begins, cells
            begins = reader.line_num + 1
    except csv.Error as error:
        raise ArtefactError(
            f'line {begins} of {name!r} is not CSV: {error}; a text with quotes in it is written "a ""quote"" in it"'
        ) from error


def _header(text: str, separator: str, name: str) -> list[str]:
    """The names of the columns, in small letters: none where the first line is no row with that separator."""
    try:
        return _named(next(_lines(text, separator, name), (1, []))[1])
    except ArtefactError:
        return []


def _named(cells: Iterable[str]) -> list[str]:
    return [cell.strip().lower() for cell in cells]


def _lacking(columns: Sequence[str]) -> list[tuple[str, ...]]:
    """What is needed and has no column."""
    return [names for names in _NEEDED if not set(names) & set(columns)]


def _request(entry: Any) -> EditRequest:
    if isinstance(entry, FieldError):
        raise entry
    record, inside = entry, ""
    if isinstance(entry, Mapping) and entry.get(REWRITE) is not None:
        record, inside = member(entry, REWRITE, "", Mapping, "an object"), f"{REWRITE}."
    asked = _field(record, _PROMPT, inside)
    prompt, subject = text_in(record, asked, inside), text_in(record, "subject", inside)
    target, old = _field(record, _NEW, inside), _field(record, _TRUE, inside)
    target_new = _target(record, target, inside)
    target_true = None if _says_nothing(record.get(old)) else _target(record, old, inside)
    joined = joined_of_rewrite(entry, record) if inside else joined_in(record, inside)
    if asked == "src":
        prompt, subject = in_question(prompt, subject)
    elif not inside:
        try:
            prompt, subject = placed(prompt, subject)
        except PromptError as error:
            raise FieldError(asked, f"makes no request: {error}") from error
    made = (prompt, subject, target_new, target_true, joined)
    return request_from(*made, inside=inside, field=asked, target=target)


def _field(record: Any, names: Sequence[str], inside: str) -> str:
    """Which of several fields that mean the same is read: the first that says something."""
    if not isinstance(record, Mapping):
        return names[0]
    told = [name for name in names if not _says_nothing(record.get(name))]
    for other in told[1:]:
        if _first(record[other]) != _first(record[told[0]]):
            both = f"{shown(record[told[0]])} and {shown(record[other])}"
            raise FieldError(inside + told[0], f"and {other} say different things, {both}; keep one of them")
    there = [name for name in names if record.get(name) is not None]
    return (told or there or names)[0]


def _says_nothing(value: Any) -> bool:
    """Whether there is nothing in a field: null, a blank text, an empty list, or a list or an object of such."""
    return (
        value is None
        or value == []
        or (isinstance(value, str) and not value.strip())
        or (_first(value) is not value and _says_nothing(_first(value)))
    )


def _first(value: Any) -> Any:
    """What a field says: of a list of answers the first, of an object of the released code its text."""
    while (isinstance(value, list) and value) or (isinstance(value, Mapping) and "str" in value):
        value = value["str"] if isinstance(value, Mapping) else value[0]
    return value


def _target(record: Mapping[str, Any], name: str, inside: str) -> str:
    value = record.get(name)
    if isinstance(value, Mapping):
        return text_in(value, "str", f"{inside}{name}.")
    if isinstance(value, list) and (name in _TRUE or len(value) == 1):
        value = _first(value)
    elif isinstance(value, list) and value:
        raise FieldError(inside + name, f"is a list of {len(value)} targets; expected one text")
    return text_in({name: value}, name, inside)
