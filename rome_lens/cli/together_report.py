"""How an evaluation with checkpoints is printed: a line a checkpoint and editor, then what broke or is missing."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from rich.cells import cell_len
from rich.console import Console

from rome_lens.cli.printing import by_reason, count, for_console, listed, pad, print_notes, shorten
from rome_lens.evaluation import Checkpoint, TogetherReport
from rome_lens.evaluation.report import metric_names
from rome_lens.evaluation.report.scores import UNEDITED
from rome_lens.figures import visible
from rome_lens.figures.format import format_score
from rome_lens.intervals import Estimate

_GAP = "  "
_NAME = 14
_NOTHING = "–"


@dataclass(frozen=True)
class _Column:
    """A column of the table.

    Attributes:
        name: its header.
        cell: what stands in it for a checkpoint.
        needed: it stays in the narrowest terminal.
    """

    name: str
    cell: Callable[[Checkpoint], str]
    needed: bool = False


def print_together(console: Console, report: TogetherReport) -> None:
    """Print the scores at every checkpoint, those of the unedited model beside them, and what collapsed.

    Keeps to the console's width: the drift gives way first, then intervals, then columns from the right. In ASCII where
    the console's encoding is ASCII.
    """
    names = metric_names.main_metrics(report.kind)
    at, editors = report.at, count(len(report.editors), "editor")
    parts = (
        metric_names.data_set_name(report.kind),
        metric_names.model_name(report.settings),
        f"{at[-1] if at else 0} facts in one model",
        editors,
    )
    console.print(
        for_console(console, shorten(", ".join(filter(None, parts)), console.width)), style="bold", soft_wrap=True
    )
    points = [point for several in report.editors.values() for point in several]
    if points:
        console.print()
        columns = _columns(console, names, points, report)
        _print_table(console, report, columns)
        if _unedited(names) in [column.name for column in columns]:
            said = f"{_unedited(names)}: the unedited model, on the same prompts"
            _line(console, shorten(said, console.width), "dim")
    print_notes(console, list(_notes(report)))


def _columns(
    console: Console, names: Sequence[str], points: Sequence[Checkpoint], report: TogetherReport
) -> list[_Column]:
    """The columns that fit, the first metric with its interval if there is room."""
    first, *others = names
    bare = [_Column("facts", lambda point: str(point.n), needed=True), _score(first, needed=True)]
    rest = [_score(name) for name in others]
    rest.append(_Column(_unedited(names), lambda point: _mean(point.unedited.get(names[-1]), names[-1])))
    rest += [
        _Column(name, lambda point, name=name, decimals=decimals: _size(point, name, decimals))
        for name, decimals in (("perplexity", 2), ("drift", 3))
        if any(getattr(point, name) is not None for point in points)
    ]
    interval = _Column("interval", lambda point: _interval(point.intervals.get(first), first))
    for columns in ([*bare, interval, *rest], [*bare, interval, *(one for one in rest if one.name != "drift")]):
        if _width(_rows(console, report, columns)) <= console.width:
            return columns
    columns = [*bare, *rest]
    while _width(_rows(console, report, columns)) > console.width and not columns[-1].needed:
        columns.pop()
    return columns


def _score(name: str, *, needed: bool = False) -> _Column:
    return _Column(name, lambda point: _mean(point.intervals.get(name), name), needed)


def _mean(score: Estimate | None, name: str) -> str:
    return _NOTHING if score is None else format_score(score.mean, metric_names.metric_in_words(name).decimals)


def _interval(score: Estimate | None, name: str) -> str:
    if score is None:
        return ""
    decimals = metric_names.metric_in_words(name).decimals
    return f"[{format_score(score.low, decimals)}, {format_score(score.high, decimals)}]"


def _size(point: Checkpoint, name: str, decimals: int) -> str:
    size = getattr(point, name)
    return _NOTHING if size is None else format_score(size, decimals)


def _unedited(names: Sequence[str]) -> str:
    """The column of what has to stay, in the unedited model: neighbours, or the unrelated question."""
    return f"{names[-1]}, {UNEDITED}"


def _rows(console: Console, report: TogetherReport, columns: Sequence[_Column]) -> list[list[str]]:
    """The table's cells in the console's letters, the header first."""
    rows = [["editor", *(column.name for column in columns)]]
    for name, several in report.editors.items():
        shown = shorten(for_console(console, visible(name)), _NAME)
        rows += [[shown, *(column.cell(point) for column in columns)] for point in several]
    return [[for_console(console, cell) for cell in row] for row in rows]


def _widths(rows: Sequence[Sequence[str]]) -> list[int]:
    return [max(map(cell_len, column)) for column in zip(*rows, strict=True)]


def _width(rows: Sequence[Sequence[str]]) -> int:
    widths = _widths(rows)
    return sum(widths) + len(_GAP) * (len(widths) - 1)


def _print_table(console: Console, report: TogetherReport, columns: Sequence[_Column]) -> None:
    rows = _rows(console, report, columns)
    widths = _widths(rows)
    for number, row in enumerate(rows):
        cells = [pad(row[0], widths[0])]
        cells += [" " * (width - cell_len(cell)) + cell for cell, width in zip(row[1:], widths[1:], strict=True)]
        _line(console, _GAP.join(cells).rstrip(), "" if number else "bold")


def _notes(report: TogetherReport) -> Iterator[tuple[str, str]]:
    """What is worth knowing below the table: label and text."""
    asked = {point.n: point.n_records for several in report.editors.values() for point in several}
    for n, n_records in sorted(asked.items()):
        if n_records < n:
            yield "asked", f"{count(n_records, 'record')} with {count(n, 'fact')}"
    for name, several in report.editors.items():
        for point in several:
            if point.n == report.collapse[name]:
                yield "collapsed", f"{visible(name)}: at {count(point.n, 'fact')}: {point.collapse}"
    for name, several in report.editors.items():
        last = several[-1].failed if several else {}
        for reason, numbers in by_reason(last):
            yield "not put in", f"{visible(name)}: {len(numbers)} of {several[-1].n} ({listed(numbers)}): {reason}"
    for name, several in report.editors.items():
        if not several:
            yield "unfinished", f"{visible(name)}: no checkpoint yet"
    for reason, numbers in by_reason(report.unevaluated):
        yield "left out", f"{count(len(numbers), 'record')} ({listed(numbers)}): {reason}"


def _line(console: Console, text: str, style: str = "") -> None:
    console.print(for_console(console, text), style=style, soft_wrap=True)
