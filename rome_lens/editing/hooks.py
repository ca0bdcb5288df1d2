"""Edits through hook points: the weights stay as they are, and every row of a batch may carry edits of its own.

Where a key passes, its product with `u` is taken; where its value passes, that many times `v` is added; an update of
full rank is multiplied as it is. That is what the edited matrix does to every key, so whole runs are the same,
whatever the edit changes at other positions.
"""

import os
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from rome_lens.backends import Backend, as_backend
from rome_lens.checks import is_list, shown, whole_numbers
from rome_lens.editing.history import check_same_model, is_applied
from rome_lens.errors import EditStateError, SettingError

if TYPE_CHECKING:
    from rome_lens.editing.weight_edit import WeightEdit

Hook = Callable[..., Tensor | None]
"""A hook function of TransformerLens: `hook(activation, hook)`; what it returns takes the activation's place."""


def edit_hooks(edit: "WeightEdit", model: Any, *, rows: Sequence[int] | None, force: bool) -> list[tuple[str, Hook]]:
    """Hooks for one edit (`Edit.hooks`)."""
    _check(edit, model, force=force)
    chosen = (
        None if rows is None else whole_numbers("rows", rows, expected="a list of rows of the batch, such as [0, 2]")
    )
    return edit.layer_hooks(as_backend(model), rows=chosen)


def hooks_for_rows(
    model: Any, edits: Sequence["WeightEdit | Sequence[WeightEdit] | None"], *, force: bool = False
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
    if not is_list(edits):
        raise SettingError(f"edits is {shown(edits)}; expected a list with an entry for each row of the batch")
    by_row = [_several(entry, row) for row, entry in enumerate(edits)]
    for edit in {edit.id: edit for entry in by_row for edit in entry}.values():
        _check(edit, model, force=force)
    layers: dict[int, list[tuple[int, WeightEdit]]] = defaultdict(list)
    for row, entry in enumerate(by_row):
        for edit in entry:
            layers[edit.layer].append((row, edit))
    hooks: list[tuple[str, Hook]] = []
    for layer, members in sorted(layers.items()):
        hooks += _layer_hooks(as_backend(model), layer, members, n_rows=len(by_row))
    return hooks


def _layer_hooks(
    backend: Backend, layer: int, members: Sequence[tuple[int, "WeightEdit"]], *, n_rows: int
) -> list[tuple[str, Hook]]:
    """Hooks of one layer for rows with their edits: one pair for all rank-one edits, one for every matrix."""
    from rome_lens.editing.edit import Edit

    hooks: list[tuple[str, Hook]] = []
    rank_one = [(row, edit) for row, edit in members if isinstance(edit, Edit)]
    if rank_one:
        depth = max(sum(row == other for other, _ in rank_one) for row, _ in rank_one)
        u = torch.zeros(n_rows, depth, rank_one[0][1].u.shape[0], dtype=rank_one[0][1].u.dtype)
        v = torch.zeros(n_rows, depth, rank_one[0][1].v.shape[0], dtype=rank_one[0][1].v.dtype)
        filled = [0] * n_rows
        for row, edit in rank_one:
            u[row, filled[row]], v[row, filled[row]] = edit.u, edit.v
            filled[row] += 1
        hooks += rank_one_hooks(backend, layer, u, v)
    # A row may name a matrix twice, which then counts twice, as a rank-one edit does.
    seen: Counter[tuple[int, str]] = Counter()
    by_matrix: dict[tuple[str, int], list[int]] = defaultdict(list)
    matrices = {edit.id: edit for _, edit in members if not isinstance(edit, Edit)}
    for row, edit in members:
        if edit.id in matrices:
            by_matrix[edit.id, seen[row, edit.id]].append(row)
            seen[row, edit.id] += 1
    for (number, _), rows in by_matrix.items():
        hooks += matrix_hooks(backend, layer, matrices[number].update, rows=rows, n_rows=n_rows)
    return hooks


def _several(entry: Any, row: int) -> tuple["WeightEdit", ...]:
    from rome_lens.editing.weight_edit import WeightEdit

    if entry is None:
        return ()
    several: list[Any] = list(entry) if isinstance(entry, Sequence) and not isinstance(entry, str) else [entry]
    for one in several:
        if not isinstance(one, WeightEdit):
            raise SettingError(
                f"row {row} has {shown(one)}; expected an edit, a list of edits, or None for a row that is left alone"
                f"{' (load_edit reads one from a file)' if isinstance(one, str | os.PathLike) else ''}"
            )
    return tuple(several)


def _check(edit: "WeightEdit", model: Any, *, force: bool) -> None:
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
            raise _other_rows(u.shape[0], key.shape[0])
        if rows:
            _check_rows(rows, key.shape[0])
        shares[:] = [key.to(work) @ u.transpose(-1, -2)]

    def add(value: Tensor, hook: Any = None) -> Tensor:
        gain = shares.pop() @ v
        if rows is not None:
            chosen = torch.zeros(value.shape[0], 1, 1, dtype=work, device=value.device)
            chosen[rows] = 1
            gain = gain * chosen
        return (value.to(work) + gain).to(value.dtype)

    return [(backend.key_hook(layer), read), (backend.value_hook(layer), add)]


def matrix_hooks(
    backend: Backend,
    layer: int,
    delta: Float[Tensor, "row d_mlp d_model"] | Float[Tensor, "d_mlp d_model"],
    *,
    rows: Sequence[int] | None = None,
    n_rows: int | None = None,
) -> list[tuple[str, Hook]]:
    """The same for updates that are whole matrices: every key is multiplied by what its row's `W_out` gains.

    Gradients reach `delta` where the caller asks for them.

    Args:
        backend: the model.
        layer: the layer.
        delta: [row, d_mlp, d_model], a matrix a row, or [d_mlp, d_model] for all rows alike.
        rows: the rows that are edited, for the second form; None is all. Only these are multiplied.
        n_rows: how many rows the batch must have; None is any number that holds `rows`.
    """
    work = torch.promote_types(backend.dtype, torch.float32)
    delta = delta.to(backend.w_out(layer).parameter.device, work)
    n_rows = delta.shape[0] if delta.ndim == 3 else n_rows
    chosen = None if rows is None else list(rows)
    gains: list[Float[Tensor, "row pos d_model"]] = []

    def read(key: Tensor, hook: Any = None) -> None:
        if n_rows is not None and key.shape[0] != n_rows:
            raise _other_rows(n_rows, key.shape[0])
        if chosen:
            _check_rows(chosen, key.shape[0])
        gains[:] = [(key if chosen is None else key[chosen]).to(work) @ delta]

    def add(value: Tensor, hook: Any = None) -> Tensor:
        gain = gains.pop()
        if chosen is None:
            return (value.to(work) + gain).to(value.dtype)
        changed = value.clone()
        changed[chosen] = (value[chosen].to(work) + gain).to(value.dtype)
        return changed

    return [(backend.key_hook(layer), read), (backend.value_hook(layer), add)]


def _check_rows(rows: list[int], n_rows: int) -> None:
    if not -n_rows <= min(rows) <= max(rows) < n_rows:
        raise SettingError(f"rows are {rows}, and the batch has rows 0 to {n_rows - 1}")


def _other_rows(edited: int, n_rows: int) -> SettingError:
    return SettingError(f"there are edits for {edited} rows, and the batch has {n_rows}; give as many")
