"""How long a value is when its optimisation has ended: the least scale that still says the target, and a bound."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from rome_lens.editing.forward import ValueForward
from rome_lens.editing.value_settings import ValueSettings

# Halvings of the scales from 0 to 1, which find the least one to within 1/32.
_HALVINGS = 5


class Shortened(NamedTuple):
    """The changes of several requests as they are kept.

    Attributes:
        change: what each request's value gains.
        scale: what `ValueSettings.least_scale` made of what was found.
        said: whether the change, as it is kept, says the target under every template.
    """

    change: Float[Tensor, "request d_model"]
    scale: Float[Tensor, " request"]
    said: Bool[Tensor, " request"]


@torch.no_grad()
def shorten(
    forward: ValueForward,
    found: Float[Tensor, "request d_model"],
    base: Float[Tensor, "request d_model"],
    settings: ValueSettings,
) -> Shortened:
    """Bring changes to the lengths that were asked for, all of them in the same forwards.

    Args:
        forward: of all these requests.
        found: where the descent ended.
        base: what the changes are added to under the bare prompts, in float64.
        settings: which lengths.
    """
    scale = torch.ones(len(found), dtype=torch.float64, device=found.device)
    if settings.least_scale is not None:
        scale = _least_scales(forward, found, settings.least_scale)
    change = _scaled(found, scale).double()
    if settings.longest is not None:
        value = base + change
        length = value.norm(dim=1, keepdim=True)
        change = torch.where(length > settings.longest, value * (settings.longest / length) - base, change)
    return Shortened(change, scale, _said(forward, change))


def _least_scales(
    forward: ValueForward, found: Float[Tensor, "request d_model"], margin: float
) -> Float[Tensor, " request"]:
    """`margin` times the least scale at which each change says its target, 1 at most; 1 where the whole does not.

    Whether a target is said need not be monotone in the scale. Halving finds a boundary: a scale that says it, with one
    by 1/32 less that does not, or that is 0. What the margin makes of it is looked at, too, and where it does not say
    the target the scale grows by 1/32 until it does; 1 is known to.
    """
    whole = _said(forward, found)
    low = torch.zeros(len(found), dtype=torch.float64, device=found.device)
    high = torch.ones_like(low)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        said = _said(forward, _scaled(found, middle))
        low, high = torch.where(said, low, middle), torch.where(said, middle, high)
    scale = torch.where(whole, margin * high, 1.0).clamp(max=1)
    while (missed := (scale < 1) & ~_said(forward, _scaled(found, scale))).any():
        scale = torch.where(missed, scale + 2.0**-_HALVINGS, scale).clamp(max=1)
    return scale


def _scaled(found: Float[Tensor, "request d_model"], scale: Float[Tensor, " request"]) -> Tensor:
    return found * scale.to(found.dtype)[:, None]


def _said(forward: ValueForward, change: Float[Tensor, "request d_model"]) -> Bool[Tensor, " request"]:
    targets = forward.batch.targets
    return targets.said(forward.logits(change)[: len(targets.row)])
