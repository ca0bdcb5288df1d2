"""Facts and requests that callers give, each of its kind; of anything else it is said what to write instead."""

import os
from collections.abc import Mapping
from typing import Any

from rome_lens.checks import is_list, shown
from rome_lens.errors import SettingError
from rome_lens.facts import EditRequest, Fact

_REQUEST = "EditRequest('{} is in', subject='The tower', target_new='Rome')"
_FACT = "Fact('{} is in', subject='The tower', answer='Paris')"


def request_of(given: object, *, what: str = "the request") -> EditRequest:
    """One request.

    Args:
        given: what a caller gave.
        what: what to call it.

    Raises:
        SettingError: it is none; where it holds what a request needs, the error writes the request down.
    """
    if isinstance(given, EditRequest):
        return given
    if isinstance(getattr(given, "request", None), EditRequest):
        raise SettingError(f"{what} is a {type(given).__name__}; expected an EditRequest: give its .request")
    written = _REQUEST
    if isinstance(given, Mapping):
        written = _from_mapping(given)
    elif isinstance(given, Fact):
        subject, answer = shown(given.subject), shown(given.answer)
        written = f"EditRequest({shown(given.prompt)}, subject={subject}, target_new=..., target_true={answer})"
    elif isinstance(given, tuple | list) and len(given) in (3, 4) and all(isinstance(part, str) for part in given):
        written = f"EditRequest({', '.join(map(shown, given))})"
    elif isinstance(given, tuple | list) and given and all(isinstance(part, EditRequest) for part in given):
        raise SettingError(f"{what} is a list of {len(given)} requests; edit takes one, and edit_many takes a list")
    raise SettingError(f"{what} is {_named(given)}; expected an EditRequest: write {written}")


def requests_of(given: object) -> list[EditRequest]:
    """Several requests.

    Raises:
        SettingError: they are no list, or one of them is none.
    """
    if isinstance(given, EditRequest):
        raise SettingError("requests is one EditRequest; edit_many takes a list of them, and edit takes one")
    if not is_list(given):
        is_path = isinstance(given, str | os.PathLike)
        written = "such as read_requests(path) reads from a file" if is_path else f"such as [{_REQUEST}]"
        raise SettingError(f"requests is {_named(given)}; expected a list of EditRequest, {written}")
    return [request_of(one, what=f"request {index}") for index, one in enumerate(given)]  # pyright: ignore[reportArgumentType]


def facts_of(given: object) -> tuple[Fact, ...]:
    """Several facts.

    Raises:
        SettingError: they are no list, or one of them is none.
    """
    if not is_list(given):
        raise SettingError(f"facts is {_named(given)}; expected a list of Fact, such as read_known_facts(path) gives")
    facts = tuple(given)  # pyright: ignore[reportArgumentType]
    for index, fact in enumerate(facts):
        if isinstance(fact, EditRequest):
            answer = "..." if fact.target_true is None else shown(fact.target_true)
            written = f"Fact({shown(fact.prompt)}, subject={shown(fact.subject)}, answer={answer})"
        else:
            written = _FACT
        if not isinstance(fact, Fact):
            raise SettingError(f"fact {index} is {_named(fact)}; expected a Fact: write {written}")
    return facts


def _named(given: object) -> str:
    """What something is: its kind, and itself where that tells more."""
    if given is None or isinstance(given, str | bytes | int | float):
        return shown(given)
    return f"a {type(given).__name__} ({shown(given)})"


def _from_mapping(given: Mapping[Any, Any]) -> str:
    """The request that a mapping of the released code stands for, as far as it says."""
    targets = {name: _target(given.get(name)) for name in ("target_new", "target_true")}
    parts = [shown(given.get("prompt", "...")), f"subject={shown(given.get('subject', '...'))}"]
    parts += [f"target_new={shown(targets['target_new'] or '...')}"]
    parts += [f"target_true={shown(targets['target_true'])}"] if targets["target_true"] else []
    joined = given.get("answer_joined")
    parts += [] if joined is None else [f"answer_joined={shown(joined)}"]
    return f"EditRequest({', '.join(parts)})"


def _target(given: Any) -> Any:
    return given.get("str") if isinstance(given, Mapping) else given
