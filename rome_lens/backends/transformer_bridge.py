"""TransformerBridge (TransformerLens 3.x and 4.x): Hugging Face's own modules under TransformerLens's hook points."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from rome_lens.backends.base import Backend
from rome_lens.backends.replay import BlockReplay, KeysValues, ReplayError
from rome_lens.backends.w_out import WOut, as_w_out

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

    def w_out(self, layer: int) -> WOut:
        out = getattr(getattr(self.model.blocks[self.check_layer(layer)], "mlp", None), "out", None)
        linear = getattr(out, "original_component", None)
        return as_w_out(
            getattr(linear, "weight", None),
            getattr(linear, "bias", None),
            transposed=isinstance(linear, nn.Linear),
            d_model=self.d_model,
            name=self.model_name,
            layer=layer,
        )

    def _forward(self, tokens: Tensor, *, stop_at_layer: int | None = None) -> Tensor:
        return self.model(tokens, stop_at_layer=stop_at_layer, use_cache=False)

    @contextmanager
    def recording(self) -> Iterator["BridgeReplay"]:
        replay = BridgeReplay(self)
        handles = [
            handle
            for layer, block in enumerate(self.model.blocks)
            for handle in (
                block.register_forward_pre_hook(replay.note_call(layer), with_kwargs=True),
                block.register_forward_hook(replay.note_output(layer)),
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

    def note_call(self, layer: int) -> Callable[..., None]:
        def note(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            names = ["hidden_states", *_positional_names(module)]
            call = dict(zip(names, args, strict=False)) | kwargs
            hidden = call.pop("hidden_states")
            self._n_rows, self._n_tokens = hidden.shape[:2]
            self._calls[layer] = call

        return note

    def note_output(self, layer: int) -> Callable[..., None]:
        def note(module: Any, args: tuple[Any, ...], output: Any) -> None:
            self._tuples[layer] = isinstance(output, tuple)

        return note

    def run(
        self,
        layer: int,
        resid_pre: Float[Tensor, "row pos d_model"],
        *,
        first: int | Int[Tensor, " row"],
        past: KeysValues | None,
    ) -> tuple[Float[Tensor, "row pos d_model"], KeysValues]:
        rows, n_pos = resid_pre.shape[:2]
        cache = _LayerCache(past)
        call = {name: value for name, value in self._calls[layer].items() if name not in _CACHE_NAMES}
        if isinstance(first, Tensor):
            places = _Places.choose(first, n_pos=n_pos, n_past=cache.get_seq_length(), n_tokens=self._n_tokens)
            arguments = {name: self._gather(name, value, places) for name, value in call.items()}
            if "attention_mask" in call and call["attention_mask"] is None:
                arguments["attention_mask"] = places.causal_mask(resid_pre.dtype)
        else:
            arguments = {
                name: self._cut(name, value, rows=rows, first=first, n_pos=n_pos, n_past=first if past else 0)
                for name, value in call.items()
            }
        arguments.update({name: cache for name in _CACHE_NAMES if name in self._calls[layer]})
        if not any(name in self._calls[layer] for name in _CACHE_NAMES):
            raise ReplayError("its blocks take no cache of keys and values")
        if "use_cache" in arguments:
            arguments["use_cache"] = True
        output = self._model.blocks[layer](resid_pre, **arguments)
        if cache.new is None:
            raise ReplayError("a block did not hand over its keys and values")
        return (output[0] if isinstance(output, tuple) else output), cache.new

    def _cut(self, name: str, value: Any, *, rows: int, first: int, n_pos: int, n_past: int) -> Any:
        """An argument of the recorded call, for other rows and fewer positions."""
        if isinstance(value, tuple | list):
            return type(value)(self._cut(name, v, rows=rows, first=first, n_pos=n_pos, n_past=n_past) for v in value)
        if isinstance(value, _PLAIN_TYPES):
            return value
        if not isinstance(value, Tensor):
            raise ReplayError(f"its blocks take an argument {name!r} of type {type(value).__name__}")
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
        raise ReplayError(f"its blocks take an argument {name!r} of shape {tuple(value.shape)}")

    def _gather(self, name: str, value: Any, places: "_Places") -> Any:
        """An argument of the recorded call, for rows that begin at positions of their own."""
        if isinstance(value, tuple | list):
            return type(value)(self._gather(name, v, places) for v in value)
        if isinstance(value, _PLAIN_TYPES):
            return value
        if not isinstance(value, Tensor):
            raise ReplayError(f"its blocks take an argument {name!r} of type {type(value).__name__}")
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
        raise ReplayError(f"its blocks take an argument {name!r} of shape {tuple(value.shape)}")

    def unembed(self, resid_post: Float[Tensor, "row pos d_model"]) -> Float[Tensor, "row pos d_vocab"]:
        # Hugging Face's forward does what follows the last block, whatever that is; the blocks stand aside.
        tokens = torch.zeros(resid_post.shape[:2], dtype=torch.long, device=resid_post.device)
        with self._blocks_replaced_by(resid_post):
            return self._model(tokens, use_cache=False)

    @contextmanager
    def _blocks_replaced_by(self, resid_post: Tensor) -> Iterator[None]:
        blocks = list(self._model.blocks)
        # Somebody may have given a block a forward of its own.
        kept = [block.__dict__.get("forward") for block in blocks]
        try:
            for layer, block in enumerate(blocks):
                # Plain assignment would be redirected into the Hugging Face module that the block wraps.
                object.__setattr__(block, "forward", _constant(resid_post, as_tuple=self._tuples[layer]))
            yield
        finally:
            for block, own in zip(blocks, kept, strict=True):
                block.__dict__.pop("forward", None)
                if own is not None:
                    object.__setattr__(block, "forward", own)

    def layer_ready(self, layer: int) -> nullcontext[None]:
        return nullcontext()

    def unembed_ready(self) -> nullcontext[None]:
        return nullcontext()


@dataclass(frozen=True)
class _Places:
    """Where the positions of rows lie that begin at positions of their own, in a text of `n_tokens`.

    Attributes:
        here: [row, pos] the positions of the call, those after the text's last moved onto it.
        seen: [row, past + pos] the positions that attention sees, those outside of the text moved into it.
        outside: [row, past + pos] which of these are outside: padding in front, or after the last.
        columns: [pos] the columns of the call.
    """

    here: Int[Tensor, "row pos"]
    seen: Int[Tensor, "row seen"]
    outside: Tensor
    columns: Int[Tensor, " pos"]

    @classmethod
    def choose(cls, first: Int[Tensor, " row"], *, n_pos: int, n_past: int, n_tokens: int) -> "_Places":
        seen = first[:, None] + torch.arange(-n_past, n_pos, device=first.device)
        outside = (seen < 0) | (seen >= n_tokens)
        inside = seen.clamp(0, n_tokens - 1)
        columns = torch.arange(n_past, n_past + n_pos, device=first.device)
        return cls(inside[:, n_past:], inside, outside, columns)

    def causal_mask(self, dtype: torch.dtype) -> Float[Tensor, "row 1 pos seen"]:
        """What a model leaves to its attention kernel that needs no mask for a whole text: nobody looks ahead."""
        hidden = self.outside[:, None] | (
            torch.arange(self.seen.shape[1], device=self.seen.device) > self.columns[:, None]
        )
        return torch.zeros(hidden.shape, dtype=dtype, device=hidden.device).masked_fill(hidden, torch.finfo(dtype).min)[
            :, None
        ]


class _LayerCache:
    """Stands in for a Hugging Face cache in the call of one block: joins the past to the new and keeps the new."""

    is_compileable = False

    def __init__(self, past: KeysValues | None) -> None:
        self._past = past
        self.new: KeysValues | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        self.new = KeysValues(key_states, value_states, pos_dim=-2)
        if self._past is None:
            return key_states, value_states
        return (
            torch.cat([self._past.keys, key_states], dim=-2),
            torch.cat([self._past.values, value_states], dim=-2),
        )

    def get_seq_length(self, layer_idx: int | None = None) -> int:
        return 0 if self._past is None else self._past.keys.shape[-2]


def _positional_names(block: Any) -> list[str]:
    """Names of a block's arguments after the hidden states, in order."""
    code = block.original_component.forward

    return list(inspect.signature(code).parameters)[1:]


def _constant(resid_post: Tensor, *, as_tuple: bool) -> Callable[..., Any]:
    def forward(*args: Any, **kwargs: Any) -> Any:
        return (resid_post,) if as_tuple else resid_post

    return forward
