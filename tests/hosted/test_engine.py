"""The engine against the plain oracle: every architecture, every way of using a model, and the identities of SPEC 1."""

import pytest
import torch
from architectures import BACKENDS, BRIDGE, HOOKED, architecture, byte_tokenizer, home_made, hugging_face_model, own
from hosts import EACH_BACKEND, hosted, needs_hooked
from left_alone import left_alone
from oracle import cell_score, grid, request_of
from refused import refused

import rome_lens as rl
from rome_lens.backends import as_backend
from rome_lens.backends.hooked_transformer import HookedReplay
from rome_lens.backends.transformer_bridge import BridgeReplay
from rome_lens.loading.tiny import TINY_PROMPT, TINY_SUBJECT, tiny_model
from rome_lens.tracing import blocks

PROMPT, SUBJECT, SPAN = "a cd fg", "cd", (2, 4)

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:transformer_lens")


def trace(model, **settings):
    settings = {"noise": 2.0, "samples": 3, "window": 3, "answer": "x"} | settings
    return rl.causal_trace(model, PROMPT, subject=SUBJECT, **settings)


def oracle_of(model, traced):
    """Low, high and all grids of a trace by noise, one forward a cell."""
    rows, request = request_of(model, traced)
    scores = cell_score(model, rows, **request)
    n_prompt = len(traced.tokens)
    grids = {s: grid(model, rows, s, n_prompt=n_prompt, window=traced.window, **request) for s in traced.scores}
    return scores[1:].mean().item(), scores[0].item(), grids


def assert_equals_oracle(model, traced, *, rtol=1e-6):
    low, high, grids = oracle_of(model, traced)
    assert traced.low == pytest.approx(low, rel=rtol)
    assert traced.high == pytest.approx(high, rel=rtol)
    for stream, expected in grids.items():
        torch.testing.assert_close(traced.scores[stream], expected, rtol=rtol, atol=0)
        # A grid that does not vary would be equal to anything.
        assert expected.std() > 1e-3 * expected.mean()


@pytest.mark.parametrize(("name", "backend"), hosted())
def test_every_architecture_equals_the_oracle(name, backend):
    model = architecture(name, backend)
    traced = trace(model)
    assert traced.engine == "blocks"
    assert not [note for note in traced.notes if not note.startswith("with the subject corrupted")]
    assert_equals_oracle(model, traced)


def test_a_corruption_that_takes_little_is_noted():
    model = tiny_model("auto")
    little = rl.causal_trace(model, TINY_PROMPT, subject=TINY_SUBJECT, noise=1e-9)
    (note,) = little.notes
    assert note.startswith("with the subject corrupted the answer keeps ")
    assert "of its probability, so there is little to bring back: this may be no fact that the model knows" in note
    (sure,) = rl.causal_trace(model, TINY_PROMPT, subject=TINY_SUBJECT, noise=1e-9, expect=little.answer.strip()).notes
    assert "this may be no fact" not in sure


@pytest.mark.parametrize(("name", "backend"), [("gpt2", BACKENDS[0]), ("llama", BRIDGE), ("gemma2", BRIDGE)])
def test_plain_engine_equals_the_oracle(name, backend):
    model = architecture(name, backend)
    traced = trace(model, engine="plain")
    assert traced.engine == "plain"
    assert_equals_oracle(model, traced)


@pytest.mark.parametrize("window", [1, 2, 3, 4])
def test_every_window_equals_the_oracle(llama, window):
    assert_equals_oracle(llama, trace(llama, window=window))


@pytest.mark.parametrize("backend", EACH_BACKEND)
@pytest.mark.parametrize(
    "settings",
    [
        {"answer": None},
        {"answer": "long"},
        {"noise_replaces": True},
        {"seed": 7},
        {"samples": 1},
        {"prepend_bos": True},
        {"streams": ("attn",)},
        {"noise": "s3"},
    ],
    ids=str,
)
def test_every_setting_equals_the_oracle(settings, backend):
    model = architecture("qwen2", backend)
    assert_equals_oracle(model, trace(model, **settings))


def test_float32_through_one_dnn_equals_the_oracle(backend):
    model = architecture("llama", backend, torch.float32)
    assert_equals_oracle(model, trace(model), rtol=1e-4)


def test_rounding_in_the_layers_below_is_no_fault_of_a_block(backend, monkeypatch):
    # As in SmolLM2: an early layer writes states of thousands of times the usual size, and the next ones add little.
    hugging_face = hugging_face_model("llama")
    with torch.no_grad():
        hugging_face.model.layers[0].mlp.down_proj.weight.mul_(1e4)
    model = own("llama", backend, model=hugging_face)
    replay = HookedReplay if backend == HOOKED else BridgeReplay
    run = replay.run

    def rounded(self, layer, *args, **kwargs):
        resid, past = run(self, layer, *args, **kwargs)
        return (resid * (1 + 3e-6) if layer == 0 else resid), past

    monkeypatch.setattr(replay, "run", rounded)
    assert trace(model).engine == "blocks"


def test_identities_hold_exactly(backend):
    traced = trace(architecture("gpt2", backend), answer=None)
    first, last, top = traced.subject_span[0], len(traced.tokens) - 1, -1
    for stream in traced.scores:
        assert (traced.scores[stream][:, :first] == traced.low).all()
    assert traced.scores["resid"][top, last] == traced.high
    assert (traced.scores["resid"][top, :last] == traced.low).all()


