"""Symmetric matrices: what is not taken for one, and their upper triangles."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

# How far from its transpose a matrix may be and still be C with rounding errors, in units of its largest entry.
_ASYMMETRY = 1e-4


def complaint_about(matrix: Any) -> str | None:
    """What keeps a matrix from being a second moment, in words."""
    if not isinstance(matrix, Tensor) or not matrix.is_floating_point():
        found = f"of {matrix.dtype}" if isinstance(matrix, Tensor) else type(matrix).__name__
        return f"is {found}, no tensor of floating-point numbers"
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not len(matrix):
        return f"has shape {tuple(matrix.shape)}"
    if not matrix.isfinite().all():
        return "holds numbers that are not finite"
    if (matrix - matrix.t()).abs().max() > _ASYMMETRY * matrix.abs().max():
        return "is not symmetric"
    return None


def pack(matrix: Float[Tensor, "d_mlp d_mlp"]) -> Float[Tensor, " triangle"]:
    """The upper triangle, row by row, in float32 on the CPU."""
    return torch.cat([row[i:] for i, row in enumerate(matrix.detach().to("cpu", torch.float32))])


def unpack(triangle: Tensor, d_mlp: int) -> Float[Tensor, "d_mlp d_mlp"]:
    """The matrix that `pack` packed.

    Raises:
        ValueError: the triangle belongs to no such matrix.
    """
    if triangle.ndim != 1 or triangle.dtype != torch.float32 or 2 * len(triangle) != d_mlp * (d_mlp + 1):
        raise ValueError(
            f"a triangle of {triangle.dtype} and shape {tuple(triangle.shape)} belongs to no {d_mlp} x {d_mlp} matrix"
        )
    matrix = triangle.new_empty(d_mlp, d_mlp)
    first = 0
    for i in range(d_mlp):
        row = triangle[first : first + d_mlp - i]
        matrix[i, i:] = row
        matrix[i:, i] = row
        first += len(row)
    return matrix
