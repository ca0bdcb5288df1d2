"""The sum of updates of one matrix, so exact that their order leaves no trace, at a cost that does not grow with them.

Each number of the sum is kept as two float64, the second being what the first had to round away (Dekker 1971; Knuth's
TwoSum). That holds some 106 bits, where a product of two float32 has 48: sums of updates come out the same in any
order, and an update that is taken away again leaves what was there before. Where that is not so, the sum says it.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from rome_lens.editing.weight_update import WeightUpdate

# Numbers that are worked on at a time: what is between two steps of a sum then stays in the processor's cache.
_AT_A_TIME = 1 << 15


class ExactSum:
    """The sum of the updates of one `W_out`.

    Attributes:
        high: [d_mlp, d_model], the sum in float64.
        low: [d_mlp, d_model], what `high` lacks.
        exact: whether nothing was lost on the way. Where numbers of very different sizes meet (2^60 apart, say), digits
            of the smaller one may be, and then the order of the sum shows in the last of its bits.
    """

    def __init__(self, like: Float[Tensor, "d_mlp d_model"], updates: Iterable[WeightUpdate] = ()) -> None:
        """Sum updates of a matrix.

        Args:
            like: a matrix of the same shape, on the device where the sum is to be.
            updates: what to sum, in this order.
        """
        self.high = torch.zeros(like.shape, dtype=torch.float64, device=like.device)
        self.low = torch.zeros_like(self.high)
        self.exact = True
        for update in updates:
            self.add(update)

    def add(self, update: WeightUpdate) -> None:
        """Add an update."""
        self._change(update, away=False)

    def remove(self, update: WeightUpdate) -> None:
        """Take an update away that was added before; if the sum is still `exact`, nothing of it is left."""
        self._change(update, away=True)

    def _change(self, update: WeightUpdate, *, away: bool) -> None:
        for rows, between in _chunks(self.high):
            self.exact &= between.accumulate(self.high[rows], self.low[rows], update.rows(rows), away=away)

    def on(self, original: Float[Tensor, "d_mlp d_model"]) -> Float[Tensor, "d_mlp d_model"]:
        """A matrix plus the sum, rounded once to the matrix's precision."""
        total = torch.empty_like(original)
        for rows, between in _chunks(self.high):
            total[rows] = between.rounded(original[rows], self.high[rows], self.low[rows])
        return total


def sum_on(original: Float[Tensor, "d_mlp d_model"], updates: Iterable[WeightUpdate]) -> Float[Tensor, "d_mlp d_model"]:
    """A matrix plus the sum of updates, rounded once: what `ExactSum.on` gives, for those who need it once.

    Without an update it is the matrix itself.
    """
    updates = list(updates)
    if not updates:
        return original
    total = torch.empty_like(original)
    if len(updates) == 1:  # which float64 rounds as pairs of it would
        for rows, _ in _chunks(original):
            total[rows] = original[rows].double() + updates[0].rows(rows).to(original.device)
        return total
    for rows, between in _chunks(original):
        high = updates[0].rows(rows).to(original.device, copy=True)
        low = torch.zeros_like(high)
        for update in updates[1:]:
            between.accumulate(high, low, update.rows(rows))
        total[rows] = between.rounded(original[rows], high, low)
    return total


def same(now: Tensor, known: Tensor) -> bool:
    """Whether a matrix holds these very numbers, as far as its precision has them; what is no number equals itself."""
    if now.shape != known.shape or now.is_meta:
        return False
    now, known = now.to(known.device), known.to(now.dtype)
    if torch.equal(now, known):
        return True
    return bool(now.isnan().any()) and torch.allclose(now, known, rtol=0, atol=0, equal_nan=True)


def _chunks(matrix: Tensor) -> "Iterator[tuple[slice, _Between]]":
    """The rows of a matrix in parts, cut the same way for every matrix of its shape, each with room to sum it."""
    n_rows, width = matrix.shape
    step = max(1, _AT_A_TIME // max(1, width))
    memory = torch.empty(5, min(step, n_rows), width, dtype=torch.float64, device=matrix.device)
    for start in range(0, n_rows, step):
        rows = slice(start, min(start + step, n_rows))
        yield rows, _Between(*memory[:, : rows.stop - start])


@dataclass(frozen=True, eq=False)
class _Between:
    """Room for what is between two steps of a sum of some rows: asked of the system once a matrix, not at every step.

    Attributes:
        summand: [row, d_model], float64 like all of them.
        total: a sum, rounded.
        lost: what `total` had to round away.
        still_lost: what two numbers cannot hold.
        part: of what a sum's rounding is found out with.
    """

    summand: Tensor
    total: Tensor
    lost: Tensor
    still_lost: Tensor
    part: Tensor

    def accumulate(self, high: Tensor, low: Tensor, summand: Tensor, *, away: bool = False) -> bool:
        """Add numbers to pairs of float64, or take them away, in place; whether nothing was lost."""
        summand = self.summand.copy_(summand)
        if away:
            summand.neg_()
        self._two_sum(high, summand, total=self.total, lost=self.lost)
        self._two_sum(self.lost, low, total=summand, lost=self.still_lost)
        self._two_sum(self.total, summand, total=high, lost=low)
        return not bool(self.still_lost.any())

    def rounded(self, original: Tensor, high: Tensor, low: Tensor) -> Tensor:
        """Numbers plus pairs of float64, rounded to float64."""
        self._two_sum(self.summand.copy_(original), high, total=self.total, lost=self.lost)
        exact = self.lost.add_(low).add_(self.total)
        if not exact.sum().isfinite():
            # Beside infinities there is nothing to be lost, and the difference of two is no number.
            exact = torch.where(self.total.isfinite(), exact, self.total)
        return exact

    def _two_sum(self, one: Tensor, other: Tensor, *, total: Tensor, lost: Tensor) -> None:
        """The sum of two numbers, and what it had to round away, into memory of its own."""
        torch.add(one, other, out=total)
        torch.sub(total, one, out=self.part)
        torch.sub(total, self.part, out=lost)
        torch.sub(one, lost, out=lost)
        torch.sub(other, self.part, out=self.part)
        lost.add_(self.part)
