"""What a model writes when it is left to itself: many rows of any lengths at once, each under its record's edit."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from rome_lens.backends import KeysValues, called_alone
from rome_lens.backends.decoding import pad_rows, room_for, rows_together, write
from rome_lens.editing.hooks import RowUpdates
from rome_lens.evaluation.answering import BlockEngine, Engine

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
    engine: Engine,
    prompts: Sequence[Prompt],
    *,
    n_new: int,
    updates: RowUpdates | None,
    top_k: int = 1,
    banned: Sequence[int] = (),
) -> list[list[int]]:
    """Continue texts of any lengths by `n_new` tokens each; nothing ends a row early.

    What a row draws depends on its own seed alone, not on the rows beside it. What it gains beyond the engine's longest
    row is no text.

    Args:
        engine: the model.
        prompts: the texts; every one of them has a seed, or none of them has.
        n_new: how many tokens each gains.
        updates: the edits of the records; None leaves the model as it is.
        top_k: draw from so many most probable tokens.
        banned: token ids that never come.

    Returns:
        What each text gained.

    Raises:
        ReplayError: a block fails on these texts that did not on the first ones.
    """
    backend = engine.backend
    longest = max((len(prompt.ids) for prompt in prompts), default=0) + n_new
    together = rows_together(backend, longest, most=_MOST_ROWS)
    # Rows of like length share the least padding.
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index].ids))
    written: dict[int, list[int]] = {}
    for start in range(0, len(order) if n_new else 0, together):
        part = order[start : start + together]
        rows = [prompts[index] for index in part]
        choose = _choice(rows, n_new=n_new, top_k=top_k, banned=banned, device=backend.device)
        records = torch.tensor([row.record for row in rows], device=backend.device)
        run = _by_blocks if isinstance(engine, BlockEngine) else _by_forwards
        new = run(engine, [row.ids for row in rows], records, n_new=n_new, updates=updates, choose=choose)
        written.update(zip(part, new.tolist(), strict=True))
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


@called_alone()
def _by_blocks(
    engine: Any,
    prompts: Sequence[tuple[int, ...]],
    records: Int[Tensor, " row"],
    *,
    n_new: int,
    updates: RowUpdates | None,
    choose: Choice,
) -> Int[Tensor, "row n_new"]:
    """Keys and values are kept; rows end in one column, so that the next token is one column of all rows."""
    tokens, lengths, rows = _laid_out(engine, prompts, n_new)
    n_prompt = tokens.shape[1] - n_new
    stored: list[KeysValues] = []
    state = engine.embedding.entering(tokens[:, :n_prompt], 0)
    for layer in range(engine.backend.n_layers):
        state, new = engine.run_block(layer, state, updates=updates, records=records)
        stored.append(room_for(new, tokens.shape[1]))
        write(stored[layer], new.ending_at(lengths), 0)
    state = state[rows, lengths - 1]
    for step in range(n_new):
        tokens[rows, lengths + step] = choose(engine.unembed(state), step)
        if step + 1 == n_new:
            break
        # A row that is as long as any may be is finished, and goes on in place until the others are.
        first, column = (lengths + step).clamp(max=engine.n_tokens - 1), n_prompt + step
        state = engine.embedding.entering_rows(tokens, first, 1)
        for layer, kept in enumerate(stored):
            past = kept.before(column)
            state, new = engine.run_block(layer, state, first=first, past=past, updates=updates, records=records)
            write(kept, new, column)
        state = state[:, 0]
    return _new(tokens, lengths, n_new)


def _by_forwards(
    engine: Engine,
    prompts: Sequence[tuple[int, ...]],
    records: Int[Tensor, " row"],
    *,
    n_new: int,
    updates: RowUpdates | None,
    choose: Choice,
) -> Int[Tensor, "row n_new"]:
    """A whole forward a token."""
    tokens, lengths, rows = _laid_out(engine, prompts, n_new)
    hooks = [] if updates is None else updates.all_hooks(records)
    for step in range(n_new):
        last = (lengths + step - 1).clamp(max=engine.n_tokens - 1)
        with engine.backend.hooked(hooks):
            logits = engine.backend.logits_at(tokens[:, : int(last.max()) + 1], rows, last)
        tokens[rows, lengths + step] = choose(logits, step)
    return _new(tokens, lengths, n_new)


def _laid_out(engine: Engine, prompts: Sequence[tuple[int, ...]], n_new: int) -> tuple[Tensor, Tensor, Tensor]:
    """Token ids with room for what comes, the prompts' lengths, and the rows' numbers."""
    device = engine.backend.device
    padded = pad_rows(prompts, device)
    tokens = torch.cat([padded, padded[:, -1:].expand(-1, n_new)], dim=1)
    lengths = torch.tensor([len(ids) for ids in prompts], device=device)
    return tokens, lengths, torch.arange(len(prompts), device=device)


def _new(tokens: Int[Tensor, "row pos"], lengths: Int[Tensor, " row"], n_new: int) -> Int[Tensor, "row n_new"]:
    return tokens.gather(1, lengths[:, None] + torch.arange(n_new, device=tokens.device))
