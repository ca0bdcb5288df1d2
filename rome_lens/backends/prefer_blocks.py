"""The blocks of a model called alone, which is fast; else whole forwards, with the reason why."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from rome_lens.backends.base import Backend
from rome_lens.backends.replay import ReplayError
from rome_lens.errors import RomeLensError, one_line
from rome_lens.memory import is_out_of_memory
from rome_lens.progress import Progress

_T = TypeVar("_T")


def prefer_blocks(
    backend: Backend,
    *,
    engine: str = "auto",
    blocks: Callable[[Progress | None], _T],
    whole: Callable[[str], _T],
    progress: Progress | None = None,
    despite_hooks: bool = False,
) -> _T:
    """What `blocks` gives; where that way is not open, what `whole` gives.

    Args:
        backend: the model.
        engine: `auto`, or `plain` for whole forwards.
        blocks: works through the model's blocks, and reports to the callback that it is given. Whatever goes wrong in
            it leads to whole forwards, but for what has nothing to do with blocks (`called_alone`).
        whole: works by whole forwards; it is given the reason.
        progress: the caller's callback.
        despite_hooks: whether `blocks` is right even for a model that carries hooks of its owner's.
    """
    if engine == "plain":
        return whole("engine='plain' was asked for")
    if not despite_hooks and (foreign := backend.foreign_hooks()):
        return whole(f"the model carries hooks of its owner's ({foreign[0]})")
    watched = None if progress is None else _Watched(progress)
    try:
        with called_alone(watched):
            return blocks(watched)
    except ReplayError as error:
        reason = str(error)
    # Out here, where nothing holds the tensors of the attempt any more.
    return whole(reason)


@contextmanager
def called_alone(progress: "_Watched | None" = None) -> Iterator[None]:
    """While blocks are called alone: whatever they raise becomes a ReplayError, which leads to whole forwards.

    What the whole forward raises as well reaches the user from there. As they are pass the errors that rome_lens raises
    on purpose, those of memory, which have fewer rows run together, and what a caller's callback raises to cancel.

    Args:
        progress: the callback that is called meanwhile.

    Raises:
        ReplayError: a block called alone raised an error, which is named.
    """
    try:
        yield
    except (ReplayError, RomeLensError):
        raise
    except Exception as error:  # a block of any architecture, called in a way that it was not written for
        if is_out_of_memory(error) or (progress is not None and error is progress.raised):
            raise
        raise ReplayError(f"a block called alone raised {type(error).__name__}: {one_line(error)}") from error


class _Watched:
    """A caller's callback, and what it raised, for which no block is to blame."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self.raised: BaseException | None = None

    def __call__(self, done: int, total: int, what: str) -> None:
        try:
            self._progress(done, total, what)
        except BaseException as error:
            self.raised = error
            raise
