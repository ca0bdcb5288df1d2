"""Severed paths against the plain oracle, and what must hold of them whatever the model (SPEC 1, "Severed paths")."""

import pytest
import torch
from architectures import BACKENDS, BRIDGE, architecture, home_made
from effort import slow
from hosts import needs_hooked
from oracle import request_of, severed_grid
from refused import refused

import rome_lens as rl

PROMPT, SUBJECT = "a cd fg", "cd"
BOTH = ("mlp", "attn")
HOSTED = [(name, BACKENDS[0]) for name in ("gpt2", "gptj", "llama", "neox")]
HOSTED += [slow(name, backend) for name, _ in HOSTED for backend in BACKENDS[1:]]
HOSTED += [(name, BRIDGE) for name in ("gemma2", "mixtral", "falcon")]

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:transformer_lens")


def trace(model, **settings):
    settings = {"noise": 2.0, "samples": 3, "window": 3, "answer": "x", "severed": BOTH} | settings
    return rl.causal_trace(model, PROMPT, subject=SUBJECT, **settings)


def assert_equals_oracle(model, traced):
    rows, request = request_of(model, traced)
    assert traced.severed
    for severed in traced.severed:
        expected = severed_grid(model, rows, severed, n_prompt=len(traced.tokens), **request)
        torch.testing.assert_close(traced.severed[severed], expected, rtol=1e-6, atol=0)
        # Nobody could tell a severed grid from an ordinary one if cutting changed nothing.
        assert (expected - traced.scores["resid"]).abs().max() > 1e-3 * traced.scores["resid"].mean()


@pytest.mark.parametrize(("name", "backend"), HOSTED)
def test_every_architecture_equals_the_oracle(name, backend):
    model = architecture(name, backend)
    traced = trace(model)
    assert traced.engine == "blocks"
    assert tuple(traced.severed) == BOTH
    assert_equals_oracle(model, traced)


@pytest.mark.parametrize("settings", [{"answer": "long"}, {"noise_replaces": True}, {"seed": 7}, {"prepend_bos": True}])
def test_settings_reach_severed_paths(llama, settings):
    assert_equals_oracle(llama, trace(llama, **settings))


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_whole_forwards_give_the_same(name):
    model = architecture(name, BACKENDS[0])
    traced = trace(model, engine="plain")
    assert traced.engine == "plain"
    assert_equals_oracle(model, traced)


def test_severing_leaves_the_other_grids_alone(llama):
    whole, alone = trace(llama), trace(llama, severed=())
    assert not alone.severed
    torch.testing.assert_close(whole.scores, alone.scores, rtol=1e-12, atol=0)


def test_identities_hold_exactly(gpt2):
    traced = trace(gpt2, answer=None)
    first, last = traced.subject_span[0], len(traced.tokens) - 1
    for scores in traced.severed.values():
        assert (scores[:, :first] == traced.low).all()
        assert scores[-1, last] == traced.high
        assert (scores[-1, :last] == traced.low).all()


def test_one_stream_alone_and_without_its_ordinary_grid(llama):
    both = trace(llama)
    one = trace(llama, severed="attn", streams="mlp")
    assert (tuple(one.scores), tuple(one.severed)) == (("mlp",), ("attn",))
    torch.testing.assert_close(one.severed["attn"], both.severed["attn"], rtol=1e-12, atol=0)


def test_numbers_do_not_depend_on_memory(llama, tighten):
    roomy = trace(llama)
    tighten(call_positions=20, state_positions=100)
    narrow = trace(llama)
    torch.testing.assert_close(narrow.severed, roomy.severed, rtol=1e-12, atol=0)


def test_effects_and_what_was_not_traced(llama):
    traced = trace(llama, severed=("mlp",))
    assert torch.equal(traced.effect("resid", severed="mlp"), traced.severed["mlp"] - traced.low)
    for stream, severed in (("resid", "attn"), ("mlp", "mlp")):
        assert refused(rl.SettingError, traced.effect, stream, severed=severed) == (
            f"{stream!r} with {severed!r} severed was not traced; ask causal_trace for severed=({severed!r},) and for "
            "the effect of 'resid'"
        )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"severed": ("resid",)}, "severed is 'resid'; choose from mlp, attn"),
        (
            {"engine": "attribution"},
            "severed paths are not approximated; leave severed out, or engine 'attribution'",
        ),
    ],
    ids=str,
)
def test_what_cannot_be_severed_is_refused(llama, settings, message):
    assert refused(rl.SettingError, trace, llama, **settings) == message


@needs_hooked
def test_a_model_without_mlps_has_none_to_sever():
    model = home_made(attn_only=True)
    traced = trace(model, streams=("resid", "attn"), severed=("attn",))
    assert_equals_oracle(model, traced)
    assert "has no mlp stream" in refused(rl.ModelError, trace, model, streams=("resid", "attn"))


def test_a_trace_keeps_its_severed_grids(llama, tmp_path):
    traced = trace(llama)
    traced.save(tmp_path / "trace.safetensors")
    again = rl.CausalTrace.load(tmp_path / "trace.safetensors")
    assert tuple(again.severed) == BOTH
    torch.testing.assert_close(again.severed, traced.severed, rtol=0, atol=0)
    table = traced.to_dataframe()
    cells = table[(table.severed == "attn") & (table.layer == 1) & (table.pos == 4)]
    assert cells.stream.tolist() == ["resid"]
    assert cells.score.item() == traced.severed["attn"][1, 4].item()
    assert set(table.severed) == {"", *BOTH}
    assert [m.title for m in traced.heat_maps()[3:]] == [
        "Restoring the residual state, MLP outputs severed",
        "Restoring the residual state, attention outputs severed",
    ]
    assert traced.to_dict()["severed"]["mlp"] == traced.severed["mlp"].tolist()
