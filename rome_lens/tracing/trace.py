"""Causal tracing of one fact (Meng et al. 2022, section 2; the released code's `calculate_hidden_flow`)."""

import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from typing import Any, Protocol, Unpack

import torch

from rome_lens.backends import HEADS, as_backend
from rome_lens.chat import Chat, check_chat
from rome_lens.checks import check_window, flag, is_list, shown
from rome_lens.errors import AnswerError, SettingError
from rome_lens.facts import Fact
from rome_lens.progress import Progress
from rome_lens.subjects import find_subject
from rome_lens.tokens import TokenisedPrompt, check_prompt, tokenise
from rome_lens.tracing.answers import known_text, named_answer, with_own_answer
from rome_lens.tracing.cases import noisy_case, swapped_case
from rome_lens.tracing.cells import window_of
from rome_lens.tracing.corruption import fitted_noise, swapped_tokens
from rome_lens.tracing.grid import AskedGrids, Grids, score_grids
from rome_lens.tracing.measures import PROBABILITY, Measure, falls
from rome_lens.tracing.result import CausalTrace
from rome_lens.tracing.said import SaidGrids
from rome_lens.tracing.settings import HeadsAt, TraceChanges, TraceSettings, check_streams

# The share of the clean run's probability from which on the corruption counts as having taken away little.
_LEFT = 0.5
_NO_EFFECT = "corrupting the subject takes nothing away, so there is nothing to bring back"


class EditLike(Protocol):
    """What tracing needs of an edit; `rome_lens.Edit` implements it, and your own class may."""

    @property
    def words(self) -> str:
        """What was asked, for people to read. A class without it has a `request`, whose words are taken."""
        ...

    def applied(self, model: Any) -> AbstractContextManager[Any]:
        """The model with the edit in its weights, for as long as the block lasts."""
        ...


