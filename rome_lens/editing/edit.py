"""An edit as an object: what was asked, what each layer gains, and how it goes into models, files and folders."""

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

from jaxtyping import Float
from torch import Tensor

from rome_lens.backends import Fingerprint
from rome_lens.checks import as_real, shown
from rome_lens.editing.export import export_adapter, export_model
from rome_lens.editing.history import apply_edit, is_applied, revert_edit
from rome_lens.editing.hooks import Hook, edit_hooks
from rome_lens.editing.outcome import Loss, Origin, Outcome, Probabilities
from rome_lens.editing.patch import EditedLayer, layer_names
from rome_lens.editing.weight_update import Dense, LowRank
from rome_lens.errors import SettingError
from rome_lens.facts import EditRequest
from rome_lens.storage import save_tensors

FORM = 2
"""The form of the files that `Edit.save` writes; those of form 1 hold one request, one layer and flat settings."""


@dataclass(frozen=True, eq=False, repr=False)
class Edit:
    """What `W_out` of one or more layers gains so that requests are answered, with all that it came from.

    Made by an editor, such as `ROME`. An edit changes nothing by itself: put it into a model's weights with `apply` or
    `applied`, run it through hook points with `hooks`, write it into a model for others with `to_hf` and `to_peft`.

    Edits of today's editors answer one request by changing one layer, by a rank-one matrix (`ROME`) or by a whole one
    (`FineTuning`). For these, `request`, `layer`, `u`, `v`, `before`, `after` and so on say directly what `outcomes`
    and `layers` hold.

    !!! example
        ```python
        edit = editor.edit(rl.EditRequest("{} is in", subject="The tower", target_new="Rome"))
        edit.layer, edit.u, edit.v       # W_out of that layer gains outer(u, v)
        with edit.applied(model):
            ...                          # the edited model; afterwards the weights are the very bits again
        ```

    Attributes:
        outcomes: each request with what the model said before and what it says with the edit.
        layers: what changes, each layer once, from the lowest.
        origin: what it was made with.
    """

    outcomes: tuple[Outcome, ...]
    layers: tuple[EditedLayer, ...]
    origin: Origin

    def __repr__(self) -> str:
        made_on = self.made_on
        return (
            f"{type(self).__name__}({self._asked}, "
            f"{layer_names(self)} of {self.fingerprint.model_name}, "
            f"{self.variant}, {self._came_of_it}"
            f"{f'; found with {len(made_on)} others in the weights' if made_on else ''})"
        )

    @property
    def _asked(self) -> str:
        return self.label if len(self.outcomes) == 1 else f"{len(self.outcomes)} requests"

    @property
    def _came_of_it(self) -> str:
        if len(self.outcomes) > 1:
            return f"{sum(one.after.reached for one in self.outcomes)} targets reached"
        return (
            f"p(target) {self.before.target:.3f} -> {self.after.target:.3f}, p({self.old_answer.strip()}) "
            f"{self.before.old:.3f} -> {self.after.old:.3f}{'' if self.after.reached else '; not reached, see notes'}"
        )

    @property
    def id(self) -> str:
        """What two edits share exactly when they ask for the same and change the same: 16 hexadecimal digits."""
        return self._digest

    @cached_property
    def _digest(self) -> str:
        digest = hashlib.sha256()
        if len(self.outcomes) > 1:
            digest.update(repr(self.requests).encode())
        for here in self.layers:
            tensors = list(here.update.tensors.values())
            asked = (self.requests[0], here.layer, str(tensors[0].dtype))
            digest.update(repr(asked).encode())
            for tensor in tensors:
                digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]

    def __eq__(self, other: object) -> bool:
        """Edits are equal when their ids are: one that was saved and loaded is the one that it was."""
        return self.id == other.id if isinstance(other, Edit) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.id)

    @property
    def requests(self) -> tuple[EditRequest, ...]:
        """What was asked."""
        return tuple(one.request for one in self.outcomes)

    @property
    def label(self) -> str:
        """What was asked, for messages: `'text' -> 'target'`."""
        first = self.requests[0]
        return f"{first.text!r} -> {first.target_new!r}{self._rest}"

    @property
    def words(self) -> str:
        """What was asked, for people to read: `text → target`."""
        return f"{self.requests[0].words}{self._rest}"

    @property
    def _rest(self) -> str:
        """How many requests there are besides the first."""
        return "" if len(self.outcomes) == 1 else f" and {len(self.outcomes) - 1} more"

    @property
    def rank(self) -> int | None:
        """The rank of the update, of all layers together; None where one of them is a whole matrix."""
        ranks = [here.update.rank for here in self.layers]
        return None if None in ranks else sum(rank for rank in ranks if rank is not None)

    @property
    def request(self) -> EditRequest:
        """What was asked, of an edit of one request."""
        return self._outcome("request").request

    @property
    def old_answer(self) -> str:
        """What the model said before, of an edit of one request."""
        return self._outcome("old_answer").old_answer

    @property
    def before(self) -> Probabilities:
        """Probabilities in the unedited model, of an edit of one request."""
        return self._outcome("before").before

    @property
    def after(self) -> Probabilities:
        """Probabilities with the edit, of an edit of one request."""
        return self._outcome("after").after

    @property
    def loss_curve(self) -> tuple[Loss, ...] | tuple[float, ...]:
        """The loss at every evaluation, of an edit of one request."""
        return self._outcome("loss_curve").loss_curve

    @property
    def layer(self) -> int:
        """The layer whose `W_out` changes, of an edit of one layer."""
        return self._layer("layer").layer

    @property
    def update(self) -> Float[Tensor, "d_mlp d_model"]:
        """What `W_out` gains, in TransformerLens's layout, of an edit of one layer."""
        return self._layer("update").update.matrix

    @property
    def u(self) -> Float[Tensor, " d_mlp"]:
        """The direction of keys that the update answers to, of length 1; `W_out` gains `outer(u, v)`."""
        return self._factors("u").left[0]

    @property
    def v(self) -> Float[Tensor, " d_model"]:
        """What the update adds to the value, times the key's product with `u`."""
        return self._factors("v").right[0]

    @property
    def delta(self) -> Float[Tensor, "d_mlp d_model"]:
        """What `W_out` gains, of an edit of one layer that is a whole matrix."""
        update = self._layer("delta").update
        if not isinstance(update, Dense):
            raise SettingError("the edit is of low rank and keeps no matrix; take .update, or .layers for its factors")
        return update.delta

    @property
    def key_norm(self) -> float | None:
        """Length of the key that the update was made for, of an edit of one layer; None where that is not one key."""
        return self._layer("key_norm").key_norm

    @property
    def key_dot(self) -> float | None:
        """`u . key` of that key."""
        return self._layer("key_dot").key_dot

    @property
    def relative_norm(self) -> float:
        """Frobenius norm of the update over that of `W_out`, of an edit of one layer."""
        return self._layer("relative_norm").relative_norm

    @property
    def fingerprint(self) -> Fingerprint:
        """Identifies the model and its (lowest) edited layer."""
        return self.layers[0].fingerprint

    @property
    def module(self) -> str | None:
        """The edited module in Hugging Face's model, of an edit of one layer; None where that is unknown."""
        return self._layer("module").module

    @property
    def module_transposed(self) -> bool:
        """Whether that module keeps its weight [d_model, d_mlp], as `nn.Linear` does."""
        return self.layers[0].module_transposed

    @property
    def variant(self) -> str:
        """`r-rome`, `rome` or `p-rome`, `ft` or `ft-l`, or another editor's name."""
        return self.origin.variant

    @property
    def settings(self) -> Mapping[str, Any]:
        """Everything that was set, as JSON holds it."""
        return self.origin.settings

    @property
    def notes(self) -> tuple[str, ...]:
        """What is worth knowing: where the settings come from, what fell short."""
        return self.origin.notes

    @property
    def backend(self) -> str:
        """`hooked-transformer` or `transformer-bridge`: what it was made on."""
        return self.origin.backend

    @property
    def dtype(self) -> str:
        """Of the model that it was made on."""
        return self.origin.dtype

    @property
    def seconds(self) -> float:
        """How long it took to find."""
        return self.origin.seconds

    @property
    def made_on(self) -> tuple[str, ...]:
        """The edits that were in the weights while it was found, in words; empty for an unedited model."""
        return tuple(earlier.words for earlier in self.origin.made_on)

    @property
    def made_on_ids(self) -> frozenset[str]:
        """The ids of these edits, as far as they are known."""
        return frozenset(earlier.id for earlier in self.origin.made_on if earlier.id is not None)

    def scaled(self, factor: float) -> "Edit":
        """The same edit, stronger or weaker: what every layer gains, times a number.

        What it says of the outcome is that of the edit as it was made.

        Args:
            factor: what the updates are multiplied by, such as 0.5.

        Raises:
            SettingError: it is no finite number.
        """
        times = as_real(factor)
        if times is None:
            raise SettingError(f"factor is {shown(factor)}; expected a finite number, such as 0.5")
        layers = tuple(
            replace(here, update=here.update.scaled(times), relative_norm=here.relative_norm * abs(times))
            for here in self.layers
        )
        return replace(self, layers=layers)

    def apply(self, model: Any, *, force: bool = False) -> None:
        """Write the edit into a model's weights, on top of the edits that are in them: all of its layers, or none.

        Args:
            model: a HookedTransformer or a TransformerBridge; its processing does not matter.
            force: put it on a model of the same shape with other weights, such as a fine-tuned one.

        Raises:
            EditStateError: it is on already, or a layer was changed outside rome_lens since our last edit.
            ModelMismatchError: another model; ModelError: not a model of ours.
        """
        apply_edit(self, model, force=force)

    def revert(self, model: Any) -> None:
        """Take the edit out again: the other edits stay, and after the last one the weights are the very bits.

        Warns:
            UserWarning: edits that were found while this one was in the weights stay; `stale_edits` lists them.

        Raises:
            EditStateError: it is not on, or a layer was changed outside rome_lens since our last edit.
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
        export_model([self], model_or_path, out)

    def to_peft(self, out: str | os.PathLike[str]) -> None:
        """Write the edit as a LoRA adapter of its rank that peft loads onto the unedited model.

        Raises:
            EditError: the update is a whole matrix, or the module's name in Hugging Face's model is unknown.
            ArtefactError: the folder cannot be written.
        """
        export_adapter([self], out)

    def to_dict(self) -> dict[str, Any]:
        """Everything but the tensors, as JSON can hold it: flat for an edit of one request and one layer."""
        origin = {name: value for name, value in self._origin().items() if name != "made_on"}
        made_on = {"made_on": list(self.made_on)}
        outcomes, layers = [_plain(one) for one in self.outcomes], [_plain_layer(here) for here in self.layers]
        if len(outcomes) > 1 or len(layers) > 1:
            return {"outcomes": outcomes, "layers": layers, **origin, **made_on}
        return {**outcomes[0], **layers[0], **origin, **made_on}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the edit to a file (safetensors; its metadata holds all that is no tensor).

        Raises:
            ArtefactError: the file cannot be written.
        """
        tensors = {
            f"layers.{here.layer}.{name}": tensor
            for here in self.layers
            for name, tensor in here.update.tensors.items()
        }
        settings = {
            "outcomes": [_plain(one) for one in self.outcomes],
            "layers": [_plain_layer(here) for here in self.layers],
            "origin": self._origin(),
        }
        save_tensors(path, kind="edit", tensors=tensors, settings=settings, form=FORM)

    def _origin(self) -> dict[str, Any]:
        made_on = [asdict(earlier) | {"layers": list(earlier.layers)} for earlier in self.origin.made_on]
        return {
            **{name: getattr(self.origin, name) for name in ("variant", "backend", "dtype", "seconds")},
            "settings": dict(self.settings),
            "notes": list(self.notes),
            "made_on": made_on,
        }

    def _outcome(self, what: str) -> Outcome:
        if len(self.outcomes) != 1:
            raise SettingError(f"the edit has {len(self.outcomes)} requests, and {what} is of one; take .outcomes")
        return self.outcomes[0]

    def _layer(self, what: str) -> EditedLayer:
        if len(self.layers) != 1:
            raise SettingError(
                f"the edit changes layers {', '.join(str(here.layer) for here in self.layers)}, and {what} is of one; "
                "take .layers"
            )
        return self.layers[0]

    def _factors(self, what: str) -> LowRank:
        update = self._layer(what).update
        if not isinstance(update, LowRank):
            raise SettingError(f"the edit is a whole matrix and has no {what}; take .update")
        if update.rank != 1:
            raise SettingError(f"the edit is of rank {update.rank}, and {what} is of rank one; take .layers")
        return update


MatrixEdit = Edit
"""The name that edits of fine-tuning had; they are `Edit`s whose update is a whole matrix."""


def _plain(outcome: Outcome) -> dict[str, Any]:
    """An outcome as JSON can hold it."""
    curve = [asdict(loss) if isinstance(loss, Loss) else loss for loss in outcome.loss_curve]
    return asdict(outcome) | {"loss_curve": curve}


def _plain_layer(here: EditedLayer) -> dict[str, Any]:
    """All but the tensors of a layer as JSON can hold it."""
    keys = {} if here.key_norm is None else {"key_norm": here.key_norm, "key_dot": here.key_dot}
    return {
        "layer": here.layer,
        **keys,
        "relative_norm": here.relative_norm,
        "fingerprint": here.fingerprint.to_dict(),
        "module": here.module,
        "module_transposed": here.module_transposed,
    }
