"""How long work reports how far it is: nothing below the shell prints."""

from collections.abc import Callable

Progress = Callable[[int, int, str], None]
"""`progress(done, total, what)`: bytes, tensors or steps; `total` is 0 where it is not known.

The first call of a work says what was done before it began: 0, or more where it goes on after an interruption.
"""

DETAIL = " · "
"""What stands behind it in `what` says which step of the same work is being done: `records · editing 3/20`."""


def silent(done: int, total: int, what: str) -> None:
    """Reports nothing."""
