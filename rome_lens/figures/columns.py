"""Visible text in columns, as a terminal counts them: cut to a width, or put on several lines."""

from collections.abc import Sequence

from rich.cells import cell_len, get_character_cell_size


def cut(text: str, columns: int, ellipsis: str = "…") -> str:
    """Text of no more columns than these, with an ellipsis where it was longer."""
    if cell_len(text) <= columns:
        return text
    kept, used = "", 0
    for character in text:
        used += get_character_cell_size(character)
        if used > columns - 1:
            break
        kept += character
    return kept + ellipsis if columns > 0 else ""


def lines_of(words: Sequence[str], columns: float) -> list[str]:
    """Words on lines of no more columns than these; a word that is longer than a line stands alone."""
    lines = [""]
    for word in words:
        if lines[-1] and cell_len(lines[-1]) + 1 + cell_len(word) > columns:
            lines.append(word)
        else:
            lines[-1] = f"{lines[-1]} {word}" if lines[-1] else word
    return lines
