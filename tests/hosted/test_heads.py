"""Single heads against the plain oracle, what all heads of a layer owe its attention, and what a trace says of them."""

from dataclasses import replace

import pytest
import torch
from architectures import BACKENDS, BRIDGE, architecture
from effort import slow
from oracle import heads_grid, request_of
from refused import refused
from tiny_rome import REQUEST, rome

import rome_lens as rl
from rome_lens.backends import Backend
from rome_lens.tracing import grid
from rome_lens.tracing.cells import plan_heads

PROMPT, SUBJECT = "a cd fg", "cd"
# Heads that share keys and values, parallel attention, joint projections, norms around attention.
HOSTED = [(name, backend) for name in ("gpt2", "llama", "neox") for backend in BACKENDS]
HOSTED += [("gptj", BACKENDS[0]), ("qwen3", BACKENDS[0]), ("bloom", BACKENDS[0])]
HOSTED += [(name, BRIDGE) for name in ("gemma2", "falcon", "mixtral", "olmo2")]
HOSTED += [slow(name, BRIDGE) for name in ("gptj", "qwen3", "bloom", "opt", "phi3", "gemma3", "cohere")]

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:transformer_lens")


def trace(model, **settings):
    settings = {"noise": 2.0, "samples": 3, "streams": "heads", "answer": "x"} | settings
    return rl.causal_trace(model, PROMPT, subject=SUBJECT, **settings)


def assert_equals_oracle(model, traced):
    rows, request = request_of(model, traced)
    expected = heads_grid(model, rows, pos=traced.heads_at, window=traced.heads_window, **request)
    torch.testing.assert_close(traced.scores["heads"], expected, rtol=1e-6, atol=0)
    # Nobody could tell heads apart if restoring one were to restore another, or none.
    assert (expected - traced.low).abs().max() > 1e-4 * traced.low


@pytest.mark.parametrize(("name", "backend"), HOSTED)
def test_every_architecture_equals_the_oracle(name, backend):
    model = architecture(name, backend)
    traced = trace(model)
    assert traced.engine == "blocks", traced.notes
    assert traced.scores["heads"].shape == (model.cfg.n_layers, model.cfg.n_heads)
    assert_equals_oracle(model, traced)


@pytest.mark.parametrize(
    ("settings", "position"),
    [
        ({"heads_at": "last-subject"}, 3),
        ({"heads_at": 2}, 2),
        ({"heads_at": -3}, 4),
        ({"heads_at": 2, "heads_window": 3}, 2),
        ({"heads_window": 2}, 6),
        ({"answer": "long"}, 6),
        ({"heads_at": "last-subject", "prepend_bos": True}, 4),
        ({"noise_replaces": True, "seed": 7}, 6),
    ],
    ids=str,
)
@pytest.mark.parametrize("engine", ["auto", "plain"])
def test_settings_reach_the_heads(llama, settings, position, engine):
    traced = trace(llama, engine=engine, **settings)
    assert traced.heads_at == position
    assert_equals_oracle(llama, traced)


@pytest.mark.parametrize("backend", BACKENDS)
def test_whole_forwards_give_the_same(backend):
    model = architecture("gpt2", backend)
    traced = trace(model, engine="plain", heads_at="last-subject")
    assert traced.engine == "plain"
    assert_equals_oracle(model, traced)


@pytest.mark.parametrize("engine", ["auto", "plain"])
@pytest.mark.parametrize("window", [1, 3])
@pytest.mark.parametrize(("name", "backend"), [("llama", BACKENDS[0]), ("gptj", BRIDGE), ("gemma2", BRIDGE)])
def test_all_heads_of_a_layer_together_are_its_attention(name, backend, window, engine, monkeypatch):
    """The same cells as the attention stream's, restored head by head."""

    def all_at_once(*, n_heads, **where):
        firsts = plan_heads(n_heads=1, **where)
        every = [tuple((layer, head) for layer, _ in cell.parts for head in range(n_heads)) for cell in firsts]
        return [replace(cell, parts=parts) for cell, parts in zip(firsts, every, strict=True)]

    monkeypatch.setattr(grid, "plan_heads", all_at_once)
    model = architecture(name, backend)
    for at in ("last", "last-subject"):
        settings = {"heads_at": at, "heads_window": window, "window": window, "engine": engine}
        traced = trace(model, streams=("attn", "heads"), **settings)
        together, attention = traced.scores["heads"][:, 0], traced.scores["attn"][:, traced.heads_at]
        torch.testing.assert_close(together, attention, rtol=1e-9, atol=0)


