"""Continue texts token by token, with keys and values kept, through the model's own blocks.

One forward of the model on a text of the final length shows how it calls its blocks. After that every new token goes
through the blocks as one position, so hook points fire for it as they do in a whole forward. Hooks that treat every
position alike (an edit's do) are kept exactly; where the first logits differ from the model's own forward, because of
a hook that looks at more than its position or a block that cannot be called alone, each step is a whole forward.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rome_lens.backends.base import Backend
from rome_lens.backends.decoding import Embedding, check_logits, make_ready, record_blocks, room_for, write
from rome_lens.backends.likelihood import at_least_float32
from rome_lens.backends.prefer_blocks import prefer_blocks
from rome_lens.backends.products import fast_products
from rome_lens.backends.replay import KeysValues
from rome_lens.errors import ModelError, PromptError, SettingError
from rome_lens.progress import Progress
from rome_lens.tokens import bos_of, decode, encode

_T = TypeVar("_T")

# The steps whose logits are held against the model's own: the prompt at once, and one position after it.
_CHECKED_STEPS = 2

_DOCUMENT_MARK = "<|endoftext|>"


def text_start(tokenizer: Any) -> list[int]:
    """What a text written from nothing begins behind: the mark between documents, else BOS, else nothing.

    Chat models put a BOS in front that opens a turn of a conversation; behind the mark they were pretrained with they
    write sentences.
    """
    mark = tokenizer.convert_tokens_to_ids(_DOCUMENT_MARK) if _DOCUMENT_MARK in tokenizer.all_special_tokens else None
    start = tokenizer.bos_token_id if mark is None else mark
    return [] if start is None else [int(start)]


def never_text(backend: Backend) -> list[int]:
    """Token ids that no text holds: special ones, and rows of padding behind the tokenizer's last token."""
    tokenizer, n_vocab = backend.tokenizer, backend.d_vocab
    special = {i for i in tokenizer.all_special_ids if i is not None and i < n_vocab}
    return sorted(special | set(range(len(tokenizer), n_vocab)))


@torch.no_grad()
def sample(
    backend: Backend,
    prompts: Int[Tensor, "row pos"],
    *,
    n_new: int,
    generator: torch.Generator | None,
    temperature: float = 1.0,
    top_k: int | None = None,
    banned: Sequence[int] = (),
    progress: Progress | None = None,
) -> Int[Tensor, "row pos_and_new"]:
    """Continue rows of equal length; nothing ends a row early, not even the end of the text.

    Args:
        backend: the model. It is run in evaluation mode, with whatever hooks it carries.
        prompts: token ids, [row, pos], no padding.
        n_new: how many tokens each row gains.
        generator: a CPU generator that the tokens are drawn with, the same on every device; None takes the most
            probable token each time.
        temperature: the logits are divided by it; 0 takes the most probable token each time.
        top_k: draw from the `top_k` most probable tokens alone.
        banned: token ids that never come.
        progress: called after every step as `progress(done, n_new, "generating")`.

    Returns:
        The prompts with their continuations, [row, pos + n_new], on the prompts' device.

    Raises:
        PromptError: the prompts are empty, or longer than the model's context once they are continued.
        SettingError: a setting is outside its range, or the generator lives on a GPU.
        ModelError: the model gives logits that are no numbers.
    """
    choice = _Choice(backend, generator, temperature=temperature, top_k=top_k, banned=banned)
    _check_shape(backend, prompts, n_new)
    n_rows, n_prompt = prompts.shape
    tokens = prompts.new_empty((n_rows, n_prompt + n_new), device=backend.device)
    tokens[:, :n_prompt] = prompts
    if n_rows and n_new:
        with backend.evaluating(), fast_products(device=backend.device, dtype=backend.dtype), ExitStack() as stack:
            steps = _Steps(backend, tokens, n_prompt, stack)
            for done in range(n_new):
                tokens[:, n_prompt + done] = choice.next_tokens(steps.logits(n_prompt + done))
                if progress is not None:
                    progress(done + 1, n_new, "generating")
    return tokens.to(prompts.device)


