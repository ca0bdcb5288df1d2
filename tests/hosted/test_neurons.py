"""Single neurons against the plain oracle, what all of a cell's neurons owe the cell, and what attribution proposes."""

from dataclasses import replace

import pytest
import torch
from architectures import BACKENDS, BRIDGE, architecture
from effort import slow
from oracle import cell_score, request_of
from refused import refused
from tiny_rome import REQUEST, rome

import rome_lens as rl
from rome_lens.backends import as_backend
from rome_lens.errors import ModelMismatchError

PROMPT, SUBJECT = "a cd fg", "cd"
# Gated MLPs and plain ones, parallel to attention and behind it, with a norm behind them.
HOSTED = [(name, backend) for name in ("gpt2", "llama", "neox") for backend in BACKENDS]
HOSTED += [("gptj", BACKENDS[0]), ("qwen3", BACKENDS[0]), ("bloom", BACKENDS[0])]
HOSTED += [(name, BRIDGE) for name in ("gemma2", "falcon", "olmo2")]
HOSTED += [slow(name, BRIDGE) for name in ("gptj", "qwen3", "bloom", "opt", "phi3", "gemma3")]

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:transformer_lens")


def trace(model, **settings):
    settings = {"noise": 2.0, "samples": 3, "window": 2, "streams": "mlp", "answer": "x"} | settings
    return rl.causal_trace(model, PROMPT, subject=SUBJECT, **settings)


def assert_equals_oracle(model, traced, found):
    rows, request = request_of(model, traced)
    expected = [
        cell_score(
            model, rows, stream="neurons", pos=found.pos, layers=range(layer, layer + 1), parts=[number], **request
        )
        for layer, number in zip(found.layers, found.neurons, strict=True)
    ]
    torch.testing.assert_close(found.scores, torch.stack([row[1:].mean() for row in expected]), rtol=1e-6, atol=0)
    # Nobody could tell neurons apart if restoring one were to restore another, or none.
    assert found.effects.abs().max() > 1e-5 * found.low


@pytest.mark.parametrize(("name", "backend"), HOSTED)
def test_every_architecture_equals_the_oracle(name, backend):
    model = architecture(name, backend)
    traced = trace(model)
    found = rl.trace_neurons(model, traced, layer=2, pos=3, n_best=5)
    assert found.engine == "blocks", found.notes
    assert set(found.layers) <= {1, 2}
    assert (found.low, found.high) == (pytest.approx(traced.low, rel=1e-9), pytest.approx(traced.high, rel=1e-9))
    assert_equals_oracle(model, traced, found)
    assert found.cell == pytest.approx(traced.scores["mlp"][2, 3].item(), rel=1e-9)


@pytest.mark.parametrize(("name", "backend"), [("llama", BACKENDS[0]), ("gptj", BRIDGE), ("gemma2", BRIDGE)])
@pytest.mark.parametrize("pos", [3, -1])
def test_all_neurons_of_a_cell_together_are_the_cell(name, backend, pos):
    model = architecture(name, backend)
    traced = trace(model)
    n_neurons = sum(as_backend(model).w_out(layer).matrix.shape[0] for layer in (0, 1))
    found = rl.trace_neurons(model, traced, layer=1, pos=pos, n_best=n_neurons)
    assert len(set(zip(found.layers, found.neurons, strict=True))) == found.n_neurons == n_neurons
    assert found.together == pytest.approx(traced.scores["mlp"][1, pos].item(), rel=1e-9)
    assert found.scores.tolist() == sorted(found.scores.tolist(), reverse=True)


def test_several_together_are_restored_in_one_forward(llama):
    traced = trace(llama)
    found = rl.trace_neurons(llama, traced, layer=2, pos=4, n_best=7)
    rows, request = request_of(llama, traced)
    outputs = {}
    watch = [
        (f"blocks.{layer}.mlp.hook_post", lambda x, hook, layer=layer: outputs.update({layer: x.clone()}))
        for layer in (1, 2)
    ]
    cell_score(llama, rows, more=watch, **request)

    def restore(layer):
        numbers = [number for at, number in zip(found.layers, found.neurons, strict=True) if at == layer]

        def hook(x, hook):
            x = x.clone()
            x[1:, 4, numbers] = outputs[layer][0, 4, numbers]
            return x

        return f"blocks.{layer}.mlp.hook_post", hook

    expected = cell_score(llama, rows, more=[restore(1), restore(2)], **request)[1:].mean()
    assert {1, 2} == set(found.layers)
    assert found.together == pytest.approx(expected.item(), rel=1e-9)


def test_of_a_small_difference_the_proposal_is_the_effect(llama):
    traced = trace(llama, noise=1e-3)
    found = rl.trace_neurons(llama, traced, layer=1, pos=3, n_best=48)
    assert found.correlation > 0.999
    proposed, atol = found.proposed - found.low, 1e-3 * found.effects.abs().max()
    torch.testing.assert_close(proposed, found.effects, rtol=0.05, atol=atol)
    best = rl.trace_neurons(llama, traced, layer=1, pos=3, n_best=5)
    assert (best.layers, best.neurons) == (found.layers[:5], found.neurons[:5])


@pytest.mark.parametrize(
    "settings",
    [
        {"answer": "long"},
        {"noise_replaces": True, "seed": 7},
        {"prepend_bos": True},
        {"noise": "u0.5"},
        {"noise": "s2"},
        {"noise": "t5"},
        {"noise": None, "swap": "xy", "samples": 10},
    ],
    ids=str,
)
def test_what_the_trace_depends_on_is_taken_from_it(llama, settings):
    traced = trace(llama, **settings)
    found = rl.trace_neurons(llama, traced, n_best=3)
    layer, pos = traced.peak("mlp")
    assert (found.layer, found.pos, found.token) == (layer, pos, traced.tokens[pos])
    assert found.cell == pytest.approx(traced.scores["mlp"][layer, pos].item(), rel=1e-9)
    assert found.low == pytest.approx(traced.low, rel=1e-9)


