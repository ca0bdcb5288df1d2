"""What one layer's `W_out` gains: a product of two factors, or a whole matrix. It knows no request and no model."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields, replace
from typing import Self

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, eq=False)
class WeightUpdate(ABC):
    """What `W_out` of one layer gains, in TransformerLens's layout [d_mlp, d_model].

    Attributes:
        layer: the layer, counted from 0.
    """

    layer: int

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int]:
        """(d_mlp, d_model)."""

    @property
    def rank(self) -> int | None:
        """How many outer products it is the sum of; None for a whole matrix."""
        return None

    @property
    def tensors(self) -> dict[str, Tensor]:
        """What it is made of, by name."""
        return {each.name: getattr(self, each.name) for each in fields(self) if each.name != "layer"}

    @abstractmethod
    def rows(self, which: slice | Tensor) -> Float[Tensor, "row d_model"]:
        """Some rows of the matrix, in float64 and on the update's device. Whoever gets them leaves them as they are."""

    @abstractmethod
    def scaled(self, factor: float) -> Self:
        """The same update, times a number."""

    def to(self, device: torch.device, dtype: torch.dtype) -> Self:
        """The same update elsewhere, or in another precision."""
        return replace(self, **{name: tensor.to(device, dtype) for name, tensor in self.tensors.items()})

    @abstractmethod
    def gain(self, keys: Float[Tensor, "*batch d_mlp"]) -> Float[Tensor, "*batch d_model"]:
        """What the values of these keys gain, in the keys' precision and on their device."""

    @property
    def norm(self) -> float:
        """Frobenius norm."""
        return self.matrix.double().norm().item()

    @property
    def matrix(self) -> Float[Tensor, "d_mlp d_model"]:
        """The whole matrix, in the precision of its tensors."""
        return self.rows(slice(None)).to(next(iter(self.tensors.values())).dtype)


@dataclass(frozen=True, eq=False)
class LowRank(WeightUpdate):
    """`W_out` gains `left.T @ right`: the sum of `outer(left[i], right[i])`.

    Attributes:
        left: [rank, d_mlp], the directions of keys that it answers to.
        right: [rank, d_model], what it adds to a value, times the key's product with `left`.
    """

    left: Float[Tensor, "rank d_mlp"]
    right: Float[Tensor, "rank d_model"]

    @property
    def shape(self) -> tuple[int, int]:
        return self.left.shape[1], self.right.shape[1]

    @property
    def rank(self) -> int:
        return self.left.shape[0]

    @property
    def norm(self) -> float:
        if self.rank == 1:
            return self.left.double().norm().item() * self.right.double().norm().item()
        left, right = self.left.double(), self.right.double()
        return ((left @ left.t()) * (right @ right.t())).sum().clamp(min=0).sqrt().item()

    def scaled(self, factor: float) -> Self:
        return replace(self, right=self.right * factor)

    def rows(self, which: slice | Tensor) -> Float[Tensor, "row d_model"]:
        left, right = self.left[:, which].double(), self.right.double()
        return torch.outer(left[0], right[0]) if self.rank == 1 else left.t() @ right

    def gain(self, keys: Float[Tensor, "*batch d_mlp"]) -> Float[Tensor, "*batch d_model"]:
        return (keys @ self.left.to(keys).t()) @ self.right.to(keys)


@dataclass(frozen=True, eq=False)
class Dense(WeightUpdate):
    """`W_out` gains a matrix of any rank, as fine-tuning leaves one.

    Attributes:
        delta: [d_mlp, d_model].
    """

    delta: Float[Tensor, "d_mlp d_model"]

    @property
    def shape(self) -> tuple[int, int]:
        return self.delta.shape[0], self.delta.shape[1]

    @property
    def matrix(self) -> Float[Tensor, "d_mlp d_model"]:
        return self.delta

    def scaled(self, factor: float) -> Self:
        return replace(self, delta=self.delta * factor)

    def rows(self, which: slice | Tensor) -> Float[Tensor, "row d_model"]:
        return self.delta[which].double()

    def gain(self, keys: Float[Tensor, "*batch d_mlp"]) -> Float[Tensor, "*batch d_model"]:
        return keys @ self.delta.to(keys)
