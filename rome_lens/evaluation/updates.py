"""The edits of many records through hook points: every row of a batch carries the edits of its own record."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rome_lens.backends import Backend
from rome_lens.editing import Edit, MatrixEdit
from rome_lens.editing.hooks import Hook, matrix_hooks, rank_one_hooks


@dataclass(frozen=True)
class _Layer:
    """What one layer's `W_out` gains for each record.

    Attributes:
        u: [record, edit, d_mlp], zero where a record has fewer edits here; None where there are none.
        v: [record, edit, d_model].
        deltas: record -> [d_mlp, d_model], for edits that are whole matrices.
    """

    u: Float[Tensor, "record edit d_mlp"] | None
    v: Float[Tensor, "record edit d_model"] | None
    deltas: dict[int, Float[Tensor, "d_mlp d_model"]]


def as_edits(answer: Any) -> tuple[Edit | MatrixEdit, ...] | None:
    """What an editor gave, as edits of `W_out` that hooks can carry; None where it is anything else."""
    if answer is None:
        return ()
    several = tuple(answer) if isinstance(answer, Sequence) else (answer,)
    return several if all(isinstance(edit, Edit | MatrixEdit) for edit in several) else None


class Updates:
    """Edits by record.

    Attributes:
        n_records: how many records there are.
    """

    def __init__(self, backend: Backend, edits: Sequence[Sequence[Edit | MatrixEdit]]) -> None:
        self._backend, self._edits = backend, edits
        self.n_records = len(edits)
        self._layers = {
            layer: self._stacked(layer) for layer in sorted({edit.layer for each in edits for edit in each})
        }

    @property
    def start(self) -> int:
        """The lowest layer that is edited; the model's number of layers where none is."""
        return min(self._layers, default=self._backend.n_layers)

    def of(self, record: int) -> "Updates":
        """Those of one record alone, as record 0."""
        return Updates(self._backend, [self._edits[record]])

    def hooks(self, layer: int, records: Int[Tensor, " row"]) -> list[tuple[str, Hook]]:
        """Hooks for one layer, in a call whose rows belong to these records."""
        here = self._layers.get(layer)
        if here is None:
            return []
        hooks = []
        if here.u is not None and here.v is not None:
            hooks += rank_one_hooks(self._backend, layer, here.u[records], here.v[records])
        for record, delta in here.deltas.items():
            # A product a record: a matrix a row would be copied for every row.
            rows = (records == record).nonzero()[:, 0].tolist()
            if rows:
                hooks += matrix_hooks(self._backend, layer, delta, rows=rows)
        return hooks

    def all_hooks(self, records: Int[Tensor, " row"]) -> list[tuple[str, Hook]]:
        """Hooks for all layers, for whole forwards."""
        return [hook for layer in self._layers for hook in self.hooks(layer, records)]

    def _stacked(self, layer: int) -> _Layer:
        device = self._backend.device
        rank_one: dict[int, list[Edit]] = defaultdict(list)
        deltas: dict[int, Tensor] = {}
        for record, edits in enumerate(self._edits):
            for edit in edits:
                if edit.layer != layer:
                    continue
                if isinstance(edit, Edit):
                    rank_one[record].append(edit)
                else:
                    deltas[record] = edit.delta.to(device) + deltas.get(record, 0)
        if not rank_one:
            return _Layer(None, None, deltas)
        (first, *_), *_ = rank_one.values()
        depth = max(map(len, rank_one.values()))
        u, v = (
            torch.zeros(self.n_records, depth, factor.shape[0], dtype=factor.dtype, device=device)
            for factor in (first.u, first.v)
        )
        for record, edits in rank_one.items():
            for place, edit in enumerate(edits):
                u[record, place], v[record, place] = edit.u, edit.v
        return _Layer(u, v, deltas)
