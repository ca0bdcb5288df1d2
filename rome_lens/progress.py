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


def part(progress: Progress | None, start: float, share: float) -> Progress:
    """The progress of one part of a work, reported as that of the whole, which counts as 1000.

    Args:
        progress: of the whole.
        start: how much of the whole was done before the part begins.
        share: how much of the whole the part is.
    """
    if progress is None:
        return silent

    def report(done: int, total: int, what: str) -> None:
        progress(min(1000, round(start + share * done / max(total, 1))), 1000, what)

    return report
