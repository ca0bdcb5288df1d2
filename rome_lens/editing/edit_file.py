"""What a file of an edit holds, of this version and of 0.1.0, checked field by field."""

import math
import re
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from torch import Tensor

from rome_lens.backends import Fingerprint
from rome_lens.editing.edit import Edit
from rome_lens.editing.outcome import Earlier, Loss, Origin, Outcome, Probabilities
from rome_lens.editing.patch import EditedLayer
from rome_lens.editing.weight_update import Dense, LowRank, WeightUpdate
from rome_lens.facts import EditRequest

_NUMBER = float | int
# What the fields that are neither tensors nor records have to be, and whether a file may lack them.
_OUTCOME = {"old_answer": str, "loss_curve": list}
_LAYER = {"layer": int, "relative_norm": _NUMBER}
_LAYER_OPTIONAL = {"key_norm": _NUMBER, "key_dot": _NUMBER, "module": str | None, "module_transposed": bool}
_ORIGIN = {"variant": str, "settings": dict}
_ORIGIN_OPTIONAL = {"notes": list, "made_on": list, "backend": str, "dtype": str, "seconds": _NUMBER}
_SHAPES = {"left": ("rank", "d_mlp"), "right": ("rank", "d_model"), "delta": ("d_mlp", "d_model")}
# How 0.1.0 wrote an edit that was in the weights.
_IN_WORDS = re.compile(r"\(layer (\d+)(?:, ([0-9a-f]{16}))?\)$")


def edit_from(tensors: Mapping[str, Tensor], settings: Mapping[str, Any]) -> Edit:
    """The edit that a file holds, of this version or an earlier one. Fields of a later version are left alone.

    Raises:
        RomeLensError, KeyError, TypeError, ValueError, OverflowError, AttributeError: it is damaged.
    """
    if "outcomes" not in settings:
        tensors, settings = _from_form_1(tensors, settings)
    layers = layers_from(settings["layers"], tensors)
    dense = any(here.update.rank is None for here in layers)
    return Edit(outcomes_from(settings["outcomes"], dense=dense), layers, origin_from(settings["origin"]))


def layers_from(held: Any, tensors: Mapping[str, Tensor]) -> tuple[EditedLayer, ...]:
    """What the layers gain, from the lowest. Raises as `edit_from` does."""
    layers = tuple(_layer(values, tensors) for values in checked_list("layers", held))
    if [here.layer for here in layers] != sorted({here.layer for here in layers}) or not layers:
        raise ValueError(f"layers {[here.layer for here in layers]}: expected each once, from the lowest")
    return layers


def outcomes_from(held: Any, *, dense: bool) -> tuple[Outcome, ...]:
    """What was asked and what came of it; the losses are numbers where `dense`. Raises as `edit_from` does."""
    outcomes = tuple(_outcome(values, dense=dense) for values in checked_list("outcomes", held))
    if not outcomes:
        raise ValueError("no outcomes")
    return outcomes


