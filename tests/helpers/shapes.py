"""What pytest's `--jaxtyping-packages` checks with: shapes and dtypes as signatures say them, and nothing else.

beartype looks at the parameters and results whose annotations name an array of jaxtyping's. The others it leaves to the
functions themselves, whose own words about a wrong setting are under test. Functions that name no array are left as
they are: with jaxtyping's wrapper around each of them the tests would take a fifth longer.
"""

import inspect
import typing
from collections.abc import Callable
from typing import Any

import jaxtyping
from beartype import BeartypeConf, beartype
from jaxtyping import AbstractArray

_check = beartype(conf=BeartypeConf(is_pep484_tower=True))
_jaxtyped = jaxtyping.jaxtyped


def install() -> None:
    """Let jaxtyping's import hook wrap only what names an array. Call it before what is checked is imported."""
    setattr(jaxtyping, "jaxtyped", _where_arrays_are_named)  # noqa: B010


def _where_arrays_are_named(*, typechecker: Any) -> Callable[[Any], Any]:
    def wrapped(it: Any) -> Any:
        function = it.__init__ if inspect.isclass(it) else it
        return _jaxtyped(it, typechecker=typechecker) if _arrays(function) else it

    return wrapped


def check(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with its arrays checked; itself where it names none."""
    arrays = _arrays(function)
    if not arrays:
        return function
    function.__annotations__ = arrays
    return _check(function)


def _arrays(function: Callable[..., Any]) -> dict[str, Any]:
    return {name: hint for name, hint in _hints(function).items() if _names_an_array(hint)}


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    """Annotations as objects; those that cannot be evaluated name no array."""
    found = {}
    for name, hint in getattr(function, "__annotations__", {}).items():
        try:
            found[name] = eval(hint, function.__globals__) if isinstance(hint, str) else hint
        except NameError:  # imported for the type checker alone
            continue
    return found


def _names_an_array(hint: Any) -> bool:
    if isinstance(hint, type) and issubclass(hint, AbstractArray):
        return True
    return any(_names_an_array(part) for part in typing.get_args(hint))
