"""Text that a picture shows as it is: nothing in a label may move a cursor, hide, or swallow its neighbours.

And visible text in columns, as a terminal counts them: cut to a width, or put on several lines.
"""

import unicodedata
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate

from rich.cells import cell_len, get_character_cell_size

_NAMED = {"\n": "↵", "\t": "⇥", "\r": "␍", "\x7f": "␡"}
_SPACE = "␣"


def visible(text: str) -> str:
    """The same text with every character that a reader could not see, or a screen would obey, made visible.

    Line ends and tabs become arrows, other control characters their pictures (ESC is `␛`), and format characters,
    odd spaces, unassigned code points and lone surrogates Python's escapes. One leading space stays, because most
    tokens begin with one; further spaces at either end become `␣`. A combining mark with nothing to stand on gets a
    dotted circle, and an empty text becomes `∅`.
    """
    shown = "".join(_visible_character(character) for character in text)
    if not shown:
        return "∅"
    core = shown.strip(" ")
    if not core:
        return _SPACE * len(shown)
    before, after = len(shown) - len(shown.lstrip(" ")), len(shown) - len(shown.rstrip(" "))
    if unicodedata.category(core[0]).startswith("M"):
        core = "◌" + core
    return (" " if before == 1 else _SPACE * before) + core + _SPACE * after


def _visible_character(character: str) -> str:
    if character in _NAMED:
        return _NAMED[character]
    if ord(character) < 0x20:
        return chr(0x2400 + ord(character))
    if character.isprintable():
        return character
    return character.encode("unicode_escape", "backslashreplace").decode("ascii")


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
