"""Scores of all cells by whole forwards of the model: slow, and right for whatever the model can do.

It is the way for models whose blocks cannot be called alone, and for models that carry somebody's own hooks: these see
every position and every layer of every cell, as they would in a forward of the user's.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from rome_lens.backends import Backend
from rome_lens.errors import ModelError
from rome_lens.tracing.cells import Cell
from rome_lens.tracing.memory import Budget
from rome_lens.tracing.runs import Runs


@torch.no_grad()
def score_cells_plainly(
    backend: Backend, runs: Runs, cells: Sequence[Cell], *, budget: Budget, tick: Callable[[int], None]
) -> dict[Cell, float]:
    """Answer probability of every cell, averaged over the corrupted copies: some cells in every forward.

    Args:
        backend: the model.
        runs: the clean and corrupted runs that were made of it.
        cells: what to score.
        budget: memory to work in.
        tick: called with the number of cells that are done, after each forward.
    """
    clean = _clean_outputs(backend, runs, cells)
    scores: dict[Cell, float] = {}
    done = 0
    while done < len(cells):
        some = cells[done : done + budget.lanes(runs.n_samples * runs.n_tokens)]
        try:
            scores.update(_forward(backend, runs, some, clean))
        except (RuntimeError, MemoryError) as error:
            budget.halve_after(error)
            continue
        tick(len(some))
        done += len(some)
    return scores


def _clean_outputs(backend: Backend, runs: Runs, cells: Sequence[Cell]) -> dict[tuple[str, int], Tensor]:
    """What passes each stream's hook points in the clean run, [pos, d_model] by (stream, layer)."""
    seen: dict[tuple[str, int], Tensor] = {}
    wanted = [(stream, layer) for stream in {c.stream for c in cells} for layer in range(backend.n_layers)]
    hooks = [(backend.stream_hook(*key), lambda x, key=key: seen.update({key: x[0].clone()})) for key in wanted]
    with backend.hooked(hooks):
        backend.logits(runs.tokens[:1], keep=1)
    silent = [backend.stream_hook(*key) for key in wanted if key not in seen]
    if silent:
        raise ModelError(
            f"{backend.model_name} lists the hook point {silent[0]!r}, but nothing passes it in a forward; "
            "leave its stream out"
        )
    return seen


def _forward(
    backend: Backend, runs: Runs, cells: Sequence[Cell], clean: dict[tuple[str, int], Tensor]
) -> dict[Cell, float]:
    n_samples = runs.n_samples
    samples = torch.arange(n_samples, device=runs.tokens.device).repeat(len(cells))
    restored: dict[tuple[str, int], list[int]] = {}
    for index, cell in enumerate(cells):
        for layer in range(cell.first, cell.end):
            restored.setdefault((cell.stream, layer), []).append(index)

    def restore(key: tuple[str, int]) -> Callable[[Tensor], Tensor]:
        def run(x: Tensor) -> Tensor:
            x = x.clone()
            for index in restored[key]:
                pos = cells[index].pos
                x[index * n_samples : (index + 1) * n_samples, pos] = clean[key][pos]
            return x

        return run

    hooks = [("hook_embed", lambda x: runs.corruption.break_rows(x, samples))]
    hooks += [(backend.stream_hook(*key), restore(key)) for key in restored]
    with backend.hooked(hooks):
        logits = backend.logits(runs.corruption.tokens.expand(len(samples), -1), keep=runs.n_read)
    values = runs.answer_probability(logits).double().reshape(len(cells), n_samples).mean(dim=1)
    return dict(zip(cells, values.tolist(), strict=True))
