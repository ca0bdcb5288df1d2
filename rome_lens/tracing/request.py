"""What is asked of a trace, checked before anything runs: settings, the answer, and the corruption."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from rome_lens.backends import STREAMS, Backend
from rome_lens.checks import as_text, choice, is_list, seed_number, shown, whole_number
from rome_lens.data import builtin_facts
from rome_lens.errors import AnswerError, FactNotKnownError, ModelError, SettingError
from rome_lens.facts import Fact
from rome_lens.joining import check_answer, check_joined, otherwise
from rome_lens.kinds import facts_of
from rome_lens.subjects import find_subject
from rome_lens.tokens import TokenisedPrompt, check_prompt, decode_each, joint
from rome_lens.tracing.attribution import ATTRIBUTION
from rome_lens.tracing.corruption import FittedNoise, NoiseRule, fit_noise
from rome_lens.tracing.forwards import Case, Corruption, joint_probability

ENGINES = ("auto", "plain", ATTRIBUTION)
SEVERED = ("mlp", "attn")


def check_settings(
    prompt: str, subject: str, *, streams: Sequence[str], occurrence: int, samples: int, seed: int, engine: str
) -> tuple[int, int]:
    """Refuse what can be refused without a model.

    Returns:
        `samples` and `seed` as Python's own numbers.

    Raises:
        PromptError: the prompt is empty.
        SubjectError: the subject is not in it.
        SettingError: a setting is out of its range.
    """
    check_prompt(prompt)
    find_subject(prompt, subject, occurrence)
    return check_numbers(streams=streams, samples=samples, seed=seed, engine=engine)


def check_numbers(*, streams: Sequence[str], samples: int, seed: int, engine: str) -> tuple[int, int]:
    """Refuse what needs no prompt to be refused.

    Returns:
        `samples` and `seed` as Python's own numbers.

    Raises:
        SettingError: a setting is out of its range.
    """
    asked = several(streams)
    unknown = [stream for stream in asked if stream not in STREAMS]
    if unknown or not asked:
        raise SettingError(f"stream is {shown(unknown[0] if unknown else streams)}; choose from {', '.join(STREAMS)}")
    samples = whole_number("samples", samples, least=1, expected="a whole number of corrupted copies")
    seed = seed_number(seed)
    choice("engine", engine, ENGINES)
    return samples, seed


def check_corruption(noise: float | str | None, *, noise_replaces: bool, swap: str | None) -> None:
    """Refuse two ways at once of breaking the subject.

    Raises:
        SettingError: both a subject to put in its place and a rule for noise were given.
    """
    if swap is not None and (noise is not None or noise_replaces):
        raise SettingError(f"swap is {swap!r} and a noise rule was given too; the subject is broken by one of them")


def check_severed(severed: Sequence[str] | None, *, engine: str) -> None:
    """Refuse what cannot be severed.

    Raises:
        SettingError: a stream is neither `mlp` nor `attn`, or the grids are to be approximated.
    """
    unknown = [stream for stream in several(severed, name="severed", known=SEVERED) if stream not in SEVERED]
    if unknown:
        raise SettingError(f"severed is {shown(unknown[0])}; choose from {', '.join(SEVERED)}")
    if severed and engine == ATTRIBUTION:
        raise SettingError("severed paths are not approximated; leave severed out, or engine 'attribution'")


def several(streams: Sequence[str] | None, *, name: str = "stream", known: Sequence[str] = STREAMS) -> tuple[str, ...]:
    """The streams as a tuple; one may be given by itself, and None stands for none.

    Args:
        streams: what a caller gave.
        name: the setting, for the error.
        known: what it may hold.

    Raises:
        SettingError: they are no list.
    """
    if streams is None:
        return ()
    if isinstance(streams, str):
        return (streams,)
    if not is_list(streams):
        raise SettingError(f"{name} is {shown(streams)}; choose from {', '.join(known)}")
    return tuple(streams)


def check_streams(backend: Backend, streams: Sequence[str]) -> tuple[str, ...]:
    """The streams in the house's order, each once.

    Raises:
        ModelError: the model has no such stream.
    """
    asked = several(streams)
    missing = [stream for stream in asked if stream not in backend.streams()]
    if missing:
        raise ModelError(
            f"{backend.model_name} has no {' and no '.join(missing)} stream in every layer; "
            f"ask for {', '.join(backend.streams()) or 'another model'}"
        )
    return tuple(stream for stream in STREAMS if stream in asked)


def wanted_answer(answer: str | None, expect: str | None, answer_joined: str | None = None) -> str | None:
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
    read: Callable[[str | None], TokenisedPrompt],
    *,
    prompt: str,
    answer: str,
    answer_joined: str | None,
) -> tuple[TokenisedPrompt, tuple[str, ...]]:
    """A prompt with the answer that the model is expected to give, with a blank in front or without: as it gives it.

    Args:
        backend: the model.
        read: tokenises the prompt with its answer, joined as it is told.
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
        text = read(joined)
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


def fitted_noise(backend: Backend, rule: NoiseRule, facts: Sequence[Fact] | None) -> FittedNoise:
    """The noise that the rule asks for, measured on these facts, or on the built-in ones.

    Raises:
        SettingError: the facts give nothing to measure.
    """
    measured = builtin_facts() if facts is None else facts_of(facts)
    return fit_noise(
        backend,
        rule,
        subjects=[fact.subject for fact in measured],
        # Put together where the rule asks for them alone: most measure subjects.
        texts=(
            fact.text + joint(backend.tokenizer, fact.text, fact.answer, fact.answer_joined) + fact.answer
            for fact in measured
        ),
    )


def noisy_case(backend: Backend, text: TokenisedPrompt, noise: FittedNoise, *, samples: int, seed: int) -> Case:
    """A prompt with its answer, whose subject the noise breaks, drawn for this subject."""
    tokens = torch.tensor(text.ids[:-1], device=backend.device)
    first, end = text.subject_span
    drawn = noise.draw(samples=samples, n_tokens=end - first, d_model=backend.embed_width, seed=seed)
    corruption = Corruption(text.subject_span, drawn.to(backend.device), noise.rule.replace, tokens)
    return Case(tokens, corruption, torch.tensor(text.answer_ids, device=backend.device))
