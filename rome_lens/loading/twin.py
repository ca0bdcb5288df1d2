"""A small model of the same class and settings as a large one, to compare implementations on texts that it makes cheap.

A window of 4096 positions is too long to be looked beyond with the weights of a large model. In its twin the windows
are a few positions wide, and so are the lengths from which rotary rules change; all kinds of layers are there, each
once; the widths are small and the weights random. What the twin does not show (these weights, their number of layers
and heads) the large model shows on a short text.
"""

import copy
from typing import Any

import torch
from transformers import PreTrainedModel

from rome_lens.loading.agreement import CONTEXT_NAMES, context, windows

# Positions of a twin's windows, of the texts that it takes, and from which its rotary rule changes.
_WINDOW, _CONTEXT, _ORIGINAL = 8, 64, 16
_VOCABULARY, _INNER = 64, 64
# Names of the width of an MLP's hidden layer, of the whole one and of an expert's.
_INNER_NAMES = ("intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size", "moe_intermediate_size")


def twin_of(model: PreTrainedModel) -> PreTrainedModel:
    """The twin of a model, in float32 on the CPU, in eval mode with eager attention. Draws no global random numbers.

    Raises:
        Exception: no twin can be made; whatever the class raised.
    """
    kind: Any = type(model)
    config = type(model.config).from_dict(_settings(model.config))
    if hasattr(model.config, "_experts_implementation"):
        config._experts_implementation = "eager"
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        twin = kind._from_config(config, attn_implementation="eager", dtype=torch.float32)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in twin.parameters():
            if parameter.ndim > 1:
                spread = torch.randn(parameter.shape, generator=generator)
                # Twice as large as keeps the size of what passes: attention has to look somewhere.
                parameter.copy_(spread * 2 * parameter.shape[-1] ** -0.5)
    twin.name_or_path = model.name_or_path
    return twin.eval()


def _settings(config: Any) -> dict[str, Any]:
    """The configuration of the twin, as a dictionary."""
    settings = copy.deepcopy(config.to_dict())
    settings.pop("quantization_config", None)

    def put(name: str, value: Any) -> None:
        settings[config.attribute_map.get(name, name)] = value

    _choose_layers(config, settings, put)
    heads = config.num_attention_heads
    keys = getattr(config, "num_key_value_heads", None) or heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    n_heads, n_keys = (2, 2) if keys == heads else (2, 1) if keys == 1 else (4, 2)
    # The width of a head stays: rotary rules have numbers for each of its places.
    put("num_attention_heads", n_heads)
    if hasattr(config, "num_key_value_heads"):
        put("num_key_value_heads", n_keys)
    put("hidden_size", n_heads * head_dim)
    put("vocab_size", _VOCABULARY)
    for name in _INNER_NAMES:
        if isinstance(settings.get(name), int):
            settings[name] = _INNER
    settings |= {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": None}
    original = next((length for name, length in windows(settings) if name.startswith("original")), None)
    _shorten(settings, longest=context(settings) or 2**62, original=original)
    return settings


def _choose_layers(config: Any, settings: dict[str, Any], put: Any) -> None:
    """One layer of each kind, two at least, as the settings that have an entry a layer tell them apart."""
    n_layers = config.num_hidden_layers
    by_layer = {
        name: value for name, value in settings.items() if isinstance(value, list) and len(value) == n_layers > 1
    }
    kinds = [repr([value[layer] for value in by_layer.values()]) for layer in range(n_layers)]
    chosen = sorted({kind: layer for layer, kind in reversed(list(enumerate(kinds)))}.values())
    if len(chosen) < 2:
        chosen = list(range(min(2, n_layers)))
    for name, value in by_layer.items():
        settings[name] = [value[layer] for layer in chosen]
    if "attention_types" in settings:  # GPT-Neo counts its layers by what it repeats
        settings["attention_types"] = [[[config.attention_layers[layer] for layer in chosen], 1]]
    put("num_hidden_layers", len(chosen))


def _shorten(settings: dict[str, Any], *, longest: int, original: int | None) -> None:
    """Windows, and the lengths that rotary rules go by, so short that a few dozen tokens are longer.

    A window that is as long as the longest text stays so: it bounds nothing.
    """
    for name, value in settings.items():
        if isinstance(value, dict):
            _shorten(value, longest=longest, original=original)
        elif isinstance(value, int) and not isinstance(value, bool):
            if name == "original_max_position_embeddings":
                settings[name] = _ORIGINAL
            elif name in CONTEXT_NAMES:
                settings[name] = max(_CONTEXT, value * _ORIGINAL // original) if original else _CONTEXT
            elif value < longest and any(windows({name: value})):
                settings[name] = _WINDOW
