"""Whether a model of TransformerLens computes what the Hugging Face model computes that it was made of.

Logits are compared at all positions of a text that is longer than the attention windows of the model, so that a mask,
a scale or a rotary rule that differs shows. The text is short otherwise: loading has to be quick.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from rome_lens.backends import as_backend
from rome_lens.errors import ModelError, one_line

TOLERANCE = {"float64": 1e-5, "float32": 1e-4, "float16": 1e-2, "bfloat16": 6e-2}
"""Largest difference between two implementations' logits, as a part of the largest logit, by dtype.

A wrong rotary base makes 6e-2 in float32, rounding 1e-6.
"""

# Tokens of a text that is as short as can be, and of one that costs next to nothing.
_SHORT, _CHEAP = 24, 128
# Multiplications and additions of a forward that takes no noticeable time, and at most: a second or two of two cores,
# as long as reading the weights of a model for which that is little. A GPU does a hundred times as much in that time.
_UNNOTICED, _MOST, _MOST_ON_GPU = 1e9, 1e11, 1e13
# Bytes of attention patterns and of logits at most, beside the weights.
_MOST_BYTES = 2**28
# Settings that bound what a position sees, and those that have such a word in their names and mean something else.
_WINDOW_WORDS, _NO_WINDOWS = ("window", "attention_chunk"), ("max_window_layers",)
CONTEXT_NAMES = ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length", "n_ctx", "seq_len")
"""Names of the settings that say how long a text may be."""


@dataclass(frozen=True)
class Reference:
    """What a Hugging Face model says about a text.

    Attributes:
        name: what the model is called.
        kind: its class.
        tokens: [1, pos] token ids.
        logits: [1, pos, d_vocab].
        whole: the text is longer than every window of the model; where not, that would have been too dear.
        small: it is the twin of the model that is meant.
    """

    name: str
    kind: str
    tokens: Tensor
    logits: Tensor
    whole: bool
    small: bool = False

    @property
    def exact(self) -> bool:
        """Whether rounding is too small to hide a difference in a mask, a scale or a rotary rule."""
        return self.logits.dtype.itemsize > 2

    @classmethod
    def of(cls, model: PreTrainedModel, *, name: str, dear: bool = False, small: bool = False) -> "Reference":
        """Ask a model, with eager attention, whose numbers TransformerLens's classes promise.

        Args:
            model: a Hugging Face model without wrappers in it. It has eager attention from then on.
            name: what to call it.
            dear: take a text that is longer than every window, whatever that costs.
            small: it is a twin.

        Raises:
            ModelError: it cannot be run, or its logits are no numbers.
        """
        length, whole = _length(model, dear=dear)
        vocabulary = _setting(model, "vocab_size", 2)
        # Spread over the vocabulary by the golden ratio, and the same every time; no random numbers are drawn.
        stride = int(vocabulary * 0.618) | 1
        tokens = (torch.arange(1, length + 1, device=model.device) * stride)[None] % vocabulary
        kind = type(model).__name__
        try:
            if model.config._attn_implementation != "eager":
                model.set_attn_implementation("eager")
            with torch.no_grad():
                logits: Tensor = model(tokens, use_cache=False).logits
        except Exception as error:  # classes of two hundred families, each failing in its own way
            raise ModelError(f"transformers cannot run {name!r}, a {kind} ({one_line(error)})") from error
        if not logits.isfinite().all():
            advice = "load it in float32, or check its weights" if logits.dtype.itemsize < 4 else "check its weights"
            dtype = str(logits.dtype).removeprefix("torch.")
            raise ModelError(f"{name!r}, a {kind}, gives logits that are not finite in {dtype}; {advice}")
        return cls(name, kind, tokens, logits, whole, small)

    def difference(self, model: Any) -> str | None:
        """How a TransformerLens model's logits differ; None where that is rounding.

        Args:
            model: a HookedTransformer or a TransformerBridge.

        Raises:
            ModelError: it is no decoder.
        """
        backend = as_backend(model)
        n_tokens = min(self.tokens.shape[1], backend.n_ctx or self.tokens.shape[1])
        with torch.no_grad():
            found = backend.run(self.tokens[:, :n_tokens])
        expected = self.logits[:, :n_tokens]
        found = found[..., : expected.shape[-1]]
        difference = ((found - expected).abs().max() / expected.abs().max()).item()
        tolerance = TOLERANCE[str(expected.dtype).removeprefix("torch.")]
        if difference <= tolerance:  # a NaN is no agreement
            return None
        where = " on a small model of the same settings, with windows of a few tokens" if self.small else ""
        return f"relative difference {difference:.1e}{where}, at most {tolerance:.0e} is rounding"


def windows(settings: Any) -> Iterator[tuple[str, int]]:
    """Names and values of a configuration's settings that make far positions be seen otherwise than near ones.

    Args:
        settings: a configuration as nested dictionaries.
    """
    for name, value in settings.items() if isinstance(settings, dict) else ():
        if isinstance(value, dict):
            yield from windows(value)
        elif isinstance(value, int) and not isinstance(value, bool) and value > 0:
            bounds = any(word in name for word in _WINDOW_WORDS) and name not in _NO_WINDOWS
            # Where a text is longer, longrope takes other factors.
            if bounds or name == "original_max_position_embeddings":
                yield name, value


def context(settings: dict[str, Any]) -> int | None:
    """The longest text of a configuration; None where it does not say so."""
    found = [settings[name] for name in CONTEXT_NAMES if isinstance(settings.get(name), int) and settings[name] > 0]
    return min(found, default=None)


def _length(model: PreTrainedModel, *, dear: bool) -> tuple[int, bool]:
    """How many tokens to compare, and whether they are more than every window."""
    settings = model.config.get_text_config().to_dict()
    most = context(settings) or 2**62
    # A window that is as long as the longest text bounds nothing.
    widest = max((width for _, width in windows(settings) if width < most), default=0)
    needed = min(most, max(_SHORT, widest + max(8, widest // 4)))
    # Not beyond what the windows ask for, but where more costs nothing: a rotary rule shows the better.
    # RoBERTa's positions begin behind those of its padding: not all that its configuration names can be used.
    cheap = min(most * 3 // 4, _CHEAP)
    if cheap > needed and _operations(model, cheap) <= _UNNOTICED:
        return cheap, True
    limit = _MOST_ON_GPU if model.device.type == "cuda" else _MOST
    affordable = _operations(model, needed) <= limit and _bytes(model, needed) <= _MOST_BYTES
    if dear or affordable or needed <= _SHORT:
        return needed, True
    return min(most, _SHORT), False


def _operations(model: PreTrainedModel, length: int) -> float:
    """Multiplications and additions of a forward, roughly; those of experts that are not asked count, too."""
    pattern = 4 * length**2 * _setting(model, "num_hidden_layers", 1) * _setting(model, "hidden_size", 1)
    return 2.0 * length * sum(parameter.numel() for parameter in model.parameters()) + pattern


def _bytes(model: PreTrainedModel, length: int) -> float:
    """Memory of a forward's largest moment, roughly: a layer's attention patterns, or the logits."""
    pattern, logits = 3 * _setting(model, "num_attention_heads", 1) * length, _setting(model, "vocab_size", 1)
    return model.dtype.itemsize * length * max(pattern, logits)


def _setting(model: PreTrainedModel, name: str, default: int) -> int:
    """A whole number of a configuration; the largest where each layer has its own, the default where there is none."""
    config: Any = model.config.get_text_config()
    # Asked as a dictionary: where layers have their own, the attribute raises.
    value = config.to_dict().get(config.attribute_map.get(name, name), default)
    values = [v for v in (value if isinstance(value, list) else [value]) if isinstance(v, int)]
    return max(values, default=default)
