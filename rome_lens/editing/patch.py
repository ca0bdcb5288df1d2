"""One layer of an edit, and what the weights' history, hooks and export have to know of the edit as a whole."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from rome_lens.backends import Fingerprint
from rome_lens.editing.weight_update import WeightUpdate


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


class Patch(Protocol):
    """An edit, as far as weights, hooks and files for others are concerned; `rome_lens.Edit` is one."""

    @property
    def id(self) -> str:
        """What two edits share exactly when they ask for the same and change the same."""
        ...

    @property
    def label(self) -> str:
        """What the edit is, for messages: `'text' -> 'target'`."""
        ...

    @property
    def words(self) -> str:
        """The same for people to read: `text → target`."""
        ...

    @property
    def layers(self) -> Sequence[EditedLayer]:
        """What changes, each layer once, from the lowest."""
        ...

    @property
    def made_on_ids(self) -> frozenset[str]:
        """The ids of the edits that were in the weights while it was found."""
        ...

    @property
    def dtype(self) -> str:
        """Of the model that it was made on; empty where that is unknown."""
        ...

    def to_dict(self) -> Mapping[str, Any]:
        """Everything but the tensors, as JSON can hold it."""
        ...


def layer_of(patch: Patch, layer: int) -> EditedLayer | None:
    """What an edit changes in a layer; None where it changes nothing there."""
    return next((here for here in patch.layers if here.layer == layer), None)


def layer_names(patch: Patch) -> str:
    """The layers of an edit for messages: "layer 5", "layers 3, 4, 5"."""
    return f"layer{'s' if len(patch.layers) > 1 else ''} {', '.join(str(here.layer) for here in patch.layers)}"


def name_of(patch: Patch) -> str:
    """An edit for messages: its words and its layers."""
    return f"the edit {patch.label} ({layer_names(patch)})"
