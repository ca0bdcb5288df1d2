"""Attribution patching: what a first-order approximation owes the exact grids, and that nobody takes it for them."""

import pytest
import torch
from architectures import BACKENDS, BRIDGE, architecture, own
from effort import slow

import rome_lens as rl
from rome_lens.tracing.attribution import approximate_cells

PROMPT, SUBJECT = "ab cde fgh", "cde"
HOSTED = [(name, BACKENDS[0]) for name in ("gpt2", "llama", "gptj")]
HOSTED += [slow(name, backend) for name, _ in HOSTED for backend in BACKENDS[1:]]
HOSTED += [("gemma2", BRIDGE), ("falcon", BRIDGE)]

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:transformer_lens")


def trace(model, engine, **settings):
    settings = {"samples": 2, "window": 1, "answer": "x"} | settings
    return rl.causal_trace(model, PROMPT, subject=SUBJECT, engine=engine, **settings)


@pytest.mark.parametrize(("name", "backend"), HOSTED)
@pytest.mark.parametrize("answer", ["x", "long"])
def test_of_a_small_difference_it_is_the_exact_effect(name, backend, answer):
    model = architecture(name, backend)
    errors = []
    for noise in (1e-2, 1e-3):
        exact, approximate = (trace(model, engine, noise=noise, answer=answer) for engine in ("auto", "attribution"))
        assert (approximate.low, approximate.high) == (exact.low, exact.high)
        effect = torch.stack([exact.effect(stream) for stream in exact.scores])
        error = torch.stack([approximate.scores[s] - exact.scores[s] for s in exact.scores])
        errors.append((error.abs().max() / effect.abs().max()).item())
    # What is left out is of second order: a tenth of the difference makes a tenth of the relative error.
    assert errors[0] < 0.3
    assert errors[1] < 0.2 * errors[0]


def test_what_is_known_without_a_run_is_exact(gpt2):
    traced = trace(gpt2, "attribution", noise=2.0, answer=None)
    first, last = traced.subject_span[0], len(traced.tokens) - 1
    for scores in traced.scores.values():
        assert (scores[:, :first] == traced.low).all()
    assert traced.scores["resid"][-1, last] == traced.high


def test_a_window_is_the_sum_of_its_layers(llama):
    one, three = (trace(llama, "attribution", noise=2.0, window=w).effect("mlp") for w in (1, 3))
    # Window 3 covers l-1 .. l+1; the last layer alone is known to change nothing at other tokens, and is set.
    torch.testing.assert_close(three[1, 4], one[0, 4] + one[1, 4] + one[2, 4], rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float16, 0.05), (torch.bfloat16, 0.25)])
def test_an_improbable_answer_has_effects_in_half_precision_too(backend, dtype, bound):
    """The gradient of a probability of 1e-10 is nothing in float16."""
    expected, got = (
        trace(architecture("llama", backend, kind), "attribution", noise=2.0, answer="long")
        for kind in (torch.float64, dtype)
    )
    assert 0 < expected.low < 1e-9
    for stream in expected.scores:
        error = (got.effect(stream) - expected.effect(stream)).norm() / expected.effect(stream).norm()
        assert error < bound


def test_it_says_so_everywhere(gpt2, tmp_path):
    traced = trace(gpt2, "attribution", noise=2.0)
    assert traced.approximate
    assert traced.engine == "attribution"
    assert "approximated" in repr(traced)
    titles = [heat_map.title for heat_map in traced.heat_maps()]
    assert titles[0] == "Restoring the residual state (attribution patching: an approximation)"
    assert all("an approximation" in title for title in titles)
    traced.save(tmp_path / "trace.safetensors")
    assert rl.CausalTrace.load(tmp_path / "trace.safetensors").approximate
    exact = trace(gpt2, "auto", noise=2.0)
    assert not exact.approximate
    assert "approxim" not in repr(exact) + "".join(heat_map.title for heat_map in exact.heat_maps())


def test_a_frozen_model_has_gradients_all_the_same():
    model = own("llama", BACKENDS[0])
    expected = trace(model, "attribution", noise=2.0)
    frozen = trace(model.requires_grad_(False), "attribution", noise=2.0)
    torch.testing.assert_close(frozen.scores, expected.scores, rtol=1e-9, atol=0)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_memory_that_runs_out_is_answered_with_fewer_samples(llama, monkeypatch, tighten):
    expected = trace(llama, "attribution", noise=2.0, samples=4)
    seen = []

    def once(backend, runs, cells, **how):
        seen.append(runs.n_samples)
        if len(seen) == 1:
            raise torch.OutOfMemoryError("no memory left")
        return approximate_cells(backend, runs, cells, **how)

    monkeypatch.setattr("rome_lens.tracing.grid.approximate_cells", once)
    tighten(run_positions=4 * 11 * 5 + 11)
    got = trace(llama, "attribution", noise=2.0, samples=4)
    assert len(seen) > 2
    torch.testing.assert_close(got.scores, expected.scores, rtol=1e-9, atol=0)
