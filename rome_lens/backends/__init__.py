"""The one place that knows HookedTransformer from TransformerBridge."""

from typing import Any

from rome_lens.backends.base import HEADS as HEADS
from rome_lens.backends.base import NEURONS as NEURONS
from rome_lens.backends.base import STREAMS as STREAMS
from rome_lens.backends.base import Backend as Backend
from rome_lens.backends.hooked_transformer import HookedTransformerBackend
from rome_lens.backends.prefer_blocks import called_alone as called_alone
from rome_lens.backends.prefer_blocks import prefer_blocks as prefer_blocks
from rome_lens.backends.products import fast_products as fast_products
from rome_lens.backends.replay import BlockReplay as BlockReplay
from rome_lens.backends.replay import First as First
from rome_lens.backends.replay import KeysValues as KeysValues
from rome_lens.backends.replay import ReplayError as ReplayError
from rome_lens.backends.replay import check_replayed as check_replayed
from rome_lens.backends.transformer_bridge import TransformerBridgeBackend
from rome_lens.backends.w_out import Fingerprint as Fingerprint
from rome_lens.errors import ModelError


def as_backend(model: Any) -> Backend:
    """Wrap a HookedTransformer or a TransformerBridge that a user holds.

    Raises:
        ModelError: the object is neither, or it is a model that predicts no next token.
    """
    # TransformerLens 4 raises on the mere mention of HookedTransformer, so attributes tell the classes apart.
    if hasattr(type(model), "boot_transformers"):
        adapter = getattr(model, "adapter", None)
        config = getattr(getattr(model, "original_model", None), "config", None)
        decodes = getattr(adapter, "supports_causal_loss", True) and not getattr(config, "is_encoder_decoder", False)
        if not (decodes and hasattr(model, "blocks") and hasattr(model, "unembed")):
            raise _no_decoder(model)
        return TransformerBridgeBackend(model)
    names = {cls.__name__ for cls in type(model).__mro__}
    if names & {"HookedEncoder", "HookedEncoderDecoder", "HookedAudioEncoder"}:
        raise _no_decoder(model)
    if "HookedTransformer" in names:
        if getattr(model.cfg, "attention_dir", "causal") != "causal":
            raise _no_decoder(model)
        return HookedTransformerBackend(model)
    raise ModelError(
        f"expected a HookedTransformer or a TransformerBridge, got {type(model).__name__}; "
        "rome_lens.load_model makes one, and so does TransformerBridge.boot_transformers(name, hf_model=model)"
    )


def _no_decoder(model: Any) -> ModelError:
    name = getattr(getattr(model, "cfg", None), "model_name", None) or type(model).__name__
    return ModelError(
        f"{name} does not predict the next token (an encoder, an encoder-decoder, or no language model); "
        "causal tracing needs a decoder such as GPT-2 or Llama"
    )
