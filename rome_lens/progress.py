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


def part(
    progress: Progress | None, start: float, share: float, *, whole: int = 1000, what: str | None = None
) -> Progress:
    """The progress of one part of a work, reported as that of the whole.

    Args:
        progress: of the whole.
        start: how much of the whole was done before the part begins.
        share: how much of the whole the part is.
        whole: what the whole counts as.
        what: what is being done, in words; None passes on what the part says.
    """
    if progress is None:
        return silent

    def report(done: int, total: int, said: str) -> None:
        progress(min(whole, round(start + share * done / max(total, 1))), whole, said if what is None else what)

    return report
