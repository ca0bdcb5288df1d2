"""The fast way through a model's blocks, called alone, or whole forwards with the reason why: one place for all."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from rome_lens.backends.base import Backend, ReplayError
from rome_lens.errors import RomeLensError, one_line
from rome_lens.memory import is_out_of_memory
from rome_lens.progress import Progress

_T = TypeVar("_T")


def fast_or_plain(
    backend: Backend,
    *,
    engine: str,
    fast: Callable[[Progress | None], _T],
    plain: Callable[[str], _T],
    progress: Progress | None = None,
) -> _T:
    """What `fast` gives; where that way is not open, what `plain` gives.

    Args:
        backend: the model.
        engine: `auto`, or `plain` to go the plain way.
        fast: works through the model's blocks, and reports to the callback that it is given. Whatever goes wrong in it
            leads to the plain way, but for what has nothing to do with blocks (`called_alone`).
        plain: works by whole forwards; told why.
        progress: the caller's callback.
    """
    if engine == "plain":
        return plain("engine='plain' was asked for")
    if foreign := backend.foreign_hooks():
        return plain(hooks_of_the_owner(foreign))
    told = None if progress is None else _Told(progress)
    try:
        with called_alone(told):
            return fast(told)
    except ReplayError as error:
        reason = str(error)
    # Out here, where nothing holds the tensors of the attempt any more.
    return plain(reason)


def hooks_of_the_owner(names: tuple[str, ...]) -> str:
    """Why a model that carries somebody's hooks is run by whole forwards."""
    return f"the model carries hooks of its owner's ({names[0]})"


@contextmanager
def called_alone(told: "_Told | None" = None) -> Iterator[None]:
    """While blocks are called alone: whatever they raise becomes a ReplayError, which leads to whole forwards.

    What the whole forward raises as well reaches the user from there. As they are pass the errors that rome_lens raises
    on purpose, those of memory, which have fewer rows run together, and what a caller's callback raises to cancel.

    Args:
        told: the callback that is called meanwhile.

    Raises:
        ReplayError: a block called alone raised an error, which is named.
    """
    try:
        yield
    except (ReplayError, RomeLensError):
        raise
    except Exception as error:  # a block of any architecture, called in a way that it was not written for
        if is_out_of_memory(error) or (told is not None and error is told.raised):
            raise
        raise ReplayError(f"a block called alone raised {type(error).__name__}: {one_line(error)}") from error


class _Told:
    """A caller's callback, and what it raised: that is no fault of a block."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self.raised: BaseException | None = None

    def __call__(self, done: int, total: int, what: str) -> None:
        try:
            self._progress(done, total, what)
        except BaseException as error:
            self.raised = error
            raise
