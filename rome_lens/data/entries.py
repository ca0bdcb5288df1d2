"""A request as somebody wrote it into a record of JSON or a row of a table, in the fields of several toolkits."""

from collections.abc import Mapping, Sequence
from typing import Any

from rome_lens.checks import shown
from rome_lens.data.fields import (
    REWRITE,
    FieldError,
    in_question,
    joined_in,
    joined_of_rewrite,
    member,
    request_from,
    text_in,
)
from rome_lens.errors import PromptError
from rome_lens.facts import EditRequest
from rome_lens.subjects import placed

# What a request is made of, by the names that files have for it: ours first, then those of EasyEdit and zsRE.
PROMPT = ("prompt", "src")
SUBJECT = ("subject",)
NEW = ("target_new", "target", "alt")
TRUE = ("target_true", "old", "ground_truth", "answers")
REQUEST = (*PROMPT, *SUBJECT, *NEW, *TRUE, "answer_joined")
"""All fields that a request is read from."""


def request_in(entry: Any) -> EditRequest:
    """The request of an entry, in the fields of any toolkit.

    Args:
        entry: what was read. Its own fields count, or, as in CounterFact's records, those of `requested_rewrite`.

    Raises:
        FieldError: it makes none.
    """
    record, inside = entry, ""
    if isinstance(entry, Mapping) and entry.get(REWRITE) is not None:
        record, inside = member(entry, REWRITE, "", Mapping, "an object"), f"{REWRITE}."
    asked = _field(record, PROMPT, inside)
    prompt, subject = text_in(record, asked, inside), text_in(record, "subject", inside)
    target, old = _field(record, NEW, inside), _field(record, TRUE, inside)
    target_new = _target(record, target, inside)
    target_true = None if says_nothing(record.get(old)) else _target(record, old, inside)
    joined = joined_of_rewrite(entry, record) if inside else joined_in(record, inside)
    if asked == "src":
        prompt, subject = in_question(prompt, subject)
    elif not inside:
        try:
            prompt, subject = placed(prompt, subject)
        except PromptError as error:
            raise FieldError(asked, f"makes no request: {error}") from error
    made = (prompt, subject, target_new, target_true, joined)
    return request_from(*made, inside=inside, field=asked, target=target)


def _field(record: Any, names: Sequence[str], inside: str) -> str:
    """Which of several fields that mean the same is read: the first that says something."""
    if not isinstance(record, Mapping):
        return names[0]
    told = [name for name in names if not says_nothing(record.get(name))]
    for other in told[1:]:
        if _first(record[other]) != _first(record[told[0]]):
            both = f"{shown(record[told[0]])} and {shown(record[other])}"
            raise FieldError(inside + told[0], f"and {other} say different things, {both}; keep one of them")
    there = [name for name in names if record.get(name) is not None]
    return (told or there or names)[0]


def says_nothing(value: Any) -> bool:
    """Whether there is nothing in a field: null, a blank text, an empty list, or a list or an object of such."""
    return (
        value is None
        or value == []
        or (isinstance(value, str) and not value.strip())
        or (_first(value) is not value and says_nothing(_first(value)))
    )


def _first(value: Any) -> Any:
    """What a field says: of a list of answers the first, of an object of the released code its text."""
    while (isinstance(value, list) and value) or (isinstance(value, Mapping) and "str" in value):
        value = value["str"] if isinstance(value, Mapping) else value[0]
    return value


def _target(record: Mapping[str, Any], name: str, inside: str) -> str:
    value = record.get(name)
    if isinstance(value, Mapping):
        return text_in(value, "str", f"{inside}{name}.")
    if isinstance(value, list) and (name in TRUE or len(value) == 1):
        value = _first(value)
    elif isinstance(value, list) and value:
        raise FieldError(inside + name, f"is a list of {len(value)} targets; expected one text")
    return text_in({name: value}, name, inside)
