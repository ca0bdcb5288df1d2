"""Edits in a model's weights: what is in them, and how any of it is taken out again.

The record lies on the model itself, so it goes with the model when that is copied or thrown away. Beside the edits it
keeps the matrix as it was: the weights are always that matrix plus the sum of its edits, rounded once, whatever the
order in which they came and went, and after the last of them that matrix itself.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from rome_lens.backends import Backend, as_backend
from rome_lens.errors import EditStateError, ModelMismatchError

if TYPE_CHECKING:
    from rome_lens.editing.weight_edit import WeightEdit

_ATTRIBUTE = "_rome_lens_edits"


@dataclass
class _EditedLayer:
    """One layer's matrix as it was, [d_mlp, d_model], and the edits on top of it."""

    original: Tensor
    edits: list["WeightEdit"] = field(default_factory=list)


def applied_edits(model: Any) -> tuple["WeightEdit", ...]:
    """The edits in a model's weights, by layer and in the order in which they were applied."""
    layers = _layers(model)
    return tuple(edit for layer in sorted(layers) for edit in layers[layer].edits)


def is_applied(edit: "WeightEdit", model: Any) -> bool:
    """Whether an edit is in a model's weights."""
    here = _layers(model).get(edit.layer)
    return here is not None and any(other.id == edit.id for other in here.edits)


def unedited_matrices(backend: Backend) -> dict[int, Float[Tensor, "d_mlp d_model"]]:
    """`W_out` before any edit of ours, of every layer whose `W_out` carries some.

    Raises:
        EditStateError: somebody else has changed one of them since.
    """
    layers = _layers(backend.model)
    for layer, here in layers.items():
        _check_untouched(backend, layer, here)
    return {layer: here.original for layer, here in layers.items()}


def unedited_matrix(backend: Backend, layer: int) -> Float[Tensor, "d_mlp d_model"]:
    """`W_out` of a layer as it was before any edit of ours."""
    here = _layers(backend.model).get(layer)
    return backend.w_out(layer).matrix if here is None else here.original


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
    """
    mine = edit.fingerprint
    if edit.layer < backend.n_layers:
        theirs = backend.fingerprint(edit.layer, unedited_matrix(backend, edit.layer))
        difference = mine.difference(theirs)
        fits = (mine.d_mlp, mine.d_model) == (theirs.d_mlp, theirs.d_model)
    else:
        difference, fits = f"layer {edit.layer} of {backend.n_layers}", False
    if difference is not None and not (force and fits):
        hint = "; force=True edits it all the same" if fits else ""
        raise ModelMismatchError(
            f"the edit was made for layer {edit.layer} of {mine.model_name}, and {backend.model_name} is another model "
            f"({difference}){hint}"
        )


def apply_edit(edit: "WeightEdit", model: Any, *, force: bool) -> None:
    """Write an edit into a model's weights (`Edit.apply`)."""
    backend = as_backend(model)
    check_same_model(edit, backend, force=force)
    here = _layers(model).get(edit.layer)
    if here is None:
        here = _EditedLayer(backend.w_out(edit.layer).matrix.clone())
    if is_applied(edit, model):
        raise EditStateError(f"{_name(edit)} is applied already; revert it first, or leave it as it is")
    _check_untouched(backend, edit.layer, here)
    edits = [*here.edits, edit]
    backend.w_out(edit.layer).write(edited_matrix(here.original, edits))
    here.edits = edits
    _layers(model, create=True)[edit.layer] = here


def revert_edit(edit: "WeightEdit", model: Any) -> None:
    """Take an edit out of a model's weights (`Edit.revert`)."""
    backend = as_backend(model)
    here = _layers(model).get(edit.layer)
    if here is None or not is_applied(edit, model):
        raise EditStateError(f"{_name(edit)} is not applied to this model; there is nothing to revert")
    _check_untouched(backend, edit.layer, here)
    edits = [other for other in here.edits if other.id != edit.id]
    backend.w_out(edit.layer).write(edited_matrix(here.original, edits))
    here.edits = edits
    if not edits:
        layers = _layers(model)
        del layers[edit.layer]
        if not layers:
            del model.__dict__[_ATTRIBUTE]


def _check_untouched(backend: Backend, layer: int, here: _EditedLayer) -> None:
    """Refuse to write over what somebody else did: trained the layer, or loaded other weights into it."""
    if not here.edits:
        return
    now = backend.w_out(layer).matrix
    was = here.original.dtype
    if now.dtype != was:
        widened = torch.promote_types(now.dtype, was) == now.dtype
        advice = f"bring it back with model.to({was}), then revert" if widened else "load the model anew"
        raise EditStateError(f"the model was {was} when layer {layer} was edited and is {now.dtype} now; {advice}")
    if not torch.equal(now.to(here.original.device), edited_matrix(here.original, here.edits)):
        raise EditStateError(
            f"somebody else has changed W_out of layer {layer} since it was edited; undoing the edit would undo that "
            "too: put the weights back as they were, or load the model anew"
        )


def _layers(model: Any, *, create: bool = False) -> dict[int, _EditedLayer]:
    """The record on a model. Plain assignment to a TransformerBridge would be handed on to the model inside."""
    if create:
        return model.__dict__.setdefault(_ATTRIBUTE, {})
    return getattr(model, "__dict__", {}).get(_ATTRIBUTE, {})


def _name(edit: "WeightEdit") -> str:
    return f"the edit {edit.request.text!r} -> {edit.request.target_new!r} (layer {edit.layer})"
