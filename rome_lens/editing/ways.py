"""The fast way through a model's blocks, or whole forwards with the reason why."""

from collections.abc import Callable
from typing import TypeVar

from rome_lens.backends import Backend, ReplayError

_T = TypeVar("_T")


def fast_or_plain(backend: Backend, *, engine: str, fast: Callable[[], _T], plain: Callable[[str], _T]) -> _T:
    """What `fast` gives; where that way is not open, what `plain` gives.

    Args:
        backend: the model.
        engine: `auto`, or `plain` to go the plain way.
        fast: works through the model's blocks; raises ReplayError where they cannot be called alone.
        plain: works by whole forwards; told why.
    """
    foreign = backend.foreign_hooks()
    if engine == "plain":
        return plain("engine='plain' was asked for")
    if foreign:
        return plain(f"the model carries hooks of its owner's ({foreign[0]})")
    try:
        return fast()
    except ReplayError as error:
        return plain(str(error))