def test_their_approximations_add_up_to_attentions(llama):
    """What a head adds to the residual is linear in what it gives."""
    traced = trace(llama, streams=("attn", "heads"), engine="attribution", window=1)
    heads, attention = traced.effect("heads").sum(dim=1), traced.effect("attn")[:, traced.heads_at]
    torch.testing.assert_close(heads, attention, rtol=1e-9, atol=1e-15)
    window = trace(llama, engine="attribution", heads_window=3, heads_at=2).effect("heads")
    alone = trace(llama, engine="attribution", heads_at=2).effect("heads")
    torch.testing.assert_close(window[1], alone[:3].sum(dim=0), rtol=1e-9, atol=1e-15)


def test_the_other_streams_are_what_they_are_without_heads(llama):
    streams = ("resid", "mlp", "attn")
    both, alone = trace(llama, streams=(*streams, "heads"), severed="mlp"), trace(llama, streams=streams)
    assert tuple(both.scores) == (*streams, "heads")
    for stream in streams:
        torch.testing.assert_close(both.scores[stream], alone.scores[stream], rtol=1e-12, atol=0)
    torch.testing.assert_close(both.scores["heads"], trace(llama).scores["heads"], rtol=1e-12, atol=0)


def test_numbers_do_not_depend_on_memory(llama, tighten):
    settings = {"streams": ("mlp", "heads"), "heads_at": "last-subject", "heads_window": 2}
    roomy = trace(llama, **settings)
    tighten(call_positions=20, state_positions=100)
    torch.testing.assert_close(trace(llama, **settings).scores, roomy.scores, rtol=1e-12, atol=0)


def test_in_front_of_the_subject_nothing_comes_back(gpt2):
    traced = trace(gpt2, heads_at=0)
    assert (traced.scores["heads"] == traced.low).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"heads_at": 7},
            "heads_at is 7; the prompt has 7 tokens, so expected a position from 0 to 6, or from -7 to -1 counted "
            "from the end",
        ),
        (
            {"heads_window": 9},
            "heads_window is 9; expected a whole number of layers from 1 to 4, the layers of this model",
        ),
    ],
    ids=str,
)
def test_places_that_the_prompt_or_the_model_does_not_have(llama, settings, message):
    assert refused(rl.SettingError, trace, llama, **settings) == message


def test_shades_before_and_after_an_edit_mean_the_same(gpt2):
    edit = rome(gpt2).edit(REQUEST)
    traced = trace(gpt2, edits=[edit], answer="x")
    before, after = traced.figure().data
    assert (before.zmin, before.zmax) == (after.zmin, after.zmax)
    lows, tops = zip(*((heat_map.low, heat_map.top) for heat_map in traced.heat_maps()), strict=True)
    assert (before.zmin, before.zmax) == (min(lows), max(tops))


@pytest.mark.parametrize("engine", ["auto", "plain", "attribution"])
def test_heads_that_cannot_be_told_apart_are_refused(llama, engine, monkeypatch):
    monkeypatch.setattr(Backend, "n_heads", 5)
    said = refused(rl.ModelError, trace, llama, engine=engine)
    assert "has 5 heads, and what passes hook_z has the shape" in said
    assert said.endswith("its heads cannot be told apart; leave the stream 'heads' out")


def test_what_a_trace_says_of_heads(llama, tmp_path):
    traced = trace(llama, streams=("mlp", "heads"), heads_at="last-subject")
    layer, head = traced.peak("heads")
    assert traced.scores["heads"][layer, head] == traced.scores["heads"].max()
    assert torch.equal(traced.effect("heads"), traced.scores["heads"] - traced.low)
    said = refused(rl.SettingError, traced.peak, "heads", positions=range(2))
    assert said == "heads were restored at position 3 alone; leave positions out"
    table = traced.to_dataframe()
    cells = table[table.stream == "heads"]
    assert len(cells) == traced.scores["heads"].numel()
    assert set(cells.pos) == {3}
    assert set(cells.token) == {"d"}
    (cell,) = cells[(cells["layer"] == 2) & (cells["head"] == 1)].to_dict("records")
    assert cell["score"] == traced.scores["heads"][2, 1].item()
    assert table[table.stream == "mlp"]["head"].isna().all()
    heat_map = traced.heat_maps()[1]
    assert (heat_map.title, heat_map.layer_title) == ("Restoring the output of single heads at “d*”", "restored layer")
    assert heat_map.labels == ("head 0", "head 1", "head 2", "head 3")
    assert f" at ({layer}, head {head}))" in repr(traced)
    traced.figure()
    path = tmp_path / "trace.safetensors"
    traced.save(path)
    assert rl.CausalTrace.load(path) == traced
    assert traced.to_dict()["heads_at"] == 3
    without = trace(llama, streams="mlp")
    assert (without.heads_at, without.heads_window) == (None, None)
    assert trace(llama, heads_window=3).heat_maps()[0].layer_title == "centre of 3 restored layers"
