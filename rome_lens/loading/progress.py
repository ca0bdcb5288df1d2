"""How far loading has come: one callback, and no library that writes on the user's screen meanwhile."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from rome_lens.progress import Progress, silent

if TYPE_CHECKING:
    from tqdm import tqdm

_NOISY = ("transformers", "huggingface_hub", "gguf")


@contextlib.contextmanager
def quiet(what: str, *, progress: Progress = silent) -> Iterator[type[tqdm]]:
    """Keep transformers, huggingface_hub and gguf off the screen, and hand their progress to ours.

    Log levels, progress bars and handlers are as before afterwards. They belong to the process, so two threads that
    load at once may see each other's silence, but never keep it.

    Args:
        what: what is being loaded, for the callback.
        progress: the caller's callback.

    Yields:
        A tqdm class that draws nothing and reports to `progress`, for functions that take one.
    """
    from huggingface_hub import constants
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
    from transformers import modeling_gguf_pytorch_utils as gguf_loader
    from transformers.utils import logging as transformers_logging

    bar = _reporting_bar(what, progress)
    with contextlib.ExitStack() as undo:
        for name in _NOISY:
            logger = logging.getLogger(name)
            undo.callback(logger.setLevel, logger.level)
            logger.setLevel(logging.ERROR)
        if not logging.getLogger().handlers:
            # TransformerLens logs through the root logger, and the first such call would install a handler for good.
            ours = _OursAlone()
            logging.getLogger().addHandler(ours)
            undo.callback(logging.getLogger().removeHandler, ours)

        # transformers hands the bar that it would have made to its hook, and takes ours instead.
        hook = transformers_logging.set_tqdm_hook(lambda factory, args, kwargs: bar(*args, **kwargs))
        undo.callback(transformers_logging.set_tqdm_hook, hook)
        # The GGUF loader takes tqdm by its own import, past the hook.
        if hasattr(gguf_loader, "tqdm"):
            undo.callback(setattr, gguf_loader, "tqdm", vars(gguf_loader)["tqdm"])
            setattr(gguf_loader, "tqdm", bar)  # noqa: B010  # pyright: not a name that the module exports
        # Small files (configuration, tokeniser) come with the hub's own bars. The environment variable, where the user
        # has set it, wins over these calls, and they warn about that.
        if constants.HF_HUB_DISABLE_PROGRESS_BARS is None and not are_progress_bars_disabled():
            disable_progress_bars()
            undo.callback(enable_progress_bars)
        yield bar


class _OursAlone(logging.Handler):
    """Shows what rome_lens itself warns of, as logging does where it is not set up, and drops everything else."""

    def emit(self, record: logging.LogRecord) -> None:
        last = logging.lastResort
        if last is not None and record.levelno >= last.level and record.name.partition(".")[0] == "rome_lens":
            last.handle(record)


def _reporting_bar(what: str, progress: Progress) -> type[tqdm]:
    from tqdm import tqdm

    class ReportingBar(tqdm):
        """A tqdm that keeps tqdm's count and pace, and calls back where tqdm would draw."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **{**kwargs, "file": io.StringIO(), "disable": progress is silent})

        def display(self, msg: str | None = None, pos: int | None = None) -> None:
            progress(int(self.n), int(self.total or 0), what)

    return ReportingBar
