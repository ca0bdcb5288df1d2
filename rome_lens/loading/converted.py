"""The default model in Hugging Face's layout, made once from its GGUF file, since transformers parses that for long.

The copy lies beside the file. A note in it says which file it was made from, by which version of the conversion, and
the checksum of everything in it; all of that is looked at on every start. Whatever does not hold is made anew.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rome_lens.errors import ArtefactError
from rome_lens.loading import default_model
from rome_lens.loading.default_model import CacheState, default_model_path
from rome_lens.loading.written import plain_config, write_pretrained
from rome_lens.storage import whole_folder

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

CONVERSION = 1
"""The version of what is written. Raise it with every change that writes other bytes for the same file."""

# What is written, as a whole.
_BYTES = 545_000_000
_FOLDER = "converted-{}"
_NOTE, _WEIGHTS = "rome_lens.json", "model.safetensors"
# One update a piece: hashing gives Python's lock back for as long as an update lasts, and an import that goes on
# meanwhile would have it for milliseconds at a time in between.
_PIECE = 1 << 26


def converted_path(cache_dir: str | os.PathLike[str] | None = None) -> Path:
    """Where the converted copy of the default model is kept, whether it is there or not.

    Args:
        cache_dir: as in `default_model_path`.
    """
    return default_model_path(cache_dir).with_name(_FOLDER.format(CONVERSION))


def cached_conversion(cache_dir: str | os.PathLike[str] | None = None) -> CacheState:
    """Look at the converted copy on disk. Reads all of it (about 0.4 s), makes nothing, raises nothing.

    Args:
        cache_dir: as in `default_model_path`.
    """
    path = converted_path(cache_dir)
    if not os.path.lexists(path):
        return CacheState(path=path, present=False, size=0, intact=False)
    size = 0
    with contextlib.suppress(OSError):
        size = sum(file.stat().st_size for file in path.iterdir())
    return CacheState(path=path, present=True, size=size, intact=_is_intact(path))


class Check(threading.Thread):
    """A look at the copy that goes on in a thread of its own while models and libraries are loaded."""

    def __init__(self, path: Path) -> None:
        super().__init__(name="rome_lens: the default model", daemon=True)
        self._path, self._intact = path, False
        self.start()

    def run(self) -> None:
        self._intact = _is_intact(self._path)

    def intact(self) -> bool:
        """Wait for the end of the look: whether the copy is whole, and made from the pinned file by this version."""
        self.join()
        return self._intact


def check_room(old: CacheState) -> None:
    """Refuse to begin where the copy would not fit.

    Args:
        old: what stands in its place, which goes first.

    Raises:
        ArtefactError: it would not.
    """
    path = old.path
    free = shutil.disk_usage(path.parent).free + old.size
    if free < _BYTES:
        raise ArtefactError(
            f"the converted {default_model.DEFAULT_MODEL} takes {_BYTES / 1e6:.0f} MB, and {free / 1e6:.0f} MB are "
            f"free in {str(path.parent)!r}"
        )


def write_conversion(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, cache_dir: str | os.PathLike[str] | None = None
) -> Path:
    """Write the copy, whole or not at all, in place of whatever stands there, and return its path.

    Copies of earlier conversions are removed. A rome_lens that makes later ones keeps its own beside this one.

    The caller holds the cache's lock (`default_model.alone_in_the_cache`).

    Args:
        model: what the pinned file holds, in float32, as transformers read it.
        tokenizer: its tokeniser, as stored there.
        cache_dir: as in `default_model_path`.

    Raises:
        ArtefactError, OSError: there is no room, or the cache cannot be written.
    """
    path = converted_path(cache_dir)
    for old in (path.with_name(_FOLDER.format(version)) for version in range(1, CONVERSION + 1)):
        if os.path.lexists(old):
            # Moved away first: a folder with something in it cannot be renamed over. Who reads the old one now goes on.
            with default_model.temporary_folder(path.parent) as aside:
                old.rename(aside / old.name)
    with whole_folder(path) as folder:
        name, weights = default_model.DEFAULT_MODEL, model.state_dict()
        config = plain_config(model, name=name)
        write_pretrained(folder, name=name, model=model, tokenizer=tokenizer, config=config, weights=dict(weights))
        _check_written(folder / _WEIGHTS, weights)
        note = {
            "kind": "converted_model",
            "source": {"name": default_model.PINNED.member, "sha256": default_model.PINNED.sha256},
            "conversion": CONVERSION,
            "files": {file.name: _described(file) for file in sorted(folder.iterdir())},
        }
        (folder / _NOTE).write_text(json.dumps(note, indent=2) + "\n", encoding="utf-8")
    return path


def _check_written(file: Path, weights: Mapping[str, Tensor]) -> None:
    """Read back what was written: the copy has the bits of what it was made from, or is none."""
    import torch
    from safetensors import safe_open

    with safe_open(file, framework="pt") as written:
        for name in written.keys():  # noqa: SIM118 (no mapping)
            if not torch.equal(written.get_tensor(name), weights[name]):
                raise ArtefactError(f"{str(file)!r} holds other numbers than were written ({name}); try again")


def _is_intact(path: Path) -> bool:
    try:
        note = json.loads((path / _NOTE).read_text(encoding="utf-8"))
        made_by = note["source"]["sha256"], note["conversion"]
        if made_by != (default_model.PINNED.sha256, CONVERSION):
            return False
        present = {file.name for file in path.iterdir()} - {_NOTE}
        return present == set(note["files"]) and all(
            (path / name).stat().st_size == described["bytes"] and _described(path / name) == described
            for name, described in note["files"].items()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return False


def _described(file: Path) -> dict[str, Any]:
    digest, size = hashlib.sha256(), 0
    piece = bytearray(max(1, min(_PIECE, file.stat().st_size)))
    with file.open("rb", buffering=0) as opened:
        while n := opened.readinto(piece):
            digest.update(memoryview(piece)[:n])
            size += n
    return {"bytes": size, "sha256": digest.hexdigest()}