@torch.no_grad()
def causal_trace(
    model: Any,
    prompt: str,
    *,
    subject: str,
    answer: str | None = None,
    expect: str | None = None,
    answer_joined: str | None = None,
    occurrence: int = 1,
    chat: bool = False,
    reply: str | None = None,
    facts: Sequence[Fact] | None = None,
    edits: Sequence[EditLike] = (),
    settings: TraceSettings | None = None,
    progress: Progress | None = None,
    **changes: Unpack[TraceChanges],
) -> CausalTrace:
    """Show where a model keeps a fact: corrupt the subject, restore one state at a time, and see what brings it back.

    Args:
        model: a HookedTransformer or a TransformerBridge, processed weights or not.
        prompt: a text that the model continues with the answer.
        subject: the part of the prompt to corrupt.
        answer: trace this answer's probability, of one token or several; by default the model's own next token.
        expect: the same, but refuse if the model does not predict it, neither with a blank in front nor without.
        answer_joined: what stands between the prompt and the answer: "" or white space. None goes by what both sides
            write there: a blank between words, nothing behind an opening quote, between digits, and so on.
        occurrence: which occurrence of the subject in the prompt: 1 is the first, -1 the last. Those that stand as
            words of their own count ("Rome", not "Romeo"), or all of them where there is none.
        chat: the prompt is a question to a chat model: it is put through the tokenizer's chat template as the user's
            message, and the answer is read where the assistant begins.
        reply: what the assistant's reply begins with, where a chat model answers in whole sentences; the answer is then
            read behind it.
        facts: the facts that `s`, `m` and `t` are measured on: by default those that ship with rome_lens.
        edits: trace the model with these edits in its weights, and without them for the same answer and the same
            noise (`CausalTrace.unedited`). Without `answer` that is what the edited model says. The weights are put
            back afterwards.
        settings: all that is named below `progress` in one object; what is given by name counts instead.
        progress: called with (done, total, what) now and then.
        streams: what to restore: `resid` (the block's output), `mlp` and `attn` (windows of layers), and `heads`: what
            each of attention's heads gives (`attn.hook_z`), at one token. Heads that share keys and values (GQA) are
            heads of their own.
        severed: `mlp`, `attn` or both: restore the residual stream once more while these outputs at the same token are
            held, in all layers, at what the corrupted run gives (paper, section 2.2 and figure 3): what is left of the
            effect does not pass through them.
        window: layers restored together in `mlp` and `attn`; 10 covers l-5 .. l+4, as the released code has it. None
            is 10, or all layers of a smaller model.
        heads_at: the token of `heads`: the prompt's `last`, the subject's (`last-subject`), or a position, -1 the last.
        heads_window: layers in which the heads of one number are restored together; 1 is each head by itself.
        samples: corrupted copies to average over; 10 by default.
        noise: None or `s3` (3 times the standard deviation of the facts' subject embeddings), a number (absolute), `m`
            (Gaussian fitted to text), `tK` (Student-t of K degrees of freedom) or `uX` (uniform +-X).
        noise_replaces: assign the noise instead of adding it.
        swap: corrupt by putting this subject, of as many tokens, in place of the prompt's, instead of by noise.
        seed: seed of the noise; 1, the default, is the released code's.
        prepend_bos: put BOS in front. The released code does not; TransformerLens does by default.
        engine: `auto`; `plain` to run whole forwards (slow; the same numbers); or `attribution` for an approximation
            from one backward pass, which is fast and may be far off.
        measure: what is read in each cell: the answer's `probability`, its `log_probability`, its `logit_difference` to
            `against`, `kl` from the clean run's next-token distribution, or a function of logits [row read d_vocab] at
            the positions that give the answer's tokens, and of these tokens [read], that gives a number a row.
        against: the other answer of `logit_difference`, of one token like the answer.

    Returns:
        The grids with all that they depend on. Cells before the subject equal `low` exactly.

    Raises:
        SettingError: a setting is out of its range.
        PromptError: the prompt is empty or too long; SubjectError: the subject is not in it; AnswerError: no answer.
        FactNotKnownError: the model does not predict `expect`.
        ModelError: the object is no decoder of TransformerLens, lacks a stream that was asked for, or a chat template.
        ModelMismatchError: an edit belongs to another model; EditStateError: it is in the weights already.
    """
    started = time.perf_counter()
    check_prompt(prompt)
    find_subject(prompt, subject, occurrence)
    settings = TraceSettings.given(settings, changes)
    check_chat(flag("chat", chat), reply, prepend_bos=settings.prepend_bos)
    answer = named_answer(answer, expect, answer_joined)
    edits = _checked_edits(edits)
    backend = as_backend(model)
    streams, severed = (check_streams(backend, some) for some in (settings.streams, settings.severed or ()))
    asked, occurrence = prompt, int(occurrence)
    put = Chat.ask(backend.tokenizer, prompt, reply) if chat else None
    if put is not None:
        asked, occurrence = put.text, put.occurrence(subject, occurrence)
    shown_from = 0 if put is None else put.first_token(backend.tokenizer)
    window = window_of(settings.window, backend.n_layers)
    heads_window = check_window(settings.heads_window, n_layers=backend.n_layers, name="heads_window")
    read = partial(
        tokenise,
        backend.tokenizer,
        asked,
        subject,
        answer=answer,
        occurrence=occurrence,
        prepend_bos=settings.prepend_bos,
    )
    with backend.evaluating(), carrying(edits, model):
        if answer is not None and expect is not None:
            text, notes = known_text(backend, read, prompt=asked, answer=answer, answer_joined=answer_joined)
        else:
            text, notes = read(answer_joined=answer_joined), ()
            backend.check_text(text)
        heads_at = _position_of_heads(settings.heads_at, text)
        grids = AskedGrids(streams, severed, window, heads_at=heads_at, heads_window=heads_window)
        swapped = None
        if settings.swap is not None:
            swapped = swapped_tokens(backend.tokenizer, text, asked, subject, swap=settings.swap, occurrence=occurrence)
        if answer is None:
            text = with_own_answer(backend, text)
        other = None
        if settings.against is not None:
            against, joined = settings.against, None
            if answer is not None and against.strip():
                # Both answers stand in one place, and are joined to the prompt alike.
                against, joined = against.lstrip(), text.answer[: -len(text.answer.lstrip())]
            other = _other_answer(text, read(answer=against, answer_joined=joined))
        measure = Measure.given(settings.measure, None if other is None else other.ids[-1])
        noise = None
        if swapped is not None:
            case = swapped_case(backend, text, swapped)
        else:
            noise = fitted_noise(backend, settings.rule, facts)
            case = noisy_case(backend, text, noise, samples=settings.samples, seed=settings.seed)

    def traced(
        carried: Sequence[EditLike], since: float, *, unedited: CausalTrace | None = None, doubted: bool = True
    ) -> CausalTrace:
        """The trace of the model with these edits; `doubted` notes where the corruption takes little away."""
        with backend.evaluating(), carrying(carried, model):
            (found,) = score_grids(
                backend, [case], [grids], engine=settings.engine, progress=progress, said=True, measure=measure
            )
        little = _little_effect(found, measure, sure=expect is not None) if doubted else ()
        return CausalTrace(
            scores=found.scores,
            severed=found.severed,
            low=found.low,
            high=found.high,
            answer=text.answer,
            answer_ids=text.answer_ids,
            prompt=asked,
            subject=subject.strip(),
            tokens=text.tokens,
            token_ids=text.ids[: text.n_prompt],
            subject_span=text.subject_span,
            noise=None if noise is None else noise.level,
            noise_rule=None if noise is None else str(noise.rule),
            noise_replaces=noise is not None and settings.noise_replaces,
            swap=settings.swap,
            window=window,
            said=SaidGrids.of(found.said, backend.tokenizer),
            occurrence=occurrence,
            question=None if put is None else put.question,
            reply=reply,
            shown_from=shown_from,
            heads_at=heads_at if HEADS in streams else None,
            heads_window=heads_window if HEADS in streams else None,
            samples=case.corruption.n_samples,
            seed=settings.seed,
            prepend_bos=settings.prepend_bos,
            model_name=backend.model_name,
            backend=backend.name,
            dtype=str(backend.dtype).removeprefix("torch."),
            device=str(backend.device),
            engine=found.engine,
            notes=(*notes, *found.notes, *little),
            seconds=time.perf_counter() - since,
            edits=tuple(_words(edit) for edit in carried),
            unedited=unedited,
            measure=measure.name,
            against=None if other is None else other.answer,
            against_id=measure.against,
        )

    if not edits:
        return traced((), started)
    # Without its edit a model may well know nothing of the edit's answer: that is no fault of the trace.
    unedited = traced((), time.perf_counter(), doubted=False)
    return traced(edits, time.perf_counter(), unedited=unedited)


