"""Edits through hook points: the weights stay as they are, and every row of a batch may carry edits of its own.

A hook on the layer's key computes what the value gains, a hook on the value adds it. That is what the edited matrix
does to every key, so whole runs are the same, whatever the edit changes at other positions.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rome_lens.backends import Backend, as_backend
from rome_lens.checks import is_list, shown, whole_numbers
from rome_lens.editing.history import check_same_model, is_applied
from rome_lens.editing.patch import Patch
from rome_lens.editing.weight_update import LowRank, WeightUpdate
from rome_lens.errors import EditStateError, SettingError

Hook = Callable[..., Tensor | None]
"""A hook function of TransformerLens: `hook(activation, hook)`; what it returns takes the activation's place."""

Gain = Callable[[Float[Tensor, "row pos d_mlp"]], Float[Tensor, "row pos d_model"]]
"""What values gain, as a function of their keys."""


def edit_hooks(patch: Patch, model: Any, *, rows: Sequence[int] | None, force: bool) -> list[tuple[str, Hook]]:
    """Hooks for one edit (`Edit.hooks`)."""
    backend = as_backend(model)
    _check(patch, backend, force=force)
    if rows is not None:
        rows = whole_numbers("rows", rows, expected="a list of rows of the batch, such as [0, 2]")
    updates = [_moved(backend, here.update) for here in patch.layers]
    return [hook for update in updates for hook in gain_hooks(backend, update.layer, update.gain, rows=rows)]


def hooks_for_rows(
    model: Any, edits: Sequence[Patch | Sequence[Patch] | None], *, force: bool = False
) -> list[tuple[str, Hook]]:
    """Hooks for a batch whose rows carry different edits.

    Args:
        model: a HookedTransformer or a TransformerBridge.
        edits: one entry a row: an edit, several of them, or None for a row that is left alone.
        force: as in `Edit.apply`.

    Returns:
        What `model.run_with_hooks` takes as `fwd_hooks`. It is good for batches of exactly as many rows.

    Raises:
        EditStateError: one of the edits is in the model's weights, and would count twice.
        ModelMismatchError: an edit was made for another model.
    """
    if not is_list(edits):
        raise SettingError(f"edits is {shown(edits)}; expected a list with an entry for each row of the batch")
    by_row = [_several(entry, row) for row, entry in enumerate(edits)]
    patches = {patch.id: patch for entry in by_row for patch in entry}
    if not patches:
        return []
    backend = as_backend(model)
    for patch in patches.values():
        _check(patch, backend, force=force)
    # One object an id, so that an edit that was loaded twice counts as one.
    updates = [[here.update for patch in entry for here in patches[patch.id].layers] for entry in by_row]
    return RowUpdates(backend, updates).all_hooks(torch.arange(len(by_row)))


@dataclass(frozen=True)
class _Layer:
    """What one layer's `W_out` gains for each of many owners of rows.

    Attributes:
        rank_one: [owner, rank, d_mlp] and [owner, rank, d_model], the factors of rank-one updates, zero where an owner
            has fewer; None where there are none.
        others: updates of other ranks, with how often [owner] each owner has them.
    """

    rank_one: tuple[Float[Tensor, "owner rank d_mlp"], Float[Tensor, "owner rank d_model"]] | None
    others: tuple[tuple[WeightUpdate, Int[Tensor, " owner"]], ...]


class RowUpdates:
    """Updates for the rows of batches: each row belongs to an owner, and each owner has updates of its own.

    Rank-one updates are multiplied together; one of another rank by itself, for all rows that have it.

    Attributes:
        n_owners: how many owners there are.
        start: the lowest layer that is changed; the model's number of layers where none is.
    """

    def __init__(self, backend: Backend, updates: Sequence[Sequence[WeightUpdate]]) -> None:
        """Prepare the updates.

        Args:
            backend: the model.
            updates: for each owner; one that is there twice counts twice.
        """
        self._backend, self._updates = backend, updates
        self.n_owners = len(updates)
        layers = sorted({update.layer for each in updates for update in each})
        self._layers = {layer: self._prepared(layer) for layer in layers}
        self.start = min(layers, default=backend.n_layers)

    def of(self, owner: int) -> "RowUpdates":
        """Those of one owner alone, as owner 0."""
        return RowUpdates(self._backend, [self._updates[owner]])

    def hooks(self, layer: int, owners: Int[Tensor, " row"]) -> list[tuple[str, Hook]]:
        """Hooks for one layer, in a call whose rows belong to these owners."""
        here = self._layers.get(layer)
        if here is None:
            return []
        hooks = []
        if here.rank_one is not None:
            left, right = (factor[owners] for factor in here.rank_one)
            hooks += gain_hooks(
                self._backend, layer, lambda key: (key @ left.transpose(-1, -2)) @ right, n_rows=len(owners)
            )
        for update, counts in here.others:
            count = counts[owners]
            rows = count.nonzero()[:, 0].tolist()
            if rows:
                hooks += gain_hooks(
                    self._backend, layer, _times(update.gain, count[rows]), rows=rows, n_rows=len(owners)
                )
        return hooks

    def all_hooks(self, owners: Int[Tensor, " row"]) -> list[tuple[str, Hook]]:
        """Hooks for all layers, for whole forwards."""
        return [hook for layer in self._layers for hook in self.hooks(layer, owners)]

    def _prepared(self, layer: int) -> _Layer:
        rank_one: list[list[LowRank]] = [[] for _ in range(self.n_owners)]
        others: dict[int, tuple[WeightUpdate, list[int]]] = {}
        for owner, updates in enumerate(self._updates):
            for update in updates:
                if update.layer != layer:
                    continue
                if isinstance(update, LowRank) and update.rank == 1:
                    rank_one[owner].append(update)
                else:
                    others.setdefault(id(update), (update, [0] * self.n_owners))[1][owner] += 1
        work, device = _work(self._backend), self._backend.w_out(layer).parameter.device
        counted = tuple(
            (_moved(self._backend, update), torch.tensor(counts, device=device)) for update, counts in others.values()
        )
        depth = max(map(len, rank_one))
        if not depth:
            return _Layer(None, counted)
        first = next(updates[0] for updates in rank_one if updates)
        left, right = (torch.zeros(self.n_owners, depth, width, dtype=work, device=device) for width in first.shape)
        for owner, updates in enumerate(rank_one):
            for place, update in enumerate(updates):
                left[owner, place], right[owner, place] = update.left[0], update.right[0]
        return _Layer((left, right), counted)


