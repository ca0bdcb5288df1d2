"""Fields of a record in JSON, read one at a time: what is wrong is told by the field's name."""

from collections.abc import Mapping
from typing import Any

from rome_lens.errors import AnswerError, PromptError, SettingError, SubjectError
from rome_lens.facts import EditRequest
from rome_lens.joining import check_joined
from rome_lens.subjects import in_text

REWRITE = "requested_rewrite"
"""The field of CounterFact's records that holds the edit."""


class FieldError(Exception):
    """The field that is at fault, and what is wrong with it."""


def member(record: Any, name: str, inside: str, kind: type[Any], expected: str) -> Any:
    """A field that a record has to have.

    Args:
        record: what was read.
        name: the field.
        inside: the names of what it stands in, each with a full stop behind it.
        kind: the class that it is of.
        expected: words for that.

    Raises:
        FieldError: the record is no object, or its field is missing or of another class.
    """
    if not isinstance(record, Mapping):
        raise FieldError(inside.rstrip(".") or "itself", f"is {type(record).__name__}; expected an object")
    # A data set of the hub fills up what a record lacks.
    if record.get(name) is None:
        raise FieldError(inside + name, f"is missing; expected {expected}")
    if not isinstance(record[name], kind):
        raise FieldError(inside + name, f"is {type(record[name]).__name__}; expected {expected}")
    return record[name]


def text_in(record: Any, name: str, inside: str) -> str:
    """A field that has to hold a text.

    Raises:
        FieldError: it holds none.
    """
    return checked(member(record, name, inside, str, "a text"), inside + name)


def texts_in(record: Any, name: str, *, least: int = 1) -> tuple[str, ...]:
    """A field that has to hold a list of texts.

    Raises:
        FieldError: it holds none, or fewer than `least`.
    """
    if least == 0 and record.get(name) is None:
        return ()
    texts = member(record, name, "", list, "a list of texts")
    if len(texts) < least:
        raise FieldError(name, "is an empty list; expected a text at least")
    return tuple(checked(text, f"{name}[{index}]") for index, text in enumerate(texts))


def checked(text: Any, field: str) -> str:
    """A text that a tokenizer takes.

    Raises:
        FieldError: it is none, or blank.
    """
    if not isinstance(text, str):
        problem = f"is {type(text).__name__}"
    elif not text.strip():
        problem = "is empty"
    elif any("\ud800" <= character <= "\udfff" for character in text):
        problem = "holds half a character (a lone surrogate)"
    else:
        return text
    raise FieldError(field, f"{problem}; expected a text")


def joined_in(record: Mapping[str, Any], inside: str) -> str | None:
    """What stands between a record's prompts and its answers, where it says so.

    Raises:
        FieldError: it says something else than white space.
    """
    joined = record.get("answer_joined")
    try:
        return None if joined is None else check_joined(joined)
    except SettingError as error:
        raise FieldError(f"{inside}answer_joined", f"is {joined!r}; expected '' or white space") from error


def joined_of_rewrite(record: Mapping[str, Any], rewrite: Mapping[str, Any]) -> str | None:
    """The same of a record of CounterFact, which may say it in the rewrite or beside it.

    Raises:
        FieldError: it says something else than white space.
    """
    beside = rewrite.get("answer_joined") is None
    return joined_in(record if beside else rewrite, "" if beside else f"{REWRITE}.")


def in_question(question: str, subject: str) -> tuple[str, str]:
    """A question of zsRE with `{}` in its subject's place, and the subject.

    The first occurrence counts, as a word of its own if there is one; braces in a question are text.

    Raises:
        FieldError: the question does not hold the subject, or no prompt can say it.
    """
    try:
        return in_text(question, subject)
    except SubjectError as error:
        raise FieldError("subject", f"{subject!r} is not in src {question!r}") from error
    except PromptError as error:
        raise FieldError("src", f"makes no request: {error}") from error


def request_from(*asked: Any, inside: str = "", field: str = "prompt", target: str = "target_new.str") -> EditRequest:
    """The request that fields make.

    Args:
        asked: what `EditRequest` takes, in its order.
        inside: as `member` takes it.
        field: the one that holds the prompt.
        target: the one that holds the target.

    Raises:
        FieldError: they make none.
    """
    try:
        return EditRequest(*asked)
    except PromptError as error:
        at_fault = target if isinstance(error, AnswerError) else field
        raise FieldError(inside + at_fault, f"makes no request: {error}") from error
