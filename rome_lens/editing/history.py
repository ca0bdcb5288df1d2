"""Edits in a model's weights: what is in them, and how any of it is taken out again.

The record lies on the model itself, so it goes with the model when that is copied or thrown away. Beside the edits it
keeps the matrix as it was and as it was written last, and of many edits their exact sum (`exact_sum`): the weights are
always the first of these plus the sum of its edits, rounded once, whatever the order in which they came and went, and
after the last of them that matrix itself. What one more edit costs does not grow with their number.

Others write into the weights as well: `load_state_dict`, training, another precision. So a record is held against the
weights whenever it is asked, and says what they are: where they hold some of its edits only, or none, the others are
no longer applied. Weights that are none of this were changed by other means: nothing is written over them, and
`forget_edits` lets the record go.
"""

import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from rome_lens.backends import Backend, Fingerprint, as_backend
from rome_lens.backends.origin import Held, held_edits, in_words, layers_held, loaded_from
from rome_lens.editing.exact_sum import ExactSum, same, sum_on
from rome_lens.editing.outcome import Earlier
from rome_lens.editing.patch import EditedLayer, Patch, layer_names, layer_of, name_of
from rome_lens.editing.weight_update import WeightUpdate
from rome_lens.errors import EditStateError, ModelError, ModelMismatchError

_ATTRIBUTE = "_rome_lens_edits"
# Up to as many edits are summed anew at every change; beyond, their sum is kept, which takes the memory of two float64
# matrices, and a change costs the same whatever their number.
_FEW = 3
# As many rows of a matrix tell which of many sets of edits it may hold; the whole matrix decides.
_TELLING_ROWS = 4
# A matrix that is farther than this from what an edit was made for, and so many times nearer to it without the edit,
# holds the edit. Rounding to float32 moves a matrix by about 1e-8, other weights are no nearer in any of 8 directions.
_AWAY, _NEARER = 1e-6, 0.25


@dataclass
class _Record:
    """One layer's matrix as it was, and the edits on top of it.

    Attributes:
        layer: the layer.
        original: [d_mlp, d_model].
        fingerprint: of the original.
        written: the original with the edits, as it was written last.
        patches: the edits, in the order in which they came.
        total: the sum of what they add; None where they are few.
    """

    layer: int
    original: Tensor
    fingerprint: Fingerprint
    written: Tensor
    patches: list[Patch] = field(default_factory=list)
    total: ExactSum | None = None

    def updates(self, patches: Sequence[Patch]) -> list[WeightUpdate]:
        """What these edits add to this layer, in an order of their own: that of their ids."""
        found = (layer_of(patch, self.layer) for patch in sorted(patches, key=lambda patch: patch.id))
        return [here.update for here in found if here is not None]

    def with_edits(self, patches: Sequence[Patch]) -> Float[Tensor, "d_mlp d_model"]:
        """The original with these edits: those that it has, and one more or one less."""
        if len(patches) <= _FEW:
            self.total = None
            return sum_on(self.original, self.updates(patches))
        if self.total is not None:
            before, after = {patch.id for patch in self.patches}, {patch.id for patch in patches}
            for update in self.updates([patch for patch in patches if patch.id not in before]):
                self.total.add(update)
            for update in self.updates([patch for patch in self.patches if patch.id not in after]):
                self.total.remove(update)
        if self.total is None or not self.total.exact:
            self.total = ExactSum(self.original, self.updates(patches))
        return self.total.on(self.original)

    def holds(self, patch: Patch) -> bool:
        """Whether an edit is among those of the record."""
        return any(other.id == patch.id for other in self.patches)


def applied_edits(model: Any) -> tuple[Any, ...]:
    """The edits in a model's weights, by (lowest) layer and in the order in which they were applied.

    Edits that were taken out since by other means, such as `load_state_dict`, are not among them. Where weights were
    changed in ways that no edit explains, those that were applied before are.
    """
    return _once(patch for layer in sorted(_records(model)) for patch in _patches_of(model, layer))


def stale_edits(model: Any) -> tuple[Any, ...]:
    """Those of the edits in a model's weights that were found while others were, which no longer are.

    Each was found for weights that this model no longer has: alone it does something else.
    """
    applied = applied_edits(model)
    if not any(patch.made_on_ids for patch in applied):
        return ()
    there = {earlier.id for earlier in edits_in_weights(as_backend(model))}
    return tuple(patch for patch in applied if not patch.made_on_ids <= there)


