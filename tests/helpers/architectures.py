"""Tiny random models of many architectures, in float64, with a tokenizer of single bytes: they know nothing."""

from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from rome_lens.loading.convert import to_transformer_lens
from rome_lens.loading.hugging_face import Pretrained
from rome_lens.loading.options import has_hooked_transformer

HOOKED, BRIDGE = "hooked-transformer", "transformer-bridge"
BACKENDS = [HOOKED, BRIDGE] if has_hooked_transformer() else [BRIDGE]

_IDS = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": None}
_SIZES: dict[str, Any] = {
    "vocab_size": 258,
    "hidden_size": 32,
    "intermediate_size": 24,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    **_IDS,
}
_GQA = {**_SIZES, "num_key_value_heads": 2}
_OPT: dict[str, Any] = {k: v for k, v in _SIZES.items() if k != "intermediate_size"} | {"ffn_dim": 24}
_FALCON: dict[str, Any] = {k: v for k, v in _SIZES.items() if k not in ("intermediate_size", "max_position_embeddings")}
_GPT: dict[str, Any] = {"vocab_size": 258, "n_embd": 16, "n_layer": 4, "n_head": 4, "n_positions": 64, **_IDS}

CONFIGS: dict[str, Any] = {
    "gpt2": lambda: transformers.GPT2Config(**_GPT),
    "gptj": lambda: transformers.GPTJConfig(**_GPT, rotary_dim=4),
    "neo": lambda: transformers.GPTNeoConfig(
        vocab_size=258,
        hidden_size=16,
        num_layers=4,
        num_heads=4,
        attention_types=[[["global", "local"], 2]],
        window_size=4,
        max_position_embeddings=64,
        **_IDS,
    ),
    "neox": lambda: transformers.GPTNeoXConfig(**_SIZES, use_parallel_residual=True),
    "neox-sequential": lambda: transformers.GPTNeoXConfig(**_SIZES, use_parallel_residual=False),
    "llama": lambda: transformers.LlamaConfig(**_GQA),
    "mistral": lambda: transformers.MistralConfig(**_GQA, sliding_window=5),
    "mixtral": lambda: transformers.MixtralConfig(**_GQA, num_local_experts=4, num_experts_per_tok=2),
    "qwen2": lambda: transformers.Qwen2Config(**_GQA),
    "qwen3": lambda: transformers.Qwen3Config(**_GQA, head_dim=4),
    "gemma": lambda: transformers.GemmaConfig(**_GQA, head_dim=4),
    "gemma2": lambda: transformers.Gemma2Config(**_GQA, head_dim=4, sliding_window=5, query_pre_attn_scalar=4),
    "gemma3": lambda: transformers.Gemma3TextConfig(**_GQA, head_dim=4, sliding_window=5, query_pre_attn_scalar=4),
    "phi": lambda: transformers.PhiConfig(**_SIZES),
    "phi3": lambda: transformers.Phi3Config(**_GQA),
    "opt": lambda: transformers.OPTConfig(**_OPT, word_embed_proj_dim=32),
    "bloom": lambda: transformers.BloomConfig(vocab_size=258, hidden_size=16, n_layer=4, n_head=4, **_IDS),
    "falcon": lambda: transformers.FalconConfig(**_FALCON),
    "falcon-alibi": lambda: transformers.FalconConfig(
        **_FALCON, alibi=True, parallel_attn=False, multi_query=False, bias=True
    ),
    # Its blocks do not show what leaves them.
    "gpt1": lambda: transformers.OpenAIGPTConfig(**_GPT),
    "xglm": lambda: transformers.XGLMConfig(
        vocab_size=258, d_model=32, ffn_dim=24, num_layers=4, attention_heads=4, max_position_embeddings=64, **_IDS
    ),
    # Embeds in fewer numbers than its residual stream has, as OPT-350m does.
    "opt-narrow": lambda: transformers.OPTConfig(**_OPT, word_embed_proj_dim=16, do_layer_norm_before=False),
    "granite": lambda: transformers.GraniteConfig(**_GQA, residual_multiplier=0.7, logits_scaling=2.0),
    "olmo2": lambda: transformers.Olmo2Config(**_GQA),
    "stablelm": lambda: transformers.StableLmConfig(**_GQA),
    "cohere": lambda: transformers.CohereConfig(**_GQA),
}


def byte_level() -> Tokenizer:
    """A token a byte, and two special ones."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(["<s>", "<unk>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def byte_tokenizer() -> transformers.PreTrainedTokenizerFast:
    """A token a byte, and one special token."""
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=byte_level(),
        bos_token="<s>",
        eos_token="<s>",
        pad_token="<s>",
        unk_token="<unk>",
        name_or_path="bytes",
        add_bos_token=True,
    )


def hugging_face_model(name: str, *, dtype: torch.dtype = torch.float64, vocab_size: int | None = None) -> Any:
    """The same random weights at every call, large enough for the corruption to matter."""
    config = CONFIGS[name]()
    if vocab_size is not None:
        config.vocab_size = vocab_size
    if name == "mixtral":
        config._experts_implementation = "eager"  # the fast one has no float64
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="eager")
    # What a saved model's configuration says, and TransformerLens goes by.
    model.config.architectures = [type(model).__name__]
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.3)
    return model.eval()


def own(name: str, backend: str, dtype: torch.dtype = torch.float64, *, model: Any = None) -> Any:
    """A TransformerLens model of that architecture, or of a model of Hugging Face's, which the test may change."""
    model = hugging_face_model(name, dtype=dtype) if model is None else model
    return to_transformer_lens(Pretrained(name=name, model=model, tokenizer=byte_tokenizer()), backend=backend)


architecture = cache(own)
"""The same, one object for all calls, so leave it as it was."""


def home_made(tokenizer: Any = None, **settings: Any) -> Any:
    """A HookedTransformer of random weights, in a way that nothing of Hugging Face's is converted to."""
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    sizes: dict[str, Any] = {"n_layers": 3, "d_model": 16, "n_heads": 2, "d_head": 8, "d_vocab": 258, "n_ctx": 32}
    weights = {"seed": 0, "dtype": torch.float64, "init_weights": True, "initializer_range": 0.3}
    cfg = HookedTransformerConfig(**sizes | weights | settings)
    return HookedTransformer(cfg, tokenizer or byte_tokenizer()).eval()


def save(name: str, folder: Path) -> None:
    """Write Hugging Face's model of that architecture, in float32, with its tokenizer."""
    hugging_face_model(name, dtype=torch.float32).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
