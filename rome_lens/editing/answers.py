"""What a model says after a prompt, and how probable it makes an answer."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import takewhile

import torch
from jaxtyping import Float
from torch import Tensor

from rome_lens.backends import Backend
from rome_lens.backends.decoding import pad_rows
from rome_lens.backends.likelihood import log_probabilities
from rome_lens.editing.hooks import Hook
from rome_lens.editing.outcome import AnswerReading
from rome_lens.errors import AnswerError
from rome_lens.facts import EditRequest
from rome_lens.tokens import TokenisedPrompt, decode, tokenise_span


@torch.no_grad()
def read_answers(
    backend: Backend, rows: Sequence[TokenisedPrompt], *, hooks: Sequence[tuple[str, Hook]] = ()
) -> list[AnswerReading]:
    """What the model gives to each row's answer after its prompt.

    Args:
        backend: the model, in evaluation mode.
        rows: prompts with their answers.
        hooks: what is changed meanwhile, such as hooks of the rows' updates.
    """
    readings = []
    for row, read in zip(rows, _read(backend, rows, hooks=hooks), strict=True):
        answer = torch.tensor(row.answer_ids, device=read.device)
        log_probs = log_probabilities(read, answer)
        readings.append(AnswerReading(tuple(log_probs.tolist()), tuple((read.argmax(dim=-1) == answer).tolist())))
    return readings


def joint_probabilities(backend: Backend, rows: Sequence[TokenisedPrompt]) -> list[float]:
    """The probability of each row's answer after its prompt, teacher forced; of several tokens, jointly.

    Args:
        backend: the model, in evaluation mode.
        rows: prompts with their answers.
    """
    return [reading.probability for reading in read_answers(backend, rows)]


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
def own_answers(backend: Backend, rows: Sequence[TokenisedPrompt]) -> list[tuple[int, ...]]:
    """What the model says by itself after each prompt: most probable tokens, until they differ from the row's answer.

    An answer that the model says to its end comes back whole. As long as the model says what the answer says, greedy
    decoding and teacher forcing are the same.

    Args:
        backend: the model, in evaluation mode.
        rows: prompts with answers.
    """
    found = []
    for row, read in zip(rows, _read(backend, rows), strict=True):
        own = read.argmax(dim=-1).tolist()
        same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(own, row.answer_ids, strict=True)))
        found.append(tuple(own[: same + 1]))
    return found


def old_answers(
    backend: Backend, requests: Sequence[EditRequest], bare: Sequence[TokenisedPrompt], *, prepend_bos: bool
) -> list[TokenisedPrompt]:
    """The bare prompts followed by what the model says now, or by what the request says that it says.

    What the model says now is its most probable token, or where the target begins with that, as many as it takes to
    differ from the target: "New York", and not "New", where the target is "New Delhi".

    Args:
        backend: the model, in evaluation mode.
        requests: the requests.
        bare: their prompts with their targets.
        prepend_bos: whether BOS stands in front of them.

    Raises:
        AnswerError: that is the target.
    """
    old = []
    for request, prompt, own in zip(requests, bare, own_answers(backend, bare), strict=True):
        if request.target_true is None:
            answer = followed_by(backend, prompt, own)
        else:
            answer = answered_prompt(backend, request, request.target_true, prepend_bos=prepend_bos)
        if answer.answer_ids == prompt.answer_ids:
            raise AnswerError(
                f"the target {request.target_new!r} is what the model says after {request.text!r} already; there "
                "is nothing to edit"
            )
        old.append(answer)
    return old


def answered_prompt(backend: Backend, request: EditRequest, answer: str, *, prepend_bos: bool) -> TokenisedPrompt:
    """A request's bare prompt, followed by an answer.

    Raises:
        PromptError, SubjectError, AnswerError: the text does not fit the model.
    """
    row = tokenise_span(
        backend.tokenizer,
        request.text,
        request.subject_span,
        answer=answer,
        answer_joined=request.answer_joined,
        prepend_bos=prepend_bos,
    )
    backend.check_text(row)
    return row


def followed_by(backend: Backend, prompt: TokenisedPrompt, ids: tuple[int, ...]) -> TokenisedPrompt:
    """The same prompt, followed by these tokens."""
    text = decode(backend.tokenizer, ids)
    return replace(prompt, ids=(*prompt.ids[: prompt.n_prompt], *ids), answer=text)


def alike(target: TokenisedPrompt, old: TokenisedPrompt) -> tuple[str, ...]:
    """Say it where one answer is how the other begins, so that its probability holds the other's."""
    shorter, longer = sorted((target, old), key=lambda row: len(row.answer_ids))
    if longer.answer_ids[: len(shorter.answer_ids)] != shorter.answer_ids:
        return ()
    names = ("target", "old answer") if shorter is target else ("old answer", "target")
    return (
        f"the {names[0]} {shorter.answer.strip()!r} is how the {names[1]} {longer.answer.strip()!r} begins, so its "
        f"probability holds that of the {names[1]}: name more of the {names[0]}",
    )


def _read(
    backend: Backend, rows: Sequence[TokenisedPrompt], *, hooks: Sequence[tuple[str, Hook]] = ()
) -> list[Float[Tensor, "read d_vocab"]]:
    """Logits from the prompt's last position on, a tensor a row."""
    run = [row.ids[:-1] if row.answer_ids else row.ids for row in rows]
    # Padding on the right is never seen by what stands before it.
    tokens = pad_rows(run, backend.device)
    start = min(row.n_prompt for row in rows) - 1
    with backend.hooked(hooks):
        logits = backend.logits(tokens, keep=tokens.shape[1] - start)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return [
        logits[i, row.n_prompt - 1 - start : len(ids) - start]
        for i, (row, ids) in enumerate(zip(rows, run, strict=True))
    ]
