"""What a model says before an edit."""

from collections.abc import Sequence
from dataclasses import replace

from rome_lens.backends import Backend
from rome_lens.editing.measure import own_next_tokens
from rome_lens.errors import AnswerError
from rome_lens.facts import EditRequest
from rome_lens.tokens import TokenisedPrompt, decode_each, tokenise_span


def old_answers(
    backend: Backend, requests: Sequence[EditRequest], bare: Sequence[TokenisedPrompt], *, prepend_bos: bool
) -> list[TokenisedPrompt]:
    """The bare prompts followed by what the model says now, or by what the request says that it says.

    Args:
        backend: the model, in evaluation mode.
        requests: the requests.
        bare: their prompts with their targets.
        prepend_bos: whether BOS stands in front of them.

    Raises:
        AnswerError: that is the target.
    """
    old = []
    for request, prompt, token in zip(requests, bare, own_next_tokens(backend, bare), strict=True):
        if request.target_true is None:
            (text,) = decode_each(backend.tokenizer, [token])
            answer = replace(prompt, ids=(*prompt.ids[: prompt.n_prompt], token), answer=text)
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
