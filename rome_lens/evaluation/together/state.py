"""What a model is with the first n facts in it: its matrices, and what is known of them without asking it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from rome_lens.editing.in_weights import Matrices
from rome_lens.editing.together.kernels import TextKernel


@dataclass(frozen=True)
class State:
    """A model with the first n facts.

    Attributes:
        matrices: of the edited layers, the whole `W_out` in the model's precision.
        known: numbers of it, as JSON holds them: see `KnownState`.
        failed: place of a record -> why its fact could not be put in.
    """

    matrices: Matrices
    known: Mapping[str, Any]
    failed: Mapping[int, str] = field(default_factory=dict)


def sizes(now: Matrices, base: Matrices, kernels: Mapping[int, TextKernel]) -> dict[str, float | None]:
    """How far matrices went: `relative_norm`, and `drift` where the second moment of all layers is known.

    Args:
        now: the matrices.
        base: the unedited ones.
        kernels: of the layers whose second moment is known.
    """
    moved = {layer: now[layer].double().cpu() - base[layer].double().cpu() for layer in now}
    of_base = sum(base[layer].double().square().sum().item() for layer in now)
    found: dict[str, float | None] = {
        "relative_norm": (sum(each.square().sum().item() for each in moved.values()) / of_base) ** 0.5,
        "drift": None,
    }
    if now.keys() <= kernels.keys():
        said = sum(kernels[layer].text_energy(base[layer].double().cpu()) for layer in now)
        found["drift"] = sum(kernels[layer].text_energy(each) for layer, each in moved.items()) / said
    return found


def shortfalls(
    now: Float[Tensor, "d_mlp d_model"],
    keys: Sequence[Float[Tensor, " d_mlp"]],
    goals: Sequence[Float[Tensor, " d_model"]],
    missing: Sequence[float],
) -> list[float]:
    """What each fact lacks of its value at its key, as a share of what was missing when it was found.

    Args:
        now: the matrix.
        keys: a fact each.
        goals: what the matrix was to give at the key.
        missing: how long what was missing then was.
    """
    if not keys:
        return []
    given = torch.stack(list(keys)).double() @ now.double().cpu()
    lacking = (torch.stack(list(goals)).double() - given).norm(dim=1)
    return (lacking / torch.tensor(missing, dtype=torch.float64).clamp(min=torch.finfo(torch.float64).tiny)).tolist()
