"""What an edit did, measured on the edited weights: on its prompt, on others about the subject, on other subjects."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from rome_lens.backends import Backend, as_backend
from rome_lens.backends.generation import continue_text
from rome_lens.editing.answers import followed_by, own_answers, read_answers
from rome_lens.editing.edit import Edit
from rome_lens.editing.outcome import AnswerReading, Probabilities
from rome_lens.editing.rome import ROME
from rome_lens.editing.templates import sample_templates
from rome_lens.errors import PromptError
from rome_lens.facts import EditRequest
from rome_lens.tokens import TokenisedPrompt, decode, tokenise

_T = TypeVar("_T")

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
        says: what the model says by itself: the most probable next token, or as many as it takes for what it says
            before and after the edit to differ.
        target_mean: the probability of a token of the target, on average (the geometric mean).
        target_written: whether greedy decoding writes the target.
    """

    target: float
    old: float
    says: str
    target_mean: float | None = None
    target_written: bool | None = None

    @property
    def probabilities(self) -> Probabilities:
        """The same as an edit holds it."""
        return Probabilities(self.target, self.old, self.target_mean, self.target_written)


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
        row, *_ = [
            _asked(backend, prompt, request, target, prepend_bos=editor.prepend_bos)
            for target in (request.target_new, None if kind == NEIGHBOUR else request.target_true)
            if target is not None
        ]
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
        return continue_text(backend, edit.request.text, n_new=n_new, prepend_bos=prepend_bos)

    with backend.evaluating():
        own_before = _in_parts(own_answers, backend, rows)
        old = _old_answers(backend, edit.request, watched, own_before, prepend_bos=prepend_bos)
        before, text_before = _read(backend, rows, old), continuation()
        with edit.applied(model):
            own_after = _in_parts(own_answers, backend, rows)
            after, text_after = _read(backend, rows, old), continuation()
    effects = []
    for i, each in enumerate(watched):
        # What begins alike is shown until one of the two leaves the target: there they differ, if they do.
        n_shown = min(len(own_before[i]), len(own_after[i]))
        pairs = (own_before[i], before[i]), (own_after[i], after[i])
        readings = (_reading(backend, own[:n_shown], *answers) for own, answers in pairs)
        effects.append(Effect(each.kind, each.prompt, old[i].answer, *readings))
    return Measured(tuple(effects), None if text_before is None or text_after is None else (text_before, text_after))


def _asked(backend: Backend, prompt: str, request: EditRequest, target: str, *, prepend_bos: bool) -> TokenisedPrompt:
    """A prompt followed by one of a request's targets.

    Raises:
        PromptError, AnswerError: the prompt is empty, too long, or cannot be followed by the target.
    """
    text = tokenise(
        backend.tokenizer, prompt, prompt, answer=target, answer_joined=request.answer_joined, prepend_bos=prepend_bos
    )
    backend.check_text(text)
    return text


def _old_answers(
    backend: Backend,
    request: EditRequest,
    watched: Sequence[Watched],
    own: Sequence[tuple[int, ...]],
    *,
    prepend_bos: bool,
) -> list[TokenisedPrompt]:
    """Each prompt followed by the old answer; a neighbour by what the model says there."""
    old = []
    for each, ids in zip(watched, own, strict=True):
        if each.kind == NEIGHBOUR:
            old.append(followed_by(backend, each.row, ids))
        elif request.target_true is None:
            old.append(followed_by(backend, each.row, own[0]))
        else:
            old.append(_asked(backend, each.prompt, request, request.target_true, prepend_bos=prepend_bos))
    return old


def _read(
    backend: Backend, rows: Sequence[TokenisedPrompt], old: Sequence[TokenisedPrompt]
) -> list[tuple[AnswerReading, AnswerReading]]:
    """What the model gives to the target and to the old answer after each prompt."""
    return list(zip(*(_in_parts(read_answers, backend, some) for some in (rows, old)), strict=True))


def _reading(backend: Backend, own: tuple[int, ...], target: AnswerReading, old: AnswerReading) -> Reading:
    says = decode(backend.tokenizer, own)
    return Reading(target.probability, old.probability, says, target.mean, target.written)


def _in_parts(
    read: Callable[[Backend, Sequence[TokenisedPrompt]], list[_T]], backend: Backend, rows: Sequence[TokenisedPrompt]
) -> list[_T]:
    return [each for start in range(0, len(rows), _TOGETHER) for each in read(backend, rows[start : start + _TOGETHER])]