def _from_form_1(
    tensors: Mapping[str, Tensor], settings: Mapping[str, Any]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A file of 0.1.0, which held one request and one layer, `u` and `v` or `delta`, as one of today."""
    prefix = f"layers.{settings['layer']}."
    if "delta" in tensors:
        tensors = {prefix + "delta": tensors["delta"]}
    else:
        fingerprint = Fingerprint.from_dict(settings["fingerprint"])
        for name, width in (("u", fingerprint.d_mlp), ("v", fingerprint.d_model)):
            check_tensor(name, tensors[name], (width,))
        for name in ("key_norm", "key_dot"):
            check_kind(name, settings[name], _NUMBER)
        tensors = {prefix + "left": tensors["u"][None], prefix + "right": tensors["v"][None]}
    made_on = []
    for words in checked_list("made_on", settings.get("made_on", [])):
        found = _IN_WORDS.search(str(words))
        layers, number = ([int(found[1])], found[2]) if found else ([], None)
        made_on.append({"words": str(words), "layers": layers, "id": number})
    origin = dict(settings) | {"made_on": made_on}
    return dict(tensors), {"outcomes": [settings], "layers": [settings], "origin": origin}


def _layer(values: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> EditedLayer:
    known = _known(values, _LAYER, _LAYER_OPTIONAL)
    fingerprint, layer = Fingerprint.from_dict(values["fingerprint"]), known.pop("layer")
    if layer != fingerprint.layer:
        raise ValueError(f"layer {layer} with the fingerprint of layer {fingerprint.layer}")
    for name in ("key_norm", "key_dot", "relative_norm"):
        if not math.isfinite(known.get(name, 0)):
            raise ValueError(f"{name} is {known[name]}")
    return EditedLayer(_update(layer, fingerprint, tensors), fingerprint, **known)


def _update(layer: int, fingerprint: Fingerprint, tensors: Mapping[str, Tensor]) -> WeightUpdate:
    prefix = f"layers.{layer}."
    names = ("delta",) if prefix + "delta" in tensors else ("left", "right")
    found = {name: tensors[prefix + name] for name in names}
    rank = found["left"].shape[0] if "left" in found and found["left"].ndim else 0
    sizes = {"rank": max(rank, 1), "d_mlp": fingerprint.d_mlp, "d_model": fingerprint.d_model}
    for name, tensor in found.items():
        check_tensor(name, tensor, tuple(sizes[size] for size in _SHAPES[name]))
    return Dense(layer, **found) if "delta" in found else LowRank(layer, **found)


def check_tensor(name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    if tensor.shape != shape or not tensor.is_floating_point() or not tensor.isfinite().all():
        raise ValueError(f"{name} is not {' x '.join(map(str, shape))} finite numbers")


def _outcome(values: Mapping[str, Any], *, dense: bool) -> Outcome:
    known = _known(values, _OUTCOME)
    curve = known.pop("loss_curve")
    if dense:
        for loss in curve:
            check_kind("loss_curve", loss, _NUMBER)
    else:
        curve = [_record(Loss, loss, _NUMBER) for loss in curve]
    return Outcome(
        request=_record(EditRequest, values["request"], str | None),
        before=_probabilities(values["before"]),
        after=None if values["after"] is None else _probabilities(values["after"]),
        loss_curve=tuple(curve),
        **known,
    )


def origin_from(values: Mapping[str, Any]) -> Origin:
    known = _known(values, _ORIGIN, _ORIGIN_OPTIONAL)
    known["notes"] = tuple(str(note) for note in known.get("notes", ()))
    known["made_on"] = tuple(_earlier(one) for one in known.get("made_on", ()))
    return Origin(**known)


def _earlier(values: Mapping[str, Any]) -> Earlier:
    known = _known(values, {"words": str}, {"layers": list, "id": str | None})
    for layer in known.get("layers", ()):
        check_kind("made_on", layer, int)
    return Earlier(known["words"], tuple(known.get("layers", ())), known.get("id"))


def _probabilities(values: Mapping[str, Any]) -> Probabilities:
    # Files of earlier versions do not say it.
    said = {name: values[name] for name in ("target_mean", "target_written") if values.get(name) is not None}
    for name, value in said.items():
        check_kind(name, value, bool if name == "target_written" else _NUMBER)
    return _record(Probabilities, {name: values[name] for name in ("target", "old")}, _NUMBER, said)


def _record(kind: type[Any], values: Mapping[str, Any], of: Any, checked: Mapping[str, Any] | None = None) -> Any:
    """A record whose fields are all of one kind, but for some that were looked at already."""
    for f in fields(kind):
        if f.name in values:
            check_kind(f.name, values[f.name], of)
    return kind(**{f.name: values[f.name] for f in fields(kind) if f.name in values}, **(checked or {}))


def _known(
    values: Mapping[str, Any], needed: Mapping[str, Any], optional: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The fields that this version knows, each of its kind."""
    optional = optional or {}
    known = {name: values[name] for name in needed} | {name: values[name] for name in optional if name in values}
    for name, value in known.items():
        check_kind(name, value, {**needed, **optional}[name])
    return known


def checked_list(name: str, value: Any) -> list[Any]:
    check_kind(name, value, list)
    return value


def check_kind(name: str, value: Any, kind: Any) -> None:
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise TypeError(f"{name} is of type {type(value).__name__}")
