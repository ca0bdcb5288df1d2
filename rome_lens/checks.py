"""What callers give, checked in one way: numbers of Python, numpy, torch or whatever else says it is one; texts."""

import math
import operator
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from numbers import Integral, Real
from typing import Any, TypeVar

from rome_lens.errors import RomeLensError, SettingError

_Word = TypeVar("_Word", bound=str)
_Settings = TypeVar("_Settings")

# Letters of what was given that an error shows: enough to recognise it.
_LONGEST = 200

SEEDS = 2**32
"""How many seeds there are: what numpy's and torch's generators both take."""


def as_whole(value: object, *, least: int | None = None, most: int | None = None) -> int | None:
    """A whole number as Python's own; None where it is none, or out of its range. True and False are none.

    Args:
        value: what a caller gave.
        least: the smallest that is allowed.
        most: the largest.
    """
    value = _alone(value)
    if isinstance(value, bool) or _is_array(value):
        return None
    try:
        number = operator.index(value)  # pyright: ignore[reportArgumentType]
    except TypeError:
        return None
    fits = (least is None or number >= least) and (most is None or number <= most)
    return number if fits else None


def whole_number(
    name: str, value: object, *, least: int | None = None, most: int | None = None, expected: str = "a whole number"
) -> int:
    """A whole number that a setting has to be.

    Args:
        name: the setting.
        value: what a caller gave.
        least: the smallest that is allowed.
        most: the largest.
        expected: what to say that it should have been; the range goes behind it.

    Raises:
        SettingError: it is none, or out of its range.
    """
    number = as_whole(value, least=least, most=most)
    if number is None:
        bounds = "" if least is None else f", {least} or more" if most is None else f" from {least} to {most}"
        raise SettingError(f"{name} is {shown(value)}; expected {expected}{bounds}")
    return number


def whole_numbers(name: str, values: object, *, expected: str = "a list of whole numbers") -> list[int]:
    """Whole numbers that a setting has to be: a list or a range of them, an array, a tensor.

    Raises:
        SettingError: it is no list, or one of them is no whole number.
    """
    if not is_list(values):
        raise SettingError(f"{name} is {shown(values)}; expected {expected}")
    numbers = []
    several: Any = values
    for value in several:
        number = as_whole(value)
        if number is None:
            raise SettingError(f"{name} has {shown(value)} among its numbers; expected {expected}")
        numbers.append(number)
    return numbers


def seed_number(value: object) -> int:
    """A seed that every generator takes.

    Raises:
        SettingError: it is no whole number from 0 to 4294967295.
    """
    return whole_number("seed", value, least=0, most=SEEDS - 1)


def check_layer(layer: object, *, n_layers: int, model_name: str) -> int:
    """A layer that a model has.

    Raises:
        SettingError: it is no whole number from 0 to n_layers - 1.
    """
    number = as_whole(layer, least=0, most=n_layers - 1)
    if number is None:
        raise SettingError(f"layer is {shown(layer)}; {model_name} has layers 0 to {n_layers - 1}, counted from 0")
    return number


def check_window(window: object, *, n_layers: int, name: str = "window") -> int:
    """A number of layers that a model has; `name` is the setting.

    Raises:
        SettingError: it is below 1, or larger than the model.
    """
    number = as_whole(window, least=1, most=n_layers)
    if number is None:
        raise SettingError(
            f"{name} is {shown(window)}; expected a whole number of layers from 1 to {n_layers}, the layers of this "
            "model"
        )
    return number


def as_real(value: object) -> float | None:
    """A finite number as Python's own, whole ones as int; None where it is none. True and False are none."""
    value = _alone(value)
    if isinstance(value, bool) or not isinstance(value, Real):
        return None
    try:
        number = int(value) if isinstance(value, Integral) else float(value)
        return number if math.isfinite(number) else None
    except OverflowError:  # a whole number or a fraction beyond every float
        return None


def positive(name: str, value: object, *, most: float | None = None, or_else: str | None = None) -> float:
    """A number above 0 that a setting has to be.

    Args:
        name: the setting.
        value: what a caller gave.
        most: the largest that is allowed.
        or_else: what else the setting may be, for the error.

    Raises:
        SettingError: it is none, or out of its range.
    """
    number = as_real(value)
    if number is None or number <= 0 or (most is not None and number > most):
        limit = "" if most is None else f" and at most {most}"
        also = "" if or_else is None else f", {or_else}"
        raise SettingError(f"{name} is {shown(value)}; expected a number above 0{limit}{also}")
    return number


