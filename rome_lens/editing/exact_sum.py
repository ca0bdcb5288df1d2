"""The sum of updates of one matrix, so exact that their order leaves no trace, at a cost that does not grow with them.

Each number of the sum is kept as two float64, the second being what the first had to round away (Dekker 1971; Knuth's
TwoSum). That holds some 106 bits, where a product of two float32 has 48: sums of updates come out the same in any
order, and an update that is taken away again leaves what was there before. Where that is not so, the sum says it.
"""

from collections.abc import Iterable, Iterator

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
        for rows in _chunks(self.high):
            summand = _rows(update, rows, self.high)
            self.exact &= _accumulate(self.high[rows], self.low[rows], -summand if away else summand)

    def on(self, original: Float[Tensor, "d_mlp d_model"]) -> Float[Tensor, "d_mlp d_model"]:
        """A matrix plus the sum, rounded once to the matrix's precision."""
        total = torch.empty_like(original)
        for rows in _chunks(self.high):
            total[rows] = _rounded(original[rows], self.high[rows], self.low[rows])
        return total


def sum_on(original: Float[Tensor, "d_mlp d_model"], updates: Iterable[WeightUpdate]) -> Float[Tensor, "d_mlp d_model"]:
    """A matrix plus the sum of updates, rounded once: what `ExactSum.on` gives, for those who need it once.

    Without an update it is the matrix itself.
    """
    updates = list(updates)
    if not updates:
        return original
    total = torch.empty_like(original)
    for rows in _chunks(original):
        high = torch.zeros(original[rows].shape, dtype=torch.float64, device=original.device)
        low = torch.zeros_like(high)
        for update in updates:
            _accumulate(high, low, _rows(update, rows, high))
        total[rows] = _rounded(original[rows], high, low)
    return total


def same(now: Tensor, known: Tensor) -> bool:
    """Whether a matrix holds these very numbers, as far as its precision has them; what is no number equals itself."""
    if now.shape != known.shape or now.is_meta:
        return False
    now, known = now.to(known.device), known.to(now.dtype)
    if torch.equal(now, known):
        return True
    return bool(now.isnan().any()) and torch.allclose(now, known, rtol=0, atol=0, equal_nan=True)


def _chunks(matrix: Tensor) -> Iterator[slice]:
    """The rows of a matrix in parts, cut the same way for every matrix of its shape."""
    n_rows, width = matrix.shape
    step = max(1, _AT_A_TIME // max(1, width))
    return (slice(start, min(start + step, n_rows)) for start in range(0, n_rows, step))


def _rows(update: WeightUpdate, rows: slice, like: Tensor) -> Tensor:
    return update.rows(rows).to(like.device)


def _accumulate(high: Tensor, low: Tensor, summand: Tensor) -> bool:
    """Add float64 numbers to pairs, in place; whether nothing was lost."""
    total, lost = _two_sum(high, summand)
    lost, nothing = _two_sum(lost, low)
    total, lost = _two_sum(total, lost)
    high.copy_(total)
    low.copy_(lost)
    return not bool(nothing.any())


def _two_sum(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """The sum of two float64 numbers, and what it had to round away."""
    total = one + other
    part = total - one
    return total, (one - (total - part)).add_(other - part)


def _rounded(original: Tensor, high: Tensor, low: Tensor) -> Tensor:
    total, lost = _two_sum(original.double(), high)
    exact = lost.add_(low).add_(total)
    if not exact.sum().isfinite():
        # Beside infinities there is nothing to be lost, and the difference of two is no number.
        exact = torch.where(total.isfinite(), exact, total)
    return exact.to(original.dtype)
