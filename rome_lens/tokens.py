"""Text to tokens: where the subject stands, and where the answer begins.

Spans come from character offsets, never from decoding single tokens: a token may hold half a character, and
SentencePiece tokens do not decode to the text they came from.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rome_lens.checks import as_text
from rome_lens.errors import AnswerError, ModelError, PromptError, SettingError, SubjectError
from rome_lens.joining import between, check_answer, check_joined
from rome_lens.subjects import find_subject


@dataclass(frozen=True)
class TokenisedPrompt:
    """A prompt, and perhaps its answer, as one tokenisation.

    Attributes:
        ids: token ids of the prompt and then of the answer, BOS first where it was asked for.
        tokens: the prompt's tokens decoded one by one, for people to read.
        n_prompt: how many of `ids` are the prompt's, BOS included.
        subject_span: positions (first, end) of the tokens that overlap the subject's characters; the end is exclusive.
        answer: the answer's text as it was tokenised, its leading space included; empty where none was given.
        bos: the BOS token in front, if any; it is part of `ids` and of `n_prompt`.
    """

    ids: tuple[int, ...]
    tokens: tuple[str, ...]
    n_prompt: int
    subject_span: tuple[int, int]
    answer: str
    bos: tuple[int, ...] = ()

    @property
    def answer_ids(self) -> tuple[int, ...]:
        """Token ids of the answer; empty where none was given."""
        return self.ids[self.n_prompt :]


def tokenise(
    tokenizer: Any,
    prompt: str,
    subject: str,
    *,
    answer: str | None = None,
    answer_joined: str | None = None,
    occurrence: int = 1,
    prepend_bos: bool = False,
) -> TokenisedPrompt:
    """Tokenise a prompt together with its answer and find the subject in it.

    Args:
        tokenizer: a fast Hugging Face tokenizer (one that reports character offsets).
        prompt: the text up to the answer.
        subject: the part of the prompt that names the subject, letter for letter; white space around it is ignored.
        answer: the text that follows. A blank stands between words, and none where the two sides are written without
            one (`rome_lens.joining`).
        answer_joined: what stands between the two, if the caller says so: "" or white space.
        occurrence: which of several occurrences of the subject is meant: 1 is the first, -1 the last
            (`subjects.find_subject`).
        prepend_bos: put the tokenizer's BOS token in front.

    Raises:
        PromptError: the prompt is empty, gives no tokens, or holds half a character.
        SubjectError: the prompt does not hold the subject, or not that often.
        AnswerError: the answer is empty, shares a token with the prompt, or is unknown to the tokenizer.
        SettingError: `prepend_bos` for a tokenizer that has no BOS token, an `answer_joined` that is not white space,
            or an occurrence that is no whole number, or 0.
        ModelError: the tokenizer reports no offsets.
    """
    check_prompt(prompt)
    span = find_subject(prompt, subject, occurrence)
    return tokenise_span(tokenizer, prompt, span, answer=answer, answer_joined=answer_joined, prepend_bos=prepend_bos)


def tokenise_span(
    tokenizer: Any,
    prompt: str,
    span: tuple[int, int],
    *,
    answer: str | None = None,
    answer_joined: str | None = None,
    prepend_bos: bool = False,
) -> TokenisedPrompt:
    """The same for a subject whose characters in the prompt are known.

    Args:
        tokenizer: a fast Hugging Face tokenizer.
        prompt: the text up to the answer.
        span: the subject's characters (start, end) in the prompt; the end is exclusive.
        answer: the text that follows.
        answer_joined: what stands between the two, if the caller says so.
        prepend_bos: put the tokenizer's BOS token in front.

    Raises:
        PromptError, SubjectError, AnswerError, SettingError, ModelError: as `tokenise` does.
    """
    (start, end), subject = span, prompt[slice(*span)]
    joined = "" if answer is None else joint(tokenizer, prompt, answer, answer_joined) + answer.rstrip()
    ids, offsets = encode(tokenizer, prompt + joined)
    if not ids:
        raise PromptError(f"the prompt {prompt!r} gives no tokens with this model's tokenizer")
    n_prompt = _answer_start(offsets, prompt, joined) if joined else len(ids)
    special = set(ids[n_prompt:]).intersection(tokenizer.all_special_ids)
    if special:
        (shown,) = decode_each(tokenizer, [min(special)])
        raise AnswerError(
            f"the answer {joined.strip()!r} becomes {shown!r}, which is no word to this model; name another answer"
        )

    inside = [i for i, (a, b) in enumerate(offsets[:n_prompt]) if a < end and b > start]
    if not inside:
        raise SubjectError(f"the subject {subject!r} covers no token of the prompt {prompt!r}; choose a longer one")
    if {ids[i] for i in inside} == {tokenizer.unk_token_id}:
        raise SubjectError(f"the subject {subject!r} is unknown to this model's tokenizer; choose another")
    bos = (bos_of(tokenizer),) if prepend_bos else ()
    return TokenisedPrompt(
        ids=(*bos, *ids),
        tokens=decode_each(tokenizer, (*bos, *ids[:n_prompt])),
        n_prompt=len(bos) + n_prompt,
        subject_span=(len(bos) + inside[0], len(bos) + inside[-1] + 1),
        answer=joined,
        bos=bos,
    )


def encode(tokenizer: Any, text: str) -> tuple[list[int], list[tuple[int, int]]]:
    """Token ids and character offsets (start, end) of a text, without any special token added.

    Raises:
        PromptError: the text holds half a character.
        ModelError: there is no tokenizer, or it reports no offsets.
    """
    check_tokenizer(tokenizer)
    half = next((c for c in text if "\ud800" <= c <= "\udfff"), None)
    if half is not None:
        raise PromptError(f"{text!r} holds {half!r}, which is half a character; write the text in UTF-8")
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    return list(encoded["input_ids"]), [(int(a), int(b)) for a, b in encoded["offset_mapping"]]


def decode_each(tokenizer: Any, ids: Sequence[int]) -> tuple[str, ...]:
    """The text of every token on its own."""
    return tuple(tokenizer.decode([i], clean_up_tokenization_spaces=False) for i in ids)


def decode(tokenizer: Any, ids: Sequence[int]) -> str:
    """The text of tokens that follow one another."""
    return tokenizer.decode(list(ids), clean_up_tokenization_spaces=False)


def check_prompt(prompt: str) -> None:
    """Refuse a prompt that is no text, or nothing but white space.

    Raises:
        PromptError: it is one.
    """
    if not as_text("prompt", prompt, error=PromptError).strip():
        raise PromptError("the prompt is empty; expected a text that the model continues with the answer")


def check_tokenizer(tokenizer: Any) -> None:
    """Refuse a tokenizer that does not say which characters a token stands for.

    Raises:
        ModelError: there is none, or it reports no offsets.
    """
    if tokenizer is None:
        raise ModelError("the model has no tokenizer; give it one (model.set_tokenizer, or tokenizer= when loading)")
    if not getattr(tokenizer, "is_fast", False):
        raise ModelError(
            f"the tokenizer {type(tokenizer).__name__} reports no character offsets; load its fast version "
            "(AutoTokenizer.from_pretrained(..., use_fast=True))"
        )


def bos_of(tokenizer: Any) -> int:
    """The id of a tokenizer's BOS token.

    Raises:
        SettingError: it has none.
    """
    bos = getattr(tokenizer, "bos_token_id", None)
    if bos is None:
        raise SettingError("prepend_bos is True, but this model's tokenizer has no BOS token; leave prepend_bos off")
    return int(bos)


def joint(tokenizer: Any, prompt: str, answer: str, answer_joined: str | None = None) -> str:
    """What stands between a prompt and its answer: what the caller says, or else what the rule does (`joining`).

    Raises:
        AnswerError: the answer is empty.
        SettingError: `answer_joined` is not white space.
    """
    if answer_joined is not None:
        check_answer(answer)
        return check_joined(answer_joined)
    check_tokenizer(tokenizer)
    return between(prompt, answer, tokens=tokenizer.get_added_vocab())


def _answer_start(offsets: list[tuple[int, int]], prompt: str, joined: str) -> int:
    """Index of the first token that holds a character of the answer."""
    visible = len(prompt) + len(joined) - len(joined.lstrip())
    first = next((i for i, (a, b) in enumerate(offsets) if b > len(prompt) and b > a), None)
    if first is None:
        raise AnswerError(f"the answer {joined!r} gives no token of its own with this model's tokenizer")
    if first == 0 or len(prompt[: offsets[first][0]].rstrip()) < len(prompt.rstrip()):
        shared = (prompt + joined)[slice(*offsets[first])]
        raise AnswerError(
            f"the answer {joined.strip()!r} shares the token {shared!r} with the end of the prompt; end the prompt "
            "where a word ends, or begin the answer with a space"
        )
    if offsets[-1][1] <= visible:
        raise AnswerError(f"the answer {joined!r} gives no token of its own with this model's tokenizer")
    return first