def is_applied(patch: Patch, model: Any) -> bool:
    """Whether an edit is in a model's weights, in all its layers."""
    # Most edits were never put on, and no matrix has to be looked at for that.
    records = [_records(model).get(here.layer) for here in patch.layers]
    if not all(record is not None and record.holds(patch) for record in records):
        return False
    return all(any(other.id == patch.id for other in _patches_of(model, here.layer)) for here in patch.layers)


def forget_edits(model: Any, *, layer: int | None = None) -> tuple[Any, ...]:
    """Forget that edits were applied to a model, and leave its weights as they are: from now on they count as its own.

    This is the way on where edited weights were changed by other means, trained or brought to another precision, so
    that no edit can be taken out of them any more. Where they were not, `Edit.revert` brings the unedited weights back.

    Args:
        model: a HookedTransformer or a TransformerBridge.
        layer: forget the edits of this layer alone; None is all.

    Returns:
        The edits that were forgotten, by layer and in the order in which they were applied.

    Raises:
        ModelError: not a model of TransformerLens. SettingError: the model has no such layer.
    """
    backend = as_backend(model)
    layers = sorted(_records(model)) if layer is None else [backend.check_layer(layer)]
    forgotten = _once(patch for number in layers for patch in _patches_of(model, number))
    for number in layers:
        _drop(model, number)
    return forgotten


def unedited_matrices(backend: Backend) -> dict[int, Float[Tensor, "d_mlp d_model"]]:
    """`W_out` before any edit of ours, of every layer whose `W_out` carries some.

    Raises:
        EditStateError: one of them was changed by other means since.
    """
    found = {layer: _settled(backend, layer) for layer in sorted(_records(backend.model))}
    return {
        layer: record.original.to(backend.w_out(layer).matrix.dtype)
        for layer, record in found.items()
        if record is not None
    }


def unedited_matrix(backend: Backend, layer: int) -> Float[Tensor, "d_mlp d_model"]:
    """`W_out` of a layer as it was before any edit of ours, in the precision that the model has now.

    Raises:
        EditStateError: it was changed by other means since it was edited, so this is not known.
    """
    record = _settled(backend, layer)
    matrix = backend.w_out(layer).matrix
    return matrix if record is None else record.original.to(matrix.dtype)


def unedited_fingerprint(backend: Backend, layer: int) -> Fingerprint:
    """What identifies a layer as it was before any edit of ours.

    Raises:
        EditStateError: it was changed by other means since it was edited.
    """
    return _fingerprint(backend, layer, _settled(backend, layer))


def edits_in_weights(backend: Backend) -> tuple[Earlier, ...]:
    """What a model's weights hold: edits that came with its folder first, then those that were applied."""
    found: dict[str, Earlier] = {}
    for layer in layers_held(backend):
        held = held_edits(backend, layer, unedited_fingerprint(backend, layer))
        for words, edit in zip(in_words(held.edits), held.edits, strict=True) if held is not None else ():
            below = found[words].layers if words in found else ()
            found[words] = Earlier(words, (*below, layer), edit.get("id"))
    applied = [
        Earlier(
            f"{patch.words} ({layer_names(patch)}, {patch.id})", tuple(here.layer for here in patch.layers), patch.id
        )
        for patch in applied_edits(backend.model)
    ]
    return (*found.values(), *applied)


def check_same_model(patch: Patch, backend: Backend, *, force: bool) -> None:
    """Refuse a model that the edit was not made for.

    Raises:
        ModelMismatchError: another shape; or other weights, unless `force`.
        EditStateError: a layer holds the edit already, unless `force`; or it was changed by other means since it was
            edited.
    """
    for here in patch.layers:
        record = _settled(backend, here.layer) if here.layer < backend.n_layers else None
        _check_layer(patch, here, backend, record, force=force)


def is_held(patch: Patch, here: EditedLayer, now: Fingerprint, held: Held | None) -> bool:
    """Whether a matrix that no record of ours is about has an edit in it: by its folder's note, or by the numbers.

    Args:
        patch: the edit.
        here: of that layer.
        now: identifies the matrix.
        held: what the folder's note says.
    """
    if held is not None and held.has(patch.id, json.loads(json.dumps(patch.to_dict()))):
        return True
    away = here.fingerprint.apart(now)
    return away > _AWAY and here.fingerprint.apart(now, less=here.update.matrix) < _NEARER * away


