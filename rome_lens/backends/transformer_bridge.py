"""TransformerBridge (TransformerLens 3.x and 4.x): Hugging Face's own modules under TransformerLens's hook points."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from rome_lens.backends.base import Backend
from rome_lens.backends.replay import BlockReplay, First, KeysValues, ReplayError, Resid, StandInCache

# Arguments through which Hugging Face's models hand a cache to their blocks.
_CACHE_NAMES = ("past_key_values", "past_key_value", "layer_past")
# Arguments that say nothing about the rows, or whose tensors have one row each and are never read by a decoder block.
_PLAIN_TYPES = (bool, int, float, str, type(None))


class TransformerBridgeBackend(Backend):
    """A TransformerBridge, in compatibility mode or not."""

    name = "transformer-bridge"

    def value_hook(self, layer: int) -> str:
        # hook_mlp_out lies behind whatever the block does to the MLP's output: Gemma's norm, Granite's multiplier.
        return f"blocks.{layer}.mlp.out.hook_out"

    def _projection(self, block: Any) -> tuple[Any, Any, bool]:
        linear = getattr(getattr(getattr(block, "mlp", None), "out", None), "original_component", None)
        return getattr(linear, "weight", None), getattr(linear, "bias", None), isinstance(linear, nn.Linear)

    def _forward(self, tokens: Tensor, *, stop_at_layer: int | None = None) -> Tensor:
        return self.model(tokens, stop_at_layer=stop_at_layer, use_cache=False)

    @contextmanager
    def recording(self) -> Iterator["BridgeReplay"]:
        replay = BridgeReplay(self)
        handles = [
            handle
            for layer, block in enumerate(self.model.blocks)
            for handle in (
                block.register_forward_pre_hook(partial(replay.note_call, layer), with_kwargs=True),
                block.register_forward_hook(partial(replay.note_output, layer)),
            )
        ]
        try:
            yield replay
        finally:
            for handle in handles:
                handle.remove()


class BridgeReplay(BlockReplay):
    """A bridge's blocks, called with the arguments that Hugging Face's forward handed to each of them.

    What depends on the position (masks, rotary tables, position ids) is cut to the positions of the call; what has a
    row per batch entry is one row repeated, since nothing is padded. An argument of any other kind is an obstacle.
    """

    def __init__(self, backend: TransformerBridgeBackend) -> None:
        self._backend = backend
        self._model = backend.model
        self._calls: dict[int, dict[str, Any]] = {}
        self._tuples: dict[int, bool] = {}
        self._n_tokens = 0
        self._n_rows = 0

    def note_call(self, layer: int, block: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """The hook in front of a block."""
        _, *names = inspect.signature(block.original_component.forward).parameters
        call = dict(zip(["hidden_states", *names], args, strict=False)) | kwargs
        self._n_rows, self._n_tokens = call.pop("hidden_states").shape[:2]
        self._calls[layer] = call

    def note_output(self, layer: int, block: Any, args: tuple[Any, ...], output: Any) -> None:
        """The hook behind a block."""
        self._tuples[layer] = isinstance(output, tuple)

    def run(self, layer: int, resid_pre: Resid, *, first: First, past: KeysValues | None) -> tuple[Resid, KeysValues]:
        rows, n_pos = resid_pre.shape[:2]
        cache = _LayerCache(past, pos_dim=-2)
        call = self._calls[layer]
        caches = dict.fromkeys((name for name in _CACHE_NAMES if name in call), cache)
        call = {name: value for name, value in call.items() if name not in caches}
        if isinstance(first, Tensor):
            places = _Places(first, n_pos=n_pos, n_past=cache.get_seq_length(), n_tokens=self._n_tokens)
            fit = partial(self._gather, places=places)
        else:
            places = None
            fit = partial(self._cut, rows=rows, first=first, n_pos=n_pos, n_past=first if past else 0)
        arguments = {name: _fitted(name, value, fit) for name, value in call.items()}
        if places is not None and "attention_mask" in call and call["attention_mask"] is None:
            arguments["attention_mask"] = places.causal_mask(resid_pre.dtype)
        if not caches:
            raise ReplayError("its blocks take no cache of keys and values")
        arguments |= caches
        if "use_cache" in arguments:
            arguments["use_cache"] = True
        output = self._model.blocks[layer](resid_pre, **arguments)
        if cache.new is None:
            raise ReplayError("a block did not hand over its keys and values")
        resid_post = output[0] if isinstance(output, tuple) else output
        # The layers of a model may be on several devices, and what enters them is moved there.
        return resid_post.to(resid_pre.device), cache.new

    def _cut(self, name: str, value: Tensor, *, rows: int, first: int, n_pos: int, n_past: int) -> Tensor | None:
        """A tensor of the recorded call, for other rows and fewer positions; None where it is of no known kind."""
        here, n = slice(first, first + n_pos), self._n_tokens
        if name == "position_embeddings" and value.shape[-2] == n:
            return value[..., here, :]
        if name == "position_ids" and value.shape[-1] == n:
            return value[:1, here].expand(rows if value.shape[0] == self._n_rows else 1, -1)
        if name == "cache_position" and value.shape == (n,):
            return value[here]
        if name == "attention_mask" and value.ndim == 4 and value.shape[-2:] == (n, n):
            # XGLM asks for a mask a row; the others take either.
            return value[:1, :, here, first - n_past : first + n_pos].expand(rows, -1, -1, -1)
        if name == "alibi" and value.ndim == 3 and value.shape[-1] == n and value.shape[0] % self._n_rows == 0:
            heads = value.shape[0] // self._n_rows
            return value[:heads, :, first - n_past : first + n_pos].repeat(rows, 1, 1)
        return None

    def _gather(self, name: str, value: Tensor, *, places: "_Places") -> Tensor | None:
        """The same for rows that begin at positions of their own."""
        n = self._n_tokens
        if name == "position_embeddings" and value.ndim == 3 and value.shape[-2] == n:
            return value[0][places.here]
        if name == "position_ids" and value.shape[-1] == n:
            return value[0][places.here]
        if name == "cache_position" and value.shape == (n,):
            return places.columns
        if name == "attention_mask" and value.ndim == 4 and value.shape[-2:] == (n, n):
            mask = value[0][:, places.here[:, :, None], places.seen[:, None, :]].transpose(0, 1)
            hidden = False if mask.dtype == torch.bool else torch.finfo(mask.dtype).min
            return mask.masked_fill(places.outside[:, None, None, :], hidden)
        if name == "alibi" and value.ndim == 3 and value.shape[-1] == n and value.shape[0] % self._n_rows == 0:
            heads = value.shape[0] // self._n_rows
            return value[:heads, 0, places.seen].transpose(0, 1).flatten(0, 1)[:, None]
        return None

    def unembed(self, resid_post: Resid) -> Float[Tensor, "row pos d_vocab"]:
        # Hugging Face's forward does what follows the last block, whatever that is; the blocks stand aside.
        tokens = torch.zeros(resid_post.shape[:2], dtype=torch.long, device=resid_post.device)
        with self._blocks_replaced_by(resid_post):
            return self._model(tokens, use_cache=False).to(resid_post.device)

    @contextmanager
    def _blocks_replaced_by(self, resid_post: Tensor) -> Iterator[None]:
        blocks = list(self._model.blocks)
        # A user may have given a block a forward of its own.
        kept = [block.__dict__.get("forward") for block in blocks]
        try:
            for layer, block in enumerate(blocks):
                left = (resid_post,) if self._tuples[layer] else resid_post
                # Plain assignment would be redirected into the Hugging Face module that the block wraps.
                object.__setattr__(block, "forward", lambda *args, left=left, **kwargs: left)
            yield
        finally:
            for block, own in zip(blocks, kept, strict=True):
                block.__dict__.pop("forward", None)
                if own is not None:
                    object.__setattr__(block, "forward", own)


def _fitted(name: str, value: Any, fit: Callable[[str, Tensor], Tensor | None]) -> Any:
    """An argument of the recorded call, whose tensors `fit` makes right for another one."""
    if isinstance(value, tuple | list):
        return type(value)(_fitted(name, each, fit) for each in value)
    if isinstance(value, _PLAIN_TYPES):
        return value
    if not isinstance(value, Tensor):
        raise ReplayError(f"its blocks take an argument {name!r} of type {type(value).__name__}")
    fitted = fit(name, value)
    if fitted is None:
        raise ReplayError(f"its blocks take an argument {name!r} of shape {tuple(value.shape)}")
    return fitted


class _Places:
    """Where the positions of rows lie that begin at positions of their own, in a text of `n_tokens`.

    Attributes:
        here: [row, pos] the positions of the call, those after the text's last moved onto it.
        seen: [row, past + pos] the positions that attention sees, those outside of the text moved into it.
        outside: [row, past + pos] which of these are outside: padding in front, or after the last.
        columns: [pos] the columns of the call.
    """

    def __init__(self, first: Int[Tensor, " row"], *, n_pos: int, n_past: int, n_tokens: int) -> None:
        seen = first[:, None] + torch.arange(-n_past, n_pos, device=first.device)
        self.outside = (seen < 0) | (seen >= n_tokens)
        self.seen = seen.clamp(0, n_tokens - 1)
        self.here = self.seen[:, n_past:]
        self.columns = torch.arange(n_past, n_past + n_pos, device=first.device)

    def causal_mask(self, dtype: torch.dtype) -> Float[Tensor, "row 1 pos seen"]:
        """What a model leaves to its attention kernel that needs no mask for a whole text: it is causal by itself."""
        later = torch.arange(self.seen.shape[1], device=self.seen.device) > self.columns[:, None]
        hidden = (self.outside[:, None] | later)[:, None]
        return torch.zeros_like(hidden, dtype=dtype).masked_fill(hidden, torch.finfo(dtype).min)


class _LayerCache(StandInCache):
    """Has what a block asks of a Hugging Face cache."""

    is_compileable = False
    update = StandInCache.join

    def get_seq_length(self, layer_idx: int | None = None) -> int:
        return 0 if self.past is None else self.past.keys.shape[-2]
