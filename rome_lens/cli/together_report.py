"""How an evaluation with checkpoints is printed: a line a checkpoint and editor, then what broke or is missing."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from rich.cells import cell_len
from rich.console import Console

from rome_lens.cli.printing import by_reason, count, for_console, listed, pad, print_notes, shorten
from rome_lens.evaluation import Checkpoint, TogetherReport
from rome_lens.evaluation.report import metric_names
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
        _print_table(console, report, _columns(console, names, points, report))
        _line(console, shorten(f"{names[-1]}, none: the unedited model, on the same prompts", console.width), "dim")
    print_notes(console, list(_notes(report)))


def _columns(
    console: Console, names: Sequence[str], points: Sequence[Checkpoint], report: TogetherReport
) -> list[_Column]:
    """The columns that fit, the first metric with its interval if there is room."""
    first, *others = names
    bare = [_Column("facts", lambda point: str(point.n), needed=True), _score(first, needed=True)]
    rest = [_score(name) for name in others]
    rest.append(_Column(f"{names[-1]}, none", lambda point: _mean(point.unedited.get(names[-1]), names[-1])))
    rest += [
        _Column(title, lambda point, size=size, form=form: _size(point, size, form))
        for title, size, form in (("perplexity", "perplexity", ".2f"), ("drift", "drift", ".3f"))
        if any(getattr(point, size) is not None for point in points)
    ]
    interval = _Column("interval", lambda point: _interval(point.intervals.get(first), first))
    for columns in ([*bare, interval, *rest], [*bare, interval, *(one for one in rest if one.name != "drift")]):
        if _width(columns, report) <= console.width:
            return columns
    columns = [*bare, *rest]
    while _width(columns, report) > console.width and not columns[-1].needed:
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


def _size(point: Checkpoint, name: str, form: str) -> str:
    size = getattr(point, name)
    return _NOTHING if size is None else format(size, form)


def _names(report: TogetherReport) -> list[str]:
    return [shorten(visible(name), _NAME) for name in report.editors]


def _width(columns: Sequence[_Column], report: TogetherReport) -> int:
    widest = (
        max(
            [cell_len(column.name), *(cell_len(column.cell(p)) for several in report.editors.values() for p in several)]
        )
        for column in columns
    )
    return max(map(cell_len, ["editor", *_names(report)])) + sum(len(_GAP) + width for width in widest)


def _print_table(console: Console, report: TogetherReport, columns: Sequence[_Column]) -> None:
    rows = [["editor", *(column.name for column in columns)]]
    for name, several in zip(_names(report), report.editors.values(), strict=True):
        rows += [[name, *(column.cell(point) for column in columns)] for point in several]
    widths = [max(cell_len(row[place]) for row in rows) for place in range(len(rows[0]))]
    for number, row in enumerate(rows):
        cells = [pad(row[0], widths[0])]
        cells += [" " * (width - cell_len(cell)) + cell for cell, width in zip(row[1:], widths[1:], strict=True)]
        _line(console, _GAP.join(cells).rstrip(), "" if number else "bold")


def _notes(report: TogetherReport) -> Iterator[tuple[str, str]]:
    """What is worth knowing below the table: label and text."""
    for name, several in report.editors.items():
        for point in several:
            if point.n == report.collapse[name]:
                yield "collapsed", f"{visible(name)}: at {count(point.n, 'fact')}: {point.collapse}"
    for name, several in report.editors.items():
        last = several[-1].failed if several else {}
        for reason, numbers in by_reason(last):
            yield "not put in", f"{visible(name)}: {len(numbers)} of {several[-1].n} ({listed(numbers)}): {reason}"
    for reason, numbers in by_reason(report.unevaluated):
        yield "left out", f"{count(len(numbers), 'record')} ({listed(numbers)}): {reason}"


def _line(console: Console, text: str, style: str = "") -> None:
    console.print(for_console(console, text), style=style, soft_wrap=True)
