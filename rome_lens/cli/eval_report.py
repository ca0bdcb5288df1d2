"""How an evaluation is printed: a line an editor, then what went wrong."""

from collections.abc import Iterable, Sequence

from rich.cells import cell_len
from rich.console import Console

from rome_lens.cli.printing import by_reason, count, for_console, listed, pad, print_notes, shorten
from rome_lens.evaluation import Report
from rome_lens.evaluation.report import metric_names
from rome_lens.figures import visible
from rome_lens.figures.format import format_score
from rome_lens.intervals import Estimate

_GAP = "  "
_NAME = 18
# From what says most to what needs least room.
_BRACKETS, _PLUS_MINUS, _BARE = "brackets", "plus-minus", "bare"
_STYLES = {
    _BRACKETS: "[ ]: 95 % interval, by bootstrap over records",
    _PLUS_MINUS: "±: half the width of the 95 % interval, by bootstrap over records",
    _BARE: "",
}


def print_report(console: Console, report: Report) -> None:
    """Print the scores of every editor with their intervals, and which records lack an edit or were flagged.

    Keeps to the console's width, and to ASCII where its encoding is ASCII.
    """
    _Printer(console, report).print()


class _Printer:
    """One report on one console."""

    def __init__(self, console: Console, report: Report) -> None:
        self.console, self.report = console, report
        self.editors = list(report.editors.values())

    def print(self) -> None:
        report = self.report
        names = metric_names.shown_metrics(report.kind, (name for e in self.editors for name in e.intervals))
        main = [name for name in names if name in metric_names.main_metrics(report.kind)] or names
        sizes = {editor.n_records for editor in self.editors}
        records, editors = count(max(sizes, default=0), "record"), count(len(self.editors), "editor")
        parts = (metric_names.data_set_name(report.kind), metric_names.model_name(report.settings), records, editors)
        self._line(shorten(", ".join(filter(None, parts)), self.console.width), "bold")
        style = next((s for s in _STYLES if self._width(main, s) <= self.console.width), _BARE)
        rest = [name for name in names if name not in main]
        for columns in (*self._packed(main, style), *self._packed(rest, style)):
            self.console.print()
            self._print_table(columns, style)
        if names and _STYLES[style]:
            self._line(_STYLES[style], "dim")
        self._print_counts(differ=len(sizes) > 1)

    def _packed(self, names: Sequence[str], style: str) -> Iterable[list[str]]:
        """Metrics in groups that fit the width; one that does not fit alone has a table to itself."""
        group: list[str] = []
        for name in names:
            if group and self._width([*group, name], style) > self.console.width:
                yield group
                group = []
            group = [*group, name]
        if group:
            yield group

    def _print_table(self, names: Sequence[str], style: str) -> None:
        first = self._names()
        editors = [pad(name, max(map(cell_len, first))) for name in first]
        for place, cells in enumerate(zip(editors, *(self._column(name, style) for name in names), strict=True)):
            self._line(_GAP.join(cells).rstrip(), "bold" if place == 0 else "")

    def _width(self, names: Sequence[str], style: str) -> int:
        columns = (cell_len(self._column(name, style)[0]) for name in names)
        return max(map(cell_len, self._names())) + sum(len(_GAP) + width for width in columns)

    def _names(self) -> list[str]:
        return ["editor", *(shorten(self._text(visible(editor.name)), _NAME) for editor in self.editors)]

    def _column(self, name: str, style: str) -> list[str]:
        """The header and a cell an editor, all of one width, means below each other."""
        parts = [(self._text(visible(name)), "")]
        parts += [self._parts(editor.intervals.get(name), name, style) for editor in self.editors]
        left, right = (max(cell_len(part[side]) for part in parts) for side in (0, 1))
        return [" " * (left - cell_len(mean)) + mean + pad(interval, right) for mean, interval in parts]

    def _parts(self, score: Estimate | None, name: str, style: str) -> tuple[str, str]:
        """A mean, and its interval with a space in front."""
        if score is None:
            return self._text("–"), ""
        mean, low, high, half = (
            format_score(value, metric_names.metric_in_words(name).decimals)
            for value in (score.mean, score.low, score.high, (score.high - score.low) / 2)
        )
        interval = {_BRACKETS: f" [{low}, {high}]", _PLUS_MINUS: f" ±{half}", _BARE: ""}[style]
        return self._text(mean), self._text(interval)

    def _print_counts(self, *, differ: bool) -> None:
        sizes = ", ".join(f"{visible(e.name)} {e.n_records}" for e in self.editors)
        lines = [("records", sizes)] if differ else []
        lines += [
            ("no edit", f"{visible(e.name)}: {len(numbers)} of {e.n_records} ({listed(numbers)}): {reason}")
            for e in self.editors
            for reason, numbers in by_reason(e.failed)
        ]
        bound = self.report.settings.get("perplexity_bound")
        beyond = "beyond the bound" if bound is None else f"beyond a factor of {bound}"
        for editor in self.editors:
            if editor.flagged:
                many = f"{len(editor.flagged)} of {editor.n_records}"
                lines.append(("perplexity", f"{visible(editor.name)}: {many} {beyond} ({listed(editor.flagged)})"))
        for reason, numbers in by_reason(self.report.unevaluated):
            lines.append(("left out", f"{count(len(numbers), 'record')} ({listed(numbers)}): {reason}"))
        print_notes(self.console, lines)

    def _line(self, text: str, style: str = "") -> None:
        self.console.print(self._text(text), style=style, soft_wrap=True)

    def _text(self, text: str) -> str:
        return for_console(self.console, text)
