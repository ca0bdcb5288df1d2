"""The plain oracle's time: one forward per cell, samples + 1 rows, logits at every position."""

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "helpers"))
from oracle import cell_score, request_of, restored_layers

Cell = tuple[str, int, int]
"""Stream, layer and position."""


def time_oracle(model: Any, traced: Any, streams: Sequence[str], *, every: int) -> tuple[float, float]:
    """Seconds for the grids of some streams, scaled up from every n-th cell, and the largest difference from `traced`.

    Args:
        model: the model that was traced.
        traced: a CausalTrace, or anything with its `tokens`, `window`, `scores` and what `request_of` reads.
        streams: whose grids.
        every: run every n-th cell.
    """
    cells = cells_of(model, traced, streams)
    started = time.perf_counter()
    scores = plain_scores(model, traced, cells[::every])
    seconds = (time.perf_counter() - started) * len(cells) / len(scores)
    pairs = zip(cells[::every], scores, strict=True)
    return seconds, max(abs(float(traced.scores[s][layer][pos]) - score) for (s, layer, pos), score in pairs)


def cells_of(model: Any, traced: Any, streams: Sequence[str]) -> list[Cell]:
    """All cells of some streams' grids."""
    layers, positions = range(model.cfg.n_layers), range(len(traced.tokens))
    return [(stream, layer, pos) for stream in streams for pos in positions for layer in layers]


def plain_scores(model: Any, traced: Any, cells: Sequence[Cell]) -> list[float]:
    """The mean over the copies in each of these cells, one forward a cell."""
    rows, request = request_of(model, traced)
    scores: list[float] = []
    for stream, layer, pos in cells:
        layers = restored_layers(stream, layer, traced.window, model.cfg.n_layers)
        copies = cell_score(model, rows, stream=stream, pos=pos, layers=layers, **request)[1:]
        scores.append(copies.double().mean().item())
    return scores