def _position_of_heads(at: HeadsAt, text: TokenisedPrompt) -> int:
    """The position that heads are restored at.

    Raises:
        SettingError: the prompt has no such position.
    """
    if not isinstance(at, int):
        return text.subject_span[1] - 1 if at == "last-subject" else text.n_prompt - 1
    if not -text.n_prompt <= at < text.n_prompt:
        raise SettingError(
            f"heads_at is {at}; the prompt has {text.n_prompt} tokens, so expected a position from 0 to "
            f"{text.n_prompt - 1}, or from -{text.n_prompt} to -1 counted from the end"
        )
    return at % text.n_prompt


def _checked_edits(edits: Sequence[EditLike]) -> tuple[EditLike, ...]:
    """The edits that a trace is to carry.

    Raises:
        SettingError: they are no list, or one of them is none.
    """
    if hasattr(edits, "applied") or not is_list(edits):
        raise SettingError(f"edits is {shown(edits)}; expected a list of edits, such as [edit]")
    several = tuple(edits)
    for edit in several:
        if not hasattr(edit, "applied"):
            raise SettingError(f"edits has {shown(edit)}; expected edits, as an editor makes them or load_edit reads")
    return several


def _other_answer(text: TokenisedPrompt, other: TokenisedPrompt) -> TokenisedPrompt:
    """The prompt with the answer that the traced one is compared with.

    Raises:
        AnswerError: one of the two has several tokens, they are the same, or the prompt is read otherwise with each.
    """
    for answer, ids in ((text.answer, text.answer_ids), (other.answer, other.answer_ids)):
        if len(ids) != 1:
            raise AnswerError(
                f"the answer {answer!r} has {len(ids)} tokens, and a logit difference is of two that have one each; "
                "name others, or take measure 'log_probability'"
            )
    if other.answer_ids == text.answer_ids:
        raise AnswerError(f"against is {other.answer!r}, which is the answer itself; name another one")
    if other.ids[: other.n_prompt] != text.ids[: text.n_prompt]:
        raise AnswerError(f"the prompt has other tokens in front of {other.answer!r} than of {text.answer!r}")
    return other


def _little_effect(grids: Grids, measure: Measure, *, sure: bool) -> tuple[str, ...]:
    """A note where there is little for a state to bring back, or nothing that a number could show."""
    if measure != PROBABILITY:
        if falls(measure.name, low=grids.low, high=grids.high):
            return () if grids.high < grids.low else (f"{_NO_EFFECT}: both runs have the same distribution",)
        return () if grids.high > grids.low else (f"{_NO_EFFECT}: {measure.name} is no higher in the clean run",)
    if not grids.high:
        return (
            "the answer's probability in the clean run is below 1e-323, the least that a number can be, and counts as "
            "0: its scores cannot be compared; name a shorter answer",
        )
    if grids.low < _LEFT * grids.high:
        return ()
    kept = "all" if grids.low >= grids.high else f"{grids.low / grids.high:.0%}"
    doubt = "" if sure else "this may be no fact that the model knows (expect=, in a shell --expect, makes sure), or "
    return (
        f"with the subject corrupted the answer keeps {kept} of its probability, so there is little to bring back: "
        f"{doubt}the answer depends little on the subject, or the corruption is too weak",
    )


def _words(edit: Any) -> str:
    """What was asked of an edit; one of many requests has words, and no request of its own."""
    return edit.words if hasattr(edit, "words") else edit.request.words


@contextmanager
def carrying(edits: Sequence[EditLike], model: Any) -> Iterator[None]:
    """The model with the edits in its weights."""
    with ExitStack() as stack:
        for edit in edits:
            stack.enter_context(edit.applied(model))
        yield
