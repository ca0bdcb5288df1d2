"""A Hugging Face model in memory becomes a TransformerLens model, of either class, without asking the hub."""

from __future__ import annotations

import json
import logging
import os
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rome_lens.errors import ModelError
from rome_lens.loading.hugging_face import Pretrained
from rome_lens.loading.options import HOOKED_TRANSFORMER, TRANSFORMER_BRIDGE, has_hooked_transformer
from rome_lens.loading.progress import one_line

if TYPE_CHECKING:
    import torch
    from transformer_lens import HookedTransformer  # pyright: ignore[reportAttributeAccessIssue]
    from transformer_lens.model_bridge import TransformerBridge

logger = logging.getLogger(__name__)

# TransformerLens 3.9 reads the architecture off the path of a local folder where one of these words is in it.
_MISLEADING = ("llama", "gemma", "wav2vec2", "hubert")

# Largest difference between two implementations' logits, as a part of the largest logit. A wrong rotary base makes 6e-2
# in float32, rounding 1e-6.
_TOLERANCE = {"float64": 1e-5, "float32": 1e-4, "float16": 1e-2, "bfloat16": 6e-2}


def to_transformer_lens(pretrained: Pretrained, *, backend: str) -> HookedTransformer | TransformerBridge:
    """Build the TransformerLens model of the class that `backend` asks for.

    "auto" takes a HookedTransformer where the installed TransformerLens has that class and it reproduces the model, and
    a TransformerBridge otherwise; the logger `rome_lens.loading.convert` says why, at level INFO.

    Args:
        pretrained: the model; a bridge is built around it and changes it.
        backend: one of `BACKENDS`.

    Raises:
        ModelError: TransformerLens cannot host the model in that class.
    """
    if backend == TRANSFORMER_BRIDGE or not has_hooked_transformer():
        return to_bridge(pretrained)
    try:
        return to_hooked_transformer(pretrained)
    except ModelError as error:
        if backend == HOOKED_TRANSFORMER:
            raise
        logger.info("%s; using a TransformerBridge", error)
        return to_bridge(pretrained)


def to_bridge(pretrained: Pretrained) -> TransformerBridge:
    """Wrap the model in a TransformerBridge."""
    from transformer_lens.model_bridge import TransformerBridge

    model = pretrained.model
    try:
        bridge = TransformerBridge.boot_transformers(
            # Only a label here, but one that TransformerLens looks up: a folder called "gptj" would pass for GPT-J.
            model.name_or_path or pretrained.name,
            hf_model=model,
            tokenizer=pretrained.tokenizer,
            device=str(model.device),
            dtype=model.dtype,
        )
    except Exception as error:  # adapters of eighty architectures, each failing in its own way
        raise ModelError(
            f"TransformerLens cannot host {pretrained.name!r}, a {type(model).__name__}, as a TransformerBridge "
            f"({one_line(error)})"
        ) from error
    bridge.cfg.model_name = pretrained.name
    return bridge.eval()


def to_hooked_transformer(pretrained: Pretrained) -> HookedTransformer:
    """Copy the weights, unprocessed, into a HookedTransformer, and check it against the model that they come from."""
    kind = type(pretrained.model).__name__
    try:
        hooked = _convert(pretrained)
        difference = _logit_difference(hooked, pretrained.model)
    except ModelError:
        raise
    except Exception as error:  # one converter per architecture, each failing in its own way
        raise ModelError(
            f"TransformerLens cannot host {pretrained.name!r}, a {kind}, as a HookedTransformer ({one_line(error)}); "
            f"use the backend {TRANSFORMER_BRIDGE!r}"
        ) from error
    tolerance = _TOLERANCE[str(pretrained.model.dtype).removeprefix("torch.")]
    if not difference <= tolerance:  # a NaN is no agreement
        raise ModelError(
            f"as a HookedTransformer {pretrained.name!r} computes other logits than the {kind} that it was read from "
            f"(relative difference {difference:.1e}, at most {tolerance:.0e} is rounding); "
            f"use the backend {TRANSFORMER_BRIDGE!r}"
        )
    return hooked


def _convert(pretrained: Pretrained) -> HookedTransformer:
    import torch
    import transformer_lens

    host: Any = transformer_lens  # these names are in 3.x alone
    model = pretrained.model
    described = _describe(model)
    # TransformerLens's configuration is made from a folder or an official name, never from an object.
    with tempfile.TemporaryDirectory(prefix="rl_", dir=_neutral_folder()) as folder:
        (Path(folder) / "config.json").write_text(json.dumps(described), encoding="utf-8")
        cfg = host.loading.get_pretrained_model_config(
            folder, hf_cfg=described, device=str(model.device), fold_ln=False, dtype=model.dtype
        )
        weights = host.loading.get_pretrained_state_dict(folder, cfg, model, dtype=model.dtype)
    cfg.model_name = pretrained.name
    cfg.tokenizer_name = None  # it names the folder that is gone
    with warnings.catch_warnings():
        # Said to whoever chooses the class; here it is chosen because the user's TransformerLens has it.
        warnings.filterwarnings("ignore", message="HookedTransformer is deprecated", category=DeprecationWarning)
        hooked = host.HookedTransformer(cfg, pretrained.tokenizer, move_to_device=False)
    # nn.Module's own `to`: the class's announces on stdout where it moves.
    torch.nn.Module.to(hooked, model.device)
    # Not load_and_process_state_dict: nothing is to be processed, yet it rounds float64 weights to float32 and walks
    # the whole model once per tensor, which for thirty layers takes seconds.
    hooked.load_state_dict(hooked.fill_missing_keys(weights), strict=False)
    return hooked.eval()


def _describe(model: Any) -> dict[str, Any]:
    """The model's configuration as TransformerLens 3.9 expects to read it."""
    described = model.config.to_dict()
    # Weights from a GGUF file are plain tensors by now, and their configuration names no class.
    described.pop("quantization_config", None)
    described["architectures"] = [type(model).__name__]
    # The name that transformers 5 dropped for GPT-2 and GPT-J.
    if "n_positions" in described:
        described.setdefault("n_ctx", described["n_positions"])
    return described


def _neutral_folder() -> str:
    """A folder for temporary files whose path does not mislead TransformerLens about the architecture."""
    folders = [tempfile.gettempdir(), "/tmp", "/var/tmp", "/dev/shm", str(Path.cwd())]
    for folder in folders:
        path = Path(folder).resolve()
        if path.is_dir() and os.access(path, os.W_OK) and not any(word in str(path).lower() for word in _MISLEADING):
            return str(path)
    raise ModelError(
        f"TransformerLens cannot read a model below {folders[0]!r}, whose path names an architecture; "
        f"set TMPDIR to a folder without {' and '.join(_MISLEADING[:2])} in its path, "
        f"or use the backend {TRANSFORMER_BRIDGE!r}"
    )


def _logit_difference(hooked: Any, model: Any) -> float:
    """The largest difference of two models' logits on one short row of tokens, as a part of the largest logit."""
    import torch

    vocabulary = model.config.get_text_config().vocab_size
    length = min(12, hooked.cfg.n_ctx)
    # Spread over the vocabulary and the same every time; no random numbers are drawn.
    tokens = (torch.arange(1, length + 1, device=model.device) * (vocabulary // 13 + 1))[None] % vocabulary
    with torch.no_grad():
        expected: torch.Tensor = model(tokens, use_cache=False).logits
        found: torch.Tensor = hooked(tokens, prepend_bos=False)
    found = found[..., : expected.shape[-1]]
    return ((found - expected).abs().max() / expected.abs().max()).item()
