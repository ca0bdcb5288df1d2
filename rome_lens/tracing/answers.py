"""The answer that a trace reads: the one that a caller names, or the model's own next token."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from rome_lens.backends import Backend
from rome_lens.checks import as_text
from rome_lens.errors import AnswerError, FactNotKnownError, ModelError, SettingError
from rome_lens.joining import check_answer, check_joined, otherwise
from rome_lens.tokens import TokenisedPrompt, decode_each, joint
from rome_lens.tracing.cases import joint_probability


def named_answer(answer: str | None, expect: str | None, answer_joined: str | None = None) -> str | None:
    """The answer that the caller names, if any.

    Raises:
        SettingError: `answer` and `expect` name two, `answer_joined` is not white space, or there is nothing to join.
        AnswerError: it is empty.
    """
    for name, text in (("answer", answer), ("expect", expect)):
        if text is not None:
            as_text(name, text, error=AnswerError)
    if answer is not None and expect is not None and answer.strip() != expect.strip():
        raise SettingError(f"answer {answer!r} and expect {expect!r} differ; give one of them")
    named = answer if expect is None else expect
    if named is not None:
        check_answer(named)
    if answer_joined is not None:
        check_joined(answer_joined)
        if named is None:
            raise SettingError(
                f"answer_joined is {answer_joined!r}, and no answer was given; the model's own is taken as it writes it"
            )
    return named


def with_own_answer(backend: Backend, text: TokenisedPrompt) -> TokenisedPrompt:
    """The prompt with the model's own next token as its answer (paper, section 2.1).

    Raises:
        AnswerError: the token is no text: the end of the text, or another special token.
        ModelError: the model gives no numbers.
    """
    logits = _finite_logits(backend, text.ids, keep=1)
    answer_id = int(logits[0, -1].argmax())
    (answer,) = decode_each(backend.tokenizer, [answer_id])
    if answer_id in backend.tokenizer.all_special_ids or not answer.strip():
        raise AnswerError(
            f"the model continues the prompt with {answer!r}, which is no answer; end the prompt where a word is "
            "missing, or name one with answer"
        )
    return replace(text, ids=(*text.ids, answer_id), answer=answer)


def known_text(
    backend: Backend,
    read: Callable[..., TokenisedPrompt],
    *,
    prompt: str,
    answer: str,
    answer_joined: str | None,
) -> tuple[TokenisedPrompt, tuple[str, ...]]:
    """A prompt with the answer that the model is expected to give, with a blank in front or without: as it gives it.

    Args:
        backend: the model.
        read: `tokenise`, of everything but `answer_joined`.
        prompt: the prompt.
        answer: the answer.
        answer_joined: what stands between the two; None tries the rule's choice and then the other one.

    Returns:
        The text, and a note where it is not the rule's choice.

    Raises:
        FactNotKnownError: the model predicts neither, saying what it predicts instead.
        AnswerError: the answer cannot follow the prompt. PromptError: the text is too long.
        ModelError: the model gives no numbers.
    """

    def known(joined: str | None) -> TokenisedPrompt:
        text = read(answer_joined=joined)
        backend.check_text(text)
        check_known(backend, text)
        return text

    try:
        return known(answer_joined), ()
    except (AnswerError, FactNotKnownError) as error:
        ruled = joint(backend.tokenizer, prompt, answer)
        other = None if answer_joined is not None else otherwise(prompt, answer, ruled)
        if other is None:
            raise
        try:
            text = known(other)
        except (AnswerError, FactNotKnownError):
            if isinstance(error, FactNotKnownError):
                raise FactNotKnownError(f"{error}; nor does it say {other + answer.rstrip()!r}") from error
            raise error from None
        looked_for = ruled + answer.rstrip()
        return text, (f"the model gives the answer as {text.answer!r}; {looked_for!r} was looked for first",)


def check_known(backend: Backend, text: TokenisedPrompt) -> None:
    """Refuse a fact that the model does not know: greedy decoding must give the answer, token by token.

    Raises:
        FactNotKnownError: saying what the model predicts instead.
        ModelError: the model gives no numbers.
    """
    answer_ids = torch.tensor(text.answer_ids, device=backend.device)
    logits = _finite_logits(backend, text.ids[:-1], keep=len(answer_ids))
    own = logits[0].argmax(dim=-1)
    if torch.equal(own, answer_ids):
        return
    at = int((own != answer_ids).nonzero()[0])
    probabilities = logits[0, at].float().softmax(dim=-1)
    said = backend.tokenizer.decode([*text.answer_ids[:at], int(own[at])])
    rank = int((probabilities > probabilities[answer_ids[at]]).sum()) + 1
    raise FactNotKnownError(
        f"the model does not know this fact: it continues with {said!r} ({probabilities[own[at]]:.3f}), and the "
        f"expected {text.answer!r} has probability {joint_probability(logits, answer_ids).item():.2g}"
        f"{f' (rank {rank})' if len(answer_ids) == 1 else ''}"
    )


def _finite_logits(backend: Backend, ids: Sequence[int], *, keep: int) -> Float[Tensor, "1 keep d_vocab"]:
    """Logits of one text, which an argmax may be taken of: of NaN it would be the first token of the vocabulary."""
    logits = backend.logits(torch.tensor([ids], device=backend.device), keep=keep)
    if logits.isnan().any():
        raise not_finite(backend)
    return logits


def not_finite(backend: Backend) -> ModelError:
    """The error for a model that gives no numbers."""
    return ModelError(f"{backend.model_name} gives numbers that are not finite in {backend.dtype}; load it in float32")
