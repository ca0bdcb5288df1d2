"""Where two settings part, said in words."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_NOTHING = object()
_LONGEST = 80


@dataclass(frozen=True)
class Difference:
    """The first place where two nested settings differ.

    Attributes:
        first: what the first has there, such as `editors.rome.layer=5`.
        second: what the second has there.
    """

    first: str
    second: str


def first_difference(first: Any, second: Any, name: str = "") -> Difference | None:
    """The first place, in the order of the names, where two settings differ as JSON; None where they agree.

    Args:
        first: the one: a mapping, or what it holds somewhere.
        second: the other.
        name: what the place is called that they stand at; nothing for all of the settings.
    """
    if isinstance(first, Mapping) and isinstance(second, Mapping):
        for inner in sorted({*first, *second}):
            path = f"{name}.{inner}" if name else str(inner)
            found = first_difference(first.get(inner, _NOTHING), second.get(inner, _NOTHING), path)
            if found is not None:
                return found
        return None
    if isinstance(first, list) and isinstance(second, list) and len(first) == len(second):
        pairs = enumerate(zip(first, second, strict=True))
        found = (first_difference(one, other, f"{name}[{place}]") for place, (one, other) in pairs)
        return next((difference for difference in found if difference is not None), None)
    return None if _text(first) == _text(second) else Difference(_said(name, first), _said(name, second))


def _text(value: Any) -> str:
    return "nothing" if value is _NOTHING else json.dumps(value, sort_keys=True)


def _said(name: str, value: Any) -> str:
    if value is _NOTHING:
        return f"no {name}"
    text = json.dumps(value, sort_keys=True, ensure_ascii=False)
    return f"{name}={text if len(text) <= _LONGEST else text[: _LONGEST - 1] + '…'}"
