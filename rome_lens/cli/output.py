"""Where commands write: text to stdout, progress to stderr, files. What the user typed is shown, never interpreted."""

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console

from rome_lens.progress import DETAIL, Progress
from rome_lens.storage import check_writable

# Of lines in files and pipes: wider than rich takes them to be, so that less is cut out of prompts.
_FILE_WIDTH = 120


def stdout() -> Console:
    """The console for a command's output; no markup, emoji codes or highlighting in what it prints."""
    width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else _FILE_WIDTH
    return Console(markup=False, emoji=False, highlight=False, soft_wrap=False, width=width)


def check_files(*paths: Path | None, png: bool = False) -> None:
    """Refuse files that cannot be written, before any work is done.

    Args:
        paths: the files; None stands for one that is not asked for.
        png: whether a figure becomes a PNG.

    Raises:
        ArtefactError: there is no such folder, or what draws a PNG is missing.
    """
    for path in paths:
        if path is not None:
            check_writable(path)
    if png:
        from rome_lens.figures.files import check_png

        check_png()


def print_result(as_json: bool, machines: Callable[[], Any], people: Callable[[Console], None]) -> None:
    """Print what a command found.

    Args:
        as_json: whether it is for machines.
        machines: gives the JSON of it.
        people: prints the text.
    """
    if as_json:
        print_json(machines())
    else:
        people(stdout())


def print_json(value: Any) -> None:
    """Print a value as JSON, in ASCII: whatever the output's encoding, and whatever a path holds."""
    sys.stdout.write(json.dumps(value, indent=2, allow_nan=False) + "\n")


def say(message: str) -> None:
    """One line on stderr; whatever a terminal would obey in it is spelt out."""
    line = "".join(c if c.isprintable() else repr(c)[1:-1] for c in " ".join(message.split()))
    sys.stderr.write(f"rome-lens: {line}\n")


@contextmanager
def progress_bar(first: str = "starting") -> Iterator[Progress]:
    """A progress bar on stderr, gone when the work is done; none where stderr is no terminal.

    Args:
        first: what is done before a work reports.
    """
    from tqdm import tqdm

    with tqdm(total=1, file=sys.stderr, disable=None, leave=False, dynamic_ncols=True, unit="") as bar:

        def progress(done: int, total: int, what: str) -> None:
            if bar.disable:
                return
            work, _, detail = what.partition(DETAIL)
            if bar.desc != f"{work}: ":
                bar.set_description(work, refresh=False)
                bar.bar_format = None if total else "{desc}{n_fmt} [{elapsed}]"
                bar.unit_scale = True
                bar.initial = 0
                bar.reset(total or None)
                # What was done before took none of this time: the rate, and so the time left, is of what is done now.
                bar.initial = bar.n = bar.last_print_n = done
                bar.refresh()
            bar.total = total or None
            bar.set_postfix_str(detail, refresh=False)
            if not bar.update(done - bar.n) and detail:
                bar.refresh()

        progress(0, 0, first)
        yield progress
