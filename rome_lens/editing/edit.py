"""An edit as an object: what was asked, the rank-one update that answers it, and what it did to the probabilities."""

import hashlib
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from rome_lens.backends import Fingerprint
from rome_lens.editing.applied import apply_edit, is_applied, revert_edit
from rome_lens.editing.hooks import Hook, edit_hooks
from rome_lens.errors import ArtefactError, RomeLensError
from rome_lens.facts import EditRequest
from rome_lens.storage import load_tensors, save_tensors


@dataclass(frozen=True)
class Probabilities:
    """What the model gives to the two answers after the bare prompt, teacher forced; of several tokens, jointly.

    Attributes:
        target: the probability of what the edit is to say.
        old: the probability of the old answer.
    """

    target: float
    old: float


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
class Edit:
    """A rank-one update of one layer's `W_out`, with all that it came from. Made by an editor, such as `ROME`.

    `W_out` gains `outer(u, v)`. An edit changes nothing by itself: put it into a model's weights with `apply` or
    `applied`, run it through hook points with `hooks`, write it into a model for others with `to_hf` and `to_peft`.

    Attributes:
        request: what was asked.
        layer: the layer whose `W_out` changes.
        u: [d_mlp], the direction of keys that the update answers to, of length 1.
        v: [d_model], what it adds to the value, times the key's product with `u`.
        old_answer: what the model said before: the request's `target_true`, or the model's own next token.
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
    """

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

    def __repr__(self) -> str:
        return (
            f"Edit({self.request.text!r} -> {self.request.target_new!r}, layer {self.layer} of "
            f"{self.fingerprint.model_name}, {self.variant}, p(target) {self.before.target:.3f} -> "
            f"{self.after.target:.3f}, p({self.old_answer.strip()}) {self.before.old:.3f} -> {self.after.old:.3f})"
        )

    @cached_property
    def id(self) -> str:
        """What two edits share exactly when they ask for the same and change the same: 16 hexadecimal digits."""
        digest = hashlib.sha256(repr((self.request, self.layer, str(self.u.dtype))).encode())
        for factor in (self.u, self.v):
            digest.update(factor.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]

    @property
    def update(self) -> Float[Tensor, "d_mlp d_model"]:
        """What `W_out` gains, in TransformerLens's layout."""
        return torch.outer(self.u, self.v)

    def apply(self, model: Any, *, force: bool = False) -> None:
        """Write the edit into a model's weights, on top of the edits that are in them.

        Args:
            model: a HookedTransformer or a TransformerBridge; its processing does not matter.
            force: put it on a model of the same shape with other weights, such as a fine-tuned one.

        Raises:
            EditStateError: it is on already, or somebody else has changed this layer since our last edit.
            ModelMismatchError: another model; ModelError: not a model of ours.
        """
        apply_edit(self, model, force=force)

    def revert(self, model: Any) -> None:
        """Take the edit out again: the other edits stay, and after the last one the weights are the very bits.

        Raises:
            EditStateError: it is not on, or somebody else has changed this layer since our last edit.
        """
        revert_edit(self, model)

    def is_applied(self, model: Any) -> bool:
        """Whether the edit is in this model's weights."""
        return is_applied(self, model)

    @contextmanager
    def applied(self, model: Any, *, force: bool = False) -> Iterator[Any]:
        """The model with the edit in its weights, for as long as the block lasts, exceptions or not.

        Raises:
            EditStateError, ModelMismatchError, ModelError: as `apply` does.
        """
        self.apply(model, force=force)
        try:
            yield model
        finally:
            if self.is_applied(model):
                self.revert(model)

    def hooks(self, model: Any, *, rows: Sequence[int] | None = None, force: bool = False) -> list[tuple[str, Hook]]:
        """The same edit through hook points, weights untouched: for `model.run_with_hooks(..., fwd_hooks=...)`.

        Args:
            model: a HookedTransformer or a TransformerBridge.
            rows: rows of the batch that are edited; None is all of them. For several edits in one batch, join their
                lists, or let `hooks_for_rows` make one.
            force: as in `apply`.

        Raises:
            EditStateError: the edit is in the model's weights, and would count twice.
            ModelMismatchError: another model; ModelError: not a model of ours.
        """
        return edit_hooks(self, model, rows=rows, force=force)

    def to_hf(self, model_or_path: Any, out: str | os.PathLike[str]) -> None:
        """Write the edited model as a folder that transformers loads.

        Args:
            model_or_path: the unedited model: a name or a folder as `load_model` takes them, a transformers model, or
                a TransformerBridge.
            out: the folder.

        Raises:
            ModelMismatchError: another model. ArtefactError: the folder cannot be written.
        """
        from rome_lens.editing.export import export_model

        export_model([self], model_or_path, out)

    def to_peft(self, out: str | os.PathLike[str]) -> None:
        """Write the edit as a LoRA adapter of rank 1 that peft loads onto the unedited model.

        Raises:
            EditError: nobody knows the module's name in Hugging Face's model.
            ArtefactError: the folder cannot be written.
        """
        from rome_lens.editing.export import export_adapter

        export_adapter([self], out)

    def to_dict(self) -> dict[str, Any]:
        """Everything but the two factors, as JSON can hold it."""
        plain = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("u", "v")}
        return {
            **plain,
            "request": asdict(self.request),
            "before": asdict(self.before),
            "after": asdict(self.after),
            "loss_curve": [asdict(loss) for loss in self.loss_curve],
            "settings": dict(self.settings),
            "fingerprint": self.fingerprint.to_dict(),
            "notes": list(self.notes),
        }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the edit to a file (safetensors; its metadata holds all that is no tensor).

        Raises:
            ArtefactError: the file cannot be written.
        """
        save_tensors(path, kind="edit", tensors={"u": self.u, "v": self.v}, settings=self.to_dict())


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
    "module": str | None,
    "module_transposed": bool,
    "backend": str,
    "dtype": str,
    "seconds": float | int,
}


def load_edit(path: str | os.PathLike[str]) -> Edit:
    """Read an edit that `Edit.save` wrote. Fields of a later version are left alone.

    Raises:
        ArtefactError: there is no such file, it is damaged, or it holds something else.
    """
    tensors, settings = load_tensors(path, kind="edit")
    try:
        return _from_dict(tensors, settings)
    except (RomeLensError, KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
        reason = f"{type(error).__name__}: {error}" if isinstance(error, KeyError) else str(error)
        raise ArtefactError(f"cannot use {os.fspath(path)!r}: a damaged edit ({reason})") from error


def _from_dict(tensors: Mapping[str, Tensor], settings: Mapping[str, Any]) -> Edit:
    known = {f.name: settings[f.name] for f in fields(Edit) if f.name in settings}
    for name, kind in _PLAIN.items():
        if name in known:
            _check_kind(name, known[name], kind)
    fingerprint = Fingerprint.from_dict(settings["fingerprint"])
    for name, width in (("u", fingerprint.d_mlp), ("v", fingerprint.d_model)):
        factor = tensors[name]
        if factor.shape != (width,) or not factor.is_floating_point() or not factor.isfinite().all():
            raise ValueError(f"{name} is not {width} finite numbers")
    if known["layer"] != fingerprint.layer:
        raise ValueError(f"layer {known['layer']} with the fingerprint of layer {fingerprint.layer}")
    for name in ("key_norm", "key_dot", "relative_norm"):
        if not math.isfinite(known[name]):
            raise ValueError(f"{name} is {known[name]}")
    known |= {
        "request": _record(EditRequest, settings["request"], str | None),
        "before": _record(Probabilities, settings["before"], float | int),
        "after": _record(Probabilities, settings["after"], float | int),
        "loss_curve": tuple(_record(Loss, loss, float | int) for loss in settings["loss_curve"]),
        "settings": dict(settings["settings"]),
        "fingerprint": fingerprint,
        "notes": tuple(str(note) for note in known.get("notes", ())),
    }
    return Edit(**known, u=tensors["u"], v=tensors["v"])


def _record(kind: type[Any], values: Mapping[str, Any], of: Any) -> Any:
    for f in fields(kind):
        if f.name in values:
            _check_kind(f.name, values[f.name], of)
    return kind(**{f.name: values[f.name] for f in fields(kind) if f.name in values})


def _check_kind(name: str, value: Any, kind: Any) -> None:
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise TypeError(f"{name} is of type {type(value).__name__}")
