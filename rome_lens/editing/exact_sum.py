"""The sum of updates of one matrix, so exact that their order leaves no trace, at a cost that does not grow with them.

Each number of the sum is kept as two float64, the second being what the first had to round away (Dekker 1971; Knuth's
TwoSum). That holds some 106 bits, where a product of two float32 has 48: sums of updates come out the same in any
order, and an update that is taken away again leaves what was there before.
"""

from collections.abc import Callable, Iterable, Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from rome_lens.editing.weight_update import WeightUpdate

# Numbers that are worked on at a time: what is between two steps of a sum then stays in the processor's cache.
_AT_A_TIME = 1 << 17
# Once a number so many times larger than another was in a sum, digits of the other may be lost: 2^-106 of the larger
# one is 2^-66 of the smaller, which float64 does not see, but more is not left to chance.
_ABSORBED = 2.0**40


class ExactSum:
    """The sum of the updates of one `W_out`.

    Attributes:
        high: [d_mlp, d_model], the sum in float64.
        low: [d_mlp, d_model], what `high` lacks.
    """

    def __init__(self, like: Float[Tensor, "d_mlp d_model"], updates: Iterable[WeightUpdate] = ()) -> None:
        """Sum updates of a matrix.

        Args:
            like: a matrix of the same shape, on the device where the sum is to be.
            updates: what to sum, in any order.
        """
        self.high = torch.zeros(like.shape, dtype=torch.float64, device=like.device)
        self.low = torch.zeros_like(self.high)
        self._largest = 0.0
        for update in updates:
            self.add(update)

    def add(self, update: WeightUpdate) -> None:
        """Add an update."""
        self._largest = max(self._largest, update.bound)
        for rows in _chunks(self.high):
            _accumulate(self.high[rows], self.low[rows], _rows(update, rows, self.high))

    def remove(self, update: WeightUpdate, left: Iterable[WeightUpdate]) -> None:
        """Take an update away again.

        Args:
            update: what to take away; it was added before.
            left: what stays. It is summed anew where the update was so large, or so little of a number, that digits of
                the others may have been lost beside it.
        """
        left = list(left)
        largest = max((other.bound for other in left), default=0.0)
        if not self._largest <= _ABSORBED * largest:
            self.high.zero_()
            self.low.zero_()
            self._largest = 0.0
            for other in left:
                self.add(other)
            return
        for rows in _chunks(self.high):
            _accumulate(self.high[rows], self.low[rows], -_rows(update, rows, self.high))

    def on(self, original: Float[Tensor, "d_mlp d_model"]) -> Float[Tensor, "d_mlp d_model"]:
        """A matrix plus the sum, rounded once to the matrix's precision."""
        total = torch.empty_like(original)
        for rows in _chunks(self.high):
            total[rows] = _rounded(original[rows], self.high[rows], self.low[rows])
        return total

    def is_on(self, original: Float[Tensor, "d_mlp d_model"], now: Float[Tensor, "d_mlp d_model"]) -> bool:
        """Whether a matrix holds another one plus the sum, as `same` compares them."""
        return same(now, original.shape, lambda rows: _rounded(original[rows], self.high[rows], self.low[rows]))


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


def same(now: Tensor, shape: torch.Size, known: Callable[[slice], Tensor]) -> bool:
    """Whether a matrix holds these very numbers, as far as its precision has them; what is no number equals itself.

    Args:
        now: the matrix.
        shape: that of the known one.
        known: gives rows of the known one.
    """
    if now.shape != shape or now.is_meta:
        return False
    for rows in _chunks(now):
        expected = known(rows)
        found, expected = now[rows].to(expected.device), expected.to(now.dtype)
        if not torch.equal(found, expected) and not (
            bool(found.isnan().any()) and torch.allclose(found, expected, rtol=0, atol=0, equal_nan=True)
        ):
            return False
    return True


def _chunks(matrix: Tensor) -> Iterator[slice]:
    """The rows of a matrix in parts, cut the same way for every matrix of its shape."""
    n_rows, width = matrix.shape
    step = max(1, _AT_A_TIME // max(1, width))
    return (slice(start, min(start + step, n_rows)) for start in range(0, n_rows, step))


def _rows(update: WeightUpdate, rows: slice, like: Tensor) -> Tensor:
    return update.rows(rows).to(like.device)


def _accumulate(high: Tensor, low: Tensor, summand: Tensor) -> None:
    """Add float64 numbers to pairs, in place."""
    total = high + summand
    part = total - high
    lost = (high - (total - part)).add_(summand - part)
    lost.add_(low)
    torch.add(total, lost, out=high)
    # Of two numbers of which the first is the larger, this is what their sum has to round away.
    torch.sub(lost, total.neg_().add_(high), out=low)


def _rounded(original: Tensor, high: Tensor, low: Tensor) -> Tensor:
    base = original.double()
    total = base + high
    part = total - base
    lost = (base - (total - part)).add_(high - part).add_(low)
    exact = total + lost
    # Beside infinities there is nothing to be lost, and the difference of two is no number.
    return torch.where(total.isfinite(), exact, total).to(original.dtype)
