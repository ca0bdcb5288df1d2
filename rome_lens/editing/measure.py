"""Probabilities of answers after a prompt, with rank-one updates or without them."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from rome_lens.backends import Backend
from rome_lens.backends.decoding import pad_rows
from rome_lens.backends.likelihood import log_probabilities
from rome_lens.editing.hooks import rank_one_hooks
from rome_lens.tokens import TokenisedPrompt


@torch.no_grad()
def joint_probabilities(
    backend: Backend,
    rows: Sequence[TokenisedPrompt],
    *,
    layer: int = 0,
    u: Float[Tensor, "row d_mlp"] | None = None,
    v: Float[Tensor, "row d_model"] | None = None,
) -> list[float]:
    """The probability of each row's answer after its prompt, teacher forced; of several tokens, jointly.

    Args:
        backend: the model, in evaluation mode.
        rows: prompts with their answers.
        layer: where each row's update goes.
        u: each row's update; None leaves the model as it is.
        v: the same.
    """
    logits = _read(backend, rows, layer=layer, u=u, v=v)
    probabilities = []
    for row, read in zip(rows, logits, strict=True):
        answer = torch.tensor(row.answer_ids, device=read.device)
        probabilities.append(log_probabilities(read[: len(answer)], answer).sum().exp().item())
    return probabilities


@dataclass(frozen=True)
class NextTokens:
    """The most probable tokens after a prompt, the likeliest first.

    Attributes:
        ids: their ids.
        probabilities: as many.
    """

    ids: tuple[int, ...]
    probabilities: tuple[float, ...]


@torch.no_grad()
def next_tokens(backend: Backend, rows: Sequence[TokenisedPrompt], *, most: int) -> list[NextTokens]:
    """The most probable tokens after each prompt, with their probabilities in float64.

    Args:
        backend: the model, in evaluation mode.
        rows: prompts; answers behind them are not looked at.
        most: how many tokens, as far as the vocabulary goes.
    """
    found = []
    for read in _read(backend, rows):
        probabilities, ids = read[0].double().softmax(dim=-1).topk(min(most, read.shape[-1]))
        found.append(NextTokens(tuple(ids.tolist()), tuple(probabilities.tolist())))
    return found


@torch.no_grad()
def own_next_tokens(backend: Backend, rows: Sequence[TokenisedPrompt]) -> list[int]:
    """The most probable token after each prompt."""
    return [int(read[0].argmax()) for read in _read(backend, rows)]


def _read(
    backend: Backend,
    rows: Sequence[TokenisedPrompt],
    *,
    layer: int = 0,
    u: Tensor | None = None,
    v: Tensor | None = None,
) -> list[Float[Tensor, "read d_vocab"]]:
    """Logits from the prompt's last position on, a tensor a row."""
    run = [row.ids[:-1] if row.answer_ids else row.ids for row in rows]
    # Padding on the right is never seen by what stands before it.
    tokens = pad_rows(run, backend.device)
    start = min(row.n_prompt for row in rows) - 1
    hooks = [] if u is None or v is None else rank_one_hooks(backend, layer, u[:, None], v[:, None])
    with backend.hooked(hooks):
        logits = backend.logits(tokens, keep=tokens.shape[1] - start)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return [
        logits[i, row.n_prompt - 1 - start : len(ids) - start]
        for i, (row, ids) in enumerate(zip(rows, run, strict=True))
    ]