def not_negative(name: str, value: object, *, unit: str | None = None) -> float:
    """A number from 0 on that a setting has to be.

    Args:
        name: the setting.
        value: what a caller gave.
        unit: what it counts, for the error.

    Raises:
        SettingError: it is none, or below 0.
    """
    number = as_real(value)
    if number is None or number < 0:
        of = "" if unit is None else f", {unit}"
        raise SettingError(f"{name} is {shown(value)}; expected a number, 0 or more{of}")
    return number


def keep(frozen: object, **checked: object) -> None:
    """Put what was checked into the fields of a frozen dataclass, in the place of what the caller gave."""
    for name, value in checked.items():
        object.__setattr__(frozen, name, value)


def as_text(name: str, value: object, *, error: type[RomeLensError] = SettingError) -> str:
    """A text that a caller has to give.

    Args:
        name: what it is, for the error.
        value: what was given.
        error: what to raise.

    Raises:
        RomeLensError: of the kind `error`: it is no text.
    """
    if not isinstance(value, str):
        raise error(f"{name} is {shown(value)}; expected a text")
    return value


def flag(name: str, value: object) -> bool:
    """A setting that is on or off, as Python's own True or False.

    Raises:
        SettingError: it is neither: "no" and 2 count as true in Python.
    """
    alone = _alone(value)
    if not isinstance(alone, bool):
        raise SettingError(f"{name} is {shown(value)}; expected True or False")
    return alone


def is_list(value: object) -> bool:
    """Whether something holds several things one after the other, and is no text, mapping or single number."""
    one = isinstance(value, str | bytes | Mapping) or getattr(value, "shape", None) == ()
    return isinstance(value, Iterable) and not one


def choice(name: str, value: Any, known: Sequence[_Word]) -> _Word:
    """One of the words that a setting may be.

    Raises:
        SettingError: it is none of them.
    """
    for word in known:
        if isinstance(value, str) and value == word:
            return word
    raise SettingError(f"{name} is {shown(value)}; choose one of {', '.join(known)}")


def known_names(function: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Refuse keyword arguments that a function does not take, as Python does.

    Raises:
        TypeError: a name is not among those that are known.
    """
    unknown = [name for name in given if name not in known]
    if unknown:
        raise TypeError(f"{function}() got an unexpected keyword argument {unknown[0]!r}")


def settings_of(kind: type[_Settings], given: object, changes: Mapping[str, Any], *, expected: str) -> _Settings:
    """A caller's settings, with what the caller gave by name in their place.

    Args:
        kind: a dataclass of settings.
        given: the caller's; None is what the class has by default.
        changes: fields by name.
        expected: what the settings should have been, for the error.

    Raises:
        SettingError: a setting is out of its range, or the settings are of another kind.
        TypeError: there is no setting of a name.
    """
    if given is None:
        return kind(**changes)
    if not isinstance(given, kind):
        raise SettingError(f"settings is {shown(given)}; expected {expected}")
    itself: Any = kind
    return kind(**{f.name: getattr(given, f.name) for f in fields(itself) if f.init} | dict(changes))


def as_path(name: str, value: Any) -> str:
    """A path that a caller has to give, as a text.

    Raises:
        SettingError: it is none.
    """
    path = os.fspath(value) if isinstance(value, str | os.PathLike) else None
    if not isinstance(path, str):
        raise SettingError(f"{name} is {shown(value)}; expected a path, as a text or a pathlib.Path")
    return path


def as_texts(name: str, values: object) -> tuple[str, ...]:
    """Texts that a caller has to give, in a list of any kind.

    Raises:
        SettingError: they are no list, such as one text alone, or one of them is no text.
    """
    if not is_list(values):
        raise SettingError(f"{name} is {shown(values)}; expected a list of texts")
    several: Any = values
    return tuple(as_text(f"{name}[{index}]", value) for index, value in enumerate(several))


def shown(value: Any) -> str:
    """A value as an error writes it, in one line: numbers without the type that numpy or torch writes around them."""
    value = _alone(value)
    if _is_array(value):
        sides = " x ".join(map(str, value.shape)) or "no"
        return f"a {type(value).__name__} of {sides} numbers"
    if isinstance(value, Real) and type(value) not in (bool, int, float):  # numpy's float64 is a float
        return repr(int(value) if isinstance(value, Integral) else float(value))
    text = " ".join(repr(value).split())
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


def _alone(value: Any) -> Any:
    """The one number that a numpy scalar, array or a tensor without dimensions holds; anything else as it is."""
    if getattr(value, "shape", None) == () and callable(getattr(value, "item", None)):
        try:
            return value.item()
        except (RuntimeError, ValueError, TypeError):  # a tensor without numbers, on the meta device
            return value
    return value


def _is_array(value: Any) -> bool:
    """Whether it is an array or a tensor, and no number of one."""
    return isinstance(getattr(value, "shape", None), tuple) and not isinstance(value, Real)
