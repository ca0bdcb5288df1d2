"""Joins the folders of runs that shared the work: shards of one run, or the same run of other editors."""

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rome_lens.errors import RunError, SettingError
from rome_lens.runs.differences import first_difference
from rome_lens.runs.folder import RunFolder

Settings = Mapping[str, Any]


def merge(
    folders: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    settings: Callable[[list[Settings]], Settings] | None = None,
    differing: Sequence[str] = ("shard",),
    kinds: Sequence[str] = (),
) -> RunFolder:
    """Copy the records of several run folders into one, which may be there already from an earlier time.

    Args:
        folders: the run folders; they are only read.
        out: the folder to make.
        settings: makes those of the merged run from those of the folders; without it they are what all agree on.
        differing: the settings that need not agree.
        kinds: as `RunFolder.existing` takes them.

    Returns:
        The merged folder, open: close it. Its `missing()` names the records that no folder had.

    Raises:
        SettingError: no folder is given, `out` is one of them, one is of another kind, or settings differ elsewhere.
        RunError: two folders hold the same record with different contents, or were made with different models.
        ArtefactError: a folder holds no run, or cannot be read or written. Nothing is copied before all is checked.
    """
    if not folders:
        raise SettingError("no folder to merge; expected the run folders of at least one run")
    if Path(out).resolve() in {Path(folder).resolve() for folder in folders}:
        raise SettingError(f"{os.fspath(out)!r} is to be merged and written at once; give another folder to write")
    sources = [RunFolder.existing(folder, kinds=kinds) for folder in folders]
    common = _common_settings(sources, differing)
    merged = common if settings is None else settings([source.settings for source in sources])
    with ExitStack() as undo:
        target = undo.enter_context(RunFolder.open(out, merged))
        found = _records([target, *sources])
        prepared = _joined_prepared(sources)
        if prepared:
            target.note_prepared(prepared)
        target.note_plan({key for source in sources for key in source.planned()})
        for key, source in found.items():
            if source is not target:
                target.write_bytes(key, source.read_bytes(key))
        undo.pop_all()  # the caller closes it
    return target


def _common_settings(sources: list[RunFolder], differing: Sequence[str]) -> dict[str, Any]:
    first, *others = (
        {name: value for name, value in source.settings.items() if name not in differing} for source in sources
    )
    for source, other in zip(sources[1:], others, strict=True):
        difference = first_difference(first, other)
        if difference is not None:
            raise SettingError(
                f"{str(sources[0].path)!r} holds a run with {difference.first}, and {str(source.path)!r} one with "
                f"{difference.second}; only runs with the same settings can be merged"
            )
    return first


def _records(folders: list[RunFolder]) -> dict[str, RunFolder]:
    """Record -> the first folder that has it."""
    found: dict[str, RunFolder] = {}
    for folder in folders:
        for key in sorted(folder.finished()):
            first = found.setdefault(key, folder)
            if first is not folder and first.read_bytes(key) != folder.read_bytes(key):
                raise RunError(
                    f"the record {key!r} is not the same in {str(first.path)!r} and {str(folder.path)!r}; they were "
                    "computed differently, so remove one of the two"
                )
    return found


def _joined_prepared(sources: list[RunFolder]) -> dict[str, Any]:
    """What the folders were prepared with: what two of them say of the same name has to agree."""
    joined: dict[str, Any] = {}
    for source in sources:
        prepared = source.prepared() or {}
        difference = first_difference(_shared(joined, prepared), _shared(prepared, joined))
        if difference is not None:
            raise RunError(
                f"{str(source.path)!r} was run with {difference.second}, and another folder with {difference.first}; "
                "only runs that agree can be merged"
            )
        joined = _union(joined, prepared)
    return joined


def _shared(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """What of the first the second speaks of too."""
    return {
        name: _shared(value, other[name]) if isinstance(value, dict) and isinstance(other[name], dict) else value
        for name, value in one.items()
        if name in other
    }


def _union(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    joined = {**one, **other}
    for name in one.keys() & other.keys():
        if isinstance(one[name], dict) and isinstance(other[name], dict):
            joined[name] = _union(one[name], other[name])
    return joined
