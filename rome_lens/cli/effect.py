"""What an edit did, measured on the edited weights: on its prompt, on others about the subject, on other subjects."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from rome_lens.backends import Backend, as_backend
from rome_lens.backends.generation import continue_texts
from rome_lens.editing import ROME, Edit
from rome_lens.editing.measure import joint_probabilities, own_next_tokens
from rome_lens.editing.templates import sample_templates
from rome_lens.errors import PromptError
from rome_lens.facts import EditRequest
from rome_lens.tokens import TokenisedPrompt, decode_each, tokenise
from rome_lens.tracing.request import check_length

PROMPT, PARAPHRASE, BEHIND_TEXT, NEIGHBOUR = "prompt", "paraphrase", "behind_text", "neighbour"

# Prompts that go through the model together.
_TOGETHER = 16
# How many texts of how many tokens stand in front of the prompt where no paraphrases are given.
_TEXTS = ((10, 3),)


@dataclass(frozen=True)
class Watched:
    """A prompt that is looked at before and after an edit.

    Attributes:
        kind: `prompt`, `paraphrase`, `behind_text` (the prompt behind a text that the model wrote) or `neighbour` (a
            prompt about another subject).
        prompt: the text.
        row: the text and the target behind it, in tokens.
    """

    kind: str
    prompt: str
    row: TokenisedPrompt


@dataclass(frozen=True)
class Reading:
    """What a model gives to answers after one prompt; of several tokens, jointly.

    Attributes:
        target: the probability of the edit's target.
        old: the probability of the old answer.
        says: the most probable next token.
    """

    target: float
    old: float
    says: str


@dataclass(frozen=True)
class Effect:
    """One prompt before and after the edit.

    Attributes:
        kind: as in `Watched`.
        prompt: the text.
        old_answer: the answer whose probability is `old`: the request's old answer; of a neighbour, what the unedited
            model says there.
        before: the unedited model.
        after: the model with the edit in its weights.
    """

    kind: str
    prompt: str
    old_answer: str
    before: Reading
    after: Reading


@dataclass(frozen=True)
class Measured:
    """All that was looked at.

    Attributes:
        effects: a prompt each, the edited one first.
        continuations: what the model writes after the prompt before and after the edit; None where none was asked for.
    """

    effects: tuple[Effect, ...]
    continuations: tuple[str, str] | None


def watch(
    editor: ROME, request: EditRequest, *, paraphrases: Sequence[str] | None, neighbours: Sequence[str]
) -> list[Watched]:
    """The prompts to look at, checked and in tokens, the edited one first.

    Args:
        editor: what edits.
        request: what is asked of it.
        paraphrases: whole prompts; None puts texts in front of the prompt that the model writes with another seed than
            that of the edit's templates.
        neighbours: whole prompts about other subjects.

    Raises:
        PromptError, AnswerError: a prompt is empty, too long, or cannot be followed by the target.
    """
    backend = as_backend(editor.model)

    def watched(kind: str, prompt: str) -> Watched:
        row = tokenise(
            backend.tokenizer,
            prompt,
            prompt,
            answer=request.target_new,
            answer_joined=request.answer_joined,
            prepend_bos=editor.prepend_bos,
        )
        check_length(backend, row)
        return Watched(kind, prompt, row)

    chosen = [watched(PROMPT, request.text)]
    if paraphrases is None:
        chosen += _behind_texts(editor, backend, request, watched)
    else:
        chosen += [watched(PARAPHRASE, prompt) for prompt in paraphrases]
    return chosen + [watched(NEIGHBOUR, prompt) for prompt in neighbours]


def other_seed(editor: ROME) -> int:
    """The seed of the texts that the prompt stands behind."""
    return (editor.seed + 1) % 2**32


def _behind_texts(editor: ROME, backend: Backend, request: EditRequest, watched: Any) -> list[Watched]:
    with backend.evaluating():
        texts = sample_templates(backend, seed=other_seed(editor), lengths=_TEXTS, prepend_bos=editor.prepend_bos)
    chosen = []
    for text in texts[1:]:
        if text not in editor.context_templates:
            try:
                chosen.append(watched(BEHIND_TEXT, text.removesuffix("{}") + request.text))
            except PromptError:  # the model's context is too short for it
                continue
    return chosen


def measure(edit: Edit, model: Any, watched: Sequence[Watched], *, prepend_bos: bool, n_new: int) -> Measured:
    """Read the prompts in the model as it is, and again with the edit in its weights; then the edit is taken out.

    Args:
        edit: the edit.
        model: the unedited model.
        watched: what `watch` gave.
        prepend_bos: put BOS in front of the prompt that is continued.
        n_new: tokens to continue the prompt by, as far as the model's context goes; 0 for none.
    """
    backend = as_backend(model)
    rows = [each.row for each in watched]
    if backend.n_ctx is not None:
        n_new = min(n_new, backend.n_ctx - rows[0].n_prompt)

    def continuation() -> str | None:
        if n_new < 1:
            return None
        return continue_texts(backend, [edit.request.text], n_new=n_new, prepend_bos=prepend_bos)[0]

    with backend.evaluating():
        said = _next_tokens(backend, rows)
        old = _old_answers(backend, edit.request, watched, said, prepend_bos=prepend_bos)
        before, text_before = _read(backend, rows, old), continuation()
        with edit.applied(model):
            after, text_after = _read(backend, rows, old), continuation()
    effects = tuple(
        Effect(each.kind, each.prompt, answer.answer, *readings)
        for each, answer, *readings in zip(watched, old, before, after, strict=True)
    )
    return Measured(effects, None if text_before is None or text_after is None else (text_before, text_after))


def _old_answers(
    backend: Backend,
    request: EditRequest,
    watched: Sequence[Watched],
    said: Sequence[int],
    *,
    prepend_bos: bool,
) -> list[TokenisedPrompt]:
    """Each prompt followed by the old answer; a neighbour by what the model says there."""
    old = []
    for each, token in zip(watched, said, strict=True):
        if each.kind != NEIGHBOUR and request.target_true is not None:
            answer = tokenise(
                backend.tokenizer,
                each.prompt,
                each.prompt,
                answer=request.target_true,
                answer_joined=request.answer_joined,
                prepend_bos=prepend_bos,
            )
        else:
            answer = _followed_by(backend, each.row, token if each.kind == NEIGHBOUR else said[0])
        old.append(answer)
    return old


def _followed_by(backend: Backend, row: TokenisedPrompt, token: int) -> TokenisedPrompt:
    (text,) = decode_each(backend.tokenizer, [token])
    return replace(row, ids=(*row.ids[: row.n_prompt], token), answer=text)


def _read(backend: Backend, rows: Sequence[TokenisedPrompt], old: Sequence[TokenisedPrompt]) -> list[Reading]:
    target = _probabilities(backend, rows)
    says = decode_each(backend.tokenizer, _next_tokens(backend, rows))
    return [Reading(*each) for each in zip(target, _probabilities(backend, old), says, strict=True)]


def _probabilities(backend: Backend, rows: Sequence[TokenisedPrompt]) -> list[float]:
    return [p for part in _parts(rows) for p in joint_probabilities(backend, part)]


def _next_tokens(backend: Backend, rows: Sequence[TokenisedPrompt]) -> list[int]:
    return [token for part in _parts(rows) for token in own_next_tokens(backend, part)]


def _parts(rows: Sequence[TokenisedPrompt]) -> list[Sequence[TokenisedPrompt]]:
    return [rows[start : start + _TOGETHER] for start in range(0, len(rows), _TOGETHER)]
