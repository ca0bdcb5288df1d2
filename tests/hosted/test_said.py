"""What a cell says: the most probable next tokens against whole forwards, wherever they are kept and shown."""

from dataclasses import replace

import pytest
from architectures import BACKENDS, BRIDGE, architecture
from oracle import cell_logits, request_of, restored_layers
from refused import refused
from rich.console import Console

import rome_lens as rl
from rome_lens.cli.trace_report import print_trace
from rome_lens.tracing import blocks, said
from rome_lens.tracing.said import Said, SaidGrids, merged

PROMPT, SUBJECT = "a cd fg", "cd"
STREAMS = ("resid", "mlp", "attn", "heads")

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:transformer_lens")


def trace(model, **settings):
    settings = {"noise": 2.0, "samples": 3, "window": 2, "streams": STREAMS, "answer": "x"} | settings
    return rl.causal_trace(model, PROMPT, subject=SUBJECT, **settings)


def _expected(model, traced, stream, layer, pos, *, head=None):
    """The next token's probabilities in the cell's own forward, averaged over the copies."""
    rows, request = request_of(model, traced)
    layers = restored_layers(stream, layer, traced.window if head is None else 1, model.cfg.n_layers)
    cell = {"stream": stream, "pos": pos, "layers": layers, "parts": None if head is None else [head]}
    del request["answer_ids"]
    logits = cell_logits(model, rows, **cell, **request)
    return logits[1:, len(traced.tokens) - 1].softmax(dim=-1).mean(dim=0)


def assert_says(model, said, expected):
    found = expected.topk(5)
    assert [token for token, _ in said] == [model.tokenizer.decode([i]) for i in found.indices.tolist()]
    assert [probability for _, probability in said] == pytest.approx(found.values.tolist(), rel=1e-6)


@pytest.mark.parametrize(
    ("name", "backend"), [("llama", BACKENDS[0]), ("gpt2", BACKENDS[0]), ("gptj", BRIDGE), ("gemma2", BRIDGE)]
)
@pytest.mark.parametrize("settings", [{}, {"answer": "long"}, {"engine": "plain"}], ids=str)
def test_a_cell_says_what_its_forward_says(name, backend, settings):
    model = architecture(name, backend)
    traced = trace(model, **settings)
    for stream, layer, pos in (("resid", 1, 3), ("mlp", 0, 3), ("mlp", 3, 6), ("attn", 2, 4), ("resid", 3, 6)):
        assert_says(model, traced.says(stream, layer, pos), _expected(model, traced, stream, layer, pos))
    assert_says(model, traced.says("heads", 1, 2), _expected(model, traced, "heads", 1, 6, head=2))
    assert traced.says("mlp", 0, 0) == traced.says("corrupted")
    if len(traced.answer_ids) == 1:
        assert traced.says("resid", 3, 6) == traced.says("clean")


def test_the_models_own_answer_is_what_the_clean_run_says(llama):
    traced = trace(llama, answer=None)
    token, probability = traced.says("clean")[0]
    assert (token, probability) == (traced.answer, pytest.approx(traced.high, rel=1e-9))


def test_severed_streams_say_something_too(llama):
    traced = trace(llama, streams="resid", severed=("mlp", "attn"))
    for severed in ("mlp", "attn"):
        said = traced.says("resid", 1, 3, severed=severed)
        assert len(said) == 5
        assert said != traced.says("resid", 1, 3)
        for stream in ("mlp", "clean"):
            why = refused(rl.SettingError, traced.says, stream, 1, 3, severed=severed)
            assert why.startswith(f"{stream!r} with {severed!r} severed was not traced")