def continue_text(backend: Backend, text: str, *, n_new: int, prepend_bos: bool = False) -> str:
    """What the most probable tokens add to a text, up to the tokenizer's EOS token.

    Args:
        backend: the model.
        text: the text to continue.
        n_new: how many tokens it gains at most.
        prepend_bos: put the tokenizer's BOS token in front.

    Raises:
        PromptError: the text gives no tokens, or is longer than the model's context once it is continued.
        SettingError: `n_new` is negative, or `prepend_bos` for a tokenizer that has no BOS token.
        ModelError: the model has no fast tokenizer, or gives logits that are no numbers.
    """
    ids, _ = encode(backend.tokenizer, text)
    ids = [bos_of(backend.tokenizer), *ids] if prepend_bos else ids
    if not ids:
        raise PromptError(f"the text {text!r} gives no tokens to continue; give a longer one or set prepend_bos")
    new = sample(backend, torch.tensor([ids]), n_new=n_new, generator=None)[0, len(ids) :].tolist()
    end = backend.tokenizer.eos_token_id
    return _decode_after(backend.tokenizer, ids, new[: new.index(end)] if end in new else new)


def _check_shape(backend: Backend, prompts: Tensor, n_new: int) -> None:
    if prompts.ndim != 2 or prompts.is_floating_point() or prompts.shape[1] == 0:
        raise PromptError(
            f"the prompts are {prompts.dtype} of shape {tuple(prompts.shape)}; expected token ids [row, pos] with at "
            "least one position: begin an empty text with the BOS token"
        )
    if n_new < 0:
        raise SettingError(f"n_new is {n_new}; expected the number of tokens to add, 0 or more")
    length = prompts.shape[1] + n_new
    if backend.n_ctx is not None and length > backend.n_ctx:
        raise PromptError(
            f"a prompt of {prompts.shape[1]} tokens and {n_new} new ones make {length}, and {backend.model_name} has "
            f"{backend.n_ctx} positions; shorten the prompt or take a smaller n_new"
        )


def _decode_after(tokenizer: Any, prompt: list[int], new: list[int]) -> str:
    """The text that new tokens add. Alone, SentencePiece would decode them without the space in front."""
    before, whole = decode(tokenizer, prompt), decode(tokenizer, [*prompt, *new])
    # Otherwise the prompt ends inside of a character.
    return whole.removeprefix(before) if whole.startswith(before) else decode(tokenizer, new)


class _Choice:
    """How the next token follows from logits; greedy where there is no generator."""

    def __init__(
        self,
        backend: Backend,
        generator: torch.Generator | None,
        *,
        temperature: float,
        top_k: int | None,
        banned: Sequence[int],
    ) -> None:
        if not (math.isfinite(temperature) and temperature >= 0):
            raise SettingError(f"temperature is {temperature}; expected 0 (the most probable token) or more")
        if top_k is not None and top_k < 1:
            raise SettingError(f"top_k is {top_k}; expected 1 or more tokens to draw from, or None for all")
        if generator is not None and generator.device.type != "cpu":
            raise SettingError(f"the generator lives on {generator.device}; give a CPU one, torch.Generator()")
        outside = [i for i in banned if not 0 <= i < backend.d_vocab]
        if outside:
            raise SettingError(
                f"banned holds {outside[0]}; {backend.model_name} has token ids 0 to {backend.d_vocab - 1}"
            )
        if len(set(banned)) == backend.d_vocab:
            raise SettingError(f"banned holds all {backend.d_vocab} token ids; leave at least one")
        self._generator = generator if temperature > 0 else None
        self._temperature, self._top_k = temperature, top_k
        self._banned = torch.tensor(sorted(set(banned)), dtype=torch.long, device=backend.device)

    def next_tokens(self, logits: Float[Tensor, "row d_vocab"]) -> Int[Tensor, " row"]:
        if logits.isnan().any():
            raise ModelError("the model gives logits that are no numbers; load it in float32 or check its weights")
        logits = at_least_float32(logits)
        if self._banned.numel():
            logits = logits.index_fill(-1, self._banned, -math.inf)
        if self._generator is None:
            return logits.argmax(dim=-1)
        ids = None
        if self._top_k is not None and self._top_k < logits.shape[-1]:
            logits, ids = logits.topk(self._top_k, dim=-1)
        # The largest logit is taken off first: a tiny temperature would make both infinite.
        probabilities = ((logits - logits.amax(dim=-1, keepdim=True)) / self._temperature).softmax(dim=-1)
        drawn = torch.multinomial(probabilities.cpu(), 1, generator=self._generator).to(logits.device)
        return (drawn if ids is None else ids.gather(-1, drawn)).squeeze(-1)


