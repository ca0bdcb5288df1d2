"""An edit as an object: what was asked, the rank-one update that answers it, and what it did to the probabilities."""

import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from rome_lens.backends import Backend, Fingerprint
from rome_lens.editing.hooks import Hook, rank_one_hooks
from rome_lens.editing.matrix_edit import MatrixEdit
from rome_lens.editing.weight_edit import Probabilities, WeightEdit
from rome_lens.errors import ArtefactError, RomeLensError
from rome_lens.facts import EditRequest
from rome_lens.storage import load_tensors


@dataclass(frozen=True)
class Loss:
    """One evaluation of the loss whose minimum is the value (paper, equation 4).

    Attributes:
        total: the sum of the three others.
        target: mean negative log-probability of the target's tokens.
        kl: divergence of "{subject} is a" from the unedited model, times its factor.
        decay: the weight decay's share.
    """

    total: float
    target: float
    kl: float
    decay: float


@dataclass(frozen=True, eq=False, repr=False)
class Edit(WeightEdit):
    """A rank-one update of one layer's `W_out`, with all that it came from. Made by an editor, such as `ROME`.

    `W_out` gains `outer(u, v)`. An edit changes nothing by itself: put it into a model's weights with `apply` or
    `applied`, run it through hook points with `hooks`, write it into a model for others with `to_hf` and `to_peft`.

    Attributes:
        request: what was asked.
        layer: the layer whose `W_out` changes.
        u: [d_mlp], the direction of keys that the update answers to, of length 1.
        v: [d_model], what it adds to the value, times the key's product with `u`.
        old_answer: what the model said before: the request's `target_true`, or the model's own answer: its next
            token, or as many as it takes to differ from the target.
        before: probabilities in the unedited model.
        after: probabilities with the edit.
        key_norm: length of the key that the update was made for.
        key_dot: `u . key` of that key.
        relative_norm: Frobenius norm of the update over that of `W_out`.
        loss_curve: the loss at every evaluation.
        variant: `r-rome`, `rome` or `p-rome`, or another editor's name.
        settings: everything that was set, as JSON holds it: the optimiser's settings with their source, context
            templates, seed, BOS, which second moment.
        fingerprint: by which the model is known again.
        notes: what is worth knowing: how the layer was chosen, what fell short.
        module: the name of the edited module in Hugging Face's model, such as `model.layers.4.mlp.down_proj`; None
            where TransformerLens does not say.
        module_transposed: that module keeps its weight [d_model, d_mlp], as `nn.Linear` does; GPT-2's `Conv1D` does
            not.
        backend: `hooked-transformer` or `transformer-bridge`: what it was made on.
        dtype: of the model that it was made on.
        seconds: how long that took.
        made_on: the edits that were in the weights while it was found, in words; empty for an unedited model.
    """

    tensor_names: ClassVar[tuple[str, ...]] = ("u", "v")

    request: EditRequest
    layer: int
    u: Float[Tensor, " d_mlp"]
    v: Float[Tensor, " d_model"]
    old_answer: str
    before: Probabilities
    after: Probabilities
    key_norm: float
    key_dot: float
    relative_norm: float
    loss_curve: tuple[Loss, ...]
    variant: str
    settings: Mapping[str, Any]
    fingerprint: Fingerprint
    notes: tuple[str, ...] = ()
    module: str | None = None
    module_transposed: bool = True
    backend: str = ""
    dtype: str = ""
    seconds: float = field(default=0.0)
    made_on: tuple[str, ...] = ()

    @property
    def update(self) -> Float[Tensor, "d_mlp d_model"]:
        """What `W_out` gains, in TransformerLens's layout."""
        return torch.outer(self.u, self.v)

    def add_to(self, total: Float[Tensor, "d_mlp d_model"]) -> None:
        total.addr_(self.u.to(total), self.v.to(total))

    def layer_hooks(self, backend: Backend, *, rows: list[int] | None) -> list[tuple[str, Hook]]:
        return rank_one_hooks(backend, self.layer, self.u[None], self.v[None], rows=rows)

    def to_peft(self, out: str | os.PathLike[str]) -> None:
        """Write the edit as a LoRA adapter of rank 1 that peft loads onto the unedited model.

        Raises:
            EditError: nobody knows the module's name in Hugging Face's model.
            ArtefactError: the folder cannot be written.
        """
        from rome_lens.editing.export import export_adapter

        export_adapter([self], out)

    def to_dict(self) -> dict[str, Any]:
        return {**super().to_dict(), "loss_curve": [asdict(loss) for loss in self.loss_curve]}


