"""On what terms a set of facts is solved: the same for whatever is made of it."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch

from rome_lens.backends import Fingerprint

Spread = Literal["joint", "released"]
"""How several layers share what is missing: by one system for all of them, or layer by layer as released (MEMIT)."""


@dataclass(frozen=True)
class LayerBase:
    """What a set knows of the unedited model's layer.

    Attributes:
        fingerprint: identifies it.
        norm: Frobenius norm of `W_out`.
        text_energy: `tr(W_outᵀ C W_out)`, the mean squared length of what the layer says over text, without its bias.
        width: how many directions of keys may be moved: `d_mlp`, or what a null space has of it.
        module: as in `EditedLayer`.
        module_transposed: the same.
    """

    fingerprint: Fingerprint
    norm: float
    text_energy: float
    width: int
    module: str | None = None
    module_transposed: bool = True

    @property
    def layer(self) -> int:
        """The layer, counted from 0."""
        return self.fingerprint.layer

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return asdict(self) | {"fingerprint": self.fingerprint.to_dict()}


@dataclass(frozen=True)
class Terms:
    """On what terms a set's facts are solved; the same for whatever is made of it.

    Attributes:
        penalty: what moving a key like those of text costs, in units of d_mlp (`kernels`).
        spread: how several layers share what is missing.
        dtype: of the updates.
        layers: what is known of each layer, from the lowest.
    """

    penalty: float
    spread: Spread
    dtype: torch.dtype
    layers: tuple[LayerBase, ...]

    @property
    def numbers(self) -> tuple[int, ...]:
        """The layers, counted from 0."""
        return tuple(here.layer for here in self.layers)

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return {
            "penalty": self.penalty,
            "spread": self.spread,
            "dtype": str(self.dtype).removeprefix("torch."),
            "layers": [here.to_dict() for here in self.layers],
        }