def apply_edit(patch: Patch, model: Any, *, force: bool) -> None:
    """Write an edit into a model's weights: into all its layers, or into none (`Edit.apply`)."""
    backend = as_backend(model)
    records: list[_Record] = []
    for here in patch.layers:
        record = _settled(backend, here.layer) if here.layer < backend.n_layers else None
        _check_layer(patch, here, backend, record, force=force)
        if record is None:
            matrix = backend.w_out(here.layer).matrix.clone()
            record = _Record(here.layer, matrix, _fingerprint(backend, here.layer, None), matrix)
        if record.holds(patch):
            raise EditStateError(f"{name_of(patch)} is applied already; revert it first, or leave it as it is")
        _check_precision(backend, record)
        records.append(record)
    _write(backend, {record.layer: (record, [*record.patches, patch]) for record in records})
    _records(model, create=True).update({record.layer: record for record in records})


def revert_edit(patch: Patch, model: Any) -> None:
    """Take an edit out of a model's weights (`Edit.revert`).

    Warns:
        UserWarning: edits that were found on top of it stay in the weights.
    """
    backend = as_backend(model)
    known = [_records(model).get(here.layer) for here in patch.layers]
    settled = [_settled(backend, record.layer) for record in known if record is not None and record.holds(patch)]
    records = [record for record in settled if record is not None and record.holds(patch)]
    if not records:
        try:
            check_same_model(patch, backend, force=False)
        except EditStateError as error:
            raise EditStateError(
                f"{name_of(patch)} came into this model's weights by other means than rome_lens, and what they were "
                "without it is not kept here; load the unedited weights"
            ) from error
        except ModelMismatchError:
            pass
        raise EditStateError(f"{name_of(patch)} is not applied to this model; there is nothing to revert")
    for record in records:
        _check_precision(backend, record)
    left = {record.layer: (record, [p for p in record.patches if p.id != patch.id]) for record in records}
    _write(backend, left)
    for record in records:
        if not record.patches:
            _drop(model, record.layer)
    stale: list[Patch] = []
    # Most edits were found on top of none, and no matrix has to be looked at for that.
    if any(patch.id in other.made_on_ids for record in _records(model).values() for other in record.patches):
        stale = [other for other in applied_edits(model) if patch.id in other.made_on_ids]
    if stale:
        were, they_do = ("was", "that edit does") if len(stale) == 1 else ("were", "they do")
        warnings.warn(
            f"{name_of(patch)} was in the weights when {', '.join(map(name_of, stale))} {were} found: without it "
            f"{they_do} something else; rome_lens.stale_edits(model) lists such edits",
            UserWarning,
            stacklevel=3,
        )


def _write(backend: Backend, wanted: Mapping[int, tuple[_Record, list[Patch]]]) -> None:
    """Give every layer the edits that it is to hold: one more than before, or one less. All layers, or none.

    Args:
        backend: the model.
        wanted: for each layer its record and the edits.
    """
    written: dict[int, Tensor] = {}
    try:
        for layer, (record, patches) in wanted.items():
            written[layer] = record.with_edits(patches)
            backend.w_out(layer).write(written[layer])
    except BaseException:
        for layer, (record, _) in wanted.items():
            record.total = None  # it may be half-way
            backend.w_out(layer).write(record.written)
        raise
    for layer, (record, patches) in wanted.items():
        record.patches, record.written = patches, written[layer]


def _check_layer(patch: Patch, here: EditedLayer, backend: Backend, record: _Record | None, *, force: bool) -> None:
    """`check_same_model` of one layer, whose record is at hand."""
    mine = here.fingerprint
    if here.layer < backend.n_layers:
        theirs = _fingerprint(backend, here.layer, record)
        difference = mine.difference(theirs)
        fits = (mine.d_mlp, mine.d_model) == (theirs.d_mlp, theirs.d_model)
        held = held_edits(backend, here.layer, theirs)
        if fits and not force and is_held(patch, here, theirs, held):
            raise EditStateError(
                f"{name_of(patch)} is in these weights already, since before {loaded_from(backend)} was loaded or by "
                "other means than rome_lens; force=True puts it on once more"
            )
        if held is not None and mine.difference(held.original) is None:
            difference = None  # other edits lie on the same layer, as they may in memory
    else:
        difference, fits = f"layer {here.layer} of {backend.n_layers}", False
    if difference is not None and not (force and fits):
        hint = "; force=True edits it all the same" if fits else ""
        raise ModelMismatchError(
            f"the edit was made for layer {here.layer} of {mine.model_name}, and {backend.model_name} is another model "
            f"({difference}){hint}"
        )