# What the fields that are neither tensors nor records have to be in a file.
_PLAIN = {
    "layer": int,
    "old_answer": str,
    "key_norm": float | int,
    "key_dot": float | int,
    "relative_norm": float | int,
    "variant": str,
    "settings": dict,
    "notes": list,
    "made_on": list,
    "module": str | None,
    "module_transposed": bool,
    "backend": str,
    "dtype": str,
    "seconds": float | int,
}


def load_edit(path: str | os.PathLike[str]) -> Edit | MatrixEdit:
    """Read an edit that `Edit.save` or `MatrixEdit.save` wrote. Fields of a later version are left alone.

    Raises:
        ArtefactError: there is no such file, it is damaged, or it holds something else.
    """
    tensors, settings = load_tensors(path, kind="edit")
    try:
        kind = MatrixEdit if "delta" in tensors else Edit
        return kind(**_from_dict(kind, tensors, settings))
    except (RomeLensError, KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
        reason = f"{type(error).__name__}: {error}" if isinstance(error, KeyError) else str(error)
        raise ArtefactError(f"cannot use {os.fspath(path)!r}: a damaged edit ({reason})") from error


def _from_dict(
    kind: type[Edit] | type[MatrixEdit], tensors: Mapping[str, Tensor], settings: Mapping[str, Any]
) -> dict[str, Any]:
    known = {f.name: settings[f.name] for f in fields(kind) if f.name in settings}
    for name, plain in _PLAIN.items():
        if name in known:
            _check_kind(name, known[name], plain)
    fingerprint = Fingerprint.from_dict(settings["fingerprint"])
    shapes = {"u": (fingerprint.d_mlp,), "v": (fingerprint.d_model,), "delta": (fingerprint.d_mlp, fingerprint.d_model)}
    for name in kind.tensor_names:
        tensor, shape = tensors[name], shapes[name]
        if tensor.shape != shape or not tensor.is_floating_point() or not tensor.isfinite().all():
            raise ValueError(f"{name} is not {' x '.join(map(str, shape))} finite numbers")
    if known["layer"] != fingerprint.layer:
        raise ValueError(f"layer {known['layer']} with the fingerprint of layer {fingerprint.layer}")
    for name in ("key_norm", "key_dot", "relative_norm") if kind is Edit else ("relative_norm",):
        if not math.isfinite(known[name]):
            raise ValueError(f"{name} is {known[name]}")
    return known | {
        "request": _record(EditRequest, settings["request"], str | None),
        "before": _probabilities(settings["before"]),
        "after": _probabilities(settings["after"]),
        "loss_curve": tuple(_loss(kind, loss) for loss in settings["loss_curve"]),
        "settings": dict(settings["settings"]),
        "fingerprint": fingerprint,
        "notes": tuple(str(note) for note in known.get("notes", ())),
        "made_on": tuple(str(other) for other in known.get("made_on", ())),
        **{name: tensors[name] for name in kind.tensor_names},
    }


def _loss(kind: type[Edit] | type[MatrixEdit], loss: Any) -> Loss | float:
    if kind is Edit:
        return _record(Loss, loss, float | int)
    _check_kind("loss_curve", loss, float | int)
    return loss


def _probabilities(values: Mapping[str, Any]) -> Probabilities:
    # Files of earlier versions do not say it.
    said = {name: values[name] for name in ("target_mean", "target_written") if values.get(name) is not None}
    for name, value in said.items():
        _check_kind(name, value, bool if name == "target_written" else float | int)
    return replace(_record(Probabilities, {name: values[name] for name in ("target", "old")}, float | int), **said)


def _record(kind: type[Any], values: Mapping[str, Any], of: Any) -> Any:
    for f in fields(kind):
        if f.name in values:
            _check_kind(f.name, values[f.name], of)
    return kind(**{f.name: values[f.name] for f in fields(kind) if f.name in values})


def _check_kind(name: str, value: Any, kind: Any) -> None:
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise TypeError(f"{name} is of type {type(value).__name__}")
