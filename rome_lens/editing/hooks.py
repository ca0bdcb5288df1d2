"""Edits through hook points: the weights stay as they are, and every row of a batch may carry edits of its own.

Where a key passes, its product with `u` is taken; where its value passes, that many times `v` is added. That is what
the edited matrix does to every key, so whole runs are the same, whatever the edit changes at other positions.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from rome_lens.backends import Backend, as_backend
from rome_lens.editing.applied import check_same_model, is_applied
from rome_lens.errors import EditStateError, SettingError

if TYPE_CHECKING:
    from rome_lens.editing.edit import Edit

Hook = Callable[..., Tensor | None]
"""A hook function of TransformerLens: `hook(activation, hook)`; what it returns takes the activation's place."""


def edit_hooks(edit: "Edit", model: Any, *, rows: Sequence[int] | None, force: bool) -> list[tuple[str, Hook]]:
    """Hooks for one edit (`Edit.hooks`)."""
    _check(edit, model, force=force)
    return rank_one_hooks(
        as_backend(model), edit.layer, edit.u[None], edit.v[None], rows=None if rows is None else list(rows)
    )


def hooks_for_rows(
    model: Any, edits: Sequence["Edit | Sequence[Edit] | None"], *, force: bool = False
) -> list[tuple[str, Hook]]:
    """Hooks for a batch whose rows carry different edits.

    Args:
        model: a HookedTransformer or a TransformerBridge.
        edits: one entry a row: an edit, several of them, or None for a row that is left alone.
        force: as in `Edit.apply`.

    Returns:
        What `model.run_with_hooks` takes as `fwd_hooks`. It is good for batches of exactly so many rows.

    Raises:
        EditStateError: one of the edits is in the model's weights, and would count twice.
        ModelMismatchError: an edit was made for another model.
    """
    by_row = [_several(entry) for entry in edits]
    for edit in {edit.id: edit for entry in by_row for edit in entry}.values():
        _check(edit, model, force=force)
    layers: dict[int, list[tuple[int, Edit]]] = defaultdict(list)
    for row, entry in enumerate(by_row):
        for edit in entry:
            layers[edit.layer].append((row, edit))
    hooks: list[tuple[str, Hook]] = []
    for layer, members in sorted(layers.items()):
        depth = max(sum(row == other for other, _ in members) for row, _ in members)
        u = torch.zeros(len(by_row), depth, members[0][1].u.shape[0], dtype=members[0][1].u.dtype)
        v = torch.zeros(len(by_row), depth, members[0][1].v.shape[0], dtype=members[0][1].v.dtype)
        filled = [0] * len(by_row)
        for row, edit in members:
            u[row, filled[row]], v[row, filled[row]] = edit.u, edit.v
            filled[row] += 1
        hooks += rank_one_hooks(as_backend(model), layer, u, v)
    return hooks


def _several(entry: "Edit | Sequence[Edit] | None") -> tuple["Edit", ...]:
    if entry is None:
        return ()
    return tuple(entry) if isinstance(entry, Sequence) else (entry,)


def _check(edit: "Edit", model: Any, *, force: bool) -> None:
    backend = as_backend(model)
    check_same_model(edit, backend, force=force)
    if is_applied(edit, model):
        raise EditStateError(
            f"the edit {edit.request.text!r} -> {edit.request.target_new!r} is in this model's weights already, and "
            "through hooks it would count twice; revert it first"
        )


def rank_one_hooks(
    backend: Backend, layer: int, u: Tensor, v: Tensor, *, rows: list[int] | None = None
) -> list[tuple[str, Hook]]:
    """The hook that reads a layer's keys and the one that adds to its values.

    Args:
        backend: the model.
        layer: the layer.
        u: [row, edit, d_mlp], a set of edits a row, or [edit, d_mlp] for all rows alike.
        v: [row, edit, d_model] or [edit, d_model].
        rows: the rows that are edited, for the second form; None is all.
    """
    # In half precision the sums are taken in float32, as they are when the weights are edited.
    work = torch.promote_types(backend.dtype, torch.float32)
    device = backend.w_out(layer).parameter.device
    u, v = u.to(device, work), v.to(device, work)
    per_row = u.ndim == 3
    shares: list[Float[Tensor, "batch pos edit"]] = []

    def read(key: Tensor, hook: Any = None) -> None:
        if per_row and key.shape[0] != u.shape[0]:
            raise SettingError(f"there are edits for {u.shape[0]} rows, and the batch has {key.shape[0]}; give as many")
        if rows and not -key.shape[0] <= min(rows) <= max(rows) < key.shape[0]:
            raise SettingError(f"rows are {rows}, and the batch has rows 0 to {key.shape[0] - 1}")
        shares[:] = [key.to(work) @ u.transpose(-1, -2)]

    def add(value: Tensor, hook: Any = None) -> Tensor:
        gain = shares.pop() @ v
        if rows is not None:
            chosen = torch.zeros(value.shape[0], 1, 1, dtype=work, device=value.device)
            chosen[rows] = 1
            gain = gain * chosen
        return (value.to(work) + gain).to(value.dtype)

    return [(backend.key_hook(layer), read), (backend.value_hook(layer), add)]