def test_swapped_subject_equals_the_oracle(backend):
    model = architecture("neox", backend)
    traced = trace(model, noise=None, swap="xy")
    clean = [*traced.token_ids, *traced.answer_ids[:-1]]
    swapped = byte_tokenizer()("a xy fg", add_special_tokens=False)["input_ids"] + list(traced.answer_ids[:-1])
    rows = torch.tensor([clean, swapped])
    request = {"noise": None, "span": SPAN, "answer_ids": list(traced.answer_ids)}
    assert (traced.samples, traced.noise, traced.noise_rule, traced.swap) == (1, None, None, "xy")
    assert traced.low == pytest.approx(cell_score(model, rows, **request)[1].item(), rel=1e-6)
    for stream, scores in traced.scores.items():
        expected = grid(model, rows, stream, n_prompt=len(traced.tokens), window=3, **request)
        torch.testing.assert_close(scores, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    "sizes",
    [
        {"call_positions": 1},
        {"call_positions": 20},
        {"state_positions": 1},
        {"state_positions": 300},
        {"logits": 1},
        {"run_positions": 1},
        {"run_positions": 33},
    ],
    ids=str,
)
def test_numbers_do_not_depend_on_memory(llama, sizes, tighten, monkeypatch):
    # Hugging Face's Llama takes its softmax in float32 whatever the model's dtype: with the columns that rows of other
    # beginnings leave masked it rounds otherwise. Calls that positions share have tests of their own.
    monkeypatch.setattr(blocks, "_CALL_FLOP", {"cpu": 0})
    roomy = trace(llama, answer=None, samples=7)
    tighten(**sizes)
    narrow = trace(llama, answer=None, samples=7)
    assert narrow.low == pytest.approx(roomy.low, rel=1e-12)
    assert narrow.scores["resid"][-1, -1] == narrow.high
    assert (narrow.scores["mlp"][:, : SPAN[0]] == narrow.low).all()
    torch.testing.assert_close(narrow.scores, roomy.scores, rtol=1e-9, atol=0)


@needs_hooked
def test_processed_hooked_transformer_equals_the_oracle():
    model = own("gpt2", HOOKED)
    model.process_weights_()
    assert_equals_oracle(model, trace(model))


@pytest.mark.parametrize("no_processing", [True, False])
def test_bridge_in_compatibility_mode_equals_the_oracle(no_processing):
    model = own("gpt2", BRIDGE)
    model.enable_compatibility_mode(disable_warnings=True, no_processing=no_processing)
    assert_equals_oracle(model, trace(model))


def test_users_hooks_are_seen_and_kept(backend):
    model = architecture("gpt2", backend)

    def weaken(x, hook):
        return x * 0.5 if x.shape[1] == len(PROMPT) + 1 else x

    with model.hooks(fwd_hooks=[("blocks.1.hook_mlp_out", weaken)]):
        traced = trace(model)
        assert traced.engine == "plain"
        assert "blocks.1" in traced.notes[0]
        assert_equals_oracle(model, traced)
        assert as_backend(model).foreign_hooks()
    assert trace(model).engine == "blocks"


def test_model_is_left_as_it_was(backend):
    model = own("llama", backend).train()
    model.blocks[1].eval()
    with left_alone(model):
        trace(model)


def test_model_is_left_as_it_was_after_an_error(backend):
    model = architecture("llama", backend)

    def fail(done, total, what):
        raise KeyboardInterrupt

    with left_alone(model), pytest.raises(KeyboardInterrupt):
        trace(model, progress=fail)


def test_padding_side_and_training_mode_change_nothing(backend):
    model = own("gpt2", backend)
    expected = trace(model)
    model.tokenizer.padding_side = "left"
    torch.testing.assert_close(trace(model.train()).scores, expected.scores, rtol=0, atol=0)


def test_block_that_cannot_be_called_alone_goes_the_plain_way(monkeypatch):
    model = architecture("llama", BRIDGE)
    expected = trace(model)
    attention = type(model.blocks[0].attn)
    update = attention._update_kv_cache
    # As if attention kept something of its own between calls: right in a whole forward, wrong in a part of one.
    monkeypatch.setattr(
        attention,
        "_update_kv_cache",
        lambda self, k, v, **kwargs: update(self, k * (1.1 if kwargs.get("past_key_values") else 1), v, **kwargs),
    )
    traced = trace(model)
    assert traced.engine == "plain"
    assert "gives other numbers than the model's own forward" in traced.notes[0]
    torch.testing.assert_close(traced.scores, expected.scores, rtol=1e-6, atol=0)


def test_unknown_block_argument_goes_the_plain_way(monkeypatch):
    model = architecture("llama", BRIDGE)
    note = BridgeReplay.note_call

    def with_extra(self, layer, *call):
        note(self, layer, *call)
        self._calls[layer]["per_layer_inputs"] = torch.zeros(2, 3)

    monkeypatch.setattr(BridgeReplay, "note_call", with_extra)
    traced = trace(model)
    assert traced.engine == "plain"
    assert "'per_layer_inputs' of shape (2, 3)" in traced.notes[0]


@needs_hooked
@pytest.mark.parametrize("kind", ["shortformer", "attn_only"])
def test_home_made_hooked_transformers(kind):
    settings = {"positional_embedding_type": "shortformer"} if kind == "shortformer" else {"attn_only": True}
    model = home_made(d_mlp=24, act_fn="relu", **settings)
    streams = ("resid", "mlp", "attn") if kind == "shortformer" else ("resid", "attn")
    traced = trace(model, streams=streams)
    assert traced.engine == ("plain" if kind == "shortformer" else "blocks")
    assert_equals_oracle(model, traced)
    if kind == "attn_only":
        assert "has no mlp stream in every layer; ask for resid, attn" in refused(rl.ModelError, trace, model)
