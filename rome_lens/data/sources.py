"""Where records come from: data sets in the notation `hub:NAME:CONFIGURATION:SPLIT`, and files of JSON."""

import contextlib
import gzip
import json
import re
import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from rome_lens.checks import shown
from rome_lens.errors import ArtefactError, RomeLensError, SettingError

HUB = "hub:"
JSON_LINES = (".jsonl", ".ndjson")
LISTS = ("requests", "edits", "facts", "records", "data")
"""Fields of an object that may hold the list of entries."""

_GZIP, _GZIP_ENDING = b"\x1f\x8b", ".gz"
_LINE_ENDS = re.compile(r"\r\n?|\n")  # JSON may hold the other characters that `splitlines` takes for the end of a line


@contextlib.contextmanager
def reading(what: str, name: str) -> Iterator[None]:
    """While a file is read: what goes wrong is said in one line.

    Args:
        what: what is read from it.
        name: the file.

    Raises:
        ArtefactError: it cannot be read, is not in UTF-8, or is packed and damaged.
    """
    try:
        yield
    except UnicodeDecodeError as error:
        raise ArtefactError(f"{name!r} is not in UTF-8 ({error.reason}); save it in UTF-8") from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ArtefactError(f"{name!r} is packed with gzip, and cut short or damaged: {error}") from error
    except OSError as error:
        raise ArtefactError(f"cannot read {what} from {name!r}: {error.strerror or error}") from error


def text_of_file(path: Path, what: str, *, instead: str = "") -> str:
    """What a file holds in UTF-8, without its byte order mark; one that is packed with gzip is unpacked.

    Args:
        path: the file; by what is in it, not by its name, it is known whether it is packed.
        what: what is read from it.
        instead: what else to give, for the error where there is no such file.

    Raises:
        ArtefactError: there is no such file, or it cannot be read.
    """
    with reading(what, str(path)):
        try:
            content = path.read_bytes()
        except FileNotFoundError as error:
            raise ArtefactError(f"there is no file {str(path)!r} to read {what} from{instead}") from error
        return (gzip.decompress(content) if content.startswith(_GZIP) else content).decode("utf-8-sig")


def kind_of_file(path: Path) -> str:
    """The ending of a file's name in small letters, such as `.jsonl`; `.gz` behind it does not count."""
    kind = path.suffix.lower()
    return path.with_suffix("").suffix.lower() if kind == _GZIP_ENDING else kind


def json_entries(
    text: str, name: str, *, what: str, single: Collection[str], by_lines: bool, kept: str = ""
) -> list[tuple[str, Any]]:
    """The entries of a file in JSON: of a list, of an object with a list in one of `LISTS`, or of lines.

    Args:
        text: what is in the file.
        name: the file.
        what: the words for the entries.
        single: fields by which an object is known as an entry itself.
        by_lines: whether the file's name says that it holds JSON lines; others are tried where the text is no JSON.
        kept: as `parsed` takes it.

    Returns:
        The entries, each with the words for its place in the file.

    Raises:
        ArtefactError: it is not JSON, or holds something else.
    """
    try:
        content = parsed(text, repr(name), kept=kept)
    except ArtefactError:
        lines = _LINE_ENDS.split(text)
        if not (by_lines or _is_json(next(filter(str.strip, lines), ""))):
            raise
        return [(where.removesuffix(f" of {name!r}"), entry) for entry, where in json_lines(lines, name)]
    if isinstance(content, Mapping):
        lists = [field for field in LISTS if isinstance(content.get(field), list)]
        if any(field in content for field in single) or (by_lines and not lists):
            return [("record 0", content)]
        if len(lists) != 1:
            raise ArtefactError(
                f"{name!r} holds an object with {shown(list(content))}; expected a JSON list of {what}, or an object "
                f"with one in one of {', '.join(LISTS)}"
            )
        content = content[lists[0]]
    if not isinstance(content, list):
        raise ArtefactError(f"{name!r} holds {shown(content)}; expected a JSON list of {what}")
    return [(f"record {index}", entry) for index, entry in enumerate(content)]


def _is_json(text: str) -> bool:
    try:
        parsed(text, "")
    except ArtefactError:
        return False
    return True


def parsed(text: str, where: str, *, kept: str = "") -> Any:
    """What a text in JSON holds.

    Args:
        text: the text.
        where: the words for where it stands.
        kept: words for what is kept in it, to stand behind `JSON`.

    Raises:
        ArtefactError: it is not JSON.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ArtefactError(f"{where} is not JSON{kept}: {error}") from error


def json_lines(lines: Iterable[str], name: str) -> Iterator[tuple[Any, str]]:
    """What the lines of a file hold, each with the words for where it stands; blank ones hold nothing."""
    for number, line in enumerate(lines, start=1):
        if line.strip():
            where = f"line {number} of {name!r}"
            yield parsed(line, where), where


def hub_records(source: str, *, instead: str) -> Iterator[tuple[Any, str]]:
    """Open a data set of which nothing is fetched before the first record is asked for.

    Args:
        source: `hub:NAME`, `hub:NAME:CONFIGURATION` or `hub:NAME:CONFIGURATION:SPLIT`; NAME is one on the hub, or a
            folder, and the split is `train` by default.
        instead: what else to take where it cannot be read, for the error.

    Returns:
        Records, each with the words for where it stands.

    Raises:
        SettingError: the notation is wrong; at once.
        ArtefactError: the data set cannot be read; while it is read.
    """
    name, *more = source.removeprefix(HUB).split(":")
    if not name or len(more) > 2:
        raise SettingError(f"{source!r} names no data set; expected {HUB}NAME, or {HUB}NAME:CONFIGURATION:SPLIT")
    configuration = more[0] or None if more else None
    split = more[1] if len(more) == 2 else "train"
    return _records(name, configuration, split, instead)


def _records(name: str, configuration: str | None, split: str, instead: str) -> Iterator[tuple[Any, str]]:
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise ArtefactError(
            f"reading the data set {name!r} needs the package datasets: pip install datasets"
        ) from error
    wanted = " ".join(part for part in (name, configuration, split) if part)
    try:
        # Streamed: only the first pages of what may be gigabytes are read.
        for index, record in enumerate(load_dataset(name, configuration, split=split, streaming=True)):
            yield record, f"record {index} of {wanted!r}"
    except RomeLensError:
        raise
    except Exception as error:
        # The hub, the file formats and the network each bring errors of their own.
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ArtefactError(
            f"cannot read the data set {wanted!r}: {reason[:300]}; check the name and the network, or take {instead}"
        ) from error
