"""A model's blocks called one by one: keys and values of earlier positions, and the errors where a block cannot be."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

Resid = Float[Tensor, "row pos d_model"]
"""The residual stream in front of a block or behind it, at the positions of a call."""

First = int | Int[Tensor, " row"]
"""The first of these positions, of all rows or of each."""


class ReplayError(Exception):
    """A block cannot be called on its own as its model calls it; the message says why. Never reaches a user."""


@dataclass(frozen=True)
class KeysValues:
    """Keys and values of one layer, in whatever layout the backend's attention keeps them.

    Attributes:
        keys: [batch, ...] with positions along `pos_dim`.
        values: the same layout.
        pos_dim: the dimension that counts positions.
    """

    keys: Tensor
    values: Tensor
    pos_dim: int

    def each(self, change: Callable[[Tensor], Tensor]) -> "KeysValues":
        """Both changed in one way."""
        return KeysValues(change(self.keys), change(self.values), self.pos_dim)

    def before(self, position: int) -> "KeysValues":
        """Those of the positions before `position`."""
        return self.each(lambda x: x.narrow(self.pos_dim, 0, position))

    def ending_at(self, first: Int[Tensor, " row"], longest: int | None = None) -> "KeysValues":
        """Those before each row's own position `first`, pushed to the right so that they end in one column.

        The columns in front of a row's first position hold numbers that have to be masked. `longest` is the largest of
        these positions; None asks the tensor, which waits for its device.
        """
        if longest is None:
            longest = int(first.max())
        columns = (torch.arange(longest, device=first.device) - (longest - first)[:, None]).clamp(min=0)
        dim = self.pos_dim % self.keys.ndim
        shape = [1] * self.keys.ndim
        shape[0], shape[dim] = columns.shape
        return self.each(lambda x: torch.take_along_dim(x, columns.reshape(shape).to(x.device), dim))

    def take(self, rows: Int[Tensor, " row"]) -> "KeysValues":
        """Some rows of the batch, in an order of their own."""
        return self.each(lambda x: x[rows.to(x.device)])


class StandInCache:
    """Stands in for the model's cache in the call of one block: joins the past to the new and keeps the new.

    Attributes:
        past: keys and values of the earlier positions, if there are any.
        new: those of the block's own positions; None until it has handed them over.
    """

    def __init__(self, past: KeysValues | None, *, pos_dim: int) -> None:
        self.past, self._pos_dim = past, pos_dim
        self.new: KeysValues | None = None

    def join(self, keys: Tensor, values: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """What attention calls; what else it hands over is not looked at."""
        self.new = KeysValues(keys, values, self._pos_dim)
        if self.past is None:
            return keys, values
        return torch.cat([self.past.keys, keys], self._pos_dim), torch.cat([self.past.values, values], self._pos_dim)


class BlockReplay(ABC):
    """The blocks of a model, callable one by one as the model called them in the forward that was recorded."""

    @abstractmethod
    def run(self, layer: int, resid_pre: Resid, *, first: First, past: KeysValues | None) -> tuple[Resid, KeysValues]:
        """Run one block on the positions from `first` on.

        Args:
            layer: which block.
            resid_pre: what enters it, for the positions `first .. first + pos - 1`. The block's hook points fire.
            first: the first of these positions; those before it are in `past`. Rows may begin at positions of their
                own; `past` then ends where they begin (`KeysValues.ending_at`). Positions after the recorded text's
                last are padding that is never read.
            past: keys and values of all earlier positions, for as many rows; None where `first` is 0, or where what
                attention gives does not matter.

        Returns:
            What leaves the block, and the keys and values of the new positions.

        Raises:
            ReplayError: the block cannot be called this way.
        """

    @abstractmethod
    def unembed(self, resid_post: Resid) -> Float[Tensor, "row pos d_vocab"]:
        """Final norm, unembedding and whatever the model does to its logits."""

    def layer_ready(self, layer: int) -> AbstractContextManager[None]:
        """Open while a layer is called many times: whatever can be prepared once for all calls is."""
        return nullcontext()

    def unembed_ready(self) -> AbstractContextManager[None]:
        """The same for the unembedding."""
        return nullcontext()


def check_replayed(got: Tensor, expected: Tensor, entering: Tensor, how: str) -> None:
    """Refuse a replay whose blocks add something else to the residual than they did in the model's own forward.

    Raises:
        ReplayError: they do.
    """
    eps = torch.finfo(got.dtype).eps
    got, expected, entering = got.double(), expected.double(), entering.double()
    # Rounding grows with what is in the residual, a wrong mask or position with what the block adds to it.
    allowed = max(eps**0.5, 1e-5) * (expected - entering).norm() + 32 * eps * expected.norm()
    if not (got - expected).norm() <= allowed:
        raise ReplayError(f"a block called {how} gives other numbers than the model's own forward")
