"""Keys: what the edited layer reads at a subject, which of them an update reads and which it answers."""

from dataclasses import dataclass
from typing import Literal, get_args

from jaxtyping import Float
from torch import Tensor

Variant = Literal["r-rome", "rome", "p-rome"]
"""Which keys ROME takes: the mean key throughout (2403.07175), the released code's mixture, the bare prompt's key."""

VARIANTS: tuple[Variant, ...] = get_args(Variant)

KeysOfFact = Literal["mean", "split", "each"]
"""Which keys of a fact a set of facts answers: the mean over the context templates, as published; the bare prompt's
and the mean of the others; or each template's own."""


@dataclass(frozen=True)
class Keys:
    """The keys of an update, a request each.

    Attributes:
        read: [request, d_mlp] the keys whose directions the update reads.
        answered: [request, d_mlp] the keys that are answered with the new values; the same tensor but for the released
            code's ROME.
    """

    read: Float[Tensor, "request d_mlp"]
    answered: Float[Tensor, "request d_mlp"]

    @property
    def are_one(self) -> bool:
        """Whether the keys that are answered are those that are read."""
        return self.read is self.answered


@dataclass(frozen=True)
class KeysAndValues:
    """What the layer reads and says at the subject's last token before an edit, in float64; biases are part of values.

    Attributes:
        mean_key: [request, d_mlp] over the context templates (paper, equation 3).
        mean_value: [request, d_model] what the layer says to it.
        bare_key: [request, d_mlp] of the bare prompt.
        bare_value: [request, d_model] of the bare prompt: v0.
    """

    mean_key: Float[Tensor, "request d_mlp"]
    mean_value: Float[Tensor, "request d_model"]
    bare_key: Float[Tensor, "request d_mlp"]
    bare_value: Float[Tensor, "request d_model"]

    def of(self, variant: Variant) -> tuple[Keys, Float[Tensor, "request d_model"]]:
        """The keys that a variant takes, and what the layer says to those that are answered."""
        if variant == "r-rome":
            return Keys(self.mean_key, self.mean_key), self.mean_value
        reading = self.mean_key if variant == "rome" else self.bare_key
        return Keys(reading, self.bare_key), self.bare_value
