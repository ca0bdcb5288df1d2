"""Scores of all cells approximated by attribution patching: gradient times difference, from one backward pass.

Restoring a state changes the answer's probability by about the change of the state times the probability's gradient
there, taken in the corrupted run: all cells come from one clean and one corrupted run, and one backward pass through
the latter. The paper that names it (Syed et al. 2023, 2310.10348, after Nanda's 2022 post) reads other metrics; here it
is the probability that the exact grids show. The approximation is good where the model is nearly linear between the two
states, and can be far off elsewhere. A window's effect is the sum of its layers', which counts twice what passes from
one restored layer through another, and so is off even for small differences.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from rome_lens.backends import Backend
from rome_lens.errors import ModelError
from rome_lens.progress import Progress
from rome_lens.tracing.cases import Case
from rome_lens.tracing.cells import Cell
from rome_lens.tracing.forwards import Runs, outputs_of

ATTRIBUTION = "attribution"
"""The engine that stands for it."""


def approximate_cells(backend: Backend, runs: Runs, cells: Sequence[Cell], *, progress: Progress) -> dict[Cell, float]:
    """The score that every cell would have if the model were linear, averaged over the corrupted copies.

    Args:
        backend: the model.
        runs: the clean and corrupted runs of one case.
        cells: the cells, none of them severed.
        progress: called with (done, total, what) when all are done.

    Raises:
        ModelError: nothing passes a stream's hook points, or no gradient reaches them.
    """
    if not cells:
        return {}
    points = [(s, layer) for s in sorted({c.stream for c in cells}) for layer in range(backend.n_layers)]
    (case,) = runs.cases
    with torch.no_grad():
        clean, _ = _run(backend, runs.tokens[:1], case, points, corrupted=False)
    with torch.enable_grad():
        seen, logits = _run(backend, runs.tokens[1:], case, points, corrupted=True)
        logarithms = runs.answer_log_probability(
            logits, torch.zeros(runs.n_samples, dtype=torch.long, device=logits.device)
        )
        # dp = p d(log p), and where p is small half precision has no numbers for its gradient. Rows do not see each
        # other: the gradient of the sum is that of each row.
        gradients = torch.autograd.grad(logarithms.sum(), [seen[key] for key in points], allow_unused=True)
    shares = logarithms.detach().exp()
    effects: dict[tuple[str, int], Tensor] = {}
    for key, gradient in zip(points, gradients, strict=True):
        if gradient is None:
            raise ModelError(f"no gradient reaches {backend.stream_hook(*key)!r} of {backend.model_name}")
        difference = clean[key].double() - seen[key].detach().double()
        # [pos], for heads [pos head]
        effects[key] = torch.einsum("r...d,r...d,r->...", gradient.double(), difference, shares) / runs.n_samples
    progress(len(cells), len(cells), "tracing")
    (low,) = runs.low
    return {
        cell: low + sum(_effect(effects[cell.stream, layer], cell) for layer in range(cell.first, cell.end))
        for cell in cells
    }


def _effect(effects: Tensor, cell: Cell) -> float:
    """What a cell has of one layer's effects."""
    here = effects[cell.pos]
    return float(here[list(cell.heads)].sum() if cell.heads else here)


def _run(
    backend: Backend, rows: Tensor, case: Case, points: Sequence[tuple[str, int]], *, corrupted: bool
) -> tuple[dict[tuple[str, int], Tensor], Tensor]:
    """What passes the hook points by (stream, layer), as `outputs_of` gives it, and the answer's logits."""
    samples = torch.arange(rows.shape[0], device=rows.device)
    hooks: list[tuple[str, Callable[[Tensor], Tensor | None]]] = [
        ("unembed.hook_in", lambda x: x[:, -case.answer_ids.shape[0] :])
    ]
    if corrupted:
        hooks.append(("hook_embed", lambda x: case.corruption.break_rows(x, samples)))
        # A model whose parameters want no gradient would have none anywhere.
        hooks.append(("blocks.0.hook_resid_pre", lambda x: x if x.requires_grad else x.detach().requires_grad_()))
    return outputs_of(backend, points, lambda: backend.run(rows), hooks=hooks)