def _fingerprint(backend: Backend, layer: int, record: _Record | None) -> Fingerprint:
    """Of a layer without our edits; of an edited one it was taken when it was edited."""
    if record is None:
        return backend.fingerprint(layer, backend.w_out(layer).matrix)
    if record.original.dtype != backend.w_out(layer).matrix.dtype:
        return backend.fingerprint(layer, record.original.to(backend.w_out(layer).matrix.dtype))
    return record.fingerprint


def _settled(backend: Backend, layer: int) -> _Record | None:
    """The record of a layer, brought into line with its weights; None where no edit is in them.

    Raises:
        EditStateError: the weights were changed by other means.
    """
    record = _records(backend.model).get(layer)
    if record is None:
        return None
    if not _bring_into_line(backend, record):
        raise EditStateError(
            f"W_out of layer {layer} was changed outside rome_lens after it was edited, and undoing the edit would "
            "undo that change too: put the weights back as they were, edited or not, or keep them as they are with "
            f"rome_lens.forget_edits(model, layer={layer})"
        )
    return _records(backend.model).get(layer)


def _patches_of(model: Any, layer: int) -> tuple[Patch, ...]:
    """The edits of a layer; where the weights were changed by other means, those that were applied before."""
    record = _records(model).get(layer)
    if record is None:
        return ()
    _bring_into_line(as_backend(model), record)
    record = _records(model).get(layer)
    return () if record is None else tuple(record.patches)


def _bring_into_line(backend: Backend, record: _Record) -> bool:
    """Let a record say which of its edits the weights hold; whether they hold any set of them, or none."""
    try:
        now = backend.w_out(record.layer).matrix
    except ModelError:  # what stands there now is no matrix of numbers, such as a quantised one
        return False
    if same(now, record.written):
        return True
    if same(now, record.original):
        _drop(backend.model, record.layer)
        return True
    for patches in _sets(record, now):
        written = sum_on(record.original, record.updates(patches))
        if same(now, written):
            record.patches, record.total, record.written = patches, None, written
            return True
    return False


def _sets(record: _Record, now: Float[Tensor, "d_mlp d_model"]) -> Iterator[list[Patch]]:
    """Sets of edits that a matrix may hold, but for all and none: those of an earlier moment, all but one.

    Only those that a few rows of the matrix agree with.
    """
    patches, n = record.patches, len(record.patches)
    if n < 2 or now.shape != record.original.shape:
        return
    rows = torch.linspace(0, now.shape[0] - 1, _TELLING_ROWS).round().long()
    before, after = (x[rows.to(x.device)].to("cpu", torch.float64).nan_to_num() for x in (record.original, now))
    updates = [record.updates([patch])[0] for patch in patches]
    gains = torch.stack([update.rows(rows.to(next(iter(update.tensors.values())).device)).cpu() for update in updates])
    sums = {k: gains[:k].sum(dim=0) for k in range(n - 1, 0, -1)}
    sets = [(patches[:k], before + gain) for k, gain in sums.items()]
    sets += [(patches[:i] + patches[i + 1 :], before + gains.sum(dim=0) - gains[i]) for i in range(n - 1)]
    eps = max(torch.finfo(x.dtype).eps for x in (record.original, now))
    allowed = 2 * eps * max(before.abs().max().item(), after.abs().max().item(), gains.abs().max().item())
    for some, expected in sets:
        if (expected - after).abs().max() <= allowed:
            yield some


def _check_precision(backend: Backend, record: _Record) -> None:
    """Refuse to write in another precision than the one in which the kept matrix is."""
    now, was = backend.w_out(record.layer).matrix.dtype, record.original.dtype
    if now == was or not record.patches:
        return
    widened = torch.promote_types(now, was) == now
    advice = f"bring it back with model.to({was}), then revert" if widened else "load the model anew"
    raise EditStateError(
        f"the model was {was} when layer {record.layer} was edited and is {now} now; {advice}, or keep the weights as "
        f"they are with rome_lens.forget_edits(model, layer={record.layer})"
    )


def _once(patches: Iterator[Patch]) -> tuple[Patch, ...]:
    """Edits of several layers, each in the place where it is met first."""
    return tuple({patch.id: patch for patch in patches}.values())


def _drop(model: Any, layer: int) -> None:
    records = _records(model)
    records.pop(layer, None)
    if not records:
        model.__dict__.pop(_ATTRIBUTE, None)


def _records(model: Any, *, create: bool = False) -> dict[int, _Record]:
    """The records on a model. Plain assignment to a TransformerBridge would be handed on to the model inside."""
    if create:
        return model.__dict__.setdefault(_ATTRIBUTE, {})
    return getattr(model, "__dict__", {}).get(_ATTRIBUTE, {})
