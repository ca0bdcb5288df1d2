"""Requests that somebody wrote into a file: as JSON, JSON lines or a table, in the fields of several toolkits."""

import csv
import io
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from rome_lens.checks import as_path, shown
from rome_lens.data.entries import NEW, PROMPT, SUBJECT, request_in
from rome_lens.data.fields import REWRITE, FieldError
from rome_lens.data.sources import HUB, JSON_LINES, hub_records, json_entries, kind_of_file, text_of_file
from rome_lens.errors import ArtefactError
from rome_lens.facts import EditRequest
from rome_lens.subjects import PLACE

_NEEDED = (PROMPT, SUBJECT, NEW)
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
            tabs; an empty cell says nothing), packed with gzip or not. Or a data set in the notation `hub:NAME`,
            `hub:NAME:CONFIGURATION:SPLIT`.

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
            if isinstance(entry, FieldError):
                raise entry
            requests.append(request_in(entry))
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
    text = text_of_file(path, "requests")
    if not text.strip():
        raise ArtefactError(f"{name!r} is empty; {_EXPECTED}")
    if "\0" in text:
        raise ArtefactError(f"{name!r} is no text in UTF-8: it holds the character NUL; {_EXPECTED}")
    kind, first = kind_of_file(path), text.strip().splitlines()[0]
    # A table that lacks its line of names may begin with a prompt, and that with the subject's place.
    is_json = first[0] in "[{" and (first == PLACE or not first.startswith(PLACE))
    if is_json or kind in (".json", *JSON_LINES):
        return json_entries(text, name, what="requests", single=(REWRITE, *PROMPT), by_lines=kind in JSON_LINES)
    return _of_table(text, name)


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
