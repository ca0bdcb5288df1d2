"""What a model says before an edit."""

from collections.abc import Sequence
from dataclasses import replace

from rome_lens.backends import Backend
from rome_lens.editing.measure import own_answers
from rome_lens.errors import AnswerError
from rome_lens.facts import EditRequest
from rome_lens.tokens import TokenisedPrompt, decode, tokenise_span


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
            answer = tokenise_span(
                backend.tokenizer,
                request.text,
                request.subject_span,
                answer=request.target_true,
                answer_joined=request.answer_joined,
                prepend_bos=prepend_bos,
            )
            backend.check_text(answer)
        if answer.answer_ids == prompt.answer_ids:
            raise AnswerError(
                f"the target {request.target_new!r} is what the model says after {request.text!r} already; there "
                "is nothing to edit"
            )
        old.append(answer)
    return old


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
