"""Where text comes from: a text file, JSON lines, a data set on the hub, or the model itself.

Texts are read as they are asked for, so that a file or a data set may be larger than memory, and anew at every
iteration.
"""

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rome_lens.data.hub import HUB, hub_records
from rome_lens.errors import ArtefactError

SELF = "self"
"""The source that stands for text which the model writes itself."""

_JSON_LINES, _JSON = (".jsonl", ".ndjson"), (".json",)
_FIELDS = ("text", "Text")


@dataclass(frozen=True)
class Texts:
    """Texts of one source, without white space around them and blank ones; every iteration reads from the start.

    Attributes:
        source: what is read, for people.
        read: opens the source; its texts may be blank.
        endless: it is too large to read in full, so a limit of tokens applies by default.
    """

    source: str
    read: Callable[[], Iterator[str]]
    endless: bool = False

    def __iter__(self) -> Iterator[str]:
        empty = True
        for text in map(str.strip, self.read()):
            if text:
                empty = False
                yield text
        if empty:
            raise ArtefactError(f"{self.source!r} holds no text")


def read_texts(source: str | os.PathLike[str], *, field: str | None = None) -> Texts:
    """Open a source of texts.

    Args:
        source: `hub:NAME`, `hub:NAME:CONFIGURATION` or `hub:NAME:CONFIGURATION:SPLIT` for a data set (NAME is one on
            the hub, or a folder; the split is `train` by default); a file ending in `.jsonl` (an object or a text a
            line) or `.json` (a list of such); any other file is plain text in UTF-8, whose texts are its paragraphs
            where it has blank lines, and its lines where it has none.
        field: which field of an object holds the text; by default `text` or `Text`.

    Returns:
        The texts, white space around them taken off and blank ones left out.

    Raises:
        ArtefactError: there is no such file or data set, or it cannot be read; now, or while the texts are read.
        SettingError: the notation of a data set is wrong.
    """
    name = os.fspath(source)
    if name.startswith(HUB):
        return _hub_texts(name, field)
    path = Path(name)
    if not path.exists():
        raise ArtefactError(f"there is no file {name!r} to read texts from; a data set is written {HUB}NAME")
    if path.is_dir():
        raise ArtefactError(f"{name!r} is a folder; name a file of texts in it, or write {HUB}{name} for a data set")
    if path.suffix.lower() in _JSON_LINES:
        return Texts(name, lambda: _guarded(name, lambda: _json_lines(path, field)))
    if path.suffix.lower() in _JSON:
        return Texts(name, lambda: _guarded(name, lambda: _json_list(path, field)))
    return Texts(name, lambda: _guarded(name, lambda: _plain(path)))


def _guarded(name: str, read: Callable[[], Iterator[str]]) -> Iterator[str]:
    try:
        yield from read()
    except UnicodeDecodeError as error:
        raise ArtefactError(f"{name!r} is not in UTF-8 ({error.reason}); save it in UTF-8") from error
    except OSError as error:
        raise ArtefactError(f"cannot read texts from {name!r}: {error.strerror or error}") from error


def _plain(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8-sig") as file:
        has_paragraphs = any(not line.strip() for line in _without_end(file))
    with path.open(encoding="utf-8-sig") as file:
        if not has_paragraphs:
            yield from file
            return
        paragraph: list[str] = []
        for line in file:
            if line.strip():
                paragraph.append(line)
            else:
                yield "".join(paragraph)
                paragraph = []
        yield "".join(paragraph)


def _without_end(lines: Iterator[str]) -> Iterator[str]:
    """All lines but the blank ones at the end, which part nothing."""
    blank: list[str] = []
    for line in lines:
        if line.strip():
            yield from blank
            yield line
            blank = []
        else:
            # One blank line says as much as many.
            blank = [line]


def _json_lines(path: Path, field: str | None) -> Iterator[str]:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                where = f"line {number} of {str(path)!r}"
                yield _text_of(_parsed(line, where), field, where=where)


def _json_list(path: Path, field: str | None) -> Iterator[str]:
    records = _parsed(path.read_text(encoding="utf-8-sig"), repr(str(path)))
    if not isinstance(records, list):
        raise ArtefactError(f"{str(path)!r} holds no JSON list; expected a list of texts, or of objects with a text")
    for index, record in enumerate(records):
        yield _text_of(record, field, where=f"record {index} of {str(path)!r}")


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ArtefactError(f"{where} is not JSON: {error}") from error


def _text_of(record: Any, field: str | None, *, where: str) -> str:
    if isinstance(record, str):
        return record
    if not isinstance(record, dict):
        raise ArtefactError(f"{where} is {type(record).__name__}; expected a text, or an object that holds one")
    names = _FIELDS if field is None else (field,)
    found = next((name for name in names if name in record), None)
    if found is None:
        held = ", ".join(map(repr, list(record)[:6])) or "nothing"
        raise ArtefactError(f"{where} has no field {names[0]!r}; name the one that holds the text (it has {held})")
    if not isinstance(record[found], str):
        raise ArtefactError(f"{where}: the field {found!r} is {type(record[found]).__name__}; expected a text")
    return record[found]


def _hub_texts(source: str, field: str | None) -> Texts:
    instead = f"a file or {SELF!r}"
    hub_records(source, instead=instead)  # the notation is looked at now

    def read() -> Iterator[str]:
        return (_text_of(record, field, where=where) for record, where in hub_records(source, instead=instead))

    return Texts(source, read, endless=True)
