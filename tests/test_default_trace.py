"""The default model for real, against what the released code gives on it (tests/reference/trace.json)."""

import json
from pathlib import Path

import pytest
import torch
from architectures import BACKENDS

import rome_lens as rl

REFERENCE = json.loads((Path(__file__).parent / "reference" / "trace.json").read_text())


@pytest.fixture(scope="module", params=BACKENDS)
def default_model(request):
    return rl.load_model(backend=request.param)


@pytest.mark.parametrize("reference", REFERENCE, ids=lambda r: r["subject"])
def test_grids_equal_the_released_codes(default_model, reference):
    trace = rl.causal_trace(
        default_model,
        reference["prompt"],
        subject=reference["subject"],
        noise=reference["noise"],
        expect=reference["answer"].strip(),
    )
    assert trace.engine == "blocks"
    assert (trace.notes == ()) == (trace.low < trace.high / 2)
    assert list(trace.token_ids) == reference["token_ids"]
    assert list(trace.subject_span) == reference["subject_span"]
    assert trace.answer == reference["answer"]
    assert trace.high == pytest.approx(reference["high"], abs=1e-5)
    assert trace.low == pytest.approx(reference["low"], abs=1e-5)
    for stream, grid in reference["scores"].items():
        expected = torch.tensor(grid, dtype=torch.float64)
        torch.testing.assert_close(trace.scores[stream], expected, rtol=0, atol=1e-5)
