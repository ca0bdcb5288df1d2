"""Cells of several positions that go through a block in one call: the same numbers, fewer calls."""

from collections import Counter

import pytest
import torch
from architectures import BRIDGE, architecture
from hosts import EACH_BACKEND, SIX, hosted
from tiny_rome import rome

import rome_lens as rl
from rome_lens.backends import replay as replays
from rome_lens.backends.replay import BlockReplay, ReplayError
from rome_lens.tracing import blocks

PROMPT, SUBJECT = "a cd fg hij", "cd"

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:transformer_lens")


@pytest.fixture
def trace(monkeypatch):
    """Traces with calls that cost so many operations, and how often each layer was called."""

    def traced(model, call_flop, **settings):
        calls = Counter()
        settings = {"noise": 2.0, "samples": 3, "window": 3, "answer": "x"} | settings
        with monkeypatch.context() as patch:
            patch.setattr(blocks, "_CALL_FLOP", {"cpu": call_flop})
            for kind in BlockReplay.__subclasses__():

                def run(self, layer, *given, run=kind.run, **how):
                    calls[layer] += 1
                    return run(self, layer, *given, **how)

                patch.setattr(kind, "run", run)
            found = rl.causal_trace(model, **{"prompt": PROMPT, "subject": SUBJECT} | settings)
        assert found.engine == "blocks"
        return found, calls

    return traced


def same(one, other):
    for stream, scores in one.scores.items():
        torch.testing.assert_close(scores, other.scores[stream], rtol=1e-6, atol=0)


@pytest.mark.parametrize(("name", "backend"), hosted(at_landing=SIX))
def test_the_numbers_are_those_of_calls_of_their_own(name, backend, trace, tighten):
    tighten(call_positions=10**6)
    model = architecture(name, backend)
    apart, calls = trace(model, 0)
    together, fewer = trace(model, 10**12)
    same(together, apart)
    # The clean and corrupted runs, four checks and the windows' first positions; then one call for all positions.
    assert max(fewer.values()) <= 7 < calls[model.cfg.n_layers - 1]


@pytest.mark.parametrize("backend", EACH_BACKEND)
def test_only_padding_that_is_cheaper_than_a_call_is_added(backend, trace, tighten):
    tighten(call_positions=10**6)
    model = architecture("llama", backend)
    weights = sum(parameter.numel() for parameter in model.blocks[0].parameters())
    most, between, least = (trace(model, 2 * weights * n, streams=("resid",))[1] for n in (0, 8, 10**6))
    assert sum(least.values()) < sum(between.values()) < sum(most.values())


@pytest.mark.parametrize("backend", EACH_BACKEND)
def test_memory_bounds_what_is_put_together(backend, trace, tighten):
    model = architecture("llama", backend)
    apart, _ = trace(model, 0)
    tighten(call_positions=60)
    together, calls = trace(model, 10**12)
    same(together, apart)
    assert sum(calls.values()) > 7 * model.cfg.n_layers
    tighten(call_positions=1)
    same(trace(model, 10**12)[0], apart)


@pytest.mark.parametrize("error", [ReplayError, IndexError])
def test_a_model_whose_blocks_do_not_take_rows_of_their_own(error, trace, monkeypatch):
    model = architecture("llama", BRIDGE)
    apart, calls = trace(model, 0)

    def refuse(self, first, longest=None):
        raise error("no such rows")

    monkeypatch.setattr(replays.KeysValues, "ending_at", refuse)
    one_by_one, as_many = trace(model, 10**12)
    same(one_by_one, apart)
    assert as_many == calls


@pytest.mark.parametrize("backend", EACH_BACKEND)
@pytest.mark.parametrize("name", ["llama", "gptj"])
def test_padding_may_reach_beyond_the_context(name, backend, trace, tighten):
    tighten(call_positions=10**6)
    model = architecture(name, backend)
    settings = {"prompt": PROMPT + " klm" * 13, "streams": ("resid",), "samples": 1}
    assert len(settings["prompt"]) == model.cfg.n_ctx - 1
    same(trace(model, 10**12, **settings)[0], trace(model, 0, **settings)[0])


@pytest.mark.parametrize("backend", EACH_BACKEND)
def test_rows_of_an_edit_may_be_padded_beyond_the_context(backend):
    """One's subject stands near the end of a long prompt, and the other's at the beginning of one."""
    requests = [
        rl.EditRequest("{} is a thing" + " in a b" * 6, subject="ab", target_new="c"),
        rl.EditRequest("uvw " * 12 + "{} is", subject="ab", target_new="c"),
    ]
    editor = rome(architecture("llama", backend), context_templates=["{}"], v_num_grad_steps=2)
    together, alone = (editor.edit_many(requests, batch_size=size) for size in (2, 1))
    for one, other in zip(together, alone, strict=True):
        assert one.settings["engine"] == "blocks"
        torch.testing.assert_close(one.v, other.v, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("backend", EACH_BACKEND)
def test_severed_streams_and_answers_of_several_tokens(backend, trace):
    settings = {"severed": ("mlp", "attn"), "answer": "xyz"}
    model = architecture("gpt2", backend)
    same(trace(model, 10**12, **settings)[0], trace(model, 0, **settings)[0])
