"""Where a long run keeps what it made: one file per record, so that a run that was killed goes on where it was.

A run folder holds `settings.json` (what the run was asked for), `prepared.json` (what that turned out to mean, such as
the fingerprint of the model), `plan.json` (the names of all records that the run is to make), `records/<key>.json` and,
in the end, `summary.json`. Each is written whole or not at all, and the same content always gives the same bytes.
"""

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Self

from rome_lens.checks import as_path
from rome_lens.errors import ArtefactError, RunError, SettingError
from rome_lens.runs.differences import first_difference
from rome_lens.runs.files import (
    LOCK,
    as_bytes,
    is_whole,
    lock_folder,
    make_folder,
    read_bytes,
    read_json,
    remove_temporary,
)
from rome_lens.storage import TEMPORARY, write_whole

_SETTINGS = "settings.json"
_PREPARED = "prepared.json"
_PLAN = "plan.json"
_SUMMARY = "summary.json"
_RECORDS = "records"
_KIND = "run of rome_lens"
_FORM = 1


class Folder:
    """Where the records of a run are: here in memory, where they are lost with the process, and on disk in `RunFolder`.

    In memory, too, they come back as JSON would hold them.

    Attributes:
        kept: for a message: what happens to the records that are finished when the run stops.
        files: in memory, name -> what the file would hold that is no record.
    """

    kept = "they are lost, since this run has no folder; give it one to keep them"
    _called = "this run"

    def __init__(self) -> None:
        """Begin with no records."""
        self._records: dict[str, bytes] = {}
        self.files: dict[str, bytes] = {}

    def write_bytes(self, key: str, content: bytes) -> None:
        """Keep a record that is JSON already, such as one that another run folder kept.

        Raises:
            ArtefactError: the file cannot be written.
        """
        self._records[key] = content

    def read(self, key: str) -> dict[str, Any]:
        """A record as JSON holds it.

        Raises:
            ArtefactError: there is none, or its file is damaged.
        """
        if key not in self._records:
            raise ArtefactError(f"there is no record {key!r}; expected one that this run made")
        return json.loads(self._records[key])

    def finished(self) -> set[str]:
        """The records that are there. One whose file is damaged is not: it is made again."""
        return set(self._records)

    def _held(self, name: str) -> dict[str, Any] | None:
        """What a file holds that is no record; None where there is none."""
        return json.loads(self.files[name]) if name in self.files else None

    def _hold(self, name: str, content: bytes) -> None:
        """Keep a file that is no record."""
        self.files[name] = content

    def note_plan(self, keys: Iterable[str]) -> None:
        """Keep the names of all records that the run is to make, those of other shards included."""
        self._hold(_PLAN, as_bytes({"records": sorted(keys)}))

    def planned(self) -> list[str]:
        """What `note_plan` keeps."""
        return list((self._held(_PLAN) or {}).get("records", []))

    def note_prepared(self, prepared: Mapping[str, Any]) -> None:
        """Keep what the settings turned out to mean, and refuse if it was something else before.

        Raises:
            RunError: something else is behind the same settings than when the run was begun.
        """
        content, before = as_bytes(prepared), self.prepared()
        difference = None if before is None else first_difference(before, json.loads(content))
        if difference is not None:
            raise RunError(
                f"{self._called} was begun with {difference.first} and would go on with {difference.second}; what is "
                "behind the same settings has changed, so give another folder"
            )
        self._hold(_PREPARED, content)

    def prepared(self) -> dict[str, Any] | None:
        """What `note_prepared` keeps; None where no record was begun yet."""
        return self._held(_PREPARED)

    def write(self, key: str, record: Mapping[str, Any]) -> None:
        """Keep a record.

        Raises:
            RunError: JSON cannot hold it (a number that is none, or infinite).
            ArtefactError: the file cannot be written.
        """
        try:
            content = as_bytes(record)
        except (TypeError, ValueError) as error:
            raise RunError(f"JSON cannot hold the record {key!r}: {error}") from error
        self.write_bytes(key, content)

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Keep what the records amount to."""
        self._hold(_SUMMARY, as_bytes(summary))

    def missing(self) -> list[str]:
        """The records that the run was to make and that are not there, those of other shards included."""
        finished = self.finished()
        return [key for key in self.planned() if key not in finished]

    def read_all(self, prefix: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
        """The finished records whose keys begin so, in the order of their keys."""
        for key in sorted(self.finished()):
            if key.startswith(prefix):
                yield key, self.read(key)


class RunFolder(Folder):
    """A run's folder on disk. Use it in a `with` statement: it is this process's alone until it is closed.

    Attributes:
        path: the folder.
        settings: what the run was asked for, as JSON holds it.
    """

    def __init__(self, path: Path, settings: dict[str, Any], lock: Any = None) -> None:
        """For `open` and `existing`."""
        super().__init__()
        self.path = path
        self.settings = settings
        self.kept = f"they are kept in {str(path)!r}, and the same command goes on from there"
        self._called = repr(str(path))
        self._lock = lock

    @classmethod
    def open(cls, path: str | os.PathLike[str], settings: Mapping[str, Any]) -> Self:
        """Make a run folder, or go on with the one that is there.

        Args:
            path: the folder; it is made if it is not there.
            settings: all that decides what the run computes, as JSON can hold it, and nothing else (no number of
                workers).

        Raises:
            SettingError: the folder holds a run with other settings, or something else than a run.
            RunError: another process has it.
            ArtefactError: it cannot be made, read or written.
        """
        folder, asked = Path(as_path("the folder", path)), json.loads(as_bytes(settings))
        make_folder(folder)
        _refuse_foreign(folder)
        lock = lock_folder(folder)
        try:
            there = _read_settings(folder) if (folder / _SETTINGS).exists() else None
            # A run that ended before it began, refused for its settings, is no obstacle.
            if there is not None and (folder / _PREPARED).exists():
                _refuse_other_settings(folder, there, asked)
            elif there != asked:
                write_whole(folder / _SETTINGS, as_bytes({"kind": _KIND, "form": _FORM, "settings": asked}))
            remove_temporary(folder)
        except BaseException:
            lock.release()
            raise
        return cls(folder, asked, lock)

    @classmethod
    def existing(cls, path: str | os.PathLike[str], *, kinds: Sequence[str] = ()) -> Self:
        """A run folder as it is, to be read only; the run may be going on meanwhile.

        Args:
            path: the folder.
            kinds: what its settings may call the kind of the run; nothing allows any.

        Raises:
            ArtefactError: there is no such folder, or it holds no run.
            SettingError: it holds a run of another kind.
        """
        folder = Path(path)
        if not folder.is_dir():
            raise ArtefactError(f"there is no folder {str(folder)!r}; expected one that a run made")
        settings = _read_settings(folder)
        if kinds and settings.get("kind") not in kinds:
            raise SettingError(
                f"{str(folder)!r} holds a run of {settings.get('kind')!r}; expected a run of {' or '.join(kinds)}"
            )
        return cls(folder, settings)

    def close(self) -> None:
        """Let other processes have the folder."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def __enter__(self) -> Self:
        """The folder itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Let other processes have the folder."""
        self.close()

    def write_bytes(self, key: str, content: bytes) -> None:
        path = self._file(key)
        make_folder(path.parent)
        self._write(path, content)

    def read(self, key: str) -> dict[str, Any]:
        return read_json(self._file(key))

    def read_bytes(self, key: str) -> bytes:
        """A record as it is on disk.

        Raises:
            ArtefactError: there is none.
        """
        return read_bytes(self._file(key))

    def finished(self) -> set[str]:
        records = self.path / _RECORDS
        whole = filter(is_whole, records.rglob("*.json"))
        return {path.relative_to(records).as_posix().removesuffix(".json") for path in whole}

    def _file(self, key: str) -> Path:
        return self.path / _RECORDS / f"{key}.json"

    def _held(self, name: str) -> dict[str, Any] | None:
        path = self.path / name
        return read_json(path) if path.exists() else None

    def _hold(self, name: str, content: bytes) -> None:
        path = self.path / name
        if not path.exists() or path.read_bytes() != content:
            self._write(path, content)

    def _write(self, path: Path, content: bytes) -> None:
        if self._lock is None:
            raise ArtefactError(f"cannot write {str(path)!r}: the run folder was opened to be read only, or is closed")
        write_whole(path, content)


