"""Data sets in the notation `hub:NAME:CONFIGURATION:SPLIT`, record by record."""

from collections.abc import Iterator
from typing import Any

from rome_lens.errors import ArtefactError, RomeLensError, SettingError

HUB = "hub:"


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
