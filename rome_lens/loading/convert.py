"""A Hugging Face model in memory becomes a TransformerLens model, of either class, without asking the hub."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rome_lens.errors import ModelError, one_line
from rome_lens.loading.hugging_face import Pretrained
from rome_lens.loading.options import HOOKED_TRANSFORMER, TRANSFORMER_BRIDGE, has_hooked_transformer
from rome_lens.loading.views import bytes_beside, without_sharing
from rome_lens.memory import free_bytes

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformer_lens import HookedTransformer  # pyright: ignore[reportAttributeAccessIssue]
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

# Free memory, in sizes of the model, in which whatever a converter makes has room.
_AMPLE = 1.5

# TransformerLens 3.9 reads the architecture off the path of a local folder where one of these words is in it.
_MISLEADING = ("llama", "gemma", "wav2vec2", "hubert")

# Largest difference between two implementations' logits, as a part of the largest logit. A wrong rotary base makes 6e-2
# in float32, rounding 1e-6.
_TOLERANCE = {"float64": 1e-5, "float32": 1e-4, "float16": 1e-2, "bfloat16": 6e-2}


def to_transformer_lens(pretrained: Pretrained, *, backend: str) -> HookedTransformer | TransformerBridge:
    """Build the TransformerLens model of the class that `backend` asks for.

    "auto" takes a HookedTransformer where the installed TransformerLens has that class, it fits into the free memory
    and it reproduces the model, and a TransformerBridge otherwise; the logger `rome_lens.loading.convert` says why, of
    memory at level WARNING, else at level INFO.

    Args:
        pretrained: the model; a bridge is built around it and changes it.
        backend: one of `BACKENDS`.

    Raises:
        ModelError: TransformerLens cannot host the model in that class.
    """
    if backend == TRANSFORMER_BRIDGE or not has_hooked_transformer():
        return to_bridge(pretrained)
    if backend != HOOKED_TRANSFORMER and (missing := _room_missing(pretrained)) is not None:
        logger.warning("%s; using a TransformerBridge", missing)
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
    """Make a HookedTransformer of the model's own weights, unprocessed, and check it against the model."""
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

    host: Any = transformer_lens
    model = pretrained.model
    with _as_folder(model) as folder:
        cfg = _configuration(model, folder, device=str(model.device))
        weights = _translated(cfg, model, folder)
    cfg.model_name = pretrained.name
    cfg.tokenizer_name = None  # it names the folder that is gone
    with warnings.catch_warnings():
        # Said to whoever chooses the class; here it is chosen because the user's TransformerLens has it.
        warnings.filterwarnings("ignore", message="HookedTransformer is deprecated", category=DeprecationWarning)
        hooked = host.HookedTransformer(cfg, pretrained.tokenizer, move_to_device=False)
    # Not load_and_process_state_dict: nothing is to be processed, yet it rounds float64 weights to float32 and walks
    # the whole model once per tensor, which for thirty layers takes seconds. The weights stay where they are: a copy of
    # them would take as much memory once more, and those of a mapped file would all be read.
    weights = hooked.fill_missing_keys(weights)
    own = hooked.state_dict()
    weights = {name: weight.to(own[name].dtype) for name, weight in weights.items() if name in own}
    hooked.load_state_dict(without_sharing(weights), strict=False, assign=True)
    # nn.Module's own `to`: the class's announces on stdout where it moves.
    torch.nn.Module.to(hooked, model.device)
    return hooked.eval()


@contextlib.contextmanager
def _as_folder(model: PreTrainedModel) -> Iterator[str]:
    """A folder with the model's configuration: TransformerLens reads one, or an official name, and never an object."""
    with tempfile.TemporaryDirectory(prefix="rl_", dir=_neutral_folder()) as folder:
        (Path(folder) / "config.json").write_text(json.dumps(_describe(model)), encoding="utf-8")
        yield folder


def _configuration(model: PreTrainedModel, folder: str, *, device: str) -> Any:
    """TransformerLens's configuration of a model, whose weights are on a device."""
    import transformer_lens

    host: Any = transformer_lens  # these names are in 3.x alone
    return host.loading.get_pretrained_model_config(
        folder, hf_cfg=_describe(model), device=device, fold_ln=False, dtype=model.dtype
    )


def _translated(cfg: Any, held: PreTrainedModel, folder: str) -> dict[str, Tensor]:
    """A model's weights under TransformerLens's names and shapes: views of its own wherever nothing is computed."""
    import transformer_lens

    host: Any = transformer_lens
    return host.loading.get_pretrained_state_dict(folder, cfg, held, dtype=cfg.dtype)


def _room_missing(pretrained: Pretrained) -> str | None:
    """Why a HookedTransformer does not fit into the memory that is free beside the model; None where it does.

    Most converters give views of the model's weights. Which do not is found out on a model of the same class that
    holds no numbers, and only where memory is short.
    """
    import torch

    model = pretrained.model
    held = sum(parameter.nbytes for parameter in model.parameters())
    free = free_bytes(model.device)
    if free > _AMPLE * held:
        return None
    with _as_folder(model) as folder:
        try:
            cfg = _configuration(model, folder, device="meta")
        except Exception:  # not a model for that class: whoever converts it says so
            return None
        try:
            with torch.device("meta"):
                empty: Any = type(model)(model.config).to(model.dtype)  # pyright: ignore[reportArgumentType]
            weights = _translated(cfg, empty, folder)
            needed = bytes_beside(weights, (*empty.parameters(), *empty.buffers()))
        except Exception:  # a converter that looks at its numbers: nobody knows what it makes
            needed = held
    if needed < free:
        return None
    return (
        f"as a HookedTransformer {pretrained.name!r} takes {needed / 1e9:.1f} GB beside what was read, and "
        f"{free / 1e9:.1f} GB are free"
    )


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
