"""What an edit is: what was asked, what each layer gains, and what came of it, in the words of a single edit too."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from jaxtyping import Float
from torch import Tensor

from rome_lens.backends import Fingerprint
from rome_lens.editing.outcome import Loss, Origin, Outcome, Probabilities
from rome_lens.editing.weight_update import Dense, LowRank, WeightUpdate
from rome_lens.errors import SettingError
from rome_lens.facts import EditRequest


@dataclass(frozen=True, eq=False)
class EditedLayer:
    """What one layer of an edit gains, and which layer of which model that is.

    Attributes:
        update: what `W_out` gains.
        fingerprint: identifies the layer that it was made for.
        relative_norm: Frobenius norm of the update over that of `W_out`.
        module: the name of the edited module in Hugging Face's model, such as `model.layers.4.mlp.down_proj`; None
            where TransformerLens does not say.
        module_transposed: that module keeps its weight [d_model, d_mlp], as `nn.Linear` does; GPT-2's `Conv1D` does
            not.
        key_norm: length of the key that the update was made for; None where that is not one key.
        key_dot: product of that key with the update's `left`, which has length 1; None where that is not one key.
    """

    update: WeightUpdate
    fingerprint: Fingerprint
    relative_norm: float
    module: str | None = None
    module_transposed: bool = True
    key_norm: float | None = None
    key_dot: float | None = None

    @property
    def layer(self) -> int:
        """The layer, counted from 0."""
        return self.update.layer

    def to_dict(self) -> dict[str, Any]:
        """Everything but the tensors, as JSON can hold it."""
        key = () if self.key_norm is None else ("key_norm", "key_dot")
        names = ("layer", *key, "relative_norm", "fingerprint", "module", "module_transposed")
        return {name: getattr(self, name) for name in names} | {"fingerprint": self.fingerprint.to_dict()}


@dataclass(frozen=True, eq=False, repr=False)
class Patch:
    """An edit, as far as weights, hooks and files for others are concerned; `rome_lens.Edit` says what it does.

    Attributes:
        outcomes: each request with what the model said before and what it says with the edit.
        layers: what changes, each layer once, from the lowest.
        origin: what it was made with.
    """

    outcomes: tuple[Outcome, ...]
    layers: tuple[EditedLayer, ...]
    origin: Origin

    def __repr__(self) -> str:
        asked, made_on = self.label if len(self.outcomes) == 1 else f"{len(self.outcomes)} requests", self.made_on
        return (
            f"{type(self).__name__}({asked}, "
            f"{layer_names(self)} of {self.fingerprint.model_name}, "
            f"{self.variant}, {self._came_of_it}"
            f"{f'; found with {len(made_on)} others in the weights' if made_on else ''})"
        )

    @property
    def _came_of_it(self) -> str:
        if len(self.outcomes) > 1:
            measured = [one.after for one in self.outcomes if one.after is not None]
            return f"{sum(one.reached for one in measured)} targets reached" if measured else "not measured"
        return (
            f"p(target) {self.before.target:.3f} -> {self.after.target:.3f}, p({self.old_answer.strip()}) "
            f"{self.before.old:.3f} -> {self.after.old:.3f}{'' if self.after.reached else '; not reached, see notes'}"
        )

    @cached_property
    def id(self) -> str:
        """What two edits share exactly when they ask for the same and change the same: 16 hexadecimal digits."""
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
        return self.id == other.id if isinstance(other, Patch) else NotImplemented

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
        """Probabilities with the edit, of an edit of one request.

        Raises:
            SettingError: they were not measured.
        """
        after = self._outcome("after").after
        if after is None:
            raise SettingError("what the model says with the edit was not measured; take .measured(model)")
        return after

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

    def to_dict(self) -> dict[str, Any]:
        """Everything but the tensors, as JSON can hold it: flat for an edit of one request and one layer."""
        outcomes, layers = [one.to_dict() for one in self.outcomes], [here.to_dict() for here in self.layers]
        origin = self.origin.to_dict() | {"made_on": list(self.made_on)}
        if len(outcomes) > 1 or len(layers) > 1:
            return {"outcomes": outcomes, "layers": layers, **origin}
        return {**outcomes[0], **layers[0], **origin}

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


def layer_names(patch: Patch) -> str:
    """The layers of an edit for messages: "layer 5", "layers 3, 4, 5"."""
    return f"layer{'s' if len(patch.layers) > 1 else ''} {', '.join(str(here.layer) for here in patch.layers)}"


def name_of(patch: Patch) -> str:
    """An edit for messages: its words and its layers."""
    return f"the edit {patch.label} ({layer_names(patch)})"
