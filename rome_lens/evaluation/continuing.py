"""Continuations of prompts: what a model writes by itself, many rows at once, each under its record's edit."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from rome_lens.backends import KeysValues, called_alone
from rome_lens.backends.decoding import pad_rows, room_for, rows_together, write
from rome_lens.editing.hooks import RowUpdates
from rome_lens.evaluation.answering import Answerer, BlockAnswerer

# Rows that are continued together at most: more of them make nothing faster.
_MOST_ROWS = 256

Choice = Callable[[Float[Tensor, "row d_vocab"], int], Int[Tensor, " row"]]
"""The next token of each row, from its logits and the number of the step."""


@dataclass(frozen=True)
class Prompt:
    """A text to be continued.

    Attributes:
        record: whose edit it is written under.
        ids: token ids.
        seed: of what is drawn; None takes the most probable token each time.
    """

    record: int
    ids: tuple[int, ...]
    seed: tuple[int, ...] | None = None


@torch.no_grad()
def continue_prompts(
    answerer: Answerer,
    prompts: Sequence[Prompt],
    *,
    n_new: int,
    updates: RowUpdates | None,
    top_k: int = 1,
    banned: Sequence[int] = (),
) -> list[list[int]]:
    """Continue texts of any lengths by `n_new` tokens each; nothing ends a row early.

    What a row draws depends on its own seed alone, not on the rows beside it. What it gains beyond the answerer's
    longest row is no text.

    Args:
        answerer: the model.
        prompts: the texts; every one of them has a seed, or none of them has.
        n_new: how many tokens each gains.
        updates: the edits of the records; None leaves the model as it is.
        top_k: each token is drawn from the `top_k` most probable ones.
        banned: token ids that never come.

    Returns:
        What each text gained.

    Raises:
        ReplayError: a block fails on these texts that did not on the first ones.
    """
    backend = answerer.backend
    longest = max((len(prompt.ids) for prompt in prompts), default=0) + n_new
    together = rows_together(backend, longest, most=_MOST_ROWS)
    # Rows of like length share the least padding.
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index].ids))
    written: dict[int, list[int]] = {}
    for start in range(0, len(order) if n_new else 0, together):
        part = order[start : start + together]
        rows = [prompts[index] for index in part]
        choose = _choice(rows, n_new=n_new, top_k=top_k, banned=banned, device=backend.device)
        text = _Text.of(rows, n_new, backend.device)
        if isinstance(answerer, BlockAnswerer):
            _write_by_blocks(answerer, text, updates, choose)
        else:
            _write_by_forwards(answerer, text, updates, choose)
        written.update(zip(part, text.new().tolist(), strict=True))
    return [written.get(index, []) for index in range(len(prompts))]


def _choice(rows: Sequence[Prompt], *, n_new: int, top_k: int, banned: Sequence[int], device: torch.device) -> Choice:
    never = torch.tensor(sorted(banned), dtype=torch.long, device=device)
    drawn = None
    if all(row.seed is not None for row in rows):
        draws = [np.random.default_rng(np.random.SeedSequence(row.seed)).random(n_new) for row in rows]
        drawn = torch.tensor(np.array(draws), device=device)

    def choose(logits: Tensor, step: int) -> Tensor:
        logits = logits.index_fill(-1, never, -torch.inf)
        if drawn is None:
            return logits.argmax(dim=-1)
        best, ids = logits.topk(min(top_k, logits.shape[-1]), dim=-1)
        bounds = best.double().softmax(dim=-1).cumsum(dim=-1)
        chosen = (bounds < drawn[:, step, None] * bounds[:, -1:]).sum(dim=-1, keepdim=True)
        return ids.gather(-1, chosen)[:, 0]

    return choose


@dataclass(frozen=True)
class _Text:
    """Rows of text that grow together.

    Attributes:
        tokens: [row pos] ids of the prompts, with room for what comes; written in place.
        lengths: [row] of the prompts.
        records: [row] whose edit each is written under.
        n_new: how many tokens each gains.
    """

    tokens: Int[Tensor, "row pos"]
    lengths: Int[Tensor, " row"]
    records: Int[Tensor, " row"]
    n_new: int

    @classmethod
    def of(cls, prompts: Sequence[Prompt], n_new: int, device: torch.device) -> "_Text":
        padded = pad_rows([prompt.ids for prompt in prompts], device)
        return cls(
            torch.cat([padded, padded[:, -1:].expand(-1, n_new)], dim=1),
            torch.tensor([len(prompt.ids) for prompt in prompts], device=device),
            torch.tensor([prompt.record for prompt in prompts], device=device),
            n_new,
        )

    @property
    def rows(self) -> Int[Tensor, " row"]:
        """The rows' numbers."""
        return torch.arange(len(self.lengths), device=self.tokens.device)

    def add(self, step: int, new: Int[Tensor, " row"]) -> None:
        """Write one more token a row."""
        self.tokens[self.rows, self.lengths + step] = new

    def new(self) -> Int[Tensor, "row n_new"]:
        """What each row has gained."""
        return self.tokens.gather(1, self.lengths[:, None] + torch.arange(self.n_new, device=self.tokens.device))


@called_alone()
def _write_by_blocks(answerer: BlockAnswerer, text: _Text, updates: RowUpdates | None, choose: Choice) -> None:
    """Keys and values are kept; rows end in one column, so that the next token is one column of all rows."""
    tokens, lengths, records = text.tokens, text.lengths, text.records
    n_prompt = tokens.shape[1] - text.n_new
    stored: list[KeysValues] = []
    state = answerer.embedding.entering(tokens[:, :n_prompt], 0)
    for layer in range(answerer.backend.n_layers):
        state, new = answerer.run_block(layer, state, updates=updates, records=records)
        stored.append(room_for(new, tokens.shape[1]))
        write(stored[layer], new.ending_at(lengths), 0)
    state = state[text.rows, lengths - 1]
    for step in range(text.n_new):
        text.add(step, choose(answerer.unembed(state), step))
        if step + 1 == text.n_new:
            break
        # A row that is as long as any may be is finished, and goes on in place until the others are.
        first, column = (lengths + step).clamp(max=answerer.n_tokens - 1), n_prompt + step
        state = answerer.embedding.entering_rows(tokens, first, 1)
        for layer, kept in enumerate(stored):
            past = kept.before(column)
            state, new = answerer.run_block(layer, state, first=first, past=past, updates=updates, records=records)
            write(kept, new, column)
        state = state[:, 0]


def _write_by_forwards(answerer: Answerer, text: _Text, updates: RowUpdates | None, choose: Choice) -> None:
    """A whole forward a token."""
    hooks = [] if updates is None else updates.all_hooks(text.records)
    for step in range(text.n_new):
        last = (text.lengths + step - 1).clamp(max=answerer.n_tokens - 1)
        with answerer.backend.hooked(hooks):
            logits = answerer.backend.logits_at(text.tokens[:, : int(last.max()) + 1], text.rows, last)
        text.add(step, choose(logits, step))
