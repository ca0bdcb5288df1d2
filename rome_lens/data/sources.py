"""Where records come from: data sets in the notation `hub:NAME:CONFIGURATION:SPLIT`, and files of JSON."""

import contextlib
import json
from collections.abc import Iterable, Iterator
from typing import Any

from rome_lens.errors import ArtefactError, RomeLensError, SettingError

HUB = "hub:"
JSON_LINES = (".jsonl", ".ndjson")


@contextlib.contextmanager
def reading(what: str, name: str) -> Iterator[None]:
    """While a file is read: what goes wrong is said in one line.

    Args:
        what: what is read from it.
        name: the file.

    Raises:
        ArtefactError: it cannot be read, or is not in UTF-8.
    """
    try:
        yield
    except UnicodeDecodeError as error:
        raise ArtefactError(f"{name!r} is not in UTF-8 ({error.reason}); save it in UTF-8") from error
    except OSError as error:
        raise ArtefactError(f"cannot read {what} from {name!r}: {error.strerror or error}") from error


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
