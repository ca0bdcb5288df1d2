"""HookedTransformer (TransformerLens 3.x)."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rome_lens.backends.base import Backend
from rome_lens.backends.replay import BlockReplay, First, KeysValues, ReplayError, Resid, StandInCache
from rome_lens.errors import ModelError

# How TransformerLens rearranges each weight right before `F.linear`, on every call. A parameter whose storage already
# lies that way makes the rearrangement a view instead of a copy. Permutations give the storage's order of dimensions.
_STORAGE_ORDER = {
    **dict.fromkeys(("W_in", "W_gate", "W_out", "W_U"), (1, 0)),
    **dict.fromkeys(("W_Q", "W_K", "W_V", "_W_K", "_W_V"), (0, 2, 1)),
    "W_O": (2, 0, 1),
}


class HookedTransformerBackend(Backend):
    """A HookedTransformer, processed weights or not."""

    name = "hooked-transformer"

    def value_hook(self, layer: int) -> str:
        if getattr(self.model.cfg, "use_normalization_before_and_after", False):
            raise ModelError(
                f"{self.model_name} norms what leaves its MLPs, and HookedTransformer has no hook point in between; "
                "rank-one editing needs one: load the model as a TransformerBridge"
            )
        return f"blocks.{layer}.hook_mlp_out"

    def _projection(self, block: Any) -> tuple[Any, Any, bool]:
        mlp = getattr(block, "mlp", None)
        return getattr(mlp, "W_out", None), getattr(mlp, "b_out", None), False

    def _forward(self, tokens: Tensor, *, stop_at_layer: int | None = None) -> Tensor:
        # With a left-padding tokenizer TransformerLens would mask every token that looks like padding.
        side = None if self.tokenizer is None else "right"
        return self.model(tokens, padding_side=side, stop_at_layer=stop_at_layer)

    def recording(self) -> AbstractContextManager["HookedReplay"]:
        return nullcontext(HookedReplay(self))


class HookedReplay(BlockReplay):
    """A HookedTransformer's blocks. They take their keys and values as a cache entry and need no other argument."""

    def __init__(self, backend: HookedTransformerBackend) -> None:
        self._model = backend.model
        cfg = backend.model.cfg
        self._obstacle = None
        if cfg.positional_embedding_type == "shortformer":
            self._obstacle = "shortformer position embeddings enter every block"

    def run(self, layer: int, resid_pre: Resid, *, first: First, past: KeysValues | None) -> tuple[Resid, KeysValues]:
        if self._obstacle is not None:
            raise ReplayError(self._obstacle)
        block, home = self._model.blocks[layer], resid_pre.device
        # The layers of a model may be on several devices.
        resid_pre = resid_pre.to(_device_of(block))
        entry = _CacheEntry(past, resid_pre, block.attn)
        mask = None
        if isinstance(first, Tensor):
            # Rows are left-padded; positions and what attention may see follow from where each row's ones begin.
            columns = torch.arange(-entry.past_keys.shape[1], resid_pre.shape[1], device=first.device)
            # Padding behind the context's last position stays at that: rotary tables go no further.
            behind = columns + first[:, None] >= self._model.cfg.n_ctx
            mask = ((columns >= -first[:, None]) & ~behind).int().to(resid_pre.device)
        resid_post = block(resid_pre, past_kv_cache_entry=entry, attention_mask=mask)
        if entry.new is None:
            raise ReplayError("the block did not hand over its keys and values")
        return resid_post.to(home), entry.new

    def unembed(self, resid_post: Resid) -> Float[Tensor, "row pos d_vocab"]:
        there = resid_post.to(_device_of(self._model.unembed))
        return self._model(there, start_at_layer=self._model.cfg.n_layers).to(resid_post.device)

    def layer_ready(self, layer: int) -> AbstractContextManager[None]:
        return _stored_for_linear(self._model.blocks[layer])

    def unembed_ready(self) -> AbstractContextManager[None]:
        return _stored_for_linear(self._model.unembed)


def _device_of(module: nn.Module) -> torch.device:
    return next(module.parameters()).device


class _CacheEntry(StandInCache):
    """Has what attention asks of a TransformerLensKeyValueCacheEntry."""

    append = StandInCache.join

    def __init__(self, past: KeysValues | None, resid_pre: Tensor, attention: Any) -> None:
        super().__init__(past, pos_dim=1)
        # Attention asks for the number of past positions before it appends.
        nothing = resid_pre.new_empty(resid_pre.shape[0], 0, 1, attention.cfg.d_head)
        self.past_keys = nothing if past is None else past.keys


@contextmanager
def _stored_for_linear(module: nn.Module) -> Iterator[None]:
    """Lay the module's weights out in memory as TransformerLens is about to ask for them, and put them back after.

    Values, shapes and Parameter objects stay what they are; the very tensors come back at the end.
    """
    swapped: list[tuple[nn.Parameter, Tensor]] = []
    try:
        for name, parameter in module.named_parameters():
            order = _STORAGE_ORDER.get(name.rpartition(".")[2])
            if order is None or parameter.ndim != len(order) or not parameter.is_floating_point():
                continue
            inverse = [order.index(i) for i in range(len(order))]
            swapped.append((parameter, parameter.data))
            parameter.data = parameter.data.permute(order).contiguous().permute(inverse)
        yield
    finally:
        for parameter, original in swapped:
            parameter.data = original
