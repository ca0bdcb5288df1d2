"""The closed form: what a layer gains so that keys are answered with other values (paper, equation 2, for many keys).

With `S = A(K)`, the keys as the precondition weighs them, and residuals `R`, what the values lack, `W_out` gains
`S (λ I + Kᵀ S)⁻¹ R`. With `A(K) = C⁻¹ K` that is r-ROME for one key and λ = 0, EMMET for several keys and a small λ,
and MEMIT for a λ that counts tokens of unedited text. All of them minimise the squared misfit plus `λ tr(ΔᵀCΔ)`.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from rome_lens.editing.keys import Keys
from rome_lens.editing.weight_update import LowRank
from rome_lens.errors import EditError

Precondition = Callable[[Float[Tensor, "request d_mlp"]], Float[Tensor, "request d_mlp"]]
"""How keys are weighed, in float64 and linear in each key: `SecondMoment.solve` gives `C⁻¹ k`."""

# cos(u, k) below this: the update is a thousand times longer than it has to be, and shifts whatever else u meets.
_LEAST_COSINE = 1e-3
# Several keys of which one is all but a sum of others: beyond this no digit of the answer is left.
_MOST_CONDITION = 1e12


def solve(
    layer: int,
    keys: Keys,
    residual: Float[Tensor, "request d_model"],
    precondition: Precondition,
    *,
    preserve: float = 0.0,
) -> LowRank:
    """The update of rank n that answers n keys together.

    Args:
        layer: the layer.
        keys: in float64.
        residual: [request, d_model] what the value of each answered key lacks: `v* - W k`, in float64.
        precondition: how keys are weighed.
        preserve: λ, how much text is kept as it is: 0 answers each key exactly, and the larger it is, the more of the
            residuals is left over.

    Returns:
        In float64; `left` are the weighed keys at unit length.

    Raises:
        EditError: with `preserve` 0, a key is so nearly orthogonal to its weighed self that the update would explode,
            or the keys of several requests depend on each other.
    """
    weighed = precondition(keys.read).to(keys.read)
    # A row at a time, as any vector's length: the bits of a request do not depend on how many there are.
    length = torch.stack([row.norm() for row in weighed])
    left = weighed / length[:, None]
    if not preserve:
        _refuse_explosions(keys, left)
    if len(residual) == 1 and not preserve:
        return LowRank(layer, left, residual / (left[0] @ keys.answered[0]))
    # In units of the weighed keys' lengths, so that the factors on the left have length 1.
    system = keys.answered @ left.t() + torch.diag(preserve / length)
    if not preserve and torch.linalg.cond(system).item() > _MOST_CONDITION:
        raise EditError(
            "the keys of these requests depend on each other, so no update answers each with its value; leave out "
            "those that ask about the same subject, or preserve more"
        )
    return LowRank(layer, left, torch.linalg.solve(system, residual))


def _refuse_explosions(keys: Keys, left: Float[Tensor, "request d_mlp"]) -> None:
    for direction, answered in zip(left, keys.answered, strict=True):
        dot, length = (direction @ answered).item(), answered.norm().item()
        if not abs(dot) > _LEAST_COSINE * length:
            raise EditError(
                f"the key and C^-1 k* are all but orthogonal (cosine {dot / length:.1e}), so the update would "
                "explode; "
                + (
                    "collect the second moment from more tokens"
                    if keys.are_one
                    else "take variant='r-rome', which uses one key throughout"
                )
            )