class _Steps:
    """Logits of one step after the other: through the replayed blocks for as long as that gives the model's own."""

    def __init__(self, backend: Backend, tokens: Int[Tensor, "row pos"], n_prompt: int, stack: ExitStack) -> None:
        self._backend, self._tokens, self._n_prompt = backend, tokens, n_prompt
        self._cached: _Cached | None = None
        if tokens.shape[1] > n_prompt + 1:
            self._cached = self._if_open(lambda: _Cached(backend, tokens, n_prompt, stack))

    def logits(self, n_seen: int) -> Float[Tensor, "row d_vocab"]:
        """Logits of the token at position `n_seen`, given those before it."""
        cached = self._cached
        logits = None if cached is None else self._if_open(lambda: self._checked(cached, n_seen))
        if logits is None:
            self._cached = None
            return self._whole(slice(None), n_seen)
        return logits

    def _checked(self, cached: "_Cached", n_seen: int) -> Float[Tensor, "row d_vocab"]:
        logits = cached.logits(n_seen)
        if n_seen - self._n_prompt < _CHECKED_STEPS:
            rows = slice(0, 2)
            check_logits(logits[rows], self._whole(rows, n_seen))
        return logits

    def _whole(self, rows: slice, n_seen: int) -> Float[Tensor, "row d_vocab"]:
        return self._backend.logits(self._tokens[rows, :n_seen], keep=1)[:, -1]

    def _if_open(self, blocks: Callable[[], _T]) -> _T | None:
        """What the blocks give; None where they cannot be called alone. Hooks are kept, since logits are checked."""
        return prefer_blocks(self._backend, blocks=lambda _: blocks(), whole=lambda reason: None, despite_hooks=True)


class _Cached:
    """The replayed blocks with the keys and values of every row so far."""

    def __init__(self, backend: Backend, tokens: Int[Tensor, "row pos"], n_prompt: int, stack: ExitStack) -> None:
        self._backend, self._tokens = backend, tokens
        self._stored: list[KeysValues] = []
        self._n_stored = 0
        # Position alone decides masks and rotary tables, so a text of any tokens will do: the first prompt, repeated.
        n_tokens = tokens.shape[1]
        text = tokens[:1, :n_prompt].repeat(1, n_tokens // n_prompt + 1)[:, :n_tokens]
        self._replay, _ = record_blocks(backend, text)
        self._embedding = Embedding.of(backend, text)
        make_ready(backend, self._replay, stack)

    def logits(self, n_seen: int) -> Float[Tensor, "row d_vocab"]:
        first, n_tokens = self._n_stored, self._tokens.shape[1]
        resid = self._embedding.entering(self._tokens[:, :n_seen], first)
        for layer in range(self._backend.n_layers):
            past = self._stored[layer].before(first) if first else None
            resid, new = self._replay.run(layer, resid, first=first, past=past)
            if not first:
                self._stored.append(room_for(new, n_tokens))
            write(self._stored[layer], new, first)
        self._n_stored = n_seen
        return self._replay.unembed(resid[:, -1:])[:, -1]
