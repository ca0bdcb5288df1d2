"""How an evaluation is printed: a line an editor, then what went wrong."""

from collections.abc import Iterable, Sequence

from rich.console import Console

from rome_lens.cli.printing import count, shorten
from rome_lens.cli.score_table import (
    BARE,
    STYLES,
    by_reason,
    left_out,
    listed,
    name_column,
    print_line,
    print_notes,
    print_table,
    print_wrapped,
    score_column,
    table_width,
)
from rome_lens.evaluation import Report
from rome_lens.evaluation.report import metric_names
from rome_lens.figures import visible


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
        print_line(self.console, shorten(", ".join(filter(None, parts)), self.console.width), "bold")
        style = next((s for s in STYLES if self._width(main, s) <= self.console.width), BARE)
        rest = [name for name in names if name not in main]
        for columns in (*self._packed(main, style), *self._packed(rest, style)):
            self.console.print()
            self._print_table(columns, style)
        if names and STYLES[style]:
            print_wrapped(self.console, STYLES[style], "dim")
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
        print_table(self.console, [self._names(), *(self._column(name, style) for name in names)])

    def _width(self, names: Sequence[str], style: str) -> int:
        return table_width([self._names(), *(self._column(name, style) for name in names)])

    def _names(self) -> list[str]:
        return name_column(self.console, [editor.name for editor in self.editors])

    def _column(self, name: str, style: str) -> list[str]:
        """The header and a cell an editor, all of one width."""
        return score_column(self.console, name, name, [editor.intervals.get(name) for editor in self.editors], style)

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
        print_notes(self.console, [*lines, *left_out(self.report.unevaluated)])
