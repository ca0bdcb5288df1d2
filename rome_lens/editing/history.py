"""Edits in a model's weights: what is in them, and how any of it is taken out again.

The record lies on the model itself, so it goes with the model when that is copied or thrown away. Beside the edits it
keeps the matrix as it was: the weights are always that matrix plus the sum of its edits, rounded once, whatever the
order in which they came and went, and after the last of them that matrix itself.

Others write into the weights as well: `load_state_dict`, training, another precision. So a record is held against the
weights whenever it is asked, and says what they are: where they hold some of its edits only, or none, the others are
no longer applied. Weights that are none of this are somebody else's: nothing is written over them, and `forget_edits`
lets the record go.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from rome_lens.backends import Backend, Fingerprint, as_backend
from rome_lens.backends.origin import Held, held_edits, in_words, layers_held, loaded_from
from rome_lens.errors import EditStateError, ModelError, ModelMismatchError

if TYPE_CHECKING:
    from rome_lens.editing.weight_edit import WeightEdit

_ATTRIBUTE = "_rome_lens_edits"
# So many rows of a matrix tell which of many sets of edits it may hold; the whole matrix decides.
_TELLING_ROWS = 4
# A matrix that is farther than this from what an edit was made for, and so many times nearer to it without the edit,
# holds the edit. Rounding to float32 moves a matrix by about 1e-8, other weights are no nearer in any of 8 directions.
_AWAY, _NEARER = 1e-6, 0.25


@dataclass
class _EditedLayer:
    """One layer's matrix as it was, [d_mlp, d_model], and the edits on top of it."""

    original: Tensor
    edits: list["WeightEdit"] = field(default_factory=list)


def applied_edits(model: Any) -> tuple["WeightEdit", ...]:
    """The edits in a model's weights, by layer and in the order in which they were applied.

    Edits that somebody has taken out since by other ways, such as `load_state_dict`, are not among them. Where weights
    were changed in ways that no edit explains, those that were applied before are.
    """
    return tuple(edit for layer in sorted(_layers(model)) for edit in _edits_of(model, layer))


def is_applied(edit: "WeightEdit", model: Any) -> bool:
    """Whether an edit is in a model's weights."""
    # Most edits were never put on, and no matrix has to be looked at for that.
    here = _layers(model).get(edit.layer)
    return here is not None and _holds(here, edit) and _is_among(edit, _edits_of(model, edit.layer))


def forget_edits(model: Any, *, layer: int | None = None) -> tuple["WeightEdit", ...]:
    """Forget that edits were applied to a model, and leave its weights as they are: from now on they count as its own.

    This is the way on where edited weights were changed by somebody else, trained or brought to another precision, so
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
    layers = sorted(_layers(model)) if layer is None else [backend.check_layer(layer)]
    forgotten = tuple(edit for number in layers for edit in _edits_of(model, number))
    for number in layers:
        _drop(model, number)
    return forgotten


def unedited_matrices(backend: Backend) -> dict[int, Float[Tensor, "d_mlp d_model"]]:
    """`W_out` before any edit of ours, of every layer whose `W_out` carries some.

    Raises:
        EditStateError: somebody else has changed one of them since.
    """
    found = {layer: _settled(backend, layer) for layer in sorted(_layers(backend.model))}
    return {layer: unedited_matrix(backend, layer) for layer, here in found.items() if here is not None}


def unedited_matrix(backend: Backend, layer: int) -> Float[Tensor, "d_mlp d_model"]:
    """`W_out` of a layer as it was before any edit of ours, in the precision that the model has now.

    Raises:
        EditStateError: somebody else has changed it since it was edited, so nobody knows.
    """
    here = _settled(backend, layer)
    matrix = backend.w_out(layer).matrix
    return matrix if here is None else here.original.to(matrix.dtype)


def edited_matrix(
    original: Float[Tensor, "d_mlp d_model"], edits: Sequence["WeightEdit"]
) -> Float[Tensor, "d_mlp d_model"]:
    """The matrix with its edits: summed in float64 in an order of their own, rounded once."""
    if not edits:
        return original
    total = original.to(torch.float64, copy=True)
    for edit in sorted(edits, key=lambda e: e.id):
        edit.add_to(total)
    return total.to(original.dtype)


def check_same_model(edit: "WeightEdit", backend: Backend, *, force: bool) -> None:
    """Refuse a model that the edit was not made for.

    Raises:
        ModelMismatchError: another shape; or other weights, unless `force`.
        EditStateError: the layer holds the edit already, unless `force`; or somebody else has changed it since it was
            edited.
    """
    mine = edit.fingerprint
    if edit.layer < backend.n_layers:
        theirs = backend.fingerprint(edit.layer, unedited_matrix(backend, edit.layer))
        difference = mine.difference(theirs)
        fits = (mine.d_mlp, mine.d_model) == (theirs.d_mlp, theirs.d_model)
        held = held_edits(backend, edit.layer, theirs)
        if fits and not force and is_held(edit, theirs, held):
            raise EditStateError(
                f"{_name(edit)} is in these weights already, since before {loaded_from(backend)} was loaded or by "
                "other ways than ours; force=True puts it on once more"
            )
        if held is not None and mine.difference(held.original) is None:
            difference = None  # other edits lie on the same layer, as they may in memory
    else:
        difference, fits = f"layer {edit.layer} of {backend.n_layers}", False
    if difference is not None and not (force and fits):
        hint = "; force=True edits it all the same" if fits else ""
        raise ModelMismatchError(
            f"the edit was made for layer {edit.layer} of {mine.model_name}, and {backend.model_name} is another model "
            f"({difference}){hint}"
        )


def edits_in_weights(backend: Backend) -> tuple[tuple[str, int], ...]:
    """What a model's weights hold, edits that came with its folder first: each in words, with its layer."""
    found: list[tuple[str, int]] = []
    for layer in layers_held(backend):
        held = held_edits(backend, layer, backend.fingerprint(layer, unedited_matrix(backend, layer)))
        if held is not None:
            found += [(text, layer) for text in in_words(held.edits)]
    found += [
        (f"{edit.request.text} → {edit.request.target_new.strip()} (layer {edit.layer}, {edit.id})", edit.layer)
        for edit in applied_edits(backend.model)
    ]
    return tuple(found)


