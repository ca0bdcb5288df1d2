"""Numbers that callers give, checked in one way: Python's, numpy's, or whatever else says that it is one."""

import math
import operator
from numbers import Integral, Real

from rome_lens.errors import SettingError

SEEDS = 2**32
"""How many seeds there are: what numpy's and torch's generators both take."""


def as_whole(value: object, *, least: int | None = None, most: int | None = None) -> int | None:
    """A whole number as Python's own; None where it is none, or out of its range. True and False are none.

    Args:
        value: what a caller gave.
        least: the smallest that is allowed.
        most: the largest.
    """
    if isinstance(value, bool) or "bool" in str(getattr(value, "dtype", "")):
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


def check_window(window: object, *, n_layers: int) -> int:
    """A number of layers that a model has.

    Raises:
        SettingError: it is below 1, or larger than the model.
    """
    number = as_whole(window, least=1, most=n_layers)
    if number is None:
        raise SettingError(
            f"window is {shown(window)}; expected a whole number of layers from 1 to {n_layers}, the layers of this "
            "model"
        )
    return number


def as_real(value: object) -> float | None:
    """A finite number as Python's own, whole ones as int; None where it is none. True and False are none."""
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


def not_negative(name: str, value: object) -> float:
    """A number from 0 on that a setting has to be.

    Raises:
        SettingError: it is none, or below 0.
    """
    number = as_real(value)
    if number is None or number < 0:
        raise SettingError(f"{name} is {shown(value)}; expected a number, 0 or more")
    return number


def keep(frozen: object, **checked: object) -> None:
    """Put what was checked into the fields of a frozen dataclass, in the place of what the caller gave."""
    for name, value in checked.items():
        object.__setattr__(frozen, name, value)


def shown(value: object) -> str:
    """A value as an error writes it: numbers without the type that numpy writes around them."""
    if isinstance(value, Real) and type(value) not in (bool, int, float):  # numpy's float64 is a float
        return repr(int(value) if isinstance(value, Integral) else float(value))
    return repr(value)
