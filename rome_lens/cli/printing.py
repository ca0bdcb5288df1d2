"""Lines that fit into a terminal: text shortened or wrapped, a curve of bars, the line that names the model."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from rome_lens.cli.long_runs import first_few
from rome_lens.figures.visible import beginning, visible

LABEL = 11
"""Columns of what stands in front of a labelled line."""

_BARS = "▁▂▃▄▅▆▇█"
_MOST_BARS = 40
_MOST_NUMBERS, _MOST_REASONS = 8, 5
_ASCII = str.maketrans({"…": "~", "±": "+-", "–": "-", "∞": "inf"})


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


def print_notes(console: Console, notes: Sequence[tuple[str, str]]) -> None:
    """Labelled lines below a blank one, none where there are no notes; a label that comes again is not repeated.

    Args:
        console: where.
        notes: label and text.
    """
    if notes:
        console.print()
    last = ""
    for label, text in notes:
        print_labelled(console, label if label != last else "", for_console(console, text))
        last = label


def for_console(console: Console, text: str) -> str:
    """The text, in ASCII where a console's encoding is ASCII."""
    if not console.options.ascii_only:
        return text
    return text.translate(_ASCII).encode("ascii", "backslashreplace").decode("ascii")


def by_reason(why: Mapping[int, str]) -> list[tuple[str, list[int]]]:
    """Reasons with the numbers that they hold for; behind the first few, the others together."""
    reasons: dict[str, list[int]] = {}
    for number, reason in sorted(why.items()):
        reasons.setdefault(visible(reason), []).append(number)
    found = list(reasons.items())
    if len(found) <= _MOST_REASONS + 1:
        return found
    others = sorted(number for _, numbers in found[_MOST_REASONS:] for number in numbers)
    return [*found[:_MOST_REASONS], ("other reasons", others)]


def listed(numbers: Sequence[int]) -> str:
    """`record 4`, `records 4, 9`; of many the first few."""
    return f"record{'' if len(numbers) == 1 else 's'} {first_few(numbers, _MOST_NUMBERS)}"


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
