"""Scores of all cells by whole forwards of the model: slow, and right for whatever the model can do.

It is the way for models whose blocks cannot be called alone, and for models that carry hooks of the user's: these see
every position and every layer of every cell, as in any forward.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from einops import reduce
from torch import Tensor

from rome_lens.backends import Backend
from rome_lens.progress import Progress
from rome_lens.tracing.cells import Cell
from rome_lens.tracing.forwards import Runs, break_embeddings, outputs_of
from rome_lens.tracing.memory import Budget
from rome_lens.tracing.said import Reading, said_in


@torch.no_grad()
def score_cells_plainly(
    backend: Backend, runs: Runs, cells: Sequence[Cell], *, budget: Budget, progress: Progress
) -> dict[Cell, Reading]:
    """What is read in every cell, on average over the corrupted copies: some cells in every forward.

    Args:
        backend: the model.
        runs: the clean and corrupted runs of one case that were made of it.
        cells: what to score.
        budget: memory to work in.
        progress: called with (done, total, what) after each forward, cells as the unit.
    """
    outputs = _outputs(backend, runs, cells)
    scores: dict[Cell, Reading] = {}
    for part, found in budget.in_parts(
        len(cells),
        most=lambda _: budget.lanes(runs.n_samples * runs.n_tokens),
        run=lambda part: _forward(backend, runs, cells[part], outputs),
    ):
        scores |= found
        progress(part.stop, len(cells), "tracing")
    return scores


def _outputs(backend: Backend, runs: Runs, cells: Sequence[Cell]) -> dict[tuple[str, int], Tensor]:
    """What passes each stream's hook points in the clean run (row 0) and, where a cell severs, the corrupted runs.

    By (stream, layer), as `outputs_of` gives it.
    """
    severed = {cell.severed for cell in cells if cell.severed}
    whole = {cell.stream for cell in cells if not cell.parts} | severed
    points = [(stream, layer) for stream in whole for layer in range(backend.n_layers)]
    points += sorted({part for cell in cells for part in cell.parts_of_layers()})
    rows = runs.tokens if severed else runs.tokens[:1]
    hooks = [("hook_embed", partial(break_embeddings, runs.cases))] if severed else []
    seen, _ = outputs_of(backend, points, lambda: backend.logits(rows, keep=1), hooks=hooks)
    return seen


def _forward(
    backend: Backend, runs: Runs, cells: Sequence[Cell], outputs: dict[tuple[str, int], Tensor]
) -> dict[Cell, Reading]:
    (case,), n_samples = runs.cases, runs.n_samples
    samples = torch.arange(n_samples, device=runs.tokens.device).repeat(len(cells))
    # Where a stream's output is set, and whether to the clean run's or to the corrupted runs'.
    held: dict[tuple[str, int], list[tuple[int, slice]]] = {}
    for index, cell in enumerate(cells):
        if cell.severed:
            for layer in range(backend.n_layers):
                held.setdefault((cell.severed, layer), []).append((index, slice(1, None)))
        for layer in {layer for layer, _ in cell.parts} or range(cell.first, cell.end):
            held.setdefault((cell.stream, layer), []).append((index, slice(0, 1)))

    def hold(key: tuple[str, int]) -> Callable[[Tensor], Tensor]:
        def run(x: Tensor) -> Tensor:
            x = x.clone()
            for index, source in held[key]:
                pos, parts = cells[index].pos, cells[index].parts_at(key[1]) or slice(None)
                rows = slice(index * n_samples, (index + 1) * n_samples)
                x[rows, pos, parts] = outputs[key][source, pos, parts]
            return x

        return run

    hooks = [("hook_embed", lambda x: case.corruption.break_rows(x, samples))]
    hooks += [(backend.stream_hook(*key), hold(key)) for key in held]
    with backend.hooked(hooks):
        logits = backend.logits(case.corruption.tokens.expand(len(samples), -1), keep=runs.n_read)
    values = runs.scores(logits, torch.zeros_like(samples))
    scores = reduce(values, "(cell sample) -> cell", "mean", sample=n_samples)
    said = said_in(logits, n_samples, runs.n_said)
    return dict(zip(cells, map(Reading, scores.tolist(), said), strict=True))
