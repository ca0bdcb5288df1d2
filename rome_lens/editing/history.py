"""Edits in a model's weights: what is in them, and how any of it goes in and is taken out again.

Each layer that carries edits has a `record` on the model. It is asked before anything is written: nothing goes over
weights that were changed by other means, and `forget_edits` lets their record go.
"""

import json
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor

from rome_lens.backends import Backend, Fingerprint, as_backend
from rome_lens.backends.origin import Held, held_edits, in_words, layers_held, loaded_from
from rome_lens.editing.outcome import Earlier
from rome_lens.editing.patch import EditedLayer, Patch, layer_names, name_of
from rome_lens.editing.record import Record, drop_record, keep_record, patches_of, records_of, settled_record
from rome_lens.errors import EditStateError, ModelMismatchError

# A matrix that is farther than this from what an edit was made for, and so many times nearer to it without the edit,
# holds the edit. Rounding to float32 moves a matrix by about 1e-8, other weights are no nearer in any of 8 directions.
_AWAY, _NEARER = 1e-6, 0.25


def applied_edits(model: Any) -> tuple[Any, ...]:
    """The edits in a model's weights, by (lowest) layer and in the order in which they were applied.

    Edits that were taken out since by other means, such as `load_state_dict`, are not among them. Where weights were
    changed in ways that no edit explains, those that were applied before are.
    """
    return _once(patch for layer in sorted(records_of(model)) for patch in patches_of(model, layer))


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
    if len(_holding(patch, model)) < len(patch.layers):
        return False
    return all(patch.id in {other.id for other in patches_of(model, here.layer)} for here in patch.layers)


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
    layers = sorted(records_of(model)) if layer is None else [backend.check_layer(layer)]
    forgotten = _once(patch for number in layers for patch in patches_of(model, number))
    for number in layers:
        drop_record(model, number)
    return forgotten


def unedited_matrix(backend: Backend, layer: int) -> Float[Tensor, "d_mlp d_model"]:
    """`W_out` of a layer as it was before any edit of ours, in the precision that the model has now.

    Raises:
        EditStateError: it was changed by other means since it was edited, so this is not known.
    """
    record, matrix = settled_record(backend, layer), backend.w_out(layer).matrix
    return matrix if record is None else record.original.to(matrix.dtype)


def unedited_fingerprint(backend: Backend, layer: int) -> Fingerprint:
    """What identifies a layer as it was before any edit of ours.

    Raises:
        EditStateError: it was changed by other means since it was edited.
    """
    return _fingerprint(backend, layer, settled_record(backend, layer))


def held_now(backend: Backend) -> dict[int, Held]:
    """The edits that came with a model's folder, by layer, as far as its weights still hold them."""
    found = {layer: held_edits(backend, unedited_fingerprint(backend, layer)) for layer in layers_held(backend)}
    return {layer: held for layer, held in found.items() if held is not None}


def edits_in_weights(backend: Backend) -> tuple[Earlier, ...]:
    """What a model's weights hold: edits that came with its folder first, then those that were applied."""
    found: dict[str, Earlier] = {}
    for layer, held in held_now(backend).items():
        for words, edit in zip(in_words(held.edits), held.edits, strict=True):
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
        _checked_record(patch, here, backend, force=force)


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
    records: list[Record] = []
    for here in patch.layers:
        record, fingerprint = _checked_record(patch, here, backend, force=force)
        if record is None:
            matrix = backend.w_out(here.layer).matrix.clone()
            record = Record(here.layer, matrix, fingerprint, matrix)
        if record.holds(patch):
            raise EditStateError(f"{name_of(patch)} is applied already; revert it first, or leave it as it is")
        record.check_precision(backend)
        records.append(record)
    _write(backend, [(record, [*record.patches, patch]) for record in records])


