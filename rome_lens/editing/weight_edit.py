"""What edits of one layer's `W_out` share, whatever the form of their update: weights, hooks and files."""

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from typing import Any, ClassVar, Self

from jaxtyping import Float
from torch import Tensor

from rome_lens.backends import Backend, Fingerprint
from rome_lens.editing.answers import AnswerReading
from rome_lens.editing.history import apply_edit, is_applied, revert_edit
from rome_lens.editing.hooks import Hook, edit_hooks
from rome_lens.facts import EditRequest
from rome_lens.storage import save_tensors

SAID = 0.5
"""From this probability on, a token counts as said."""

# How many of the edits that were in the weights a note names.
_NAMED = 3


@dataclass(frozen=True)
class Probabilities:
    """What the model gives to the two answers after the bare prompt, teacher forced; of several tokens, jointly.

    Attributes:
        target: the probability of what the edit is to say.
        old: the probability of the old answer.
        target_mean: the probability of a token of the target, on average (the geometric mean): the same as `target`
            where it is one token. None in files of earlier versions.
        target_written: whether greedy decoding writes the target, each of its tokens being the likeliest at its place.
            None in files of earlier versions.
    """

    target: float
    old: float
    target_mean: float | None = None
    target_written: bool | None = None

    @classmethod
    def of(cls, target: AnswerReading, old: AnswerReading) -> Self:
        """Of what was read."""
        return cls(target.probability, old.probability, target.mean, target.written)

    @property
    def reached(self) -> bool:
        """Whether the target is said: whether the model, left to itself, writes it.

        A joint probability says little about that: of 29 tokens with a probability of 0.93 each it is 0.12. It decides
        where nothing else is known, for files of earlier versions.
        """
        return self.target >= SAID if self.target_written is None else self.target_written


def found_on(others: Sequence[tuple[str, int]], layer: int, *, second_moment: bool) -> tuple[str, ...]:
    """What is to be noted of an edit that was found while others were in the weights; nothing where there were none.

    Args:
        others: these, in words, with their layers.
        layer: the layer that was edited.
        second_moment: whether the edit rests on a second moment.
    """
    if not others:
        return ()
    named = "; ".join(text for text, _ in others[:_NAMED]) + ("; …" if len(others) > _NAMED else "")
    notes = [f"found with {named} in the weights: alone it does something else"]
    below = sorted({other for _, other in others if other < layer})
    if below and second_moment:
        notes.append(
            f"edits of layer {', '.join(map(str, below))}, below layer {layer}, move its keys: a second moment that "
            "was collected without them fits these keys less well"
        )
    return tuple(notes)


class WeightEdit(ABC):
    """An edit of one layer's `W_out`. Its children are frozen dataclasses that hold the update and what it came from.

    Attributes:
        tensor_names: the fields that hold the update.
    """

    tensor_names: ClassVar[tuple[str, ...]] = ()
    request: EditRequest
    layer: int
    old_answer: str
    before: Probabilities
    after: Probabilities
    variant: str
    settings: Mapping[str, Any]
    fingerprint: Fingerprint
    notes: tuple[str, ...]
    module: str | None
    module_transposed: bool
    dtype: str
    made_on: tuple[str, ...]

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({self.request.text!r} -> {self.request.target_new!r}, layer {self.layer} of "
            f"{self.fingerprint.model_name}, {self.variant}, p(target) {self.before.target:.3f} -> "
            f"{self.after.target:.3f}, p({self.old_answer.strip()}) {self.before.old:.3f} -> {self.after.old:.3f}"
            f"{'' if self.after.reached else '; not reached, see notes'}"
            f"{f'; found with {len(self.made_on)} others in the weights' if self.made_on else ''})"
        )

    @cached_property
    def id(self) -> str:
        """What two edits share exactly when they ask for the same and change the same: 16 hexadecimal digits."""
        tensors = [getattr(self, name) for name in self.tensor_names]
        digest = hashlib.sha256(repr((self.request, self.layer, str(tensors[0].dtype))).encode())
        for tensor in tensors:
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]

    def __eq__(self, other: object) -> bool:
        """Edits are equal when their ids are: one that was saved and loaded is the one that it was."""
        return self.id == other.id if isinstance(other, WeightEdit) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.id)

    @property
    @abstractmethod
    def update(self) -> Float[Tensor, "d_mlp d_model"]:
        """What `W_out` gains, in TransformerLens's layout."""

    @abstractmethod
    def add_to(self, total: Float[Tensor, "d_mlp d_model"]) -> None:
        """Add the update to a matrix, in that matrix's dtype and in place."""

    @abstractmethod
    def layer_hooks(self, backend: Backend, *, rows: list[int] | None) -> list[tuple[str, Hook]]:
        """What `hooks` gives, for a model that was looked at already."""

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

    def to_dict(self) -> dict[str, Any]:
        """Everything but the update itself, as JSON can hold it."""
        names = [f.name for f in fields(self) if f.name not in self.tensor_names]  # pyright: ignore[reportArgumentType]
        return {
            **{name: getattr(self, name) for name in names},
            "request": asdict(self.request),
            "before": asdict(self.before),
            "after": asdict(self.after),
            "settings": dict(self.settings),
            "fingerprint": self.fingerprint.to_dict(),
            "notes": list(self.notes),
            "made_on": list(self.made_on),
        }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the edit to a file (safetensors; its metadata holds all that is no tensor).

        Raises:
            ArtefactError: the file cannot be written.
        """
        tensors = {name: getattr(self, name) for name in self.tensor_names}
        save_tensors(path, kind="edit", tensors=tensors, settings=self.to_dict())