def test_what_is_said_does_not_depend_on_memory(llama, tighten, tmp_path):
    """Three copies at once, then one after the other: what all of them say is put together again."""
    roomy = trace(llama, samples=7)
    tighten(run_positions=22, logits=300, call_positions=20, state_positions=100)
    narrow = trace(llama, samples=7)
    for stream in STREAMS:
        for layer in range(4):
            here, there = (each.says(stream, layer, 2) for each in (narrow, roomy))
            assert [token for token, _ in here] == [token for token, _ in there][: len(here)]
            assert [p for _, p in here] == pytest.approx([p for _, p in there][: len(here)], rel=1e-9)
    # Where fewer are certain a trace that was kept is still the one that it was.
    short = replace(narrow, said=SaidGrids.of({"mlp": [[Said((1,), (0.5,), 0.1)] * 7] * 4}, llama.tokenizer))
    assert short.says("mlp", 0, 0) == [(llama.tokenizer.decode([1]), 0.5)]
    short.save(tmp_path / "short.safetensors")
    assert rl.CausalTrace.load(tmp_path / "short.safetensors") == short
    # A random model says everything and nothing: few of its tokens are certain where 32 of each part are kept.
    for stream in STREAMS:
        assert sum(len(narrow.says(stream, layer, 2)) for layer in range(4)) >= 4


def _of(*pairs, rest):
    return Said(tuple(token for token, _ in pairs), tuple(p for _, p in pairs), rest)


def test_parts_of_the_copies_say_together_only_what_is_certain():
    one = _of((7, 0.6), (1, 0.2), (2, 0.1), rest=0.01)
    other = _of((7, 0.4), (2, 0.3), (3, 0.2), rest=0.02)
    both = merged([one, other], [0.5, 0.5])
    # Token 1 may have up to 0.2 of the copies' half and 0.02 of the other's, token 2 has 0.2; token 3 is not certain.
    assert both.ids == (7, 2)
    assert both.probabilities == pytest.approx((0.5, 0.2))
    assert both.rest == pytest.approx(0.11)
    unsure = merged([_of((1, 0.3), rest=0.3), _of((2, 0.3), rest=0.3)], [0.5, 0.5])
    assert unsure.ids == ()
    many = _of(*((token, 0.1 - token / 1000) for token in range(9)), rest=0.0)
    assert merged([many], [1.0]).ids == (0, 1, 2, 3, 4)


def test_an_approximation_says_nothing(llama):
    traced = trace(llama, engine="attribution")
    said = refused(rl.SettingError, traced.says, "mlp", 1, 3)
    why = "an approximation says nothing; trace with another engine"
    assert said == f"this trace does not hold what its cells say: {why}"
    assert all(not heat_map.said for heat_map in traced.heat_maps())


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (("attn", 0, 0), "'attn' was not traced; this trace has clean, corrupted, mlp: name one of them"),
        (("mlp", 4, 0), "mlp has no cell (4, 0); give a layer from 0 to 3 and a position from 0 to 6"),
        (("mlp", 0, 7), "mlp has no cell (0, 7); give a layer from 0 to 3 and a position from 0 to 6"),
        (("mlp", 0, 1.5), "mlp has no cell (0, 1.5); give a layer from 0 to 3 and a position from 0 to 6"),
        (("mlp",), "mlp has no cell (None, None); give a layer from 0 to 3 and a position from 0 to 6"),
        (("clean", 0, 0), "the clean run has no cells; leave layer and column out"),
    ],
    ids=str,
)
def test_cells_that_there_are_not(llama, asked, message):
    assert refused(rl.SettingError, trace(llama, streams="mlp").says, *asked) == message


def test_what_is_said_is_kept_and_shown(llama, tmp_path):
    traced = trace(llama)
    path = tmp_path / "trace.safetensors"
    traced.save(path)
    again = rl.CausalTrace.load(path)
    assert again == traced
    assert again.says("mlp", 2, 3) == traced.says("mlp", 2, 3)
    assert traced.to_dict()["said"]["heads"][1][2] == traced.says("heads", 1, 2)
    heat_map = traced.heat_maps()[1]
    (token, probability), *_ = traced.says("mlp", 2, 3)
    assert heat_map.said[2][3].startswith(f'"{token}" {probability:.3f}, ')
    panel = traced.figure().data[1]
    assert panel.hovertemplate.endswith("says %{customdata[3]}<extra></extra>")
    console = Console(width=100, record=True, file=None)
    with console.capture() as captured:
        print_trace(console, traced)
    assert captured.get().count("  says ") == len(STREAMS)


def test_where_nobody_asks_nothing_is_kept_of_it(llama, monkeypatch):
    traced = trace(llama)
    for room in (blocks, said):
        monkeypatch.setattr(room, "most_probable", None)
    rl.trace_neurons(llama, traced, n_best=2)
