"""Checkpoints of a collection: sums and how far they have come, written now and then."""

import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from rome_lens.backends import Fingerprint
from rome_lens.errors import ArtefactError
from rome_lens.storage import check_writable, load_tensors, read_fields, save_tensors

_KIND = "second_moment_checkpoint"
_COUNTS = ("n_tokens", "n_pieces", "batch_positions")
_FIELDS = {
    "settings": dict,
    "fingerprints": dict,
    "digest": str,
    "seconds": int | float,
    **dict.fromkeys(_COUNTS, int),
}
# How often one is written, in seconds, and so seldom that writing takes no more than a twentieth of the time.
_SECONDS = 30.0
_SHARE = 20


@dataclass
class State:
    """How far a collection has come: what a checkpoint holds.

    Attributes:
        sums: by layer, [d_mlp d_mlp], float64.
        n_tokens: positions in the sums.
        n_pieces: pieces of text in the sums.
        digest: of these pieces.
        batch_positions: positions that were run at once.
        seconds: how long it took to get there.
    """

    sums: Mapping[int, Float[Tensor, "d_mlp d_mlp"]]
    n_tokens: int = 0
    n_pieces: int = 0
    digest: str = ""
    batch_positions: int = 0
    seconds: float = 0.0


class Checkpoint:
    """The checkpoint file of one collection.

    Args:
        path: where it is or will be.
        settings: what has to be the same for the work to be taken up.
        fingerprints: of the layers that are collected.

    Raises:
        ArtefactError: the file could not be written.
    """

    def __init__(
        self, path: str | os.PathLike[str], settings: Mapping[str, Any], fingerprints: Mapping[int, Fingerprint]
    ) -> None:
        check_writable(path)
        self._path, self._settings, self._fingerprints = Path(path), dict(settings), fingerprints
        self._due = time.monotonic() + _SECONDS

    def read(self) -> State | None:
        """What the file holds; None where there is none.

        Raises:
            ArtefactError: it is damaged, holds something else, or belongs to other work.
        """
        if not self._path.exists():
            return None
        tensors, found = load_tensors(self._path, kind=_KIND)
        try:
            known = read_fields(found, _FIELDS)
            marks = known.pop("fingerprints")
            theirs = {int(layer): Fingerprint.from_dict(values) for layer, values in marks.items()}
            difference = next(self._differences(known.pop("settings"), theirs), None)
            if difference is not None:
                raise self.other_work(difference)
            sums = {layer: tensors[f"sum.{layer}"] for layer in theirs if f"sum.{layer}" in tensors}
            for layer, mark in theirs.items():
                total = sums.get(layer)
                if total is None or total.dtype != torch.float64 or total.shape != (mark.d_mlp, mark.d_mlp):
                    raise ValueError(f"it holds no sum of layer {layer} that is {mark.d_mlp} x {mark.d_mlp}")
            if min(known[name] for name in _COUNTS) < 1:
                raise ValueError("a count is below 1")
            return State(sums=sums, **known)
        except ValueError as error:
            raise ArtefactError(
                f"cannot use {str(self._path)!r}: a {_KIND} that is damaged ({error}); remove it to begin anew"
            ) from error

    def _differences(self, settings: Mapping[str, Any], theirs: Mapping[int, Fingerprint]) -> Iterator[str]:
        """What tells other work from this one; layers are compared once they are known to be the same ones."""
        for name, mine in self._settings.items():
            if settings.get(name) != mine:
                yield f"{name} {settings.get(name)!r} against {mine!r}"
        if sorted(theirs) != sorted(self._fingerprints):
            yield f"layers {sorted(theirs)} against {sorted(self._fingerprints)}"
        for layer, mark in self._fingerprints.items():
            difference = theirs[layer].difference(mark)
            if difference is not None:
                yield f"another model, {difference}"

    def other_work(self, difference: str) -> ArtefactError:
        """The error for a checkpoint that belongs to other work."""
        return ArtefactError(
            f"the checkpoint {str(self._path)!r} belongs to other work ({difference}); finish that first, name another "
            "file, or remove it to begin anew"
        )

    def write_if_due(self, state: State) -> None:
        """Write the file if the last one is old enough.

        Raises:
            ArtefactError: the file cannot be written.
        """
        if time.monotonic() < self._due:
            return
        started = time.monotonic()
        save_tensors(
            self._path,
            kind=_KIND,
            tensors={f"sum.{layer}": total for layer, total in state.sums.items()},
            settings={
                "settings": self._settings,
                "fingerprints": {str(layer): mark.to_dict() for layer, mark in self._fingerprints.items()},
                **{name: value for name, value in vars(state).items() if name != "sums"},
            },
        )
        self._due = time.monotonic() + max(_SECONDS, _SHARE * (time.monotonic() - started))

    def remove(self) -> None:
        """Take the file away; the work is done."""
        self._path.unlink(missing_ok=True)
