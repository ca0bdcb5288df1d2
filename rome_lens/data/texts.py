"""Where text comes from: a text file, JSON lines, a data set on the hub, or the model itself.

Texts are read as they are asked for, so that a file or a data set may be larger than memory, and anew at every
iteration.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib.resources import files
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

from rome_lens.data.sources import HUB, JSON_LINES, hub_records, json_lines, parsed, reading
from rome_lens.errors import ArtefactError

SELF = "self"
"""The source that stands for text which the model writes itself."""

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


def builtin_texts() -> tuple[str, ...]:
    """Short texts of our own, whose perplexity is watched where no others are named."""
    content = files("rome_lens.data").joinpath("texts.txt").read_text(encoding="utf-8")
    return tuple(paragraph.strip() for paragraph in content.split("\n\n") if paragraph.strip())


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
        instead = f"a file or {SELF!r}"
        hub_records(name, instead=instead)  # the notation is looked at now
        return Texts(name, lambda: _texts_of(hub_records(name, instead=instead), field), endless=True)
    path = Path(name)
    if not path.exists():
        raise ArtefactError(f"there is no file {name!r} to read texts from; a data set is written {HUB}NAME")
    if path.is_dir():
        raise ArtefactError(f"{name!r} is a folder; name a file of texts in it, or write {HUB}{name} for a data set")
    return Texts(name, lambda: _file_texts(path, name, field))


def _file_texts(path: Path, name: str, field: str | None) -> Iterator[str]:
    kind = path.suffix.lower()
    with reading("texts", name):
        if kind in JSON_LINES:
            with path.open(encoding="utf-8-sig") as file:
                yield from _texts_of(json_lines(file, str(path)), field)
        else:
            yield from _texts_of(_json_list(path), field) if kind == ".json" else _plain(path)


def _plain(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8-sig") as file:
        # Blank lines at the end part nothing.
        has_paragraphs = (True, False) in pairwise(blank for blank, _ in groupby(file, str.isspace))
    with path.open(encoding="utf-8-sig") as file:
        if has_paragraphs:
            yield from ("".join(lines) for blank, lines in groupby(file, str.isspace) if not blank)
        else:
            yield from file


def _json_list(path: Path) -> Iterator[tuple[Any, str]]:
    records = parsed(path.read_text(encoding="utf-8-sig"), repr(str(path)))
    if not isinstance(records, list):
        raise ArtefactError(f"{str(path)!r} holds no JSON list; expected a list of texts, or of objects with a text")
    for index, record in enumerate(records):
        yield record, f"record {index} of {str(path)!r}"


def _texts_of(records: Iterable[tuple[Any, str]], field: str | None) -> Iterator[str]:
    return (_text_of(record, field, where=where) for record, where in records)


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
