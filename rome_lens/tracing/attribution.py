"""Scores of all cells approximated by attribution patching: gradient times difference, from one backward pass.

Restoring a state changes what is measured, such as the answer's probability, by about the change of the state times
the gradient there, taken in the corrupted run: all cells come from one clean and one corrupted run, and one backward
pass through the latter (Syed et al. 2023, 2310.10348, after Nanda's 2022 post). The approximation is good where the
model is nearly linear between the two states, and can be far off elsewhere. A window's effect is the sum of its
layers', which counts twice what passes from one restored layer through another, and so is off even for small
differences.
"""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from rome_lens.backends import NEURONS, Backend
from rome_lens.errors import ModelError, SettingError
from rome_lens.progress import Progress
from rome_lens.tracing.cases import Case
from rome_lens.tracing.cells import Cell
from rome_lens.tracing.forwards import Runs, outputs_of
from rome_lens.tracing.said import Reading

ATTRIBUTION = "attribution"
"""The engine that stands for it."""


def approximate_cells(
    backend: Backend, runs: Runs, cells: Sequence[Cell], *, progress: Progress
) -> dict[Cell, Reading]:
    """The score that every cell would have if the model were linear, averaged over the corrupted copies.

    Args:
        backend: the model.
        runs: the clean and corrupted runs of one case.
        cells: the cells, none of them severed.
        progress: called with (done, total, what) when all are done.

    Raises:
        ModelError: nothing passes a stream's hook points, or no gradient reaches them.
        SettingError: the measure passes no gradient back.
    """
    if not cells:
        return {}
    points = sorted({(cell.stream, layer) for cell in cells for layer, _ in _restored(cell)})
    (case,) = runs.cases
    with torch.no_grad():
        clean, _ = _run(backend, runs.tokens[:1], case, points, corrupted=False)
    with torch.enable_grad():
        seen, logits = _run(backend, runs.tokens[1:], case, points, corrupted=True)
        values, factors = runs.slope(logits, torch.zeros(runs.n_samples, dtype=torch.long, device=logits.device))
        if not values.requires_grad:
            raise SettingError(
                f"measure {runs.measure.name} passes no gradient back to the logits, which engine 'attribution' needs; "
                "leave engine out"
            )
        # Rows do not see each other: the gradient of the sum is that of each row.
        gradients = torch.autograd.grad(values.sum(), [seen[key] for key in points], allow_unused=True)
    shares = torch.ones_like(values) if factors is None else factors.detach()
    effects: dict[tuple[str, int], Tensor] = {}
    for key, gradient in zip(points, gradients, strict=True):
        if gradient is None:
            raise ModelError(f"no gradient reaches {backend.stream_hook(*key)!r} of {backend.model_name}")
        difference = clean[key].double() - seen[key].detach().double()
        # [pos], for heads [pos head], and each neuron is a number by itself: [pos d_mlp]
        product = gradient.double() * difference
        each = product if key[0] == NEURONS else product.sum(dim=-1)
        effects[key] = torch.einsum("r...,r->...", each, shares).cpu() / runs.n_samples
    progress(len(cells), len(cells), "tracing")
    ((low, _),) = runs.low

    def score(cell: Cell) -> float:
        return low + sum(effects[cell.stream, layer][index].item() for layer, index in _restored(cell))

    # What else the model would say is not approximated.
    return {cell: Reading(score(cell), None) for cell in cells}


def _restored(cell: Cell) -> Iterator[tuple[int, tuple[int, ...]]]:
    """What a cell restores: layers, and where in their effects it stands."""
    if cell.parts:
        yield from ((layer, (cell.pos, number)) for layer, number in cell.parts)
    else:
        yield from ((layer, (cell.pos,)) for layer in range(cell.first, cell.end))


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
