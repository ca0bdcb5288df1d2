"""Our files and folders: written whole or not at all, read back with every doubt about them in one line.

Tensors go into safetensors, everything else into its string metadata as JSON: nothing is ever pickled. A file names its
kind and the version of its form; a later form may add fields, which an earlier reader leaves alone.
"""

import contextlib
import csv
import errno
import json
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from rome_lens.checks import as_path, shown
from rome_lens.errors import ArtefactError

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

TEMPORARY = ".rome-lens-*.tmp"
"""What files and folders are called while they are written, as a pattern."""

_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")


def _temporary_beside(target: Path) -> Path:
    # Not named after the target, whose name may already be as long as the file system takes.
    return target.with_name(TEMPORARY.replace("*", secrets.token_hex(8)))


def write_whole(path: str | os.PathLike[str], content: bytes) -> None:
    """Write a file under a temporary name in its own folder, then rename it: a reader sees the old file or the new.

    Args:
        path: where the file goes; a symbolic link is followed. What is there and is no regular file (`/dev/stdout`, a
            named pipe) is written to as it stands, since a rename would replace the device.
        content: the bytes of the whole file.

    Raises:
        ArtefactError: no such folder, no permission, no room, or the path is a folder. Nothing is left behind.
    """
    target = Path(as_path("the file", path))
    try:
        target = Path(os.path.realpath(path))
        if target.exists() and not target.is_file():
            target.write_bytes(content)
            return
        temporary = _temporary_beside(target)
        try:
            with temporary.open("xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())  # some file systems find out only here that there is no room
            temporary.replace(target)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink()
    except (OSError, ValueError) as error:  # ValueError: a null character in the path
        raise ArtefactError(f"cannot write {os.fspath(path)!r}: {_reason(error, target)}") from error


def write_table(table: "pd.DataFrame", path: str | os.PathLike[str]) -> None:
    """Write a table as a CSV file in UTF-8.

    A text that begins with `=`, `+`, `-`, `@`, a tab or a line end (or a full-width form of these) gets a `'` in
    front: spreadsheets take such a cell for a formula, and a formula can run programs. Numbers are left as they are.

    Raises:
        ArtefactError: the file cannot be written.
    """
    texts = table.select_dtypes(exclude=["number", "boolean", "bool"]).columns
    table = table.assign(**{name: [_no_formula(cell) for cell in table[name]] for name in texts})
    # Every text is quoted: left alone, a carriage return in one would end the row for most readers.
    content = table.to_csv(index=False, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
    # A lone surrogate, which JSON can hold, has no bytes in UTF-8.
    write_whole(path, content.encode("utf-8", "backslashreplace"))


def _no_formula(value: object) -> object:
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value


def check_writable(path: str | os.PathLike[str]) -> None:
    """Refuse before any work is done a path that `write_whole` would refuse at its end.

    Raises:
        ArtefactError: no such folder, no permission, or the path is a folder.
    """
    target = Path(path)
    missing = next((error for error, true in _obstacles(target) if true), None)
    if missing is not None:
        raise ArtefactError(f"cannot write {os.fspath(path)!r}: {_reason(missing, target)}")


def _obstacles(target: Path) -> Iterator[tuple[OSError | ValueError, bool]]:
    yield ValueError("embedded null byte"), "\0" in str(target)
    yield FileNotFoundError(), not target.parent.is_dir()
    yield IsADirectoryError(), target.is_dir()
    yield PermissionError(), not os.access(target if target.exists() else target.parent, os.W_OK)


def check_folder(out: str | os.PathLike[str]) -> Path:
    """Where a folder really goes, if it can be written.

    Raises:
        ArtefactError: something is there, or its parent is no folder.
    """
    name = as_path("the folder", out)
    try:
        target = Path(os.path.realpath(name))
        if target.is_dir() and any(target.iterdir()):
            reason = "the folder is not empty; name a new one, or empty it"
        elif target.exists() and not target.is_dir():
            reason = "it is a file; name a new folder"
        elif not target.parent.is_dir():
            reason = f"there is no folder {str(target.parent)!r}; make it first"
        elif not os.access(target.parent, os.W_OK):
            reason = f"no permission to write in {str(target.parent)!r}; choose another place"
        else:
            return target
    except (OSError, ValueError) as error:  # ValueError: a null character in the path
        reason = getattr(error, "strerror", None) or str(error)
    raise ArtefactError(f"cannot write {name!r}: {reason}")


@contextlib.contextmanager
def whole_folder(out: str | os.PathLike[str]) -> Iterator[Path]:
    """A new folder beside the one that is asked for, which takes its place when all is written, and else vanishes.

    Raises:
        ArtefactError: something is there, its parent is no folder, or there is no room.
    """
    from safetensors import SafetensorError

    target = check_folder(out)
    temporary = _temporary_beside(target)
    try:
        temporary.mkdir()
        yield temporary
        for path in filter(Path.is_file, temporary.rglob("*")):
            path.chmod(temporary.stat().st_mode & 0o666)  # safetensors makes files for their owner alone
            with path.open("rb+") as file:
                os.fsync(file.fileno())  # some file systems find out only here that there is no room
        if target.is_dir():
            target.rmdir()
        temporary.rename(target)
    except (OSError, SafetensorError) as error:  # safetensors says in words of its own that a disk is full
        reason = getattr(error, "strerror", None) or str(error)
        raise ArtefactError(
            f"cannot write {os.fspath(out)!r}: {reason}; free some room, or choose another place"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def save_tensors(
    path: str | os.PathLike[str],
    *,
    kind: str,
    tensors: Mapping[str, "Tensor"],
    settings: Mapping[str, Any],
    form: int = 1,
) -> None:
    """Write tensors with settings beside them.

    Args:
        path: the file.
        kind: what it holds, such as `causal_trace`.
        tensors: by name.
        settings: whatever JSON can hold.
        form: of the settings, where their names have changed since the first version.

    Raises:
        ArtefactError: the file cannot be written.
    """
    from safetensors.torch import save

    metadata = {"format": "pt", "rome_lens": json.dumps({"kind": kind, "form": form, "settings": dict(settings)})}

    write_whole(path, save({name: tensor.contiguous().cpu() for name, tensor in tensors.items()}, metadata))


def load_tensors(path: str | os.PathLike[str], *, kind: str) -> tuple[dict[str, "Tensor"], dict[str, Any]]:
    """Read what `save_tensors` wrote.

    Raises:
        ArtefactError: there is no such file, it is cut short, or it holds something else.
    """
    from safetensors import SafetensorError, safe_open

    if not Path(as_path("the file", path)).is_file():
        if Path(path).is_dir():
            raise ArtefactError(f"{os.fspath(path)!r} is a folder; expected a file that rome_lens saved")
        raise ArtefactError(f"there is no file {os.fspath(path)!r}; expected one that rome_lens saved")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = json.loads((file.metadata() or {}).get("rome_lens", "null"))
            # Copies lie as new tensors do: products of what lies at an odd place of a file may round otherwise.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 (no mapping)
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise ArtefactError(
            f"cannot read {os.fspath(path)!r}: it is cut short, damaged or no safetensors file ({error})"
        ) from error
    if not isinstance(metadata, dict) or metadata.get("kind") != kind or not isinstance(metadata.get("settings"), dict):
        article = "an" if kind[0] in "aeiou" else "a"
        found = metadata.get("kind") if isinstance(metadata, dict) else "something that rome_lens did not write"
        raise ArtefactError(f"cannot use {os.fspath(path)!r}: expected {article} {kind} of rome_lens, found {found}")
    return tensors, metadata["settings"]


def stored_kind(path: str | os.PathLike[str]) -> str | None:
    """What a file that `save_tensors` wrote says that it holds; None for any other file, or where there is none."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(Path(as_path("the file", path)), framework="pt") as file:
            kind = json.loads((file.metadata() or {})["rome_lens"])["kind"]
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return kind if isinstance(kind, str) else None


def read_fields(values: object, kinds: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of an artefact, each of the kind that it has to be; others are left alone: a later form may add some.

    Args:
        values: what was read: a dictionary, unless it is damaged.
        kinds: by field, a type or a union of types as `isinstance` takes them, such as `int | None`. A field that may
            be None may also be absent. True and False are no numbers here.

    Raises:
        ValueError: a field is missing or of another kind, in words for a message that names the file.
    """
    if not isinstance(values, Mapping):
        raise ValueError(f"expected fields, found {type(values).__name__}")
    found = {}
    for name, kind in kinds.items():
        value = values.get(name)
        if not isinstance(value, kind) or (isinstance(value, bool) and bool not in (kind, *get_args(kind))):
            raise ValueError(f"{name} is {shown(value)}" if name in values else f"{name} is missing")
        found[name] = value
    return found


def _reason(error: OSError | ValueError, target: Path) -> str:
    if isinstance(error, ValueError):
        return str(error)
    if error.errno == errno.ENOSPC:
        return "no room is left on the disk; free some, or choose another place"
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return f"there is no folder {str(target.parent)!r}; make it first"
    if isinstance(error, IsADirectoryError):
        return "it is a folder; name a file in it"
    if isinstance(error, PermissionError):
        return f"no permission to write in {str(target.parent)!r}; choose another place"
    return error.strerror or str(error)
