"""C as a matrix: what can be one, and systems that are solved with it by Cholesky in float64, with a small ridge."""

from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from rome_lens.checks import not_negative
from rome_lens.errors import SettingError

RIDGES = (1e-6, 1e-5, 1e-4, 1e-3)
"""What is added to the diagonal of C before it is inverted, in units of the diagonal's mean: the first that will do.

The first stands above what storing C in float32 rounds away, and far below what a sample can say of C: the smallest
eigenvalue of the C that is shipped is 0.24 of the mean, so u moves by 2e-6. It matters where C is singular or nearly
so. Where one direction outweighs all others, rounding hides more, and a larger one is needed for C to have a Cholesky
factor.
"""

# How far from its transpose a matrix may be and still be C with rounding errors, in units of its largest entry.
_ASYMMETRY = 1e-4
_ROWS = 1024


def check_matrix(matrix: Any) -> None:
    """Refuse a matrix that cannot be a second moment.

    Raises:
        SettingError: it is not square, symmetric (up to rounding) and finite.
    """
    if not isinstance(matrix, Tensor) or not matrix.is_floating_point():
        found = f"of {matrix.dtype}" if isinstance(matrix, Tensor) else type(matrix).__name__
        complaint = f"is {found}, no tensor of floating-point numbers"
    elif matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not len(matrix):
        complaint = f"has shape {tuple(matrix.shape)}"
    elif not matrix.isfinite().all():
        complaint = "holds numbers that are not finite"
    elif _asymmetry(matrix) > _ASYMMETRY * max(matrix.max().item(), -matrix.min().item()):
        complaint = "is not symmetric"
    else:
        return
    raise SettingError(f"a second moment is square, symmetric and finite; this matrix {complaint}")


def _asymmetry(matrix: Float[Tensor, "d_mlp d_mlp"]) -> float:
    """The largest difference between an entry and its mirror image, some rows at a time: a large C is held once."""
    starts = range(0, len(matrix), _ROWS)
    parts = ((matrix[start : start + _ROWS], matrix[:, start : start + _ROWS]) for start in starts)
    return max((rows - columns.t()).abs().max().item() for rows, columns in parts)


def bytes_to_invert(d_mlp: int) -> int:
    """What a Cholesky factor of C takes in bytes while it is made: C with its ridge, and the factor, in float64."""
    return 16 * d_mlp**2


class Inverse:
    """Solves systems with C; the last Cholesky factor and the condition number are kept.

    Args:
        matrix: C, [d_mlp d_mlp], on any device. It must not change afterwards.
        layer: the layer that it is of, for errors.
    """

    def __init__(self, matrix: Float[Tensor, "d_mlp d_mlp"], layer: int) -> None:
        self._matrix, self._layer = matrix, layer
        # By the ridges that were to be tried, the one that did and the factor with it: the last alone.
        self._kept: dict[tuple[float, ...], tuple[float, Tensor]] = {}

    @torch.no_grad()
    def solve(self, key: Float[Tensor, "*batch d_mlp"], ridge: float | None) -> Float[Tensor, "*batch d_mlp"]:
        """As `SecondMoment.solve`."""
        d_mlp = len(self._matrix)
        if key.shape[-1] != d_mlp:
            raise SettingError(f"the key has {key.shape[-1]} numbers, and the second moment {d_mlp} rows")
        keys = key.detach().to(self._matrix.device, torch.float64).reshape(-1, d_mlp)
        if not keys.isfinite().all():
            raise SettingError("the key holds numbers that are not finite; load the model in float32")
        _, factor = self._factor(ridge)
        return torch.cholesky_solve(keys.t(), factor).t().reshape(key.shape)

    @property
    def bytes_to_solve(self) -> int:
        """As `SecondMoment.bytes_to_solve`."""
        return 0 if self._kept else bytes_to_invert(len(self._matrix))

    @property
    def ridge(self) -> float:
        """As `SecondMoment.ridge`."""
        return self._factor(None)[0]

    @cached_property
    def condition_number(self) -> float:
        """As `SecondMoment.condition_number`."""
        values = torch.linalg.eigvalsh(self._ridged(self.ridge))
        # With a factor the smallest is positive, but for the rounding of the eigenvalues themselves.
        smallest = max(values[0].item(), torch.finfo(torch.float64).eps * values[-1].item())
        return float(values[-1].item() / smallest)

    def _ridged(self, ridge: float) -> Float[Tensor, "d_mlp d_mlp"]:
        ridged = self._matrix.to(torch.float64, copy=True)
        diagonal = ridged.diagonal()
        diagonal += ridge * diagonal.mean()
        return ridged

    def _factor(self, ridge: float | None) -> tuple[float, Float[Tensor, "d_mlp d_mlp"]]:
        """A ridge and the Cholesky factor of C with it."""
        ridges = RIDGES
        if ridge is not None:
            ridges = (not_negative("ridge", ridge, unit="in units of the diagonal's mean"),)
        if ridges in self._kept:
            return self._kept[ridges]
        for taken in ridges:
            factor, failed = torch.linalg.cholesky_ex(self._ridged(taken))
            if not failed:
                self._kept = {ridges: (taken, factor)}
                return taken, factor
        raise SettingError(
            f"the second moment of layer {self._layer} is not positive definite with a ridge of {ridges[-1]:g}; "
            "collect it from more tokens, or give a larger ridge"
        )
