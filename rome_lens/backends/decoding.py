"""What running a text token by token rests on: what enters the first block, where keys and values are kept."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from rome_lens.backends.base import Backend
from rome_lens.backends.replay import BlockReplay, KeysValues, ReplayError
from rome_lens.memory import free_bytes

# Keys and values that are kept of rows that go through the model together, in bytes.
_MOST_CACHE = 4 * 2**30


@dataclass(frozen=True)
class Embedding:
    """What enters block 0, before its hooks, for new tokens at their positions.

    Attributes:
        backend: the model.
        shift: [pos, 1, d_model] what a position adds to what a token enters with at position 0, for models that add
            position embeddings; None where the position does not matter.
        whole: tokens and positions do not come apart, so texts are embedded whole.
    """

    backend: Backend
    shift: Float[Tensor, "pos 1 d_model"] | None
    whole: bool

    @classmethod
    def of(cls, backend: Backend, text: Int[Tensor, "1 pos"]) -> "Embedding":
        """Find out which it is, on a text as long as any that will come."""
        shift = cls._shift(backend, text)
        if not shift.any():
            return cls(backend, None, whole=False)
        other = text.roll(1, dims=1)
        # Two roundings instead of one matter in the half types.
        exact = shift.dtype in (torch.float32, torch.float64)
        apart = (cls._shift(backend, other) - shift).norm()
        together = exact and bool(apart <= 32 * torch.finfo(shift.dtype).eps * enter(backend, other).norm())
        return cls(backend, shift if together else None, whole=not together)

    @staticmethod
    def _shift(backend: Backend, text: Int[Tensor, "1 pos"]) -> Float[Tensor, "pos 1 d_model"]:
        return enter(backend, text).transpose(0, 1) - enter(backend, text.T)

    def entering(self, tokens: Int[Tensor, "row pos"], first: int) -> Float[Tensor, "row new d_model"]:
        """For the positions from `first` on."""
        if self.whole or first == 0:
            return enter(self.backend, tokens)[:, first:]
        alone = self._alone(tokens[:, first:])
        return alone if self.shift is None else alone + self.shift[first : tokens.shape[1], 0]

    def entering_rows(
        self, tokens: Int[Tensor, "row pos"], first: Int[Tensor, " row"], n_new: int
    ) -> Float[Tensor, "row n_new d_model"]:
        """For `n_new` positions of rows that begin at positions of their own; past a row's end its last one again."""
        n_rows, n_tokens = tokens.shape
        places = (first[:, None] + torch.arange(n_new, device=tokens.device)).clamp(max=n_tokens - 1)
        if self.whole:
            rows = torch.arange(n_rows, device=tokens.device)[:, None]
            return enter(self.backend, tokens)[rows, places]
        alone = self._alone(tokens.gather(1, places))
        return alone if self.shift is None else alone + self.shift[places, 0]

    def _alone(self, tokens: Int[Tensor, "row new"]) -> Float[Tensor, "row new d_model"]:
        """Every token as if it were a text of its own."""
        entering = enter(self.backend, rearrange(tokens, "row new -> (row new) 1"))
        return rearrange(entering, "(row new) 1 d_model -> row new d_model", row=tokens.shape[0])


class _EnteredError(Exception):
    """Carries what enters block 0 out of a forward: its only argument."""


