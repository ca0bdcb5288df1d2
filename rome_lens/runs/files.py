"""The files of a run folder: JSON with the same bytes for the same content, and the lock of the writer."""

import contextlib
import hashlib
import json
from pathlib import Path
from typing import Any

from rome_lens.errors import ArtefactError, RunError
from rome_lens.storage import TEMPORARY

LOCK = ".lock"


def as_bytes(value: Any) -> bytes:
    """A value as JSON; the same value always gives the same bytes.

    Raises:
        TypeError, ValueError: JSON cannot hold it.
    """
    return (json.dumps(value, sort_keys=True, allow_nan=False, indent=1) + "\n").encode("ascii")


def digest_of(value: Any) -> str:
    """By which a run's settings know again what would be long to write out: 16 hexadecimal digits of its JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise ArtefactError(f"cannot make the folder {str(folder)!r}: there is a file of that name") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ArtefactError(f"cannot make the folder {str(folder)!r}: {reason}") from error


def lock_folder(folder: Path) -> Any:
    from filelock import FileLock, Timeout

    # The system takes the lock away from a process that is killed, so a run that was killed can go on at once. Not of
    # one thread: another may close the folder than the one that opened it.
    lock = FileLock(folder / LOCK, timeout=0, thread_local=False)
    try:
        lock.acquire()
    except Timeout as error:
        raise RunError(
            f"another process is running in {str(folder)!r}; wait until it has ended, or give another folder"
        ) from error
    except OSError as error:
        raise ArtefactError(f"cannot write in {str(folder)!r}: {error.strerror or error}") from error
    return lock


def remove_temporary(folder: Path) -> None:
    """Remove what a process left that was killed while it wrote a file."""
    for path in folder.rglob(TEMPORARY):
        with contextlib.suppress(OSError):
            path.unlink()


def read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise ArtefactError(f"there is no file {str(path)!r}; expected one that a run made") from error
    except OSError as error:
        raise ArtefactError(f"cannot read {str(path)!r}: {error.strerror or error}") from error


def read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(read_bytes(path))
    except (ValueError, RecursionError) as error:
        raise ArtefactError(f"cannot read {str(path)!r}: it is cut short or damaged ({error})") from error
    if not isinstance(value, dict):
        raise ArtefactError(f"cannot use {str(path)!r}: expected a JSON object")
    return value


def is_whole(path: Path) -> bool:
    try:
        read_json(path)
    except ArtefactError:
        return False
    return True
