"""The closed form the plain way: whole d_mlp x d_mlp systems, as the papers write them (columns of K are keys)."""

import torch
from torch import Tensor


def least_squares(c: Tensor, keys: Tensor, residual: Tensor, preserve: float) -> Tensor:
    """MEMIT (2210.07229, equation 14): minimises the squared misfit plus `preserve tr(D^T C D)`.

    Args:
        c: C, [d_mlp, d_mlp].
        keys: [request, d_mlp].
        residual: [request, d_model].
        preserve: λ, above 0.

    Returns:
        What `W_out` gains, [d_mlp, d_model].
    """
    k = keys.t()
    return torch.linalg.solve(preserve * c + k @ k.t(), k @ residual)


def exact(c: Tensor, keys: Tensor, residual: Tensor) -> Tensor:
    """EMMET without a ridge (2403.14236): the smallest `tr(D^T C D)` that answers every key exactly.

    The conditions of its Lagrangian are solved as one system: `C D = K m`, `K^T D = R`.
    """
    k, (n, d_mlp) = keys.t(), keys.shape
    whole = torch.cat([torch.cat([c, -k], dim=1), torch.cat([k.t(), torch.zeros(n, n).to(c)], dim=1)])
    right = torch.cat([torch.zeros(d_mlp, residual.shape[1]).to(c), residual])
    return torch.linalg.solve(whole, right)[:d_mlp]
