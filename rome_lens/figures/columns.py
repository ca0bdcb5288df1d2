"""Visible text in columns, as a terminal counts them: cut to a width, or put on several lines."""

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate

from rich.cells import cell_len, get_character_cell_size


def cut(text: str, columns: int, ellipsis: str = "…") -> str:
    """Text of no more columns than these, with an ellipsis where it was longer."""
    if cell_len(text) <= columns:
        return text
    return beginning(text, columns - 1) + ellipsis if columns > 0 else ""


def beginning(text: str, columns: int) -> str:
    """The characters from the front that fit into so many columns."""
    used = list(accumulate(map(get_character_cell_size, text)))
    return text[: bisect_right(used, columns)]


def lines_of(words: Sequence[str], columns: float) -> list[str]:
    """Words on lines of no more columns than these; a word that is longer than a line stands alone."""
    lines = [""]
    for word in words:
        if lines[-1] and cell_len(lines[-1]) + 1 + cell_len(word) > columns:
            lines.append(word)
        else:
            lines[-1] = f"{lines[-1]} {word}" if lines[-1] else word
    return lines