def is_held(edit: "WeightEdit", now: Fingerprint, held: Held | None) -> bool:
    """Whether a matrix that no record of ours is about has an edit in it: by its folder's note, or by the numbers."""
    if held is not None and held.has(edit.id, json.loads(json.dumps(edit.to_dict()))):
        return True
    away = edit.fingerprint.apart(now)
    return away > _AWAY and edit.fingerprint.apart(now, less=edit.update) < _NEARER * away


def apply_edit(edit: "WeightEdit", model: Any, *, force: bool) -> None:
    """Write an edit into a model's weights (`Edit.apply`)."""
    backend = as_backend(model)
    check_same_model(edit, backend, force=force)
    here = _settled(backend, edit.layer)
    if here is None:
        here = _EditedLayer(backend.w_out(edit.layer).matrix.clone())
    if _holds(here, edit):
        raise EditStateError(f"{_name(edit)} is applied already; revert it first, or leave it as it is")
    _check_precision(backend, edit.layer, here)
    edits = [*here.edits, edit]
    backend.w_out(edit.layer).write(edited_matrix(here.original, edits))
    here.edits = edits
    _layers(model, create=True)[edit.layer] = here


def revert_edit(edit: "WeightEdit", model: Any) -> None:
    """Take an edit out of a model's weights (`Edit.revert`)."""
    backend = as_backend(model)
    recorded = _layers(model).get(edit.layer)
    here = _settled(backend, edit.layer) if recorded is not None and _holds(recorded, edit) else None
    if here is None or not _holds(here, edit):
        try:
            check_same_model(edit, backend, force=False)
        except EditStateError as error:
            raise EditStateError(
                f"{_name(edit)} came into this model's weights by other ways than ours, and what they were without it "
                "is not kept here; load the unedited weights"
            ) from error
        except ModelMismatchError:
            pass
        raise EditStateError(f"{_name(edit)} is not applied to this model; there is nothing to revert")
    _check_precision(backend, edit.layer, here)
    edits = [other for other in here.edits if other.id != edit.id]
    backend.w_out(edit.layer).write(edited_matrix(here.original, edits))
    here.edits = edits
    if not edits:
        _drop(model, edit.layer)


def _settled(backend: Backend, layer: int) -> _EditedLayer | None:
    """The record of a layer, brought into line with its weights; None where no edit is in them.

    Raises:
        EditStateError: somebody else has changed the weights.
    """
    here = _layers(backend.model).get(layer)
    if here is None:
        return None
    if not _bring_into_line(backend, layer, here):
        raise EditStateError(
            f"somebody else has changed W_out of layer {layer} since it was edited, and undoing the edit would undo "
            "that too: put the weights back as they were, edited or not, or keep them as they are with "
            f"rome_lens.forget_edits(model, layer={layer})"
        )
    return _layers(backend.model).get(layer)