def matrix_hooks(backend: Backend, layer: int, delta: Float[Tensor, "row d_mlp d_model"]) -> list[tuple[str, Hook]]:
    """Hooks for updates that are whole matrices, one a row. Gradients reach `delta` where the caller asks for them.

    Args:
        backend: the model.
        layer: the layer.
        delta: [row, d_mlp, d_model].
    """
    delta = delta.to(backend.w_out(layer).parameter.device, _work(backend))
    return gain_hooks(backend, layer, lambda key: key @ delta, n_rows=delta.shape[0])


def gain_hooks(
    backend: Backend, layer: int, gain: Gain, *, rows: Sequence[int] | None = None, n_rows: int | None = None
) -> list[tuple[str, Hook]]:
    """The hook that reads a layer's keys and the one that adds to its values.

    In half precision what is added is computed in float32, as it is when the weights are edited.

    Args:
        backend: the model.
        layer: the layer.
        gain: what the values of the chosen rows gain, as a function of their keys.
        rows: the rows that are changed, counted from the end where they are negative; None is all. Only these are
            computed.
        n_rows: how many rows the batch must have; None is any number that holds `rows`.
    """
    there = backend.w_out(layer).parameter.device
    pair = _Pair(gain, there, _work(backend), None if rows is None else list(rows), n_rows)
    return [(backend.key_hook(layer), pair.read), (backend.value_hook(layer), pair.add)]


class _Pair:
    """What is kept between a layer's key and its value. It is computed where the layer is, and in a precision."""

    def __init__(
        self, gain: Gain, device: torch.device, work: torch.dtype, rows: list[int] | None, n_rows: int | None
    ) -> None:
        self._gain, self._device, self._work, self._rows, self._n_rows = gain, device, work, rows, n_rows
        self._gained: Tensor | None = None

    def read(self, key: Tensor, hook: Any = None) -> None:
        n_rows = key.shape[0]
        if self._n_rows is not None and n_rows != self._n_rows:
            raise SettingError(f"there are edits for {self._n_rows} rows, and the batch has {n_rows}; give as many")
        if self._rows and not -n_rows <= min(self._rows) <= max(self._rows) < n_rows:
            raise SettingError(f"rows are {self._rows}, and the batch has rows 0 to {n_rows - 1}")
        self._chosen = None if self._rows is None else sorted({row % n_rows for row in self._rows})
        self._gained = self._gain((key if self._chosen is None else key[self._chosen]).to(self._device, self._work))

    def add(self, value: Tensor, hook: Any = None) -> Tensor:
        gained, self._gained = self._gained, None
        assert gained is not None
        gained = gained.to(value.device)
        if self._chosen is None:
            return (value.to(self._work) + gained).to(value.dtype)
        changed = value.clone()
        changed[self._chosen] = (value[self._chosen].to(self._work) + gained).to(value.dtype)
        return changed


def _times(gain: Gain, count: Int[Tensor, " row"]) -> Gain:
    """What is gained, times how often each row has the update."""
    if bool((count == 1).all()):
        return gain
    return lambda key: gain(key) * count[:, None, None].to(key)


def _moved(backend: Backend, update: WeightUpdate) -> WeightUpdate:
    return update.to(backend.w_out(update.layer).parameter.device, _work(backend))


def _work(backend: Backend) -> torch.dtype:
    """The precision in which gains are computed."""
    return torch.promote_types(backend.dtype, torch.float32)


def _several(entry: Any, row: int) -> tuple[Patch, ...]:
    if entry is None:
        return ()
    several: list[Any] = list(entry) if isinstance(entry, Sequence) and not isinstance(entry, str) else [entry]
    for one in several:
        if not hasattr(one, "layers") or not hasattr(one, "id"):
            raise SettingError(
                f"row {row} has {shown(one)}; expected an edit, a list of edits, or None for a row that is left alone"
                f"{' (load_edit reads one from a file)' if isinstance(one, str | os.PathLike) else ''}"
            )
    return tuple(several)


def _check(patch: Patch, backend: Backend, *, force: bool) -> None:
    check_same_model(patch, backend, force=force)
    if is_applied(patch, backend.model):
        raise EditStateError(
            f"the edit {patch.label} is in this model's weights already, and through hooks it would count twice; "
            "revert it first"
        )
