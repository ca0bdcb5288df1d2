"""What the tables of evaluations share: cells of means with their intervals, letters, and what is said below them."""

from collections.abc import Mapping, Sequence

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from rome_lens.cli.long_runs import first_few
from rome_lens.cli.printing import count, pad, print_labelled, shorten
from rome_lens.evaluation.report import metric_names
from rome_lens.figures import visible
from rome_lens.figures.format import format_score
from rome_lens.intervals import Estimate

BRACKETS, PLUS_MINUS, BARE = "brackets", "plus-minus", "bare"
STYLES = {
    BRACKETS: "[ ]: 95 % interval, by bootstrap over records",
    PLUS_MINUS: "±: half the width of the 95 % interval, by bootstrap over records",
    BARE: "",
}
"""Ways of printing an interval, from what says most to what needs least room, with what is said below the table."""

_GAP = "  "
_NAME = 18
_MOST_NUMBERS, _MOST_REASONS = 8, 5
_ASCII = str.maketrans({"…": "~", "±": "+-", "–": "-", "∞": "inf"})


def in_letters(console: Console, text: str) -> str:
    """Text in the letters that the console has: ASCII where its encoding is ASCII."""
    if not console.options.ascii_only:
        return text
    return text.translate(_ASCII).encode("ascii", "backslashreplace").decode("ascii")


def print_line(console: Console, text: str, style: str = "") -> None:
    """A line in the console's letters, as long as it is."""
    console.print(in_letters(console, text), style=style, soft_wrap=True)


def print_wrapped(console: Console, text: str, style: str = "") -> None:
    """A text in the console's letters, on as many lines as it needs."""
    for line in Text(in_letters(console, text)).wrap(console, max(20, console.width)):
        console.print(line.plain.rstrip(), style=style, soft_wrap=True)


def print_table(console: Console, columns: Sequence[Sequence[str]]) -> None:
    """Print columns of one height side by side, each with its header; all cells of a column have one width."""
    for place, cells in enumerate(zip(*columns, strict=True)):
        print_line(console, _GAP.join(cells).rstrip(), "bold" if place == 0 else "")


def table_width(columns: Sequence[Sequence[str]]) -> int:
    """The width of such a table."""
    return sum(cell_len(column[0]) for column in columns) + len(_GAP) * (len(columns) - 1)


def name_column(console: Console, names: Sequence[str]) -> list[str]:
    """The column of the editors' names, from the top."""
    shown = ["editor", *(shorten(in_letters(console, visible(name)), _NAME) for name in names)]
    width = max(map(cell_len, shown))
    return [pad(name, width) for name in shown]


def right_aligned(header: str, cells: Sequence[str]) -> list[str]:
    """A column of numbers, from the top."""
    width = max(map(cell_len, [header, *cells]))
    return [" " * (width - cell_len(cell)) + cell for cell in (header, *cells)]


def score_column(
    console: Console, header: str, metric: str, scores: Sequence[Estimate | None], style: str
) -> list[str]:
    """A column of a table: the header and the scores, all of one width, means below each other.

    Args:
        console: where it will be printed.
        header: what stands above.
        metric: the metric's name.
        scores: from the top.
        style: how intervals are printed: one of `STYLES`.
    """
    parts = [(in_letters(console, visible(header)), "")]
    parts += [_parts(console, score, metric, style) for score in scores]
    left, right = (max(cell_len(part[side]) for part in parts) for side in (0, 1))
    return [" " * (left - cell_len(mean)) + mean + pad(interval, right) for mean, interval in parts]


def _parts(console: Console, score: Estimate | None, metric: str, style: str) -> tuple[str, str]:
    """A mean, and its interval with a space in front."""
    if score is None:
        return in_letters(console, "–"), ""
    mean, low, high, half = (
        format_score(value, metric_names.metric_in_words(metric).decimals)
        for value in (score.mean, score.low, score.high, (score.high - score.low) / 2)
    )
    interval = {BRACKETS: f" [{low}, {high}]", PLUS_MINUS: f" ±{half}", BARE: ""}[style]
    return in_letters(console, mean), in_letters(console, interval)


def print_notes(console: Console, notes: Sequence[tuple[str, str]]) -> None:
    """Lines `label  text` below a table; a label that the line before has is not repeated."""
    if notes:
        console.print()
    last = ""
    for label, text in notes:
        print_labelled(console, label if label != last else "", in_letters(console, text))
        last = label


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


def left_out(unevaluated: Mapping[int, str]) -> list[tuple[str, str]]:
    """Notes on records that cannot be put to the model: number of a record -> why."""
    return [
        ("left out", f"{count(len(numbers), 'record')} ({listed(numbers)}): {reason}")
        for reason, numbers in by_reason(unevaluated)
    ]