def revert_edit(patch: Patch, model: Any) -> None:
    """Take an edit out of a model's weights (`Edit.revert`).

    Warns:
        UserWarning: edits that were found on top of it stay in the weights.
    """
    backend = as_backend(model)
    for record in _holding(patch, model):
        settled_record(backend, record.layer)
    records = _holding(patch, model)
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
        record.check_precision(backend)
    _write(backend, [(record, [other for other in record.patches if other.id != patch.id]) for record in records])
    # Most edits were found on top of none, and no matrix has to be looked at for that.
    below = any(patch.id in other.made_on_ids for record in records_of(model).values() for other in record.patches)
    stale = [other for other in applied_edits(model) if patch.id in other.made_on_ids] if below else []
    if stale:
        were, they_do = ("was", "that edit does") if len(stale) == 1 else ("were", "they do")
        warnings.warn(
            f"{name_of(patch)} was in the weights when {', '.join(map(name_of, stale))} {were} found: without it "
            f"{they_do} something else; rome_lens.stale_edits(model) lists such edits",
            UserWarning,
            stacklevel=3,
        )


def _holding(patch: Patch, model: Any) -> list[Record]:
    """The records that say that they hold an edit."""
    return [record for here in patch.layers if (record := records_of(model).get(here.layer)) and record.holds(patch)]


def _write(backend: Backend, wanted: Sequence[tuple[Record, list[Patch]]]) -> None:
    """Give every layer the edits that it is to hold: one more than before, or one less. All layers, or none.

    Args:
        backend: the model.
        wanted: for each layer its record and the edits.
    """
    written: list[Tensor] = []
    try:
        for record, patches in wanted:
            written.append(record.with_edits(patches))
            backend.w_out(record.layer).write(written[-1])
    except BaseException:
        for record, _ in wanted:
            record.total = None  # it may be half-way
            backend.w_out(record.layer).write(record.written)
        raise
    for (record, patches), matrix in zip(wanted, written, strict=True):
        record.patches, record.written = patches, matrix
        keep_record(backend.model, record)


def _checked_record(
    patch: Patch, here: EditedLayer, backend: Backend, *, force: bool
) -> tuple[Record | None, Fingerprint]:
    """`check_same_model` of one layer; its record, and what identifies it without our edits."""
    mine = here.fingerprint
    if here.layer >= backend.n_layers:
        raise _another_model(here, backend, f"layer {here.layer} of {backend.n_layers}")
    record = settled_record(backend, here.layer)
    theirs = _fingerprint(backend, here.layer, record)
    difference = mine.difference(theirs)
    fits = (mine.d_mlp, mine.d_model) == (theirs.d_mlp, theirs.d_model)
    held = held_edits(backend, theirs)
    if fits and not force and is_held(patch, here, theirs, held):
        raise EditStateError(
            f"{name_of(patch)} is in these weights already, since before {loaded_from(backend)} was loaded or by "
            "other means than rome_lens; force=True puts it on once more"
        )
    if held is not None and mine.difference(held.original) is None:
        difference = None  # other edits lie on the same layer, as they may in memory
    if difference is not None and not (force and fits):
        raise _another_model(here, backend, difference, "; force=True edits it all the same" if fits else "")
    return record, theirs


def _another_model(here: EditedLayer, backend: Backend, difference: str, hint: str = "") -> ModelMismatchError:
    return ModelMismatchError(
        f"the edit was made for layer {here.layer} of {here.fingerprint.model_name}, and {backend.model_name} is "
        f"another model ({difference}){hint}"
    )


def _fingerprint(backend: Backend, layer: int, record: Record | None) -> Fingerprint:
    """Of a layer without our edits; of an edited one it was taken when it was edited."""
    matrix = backend.w_out(layer).matrix
    if record is not None and record.original.dtype == matrix.dtype:
        return record.fingerprint
    return backend.fingerprint(layer, matrix if record is None else record.original.to(matrix.dtype))


def _once(patches: Iterator[Patch]) -> tuple[Patch, ...]:
    """Edits of several layers, each in the place where it is met first."""
    return tuple({patch.id: patch for patch in patches}.values())
