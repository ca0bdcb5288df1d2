"""The plain oracle's time: one forward per cell, samples + 1 rows, logits at every position."""

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "helpers"))
from oracle import cell_score as cell_score
from oracle import request_of as request_of
from oracle import restored_layers as restored_layers


def time_oracle(model: Any, traced: Any, streams: Sequence[str], *, every: int) -> tuple[float, float]:
    """Seconds for the grids of some streams, scaled up from every n-th cell, and the largest difference from `traced`.

    Args:
        model: the model that was traced.
        traced: a CausalTrace, or anything with its `tokens`, `window`, `scores` and what `request_of` reads.
        streams: whose grids.
        every: run every n-th cell.
    """
    rows, request = request_of(model, traced)
    n_layers = model.cfg.n_layers
    cells = [(s, layer, pos) for s in streams for pos in range(len(traced.tokens)) for layer in range(n_layers)]
    scores: list[float] = []
    started = time.perf_counter()
    for stream, layer, pos in cells[::every]:
        layers = restored_layers(stream, layer, traced.window, n_layers)
        scores.append(cell_score(model, rows, stream=stream, pos=pos, layers=layers, **request)[1:].mean().item())
    if rows.device.type == "cuda":
        torch.cuda.synchronize()
    seconds = (time.perf_counter() - started) * len(cells) / len(scores)
    pairs = zip(cells[::every], scores, strict=True)
    return seconds, max(abs(float(traced.scores[s][layer][pos]) - score) for (s, layer, pos), score in pairs)
