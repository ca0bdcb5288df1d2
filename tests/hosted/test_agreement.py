"""What is loaded computes what Hugging Face's model computes, or is refused."""

import copy
from dataclasses import replace
from importlib.metadata import version

import pytest
import torch
import transformers
from architectures import BACKENDS, BRIDGE, HOOKED, byte_tokenizer
from effort import slow
from hosts import needs_hooked
from refused import refused

from rome_lens.backends import as_backend
from rome_lens.errors import ModelError
from rome_lens.loading import agreement, convert
from rome_lens.loading.agreement import Reference
from rome_lens.loading.convert import to_transformer_lens
from rome_lens.loading.hugging_face import Pretrained
from rome_lens.loading.twin import twin_of

IDS = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": None}
SIZES = {
    "vocab_size": 258,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    **IDS,
}
GPT = {"vocab_size": 258, "n_embd": 32, "n_layer": 4, "n_head": 4, "n_positions": 64, **IDS}
FALCON = {"vocab_size": 258, "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, **IDS}
OPT = {**FALCON, "ffn_dim": 48, "max_position_embeddings": 64, "word_embed_proj_dim": 32}
WINDOW = {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 2}
GEMMA = {**SIZES, "head_dim": 8, "sliding_window": 8}
NEO = {"vocab_size": 258, "hidden_size": 32, "num_layers": 4, "num_heads": 4, **IDS}
BY_TURNS = ["sliding_attention", "full_attention"] * 2


def rope(rope_type, **settings):
    return {"rope_parameters": {"rope_type": rope_type, "rope_theta": 1e4, **settings}}


LONG = {"short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [1.0, 2.0, 3.0, 4.0]}
CONFIGS = {
    "cohere": lambda: transformers.CohereConfig(**SIZES),
    "cohere2": lambda: transformers.Cohere2Config(**SIZES, sliding_window=8),
    "qwen2-window": lambda: transformers.Qwen2Config(**SIZES, **WINDOW),
    "qwen3-window": lambda: transformers.Qwen3Config(**SIZES, head_dim=8, **WINDOW),
    "gpt2-unscaled": lambda: transformers.GPT2Config(**GPT, scale_attn_weights=False),
}
NEIGHBOURS = {
    "gpt2-inverse": lambda: transformers.GPT2Config(**GPT, scale_attn_by_inverse_layer_idx=True),
    "gpt2-upcast": lambda: transformers.GPT2Config(**GPT, reorder_and_upcast_attn=True),
    "gpt2-relu": lambda: transformers.GPT2Config(**GPT, activation_function="relu"),
    "gpt2-inner": lambda: transformers.GPT2Config(**GPT, n_inner=40),
    "gpt2-eps": lambda: transformers.GPT2Config(**GPT, layer_norm_epsilon=0.3),
    "gpt2-untied": lambda: transformers.GPT2Config(**GPT, tie_word_embeddings=False),
    "llama-linear": lambda: transformers.LlamaConfig(**SIZES, **rope("linear", factor=4.0)),
    "llama-dynamic": lambda: transformers.LlamaConfig(**SIZES, **rope("dynamic", factor=4.0)),
    "llama-yarn": lambda: transformers.LlamaConfig(
        **SIZES, **rope("yarn", factor=4.0, original_max_position_embeddings=16)
    ),
    "llama3": lambda: transformers.LlamaConfig(
        **SIZES,
        **rope("llama3", factor=4.0, original_max_position_embeddings=16, low_freq_factor=1.0, high_freq_factor=4.0),
    ),
    "phi3-longrope": lambda: transformers.Phi3Config(
        **SIZES,
        original_max_position_embeddings=16,
        **rope("longrope", original_max_position_embeddings=16, **LONG),
    ),
    "phi3-window": lambda: transformers.Phi3Config(**SIZES, sliding_window=8),
    "llama-tied": lambda: transformers.LlamaConfig(**SIZES, tie_word_embeddings=True),
    "llama-bias": lambda: transformers.LlamaConfig(**SIZES, attention_bias=True, mlp_bias=True),
    "llama-heads": lambda: transformers.LlamaConfig(**SIZES, head_dim=16),
    "llama-gelu": lambda: transformers.LlamaConfig(**SIZES, hidden_act="gelu"),
    "llama-mqa": lambda: transformers.LlamaConfig(**{**SIZES, "num_key_value_heads": 1}),
    "mistral-window": lambda: transformers.MistralConfig(**SIZES, sliding_window=8),
    "neox-partial": lambda: transformers.GPTNeoXConfig(
        **{k: v for k, v in SIZES.items() if k != "num_key_value_heads"}, rotary_pct=0.5
    ),
    "neox-unbiased": lambda: transformers.GPTNeoXConfig(**SIZES, attention_bias=False),
    "phi-norms": lambda: transformers.PhiConfig(**SIZES, qk_layernorm=True),
    "stablelm": lambda: transformers.StableLmConfig(**SIZES, partial_rotary_factor=0.5, use_qkv_bias=True),
    "gemma2-caps": lambda: transformers.Gemma2Config(**GEMMA, attn_logit_softcapping=2.0, final_logit_softcapping=3.0),
    "gemma3-thetas": lambda: transformers.Gemma3TextConfig(
        **GEMMA,
        layer_types=BY_TURNS,
        rope_parameters={
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
        },
    ),
    "neo-window": lambda: transformers.GPTNeoConfig(
        **NEO, attention_types=[[["global", "local"], 2]], window_size=16, max_position_embeddings=64
    ),
    "olmo-clip": lambda: transformers.OlmoConfig(**SIZES, clip_qkv=0.5),
    "olmo3": lambda: transformers.Olmo3Config(**SIZES, sliding_window=8),
    "starcoder2": lambda: transformers.Starcoder2Config(**SIZES, sliding_window=8),
    "falcon-new": lambda: transformers.FalconConfig(**FALCON, new_decoder_architecture=True, num_kv_heads=2),
    "falcon-alibi": lambda: transformers.FalconConfig(**FALCON, alibi=True, parallel_attn=False, bias=True),
    "opt-post-norm": lambda: transformers.OPTConfig(**OPT, do_layer_norm_before=False),
    "opt-unbiased": lambda: transformers.OPTConfig(**OPT, enable_bias=False),
    "bloom-post-norm": lambda: transformers.BloomConfig(
        vocab_size=258, hidden_size=32, n_layer=4, n_head=4, apply_residual_connection_post_layernorm=True, **IDS
    ),
    "smollm3": lambda: transformers.SmolLM3Config(**SIZES, no_rope_layers=[1, 0, 1, 0]),
}
WRONG = {
    BRIDGE: {"gpt2-unscaled", *(["cohere", "cohere2"] if HOOKED in BACKENDS else [])},
    HOOKED: {"qwen2-window", "qwen3-window"},
}
"""What the installed TransformerLens computes otherwise; on 4.3 Cohere is right."""


def pretrained(config, *, dtype=torch.float32, attention="eager"):
    """A random model, with weights so large that a wrong mask shows."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation=attention, dtype=dtype)
        # As a saved model has it.
        model.config.architectures = [type(model).__name__]
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    parameter.normal_(std=0.3)
    return Pretrained("mine", model.eval(), byte_tokenizer())


def logits_of(source, tokens):
    with torch.no_grad():
        return copy.deepcopy(source.model).eval()(tokens, use_cache=False).logits


@pytest.mark.parametrize("backend", ["auto", *BACKENDS])
@pytest.mark.parametrize("name", [*CONFIGS, *(slow(name) for name in NEIGHBOURS)])
def test_every_position_is_right_or_the_model_is_refused_in_one_line(name, backend):
    source = pretrained((CONFIGS | NEIGHBOURS)[name]())
    tokens = torch.randint(258, (2, 64), generator=torch.Generator().manual_seed(0))
    expected = logits_of(source, tokens)
    try:
        model = to_transformer_lens(source, backend=backend)
    except ModelError as error:
        said = str(error)
        assert "\n" not in said
        assert name in NEIGHBOURS or backend == HOOKED or name in WRONG[BRIDGE]
        return
    assert name not in WRONG.get(backend, set())
    with torch.no_grad():
        found = as_backend(model).run(tokens)
    assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()


def test_what_a_bridge_computes_otherwise_is_refused_with_the_difference():
    said = refused(ModelError, to_transformer_lens, pretrained(CONFIGS["gpt2-unscaled"]()), backend=BRIDGE)
    begin, _, end = said.partition("difference ")
    assert begin == (
        "as a TransformerBridge 'mine' computes other logits than the GPT2LMHeadModel that it wraps (relative "
    )
    other = f"another version of TransformerLens than {version('transformer-lens')} may host it"
    advice = "the backend 'hooked-transformer' may be right" if HOOKED in BACKENDS else other
    assert end[3:] == f"e-01, at most 1e-04 is rounding); {advice}"


@needs_hooked
def test_what_neither_class_computes_is_refused_with_both_reasons():
    for backend in ("auto", HOOKED):
        said = refused(ModelError, to_transformer_lens, pretrained(CONFIGS["cohere"]()), backend=backend)
        parts = said.split("; ")
        assert len(parts) == 3
        assert parts[0].endswith("as a HookedTransformer (CohereForCausalLM is not currently supported)")
        assert parts[1].startswith("as a TransformerBridge 'mine' computes other logits than the CohereForCausalLM")
        assert parts[2].startswith("another version of TransformerLens than 3.")


@needs_hooked
def test_where_memory_is_short_the_bridge_is_checked_too(monkeypatch):
    monkeypatch.setattr(convert, "free_bytes", lambda device: 100)
    said = refused(ModelError, to_transformer_lens, pretrained(CONFIGS["gpt2-unscaled"]()), backend="auto")
    assert "are free; as a TransformerBridge 'mine' computes other logits" in said


LARGE = {**SIZES, "max_position_embeddings": 512}
DEAR = {
    "qwen2": lambda: transformers.Qwen2Config(**LARGE, **WINDOW | {"sliding_window": 100}),
    "mistral": lambda: transformers.MistralConfig(**LARGE, sliding_window=100),
    "gemma3": lambda: transformers.Gemma3TextConfig(
        **LARGE, head_dim=8, sliding_window=100, layer_types=["sliding_attention"] * 3 + ["full_attention"]
    ),
    "neo": lambda: transformers.GPTNeoConfig(
        **NEO, attention_types=[[["global", "local"], 2]], window_size=100, max_position_embeddings=512
    ),
    "phi3": lambda: transformers.Phi3Config(
        **LARGE,
        original_max_position_embeddings=100,
        **rope("longrope", original_max_position_embeddings=100, **LONG),
    ),
}


@pytest.fixture
def dear(monkeypatch):
    """Texts longer than a window are too dear, as they are for the weights of a large model."""
    monkeypatch.setattr(agreement, "_MOST", 0)
    monkeypatch.setattr(agreement, "_UNNOTICED", 0)


@pytest.mark.parametrize("name", DEAR)
def test_where_a_text_longer_than_the_window_is_too_dear_a_small_model_stands_for_the_large_one(name, dear):
    source = pretrained(DEAR[name]())
    tokens = torch.randint(258, (1, 160), generator=torch.Generator().manual_seed(0))
    expected = logits_of(source, tokens)
    reference = Reference.of(source.model, name="mine")
    assert (reference.tokens.shape, reference.whole) == ((1, 24), False)
    model = to_transformer_lens(source, backend="auto")
    hooked = HOOKED in BACKENDS and name in ("mistral", "neo")
    assert type(model).__name__ == ("HookedTransformer" if hooked else "TransformerBridge")
    with torch.no_grad():
        assert (as_backend(model).run(tokens) - expected).abs().max() <= 1e-4 * expected.abs().max()


@needs_hooked
@pytest.mark.parametrize("twins", [True, False])
def test_a_window_that_is_too_dear_to_be_looked_beyond_is_not_missed(twins, dear, monkeypatch):
    if not twins:
        # Then the dear text is what is left.
        monkeypatch.setattr(convert, "twin_of", lambda model: 1 / 0)
    said = refused(ModelError, to_transformer_lens, pretrained(DEAR["qwen2"]()), backend=HOOKED)
    where = " on a small model of the same settings, with windows of a few tokens, at most"
    assert (where in said) == twins
    assert said.endswith("; use the backend 'transformer-bridge'")


@needs_hooked
def test_a_type_that_rounds_hides_no_difference(monkeypatch):
    asked = []
    monkeypatch.setattr(convert, "twin_of", lambda model: asked.append(model.dtype) or twin_of(model))
    for dtype in (torch.float32, torch.bfloat16):
        to_transformer_lens(pretrained(transformers.LlamaConfig(**SIZES), dtype=dtype), backend="auto")
    assert asked == [torch.bfloat16]


@pytest.mark.parametrize("name", DEAR)
def test_a_twin_has_every_kind_of_layer_short_windows_and_draws_nothing(name):
    source = pretrained(DEAR[name]())
    before = torch.random.get_rng_state()
    twin, again = twin_of(source.model), twin_of(source.model)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(map(torch.equal, twin.parameters(), again.parameters()))
    assert type(twin) is type(source.model)
    assert not twin.training
    assert sum(p.numel() for p in twin.parameters()) < 2e6
    kinds = getattr(source.model.config, "layer_types", None)
    assert kinds is None or set(twin.config.layer_types) == set(kinds)
    widths = [width for _, width in agreement.windows(twin.config.to_dict())]
    assert widths
    assert max(widths) <= 16
    assert agreement.context(twin.config.to_dict()) >= 64
    assert Reference.of(twin, name="mine").whole


def length(config):
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    return agreement._length(model, dear=False)


def test_how_long_the_text_is():
    smol = {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "vocab_size": 49152}
    assert length(transformers.LlamaConfig(**smol, num_attention_heads=9, num_key_value_heads=3)) == (24, True)
    assert length(transformers.MistralConfig()) == (24, False), "7 billion weights, a window of 4096"
    assert length(transformers.MistralConfig(sliding_window=None)) == (24, True)
    neo = transformers.GPTNeoConfig(num_layers=12, hidden_size=768, attention_types=[[["global", "local"], 6]])
    assert length(neo) == (320, True), "a window of 256"
    assert length(transformers.GPT2Config(**GPT | {"n_positions": 10})) == (10, True)
    assert length(transformers.GPT2Config(**GPT)) == (48, True)
    assert length(transformers.MistralConfig(**SIZES, sliding_window=4096)) == (48, True), "bounds nothing"


def test_a_model_that_transformers_cannot_run_is_refused(monkeypatch):
    source = pretrained(transformers.LlamaConfig(**SIZES))
    monkeypatch.setattr(type(source.model), "forward", lambda *args, **kwargs: 1 / 0)
    with pytest.raises(ModelError, match=r"transformers cannot run 'mine', a LlamaForCausalLM \(division by zero\)"):
        to_transformer_lens(replace(source), backend="auto")