def test_one_neuron_together_is_that_neuron(llama):
    """Of the last layer, too, whose cells are read as soon as they are begun."""
    for layer, pos in ((2, 3), (3, -1), (2, -1)):
        for seed in (1, 3):
            found = rl.trace_neurons(llama, trace(llama, window=3, seed=seed), layer=layer, pos=pos, n_best=1)
            assert found.together == found.scores[0].item()


def test_a_swap_is_taken_over_whatever_the_model_answers(llama):
    for prompt in ("a cd fg", "cd 12", "ab cd x", "the cd is", "cd"):
        settings = {"swap": "xy", "streams": "mlp", "window": 2}
        try:
            traced = rl.causal_trace(llama, prompt, subject="cd", **settings)
        except rl.AnswerError:
            continue
        assert rl.trace_neurons(llama, traced, n_best=2).low == pytest.approx(traced.low, rel=1e-9)


def test_memory_bounds_how_many_begin_at_once(llama, tighten):
    traced = trace(llama)
    roomy = rl.trace_neurons(llama, traced, layer=2, pos=3, n_best=20)
    tighten(call_positions=6, state_positions=1000)
    narrow = rl.trace_neurons(llama, traced, layer=2, pos=3, n_best=20)
    assert narrow.neurons == roomy.neurons
    torch.testing.assert_close(narrow.scores, roomy.scores, rtol=1e-12, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_in_half_precision_the_model_is_known_again(dtype):
    model = architecture("llama", BACKENDS[0], dtype)
    assert len(rl.trace_neurons(model, trace(model), layer=1, pos=3, n_best=2).neurons) == 2


def test_the_second_occurrence_is_swapped_again():
    model = architecture("llama", BACKENDS[0])
    settings = {"swap": "xy", "streams": "mlp", "answer": "x", "window": 2}
    traced = rl.causal_trace(model, "a cd fg cd", subject="cd", occurrence=2, **settings)
    assert rl.trace_neurons(model, traced, n_best=2).low == pytest.approx(traced.low, rel=1e-9)


def test_a_model_with_hooks_goes_by_whole_forwards(gpt2):
    traced = trace(gpt2)
    blocks = rl.trace_neurons(gpt2, traced, n_best=4)
    with gpt2.hooks([("blocks.0.hook_resid_pre", lambda x, hook: x)]):
        plain = rl.trace_neurons(gpt2, traced, n_best=4)
    assert (plain.engine, plain.neurons) == ("plain", blocks.neurons)
    torch.testing.assert_close(plain.scores, blocks.scores, rtol=1e-9, atol=0)
    assert plain.together == pytest.approx(blocks.together, rel=1e-9)


def test_edits_have_to_be_in_the_weights(gpt2):
    edit = rome(gpt2).edit(REQUEST)
    traced = trace(gpt2, edits=[edit], answer="x")
    said = refused(ModelMismatchError, rl.trace_neurons, gpt2, replace(traced, high=2 * traced.high))
    assert said.endswith(
        "; the trace carries 1 edits, which have to be in the weights; hand over the model that was traced, and the "
        "facts that its noise was measured on"
    )
    with edit.applied(gpt2):
        found = rl.trace_neurons(gpt2, traced, n_best=2)
    assert found.high == pytest.approx(traced.high, rel=1e-9)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"layer": 1}, "a cell has a layer and a pos; give both, or neither for the peak of the MLP stream"),
        ({"layer": 4, "pos": 1}, "layer is 4; llama has layers 0 to 3, counted from 0"),
        ({"layer": 1, "pos": 7}, "pos is 7; expected a position of the trace's 7 tokens"),
        ({"n_best": 0}, "n_best is 0; expected a whole number of neurons from 1 to 48"),
        ({"layer": 0, "pos": 3, "n_best": 49}, "n_best is 49; expected a whole number of neurons from 1 to 24"),
    ],
    ids=str,
)
def test_cells_and_numbers_that_there_are_not(llama, asked, message):
    assert refused(rl.SettingError, rl.trace_neurons, llama, trace(llama), **asked) == message


def test_another_model_is_refused(llama, gpt2):
    said = refused(ModelMismatchError, rl.trace_neurons, gpt2, trace(llama))
    assert "another value than the trace has: low " in said


def test_a_mixture_of_experts_has_no_neurons_of_its_own():
    model = architecture("mixtral", BRIDGE)
    said = refused(rl.ModelError, rl.trace_neurons, model, trace(model), layer=1, pos=3)
    assert "at layers 0 to 1 cannot be restored one by one" in said


def test_what_is_said_of_neurons(llama):
    found = rl.trace_neurons(llama, trace(llama), layer=2, pos=3, n_best=4)
    table = found.to_dataframe()
    assert list(table) == ["layer", "neuron", "score", "effect", "proposed_effect"]
    assert table["effect"].tolist() == found.effects.tolist()
    assert f"best (layer.neuron) {found.layers[0]}.{found.neurons[0]} " in repr(found)
    by_hand = torch.corrcoef(torch.stack([found.proposed, found.scores]))[0, 1].item()
    assert found.to_dict()["correlation"] == pytest.approx(by_hand)
    assert rl.trace_neurons(llama, trace(llama), layer=2, pos=3, n_best=2).correlation is None
