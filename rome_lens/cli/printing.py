"""Lines that fit into a terminal: text shortened or wrapped, a curve of bars, the line that names the model."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from rome_lens.figures.visible import beginning, visible

LABEL = 11
"""Columns of what stands in front of a labelled line."""

_BARS = "▁▂▃▄▅▆▇█"
_MOST_BARS = 40


def shorten(text: str, width: int) -> str:
    """Text made visible; where it is wider than `width` columns, an ellipsis stands two thirds of the way."""
    shown = visible(text)
    if cell_len(shown) <= width:
        return shown
    room = max(0, width - 1)
    back = beginning(shown[::-1], room // 3)[::-1]
    return beginning(shown, room - cell_len(back)) + "…" + back


def pad(text: str, width: int) -> str:
    """Text with spaces behind it, `width` columns wide."""
    return text + " " * (width - cell_len(text))


def print_labelled(console: Console, label: str, *texts: str) -> None:
    """Lines `label  text`; what does not fit goes on below, behind the label's column."""
    for text in texts:
        for number, line in enumerate(Text(text).wrap(console, max(20, console.width - LABEL))):
            console.print(f"{'' if number else label:{LABEL}}{line.plain.rstrip()}", soft_wrap=True)


def curve(values: Sequence[float]) -> str:
    """Numbers from 0 up as a line of bars, the highest at full height; of many numbers, 40 spread evenly."""
    if len(values) > _MOST_BARS:
        values = [values[round(i * (len(values) - 1) / (_MOST_BARS - 1))] for i in range(_MOST_BARS)]
    top = max(values, default=0.0)
    if not 0 < top < float("inf"):
        return ""
    return "".join(_BARS[min(len(_BARS) - 1, max(0, int(value / top * len(_BARS))))] for value in values)


def count(number: int, what: str) -> str:
    """`1 edit`, `2 edits`."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def model_line(model: str, backend: str, dtype: str, device: str, *, bos: bool | None) -> str:
    """The line that says which model it was, on what, and whether BOS stood in front."""
    return f"{visible(model)} · {visible(backend)} · {visible(dtype)} on {visible(device)} · {bos_in_words(bos)}"


def bos_in_words(bos: bool | None) -> str:
    """Whether BOS stood in front; None where nothing says so."""
    return {True: "BOS", False: "no BOS", None: "BOS unknown"}[bos]


def text_in_words(history: Mapping[str, Any]) -> str:
    """The text that a second moment was collected from."""
    seed = "" if history.get("seed") is None else f" (seed {history['seed']})"
    tokens = "an unknown number of" if history.get("n_tokens") is None else history["n_tokens"]
    return f"{tokens} tokens of {history.get('source')}{seed}"
