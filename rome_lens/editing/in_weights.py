"""Matrices of a model put in place of its own for a while, and what they changed."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor

from rome_lens.backends import Backend

Matrices = Mapping[int, Float[Tensor, "d_mlp d_model"]]
"""Layer -> its `W_out`."""


def matrices_of(backend: Backend, layers: tuple[int, ...]) -> dict[int, Tensor]:
    """What the layers have now, as copies."""
    return {layer: backend.w_out(layer).matrix.detach().clone() for layer in layers}


@contextmanager
def in_weights(backend: Backend, matrices: Matrices) -> Iterator[None]:
    """A model with other matrices, for as long as the block lasts; then its own are there again, to the bit.

    No record of edits is kept: whatever looks at the model meanwhile takes these for its weights.
    """
    own = matrices_of(backend, tuple(matrices))
    try:
        write(backend, matrices)
        yield
    finally:
        write(backend, own)


def write(backend: Backend, matrices: Matrices) -> None:
    """Write matrices into a model."""
    with torch.no_grad():
        for layer, matrix in matrices.items():
            backend.w_out(layer).write(matrix)