def _refuse_foreign(folder: Path) -> None:
    """Refuse a folder that holds anything but a run; one that was killed before it had settings is none of those."""
    if (folder / _SETTINGS).exists():
        return
    ours = {folder / LOCK, *folder.glob(TEMPORARY)}
    foreign = sorted(path.name for path in folder.iterdir() if path not in ours)
    if foreign:
        raise SettingError(
            f"the folder {str(folder)!r} holds no run but other files ({foreign[0]!r}); give a new or empty folder"
        )


def _refuse_other_settings(folder: Path, there: dict[str, Any], asked: dict[str, Any]) -> None:
    difference = first_difference(there, asked)
    if difference is not None:
        raise SettingError(
            f"{str(folder)!r} holds a run with {difference.first}, and this one has {difference.second}; give "
            f"another folder, or the settings of the run that is there"
        )


def _read_settings(folder: Path) -> dict[str, Any]:
    path = folder / _SETTINGS
    if not path.exists():
        raise ArtefactError(f"the folder {str(folder)!r} holds no run; expected one that a run made")
    content = read_json(path)
    if content.get("kind") != _KIND or not isinstance(content.get("settings"), dict):
        raise ArtefactError(f"cannot use {str(path)!r}: expected the settings of a {_KIND}")
    return content["settings"]


def open_folder(out: str | os.PathLike[str] | None, settings: Mapping[str, Any]) -> AbstractContextManager[Folder]:
    """The place of a run's records, this process's alone while the block lasts: a folder on disk, or memory for None.

    Raises:
        SettingError, RunError, ArtefactError: as `RunFolder.open` does.
    """
    return nullcontext(Folder()) if out is None else RunFolder.open(out, settings)
