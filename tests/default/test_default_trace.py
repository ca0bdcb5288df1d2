"""The default model for real, against what the released code gives on it (tests/reference/trace.json)."""

import json
from functools import cache
from pathlib import Path

import pytest
import torch
from architectures import BACKENDS
from effort import slow

import rome_lens as rl
from rome_lens.loading.default_model import N_LAYERS
from rome_lens.tracing.grid import AskedGrids

REFERENCE = json.loads((Path(__file__).parents[1] / "reference" / "trace.json").read_text())
# At every landing each of so many cells is scored: 11 of 900.
_EVERY = 83

default_model = cache(rl.load_model)


@pytest.mark.parametrize(
    ("number", "backend", "every"),
    [
        *((0, backend, _EVERY) for backend in BACKENDS),
        *(slow(number, backend, 1) for number in range(len(REFERENCE)) for backend in BACKENDS),
    ],
)
def test_grids_equal_the_released_codes(number, backend, every, monkeypatch):
    reference, plan = REFERENCE[number], AskedGrids.cells
    monkeypatch.setattr(AskedGrids, "cells", lambda self, case, n_layers: plan(self, case, n_layers)[::every])
    trace = rl.causal_trace(
        default_model(backend=backend),
        reference["prompt"],
        subject=reference["subject"],
        noise=reference["noise"],
        expect=reference["answer"].strip(),
    )
    assert trace.engine == "blocks"
    assert trace.scores["mlp"].shape[0] == N_LAYERS
    assert (trace.notes == ()) == (trace.low < trace.high / 2)
    assert list(trace.token_ids) == reference["token_ids"]
    assert list(trace.subject_span) == reference["subject_span"]
    assert trace.answer == reference["answer"]
    assert trace.high == pytest.approx(reference["high"], abs=1e-5)
    assert trace.low == pytest.approx(reference["low"], abs=1e-5)
    compared = 0
    for stream, grid in reference["scores"].items():
        expected = torch.tensor(grid, dtype=torch.float64)
        scored = ~trace.scores[stream].isnan()
        torch.testing.assert_close(trace.scores[stream][scored], expected[scored], rtol=0, atol=1e-5)
        compared += int(scored.sum())
    assert compared == len(range(0, 3 * expected.numel(), every))