def _edits_of(model: Any, layer: int) -> tuple["WeightEdit", ...]:
    """The edits of a layer; where somebody else has changed the weights, those that were applied before."""
    here = _layers(model).get(layer)
    if here is None:
        return ()
    _bring_into_line(as_backend(model), layer, here)
    here = _layers(model).get(layer)
    return () if here is None else tuple(here.edits)


def _bring_into_line(backend: Backend, layer: int, here: _EditedLayer) -> bool:
    """Let a record say which of its edits the weights hold; whether they hold any set of them, or none."""
    try:
        now = backend.w_out(layer).matrix
    except ModelError:  # what stands there now is no matrix of numbers, such as a quantised one
        return False
    held = next((edits for edits in _sets(here, now) if _is(now, edited_matrix(here.original, edits))), None)
    if held is None:
        return False
    if not held:
        _drop(backend.model, layer)
    here.edits = held
    return True


def _sets(here: _EditedLayer, now: Float[Tensor, "d_mlp d_model"]) -> Iterator[list["WeightEdit"]]:
    """Sets of edits that a matrix may hold: all, none, those of some moment before the last was applied, all but one.

    Of the last two kinds only those that a few rows of the matrix agree with.
    """
    edits, n = here.edits, len(here.edits)
    yield edits
    yield []
    if n < 2 or now.shape != here.original.shape:
        return
    rows = torch.linspace(0, now.shape[0] - 1, _TELLING_ROWS).round().long()
    before, after = (x[rows.to(x.device)].to("cpu", torch.float64).nan_to_num() for x in (here.original, now))
    gains = torch.stack([edit.update[rows.to(edit.update.device)].to("cpu", torch.float64) for edit in edits])
    sums = {k: gains[:k].sum(dim=0) for k in range(n - 1, 0, -1)}
    sets = [(edits[:k], before + gain) for k, gain in sums.items()]
    sets += [(edits[:i] + edits[i + 1 :], before + gains.sum(dim=0) - gains[i]) for i in range(n - 1)]
    eps = max(torch.finfo(x.dtype).eps for x in (here.original, now))
    allowed = 2 * eps * max(before.abs().max().item(), after.abs().max().item(), gains.abs().max().item())
    for some, expected in sets:
        if (expected - after).abs().max() <= allowed:
            yield some


def _is(now: Tensor, known: Tensor) -> bool:
    """Whether a matrix holds these very numbers, as far as its precision has them; what is no number equals itself."""
    if now.shape != known.shape or now.is_meta:
        return False
    now, known = now.to(known.device), known.to(now.dtype)
    if torch.equal(now, known):
        return True
    return bool(now.isnan().any()) and torch.allclose(now, known, rtol=0, atol=0, equal_nan=True)


def _check_precision(backend: Backend, layer: int, here: _EditedLayer) -> None:
    """Refuse to write in another precision than the one in which the kept matrix is."""
    now, was = backend.w_out(layer).matrix.dtype, here.original.dtype
    if now == was or not here.edits:
        return
    widened = torch.promote_types(now, was) == now
    advice = f"bring it back with model.to({was}), then revert" if widened else "load the model anew"
    raise EditStateError(
        f"the model was {was} when layer {layer} was edited and is {now} now; {advice}, or keep the weights as they "
        f"are with rome_lens.forget_edits(model, layer={layer})"
    )


def _holds(here: _EditedLayer, edit: "WeightEdit") -> bool:
    return _is_among(edit, here.edits)


def _is_among(edit: "WeightEdit", edits: Sequence["WeightEdit"]) -> bool:
    return any(other.id == edit.id for other in edits)


def _drop(model: Any, layer: int) -> None:
    layers = _layers(model)
    layers.pop(layer, None)
    if not layers:
        model.__dict__.pop(_ATTRIBUTE, None)


def _layers(model: Any, *, create: bool = False) -> dict[int, _EditedLayer]:
    """The record on a model. Plain assignment to a TransformerBridge would be handed on to the model inside."""
    if create:
        return model.__dict__.setdefault(_ATTRIBUTE, {})
    return getattr(model, "__dict__", {}).get(_ATTRIBUTE, {})


def _name(edit: "WeightEdit") -> str:
    return f"the edit {edit.request.text!r} -> {edit.request.target_new!r} (layer {edit.layer})"