def enter(backend: Backend, tokens: Int[Tensor, "row pos"]) -> Float[Tensor, "row pos d_model"]:
    """What the model's own forward hands to block 0, before the hooks there: they fire when the block runs."""

    def leave(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        raise _EnteredError(args[0] if args else kwargs["hidden_states"])

    handle = backend.model.blocks[0].register_forward_pre_hook(leave, with_kwargs=True)
    try:
        backend.logits(tokens, keep=1)
    except _EnteredError as entered:
        return entered.args[0]
    finally:
        handle.remove()
    raise ReplayError("the model's forward does not call its first block")


@torch.no_grad()
def record_blocks(
    backend: Backend, tokens: Int[Tensor, "row pos"], **points: str
) -> tuple[BlockReplay, dict[str, Tensor]]:
    """Watch the model run some rows: how it calls its blocks, and what passes hook points meanwhile.

    Args:
        backend: the model.
        tokens: the rows.
        points: hook points, each under the name that what passes it shall have.

    Raises:
        ReplayError: a hook point is not passed exactly once.
    """
    seen: dict[str, list[Tensor]] = {name: [] for name in points}
    hooks = [(point, lambda x, name=name: seen[name].append(x.clone())) for name, point in points.items()]
    with backend.recording() as replay, backend.hooked(hooks):
        backend.logits(tokens, keep=1)
    for name, passed in seen.items():
        if len(passed) != 1:
            raise ReplayError(f"{points[name]} is passed {len(passed)} times in a forward; expected once")
    return replay, {name: passed[0] for name, passed in seen.items()}


def make_ready(
    backend: Backend, replay: BlockReplay, stack: ExitStack, *, first: int = 0, most: int | None = None
) -> bool:
    """Prepare the layers from `first` on for many calls, where there is memory for their weights a second time.

    Args:
        backend: the model.
        replay: its blocks.
        stack: what is prepared is undone when it is closed.
        first: the first layer.
        most: the most bytes that the weights may take; None is what a third of the free memory holds.

    Returns:
        Whether there is.
    """
    if not room_twice(backend, first=first, most=most):
        return False
    for layer in range(first, backend.n_layers):
        stack.enter_context(replay.layer_ready(layer))
    stack.enter_context(replay.unembed_ready())
    return True


def room_twice(backend: Backend, *, first: int = 0, most: int | None = None) -> bool:
    """Whether there is memory for the weights of the layers from `first` on a second time, as `make_ready` takes it."""
    n_bytes = sum(weights_of(backend, layer) for layer in range(first, backend.n_layers)) + weights_of(backend, None)
    free = free_bytes(backend.device) // 3
    return n_bytes <= (free if most is None else min(free, most))


def weights_of(backend: Backend, layer: int | None) -> int:
    """What the weights of a layer take in bytes; of None, those that unembed."""
    module = backend.model.unembed if layer is None else backend.model.blocks[layer]
    return sum(parameter.nbytes for parameter in module.parameters())


def pad_rows(rows: Sequence[Sequence[int]], device: torch.device) -> Int[Tensor, "row pos"]:
    """Token ids of unequal length as one tensor: a row's last token stands again behind it."""
    longest = max(map(len, rows), default=0)
    padded = [[*ids, *[ids[-1]] * (longest - len(ids))] for ids in rows]
    return torch.tensor(padded, dtype=torch.long, device=device).reshape(len(rows), longest)


def rows_together(backend: Backend, n_tokens: int, *, most: int) -> int:
    """How many rows are continued together: a power of two.

    It decides which rounding a row meets, so it follows from the model and never from the memory that happens to be
    free.

    Args:
        backend: the model.
        n_tokens: positions of the longest row.
        most: the largest number of rows that is of use.
    """
    cfg = backend.model.cfg
    heads = getattr(cfg, "n_key_value_heads", None) or cfg.n_heads
    one_row = n_tokens * backend.n_layers * 2 * heads * cfg.d_head * 4
    rows = most
    while rows > 1 and rows * one_row > _MOST_CACHE:
        rows //= 2
    return rows


def room_for(new: KeysValues, n_tokens: int) -> KeysValues:
    """Unwritten keys and values for `n_tokens` positions, otherwise like the new ones."""
    dim = new.pos_dim % new.keys.ndim
    return new.each(lambda x: x.new_empty((*x.shape[:dim], n_tokens, *x.shape[dim + 1 :])))


def write(stored: KeysValues, new: KeysValues, first: int) -> None:
    n_new = new.keys.shape[new.pos_dim]
    stored.keys.narrow(new.pos_dim, first, n_new).copy_(new.keys)
    stored.values.narrow(new.pos_dim, first, n_new).copy_(new.values)


def check_logits(got: Float[Tensor, "row d_vocab"], expected: Float[Tensor, "row d_vocab"]) -> None:
    """Refuse logits that differ from the model's own by more than rounding explains."""
    eps = torch.finfo(got.dtype).eps
    # What all tokens share does not count: it moves no probability.
    known = expected.isfinite()
    got, expected = (x.double().where(known, 0.0) for x in (got, expected))
    spread = expected - expected.sum(dim=-1, keepdim=True) / known.sum(dim=-1, keepdim=True)
    allowed = max(eps**0.5, 1e-5) * spread.where(known, 0.0).norm() + 32 * eps * expected.norm()
    if not (got - expected).norm() <= allowed:
        raise ReplayError("the blocks called one by one give other logits than the model's own forward")
