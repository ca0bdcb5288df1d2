"""MEMIT's own way over several layers: one after the other, with keys read again (released code, memit_main.py)."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from rome_lens.backends import Backend
from rome_lens.editing.hooks import gain_hooks
from rome_lens.editing.prompts import Batch, RequestRows, make_batch
from rome_lens.editing.together.finding import Finding
from rome_lens.editing.together.kernels import Kernel
from rome_lens.editing.together.set_fact import SetFact
from rome_lens.editing.together.system import System
from rome_lens.editing.weight_update import WeightUpdate

_AT_A_TIME = 4


def spread_released(
    backend: Backend,
    facts: Sequence[SetFact],
    rows: Sequence[RequestRows],
    *,
    finding: Finding,
    kernels: Sequence[Kernel],
    penalty: float,
) -> list[WeightUpdate]:
    """What each layer gains, from the lowest: each takes an equal share of what is still missing at the last block.

    At every layer the keys and the block's output under the bare prompt are read again, with the layers below changed
    already.

    Args:
        backend: the model, in evaluation mode.
        facts: with their goals, in an order of their own.
        rows: their requests in tokens.
        finding: what decided their values.
        kernels: a layer each.
        penalty: what moving costs.
    """
    dtype = torch.promote_types(backend.dtype, torch.float32)
    goals = torch.stack([_goal(fact) for fact in facts]).double()
    updates: list[WeightUpdate] = []
    for place, kernel in enumerate(kernels):
        keys, said = _read(backend, rows, updates, finding, layer=kernel.layer)
        residual = (goals - said) / (len(kernels) - place)
        system = System((kernel.layer,), (keys,), (kernel.weigh(keys),), residual, penalty, (kernel,))
        updates += system.updates(dtype)
    return updates


def _goal(fact: SetFact) -> Float[Tensor, " d_model"]:
    assert fact.goal is not None  # an editor that spreads so finds values at the block
    return fact.goal


@torch.no_grad()
def _read(
    backend: Backend, rows: Sequence[RequestRows], updates: Sequence[WeightUpdate], finding: Finding, *, layer: int
) -> tuple[Float[Tensor, "fact d_mlp"], Float[Tensor, "fact d_model"]]:
    """Mean keys at a layer, and the last block's output at the bare prompts' subjects, in float64."""
    bare_weight, last = finding.choices.bare_weight, finding.layers[-1]
    assert not isinstance(bare_weight, str)
    work = torch.promote_types(backend.dtype, torch.float32)
    moved = [update.to(backend.w_out(update.layer).parameter.device, work) for update in updates]
    keys, said = [], []
    for start in range(0, len(rows), _AT_A_TIME):
        batch = make_batch(rows[start : start + _AT_A_TIME], bare_weight=bare_weight, device=backend.device)
        hooks = [hook for update in moved for hook in gain_hooks(backend, update.layer, update.gain)]
        key, resid = _run(backend, batch, hooks, layer=layer, last=last)
        keys += [batch.weights(number) @ key for number in range(len(batch.bare_row))]
        said.append(resid[batch.bare_row])
    return torch.stack(keys).cpu(), torch.cat(said).cpu()


def _run(backend: Backend, batch: Batch, hooks: Sequence, *, layer: int, last: int) -> tuple[Tensor, Tensor]:
    """A layer's keys and the last block's output at each row's subject, in float64."""
    seen: dict[str, Tensor] = {}
    row = torch.arange(len(batch.subject_last), device=backend.device)

    def keep(name: str, x: Tensor) -> None:
        seen[name] = x[row, batch.subject_last].double()

    with backend.hooked(
        [
            *hooks,
            (backend.key_hook(layer), lambda x: keep("key", x)),
            (backend.stream_hook("resid", last), lambda x: keep("resid", x)),
        ]
    ):
        backend.run(batch.tokens, layers=last + 1)
    return seen["key"], seen["resid"]
