"""How an evaluation with checkpoints is printed: a line an editor and number of facts, then what went wrong."""

from rich.console import Console

from rome_lens.cli.printing import count, shorten
from rome_lens.cli.score_table import (
    BARE,
    STYLES,
    by_reason,
    in_letters,
    left_out,
    listed,
    name_column,
    print_line,
    print_notes,
    print_table,
    print_wrapped,
    right_aligned,
    score_column,
    table_width,
)
from rome_lens.evaluation.report import metric_names
from rome_lens.evaluation.report.together_report import TogetherReport
from rome_lens.figures import visible
from rome_lens.figures.format import format_score

_UNEDITED, _PERPLEXITY = "unedited", "perpl."


def print_together(console: Console, report: TogetherReport) -> None:
    """Print the scores of every editor at every checkpoint, and where its model collapsed or a fact has no place.

    The first score has its interval where there is room for it; where there is little, columns are left out from the
    last one on. Keeps to the console's width, and to ASCII where its encoding is ASCII.
    """
    _Printer(console, report).print()


class _Printer:
    """One report on one console."""

    def __init__(self, console: Console, report: TogetherReport) -> None:
        self.console, self.report = console, report
        self.rows = [(name, point) for name, points in report.editors.items() for point in points]

    def print(self) -> None:
        report, most = self.report, max(self.report.at, default=0)
        parts = (
            metric_names.data_set_name(report.kind),
            metric_names.model_name(report.settings),
            f"{'up to ' if len(report.at) > 1 else ''}{count(most, 'fact')} in one model",
            count(len(report.editors), "editor"),
        )
        print_line(self.console, shorten(", ".join(filter(None, parts)), self.console.width), "bold")
        if self.rows:
            self.console.print()
            self._print_scores()
        print_notes(self.console, [*self._notes(), *left_out(report.unevaluated)])

    def _print_scores(self) -> None:
        tables = [(style, self._columns(style)) for style in STYLES]
        columns = tables[-1][1]
        # Intervals are given up first, then columns, down to the first score.
        tables += [(BARE, columns[:n]) for n in range(len(columns) - 1, 2, -1)]
        style, columns = next((each for each in tables if table_width(each[1]) <= self.console.width), tables[-1])
        print_table(self.console, columns)
        meanings = {
            "n": "facts in the model",
            _UNEDITED: f"{self._kept} of the unedited model on the same prompts",
            _PERPLEXITY: "perplexity of the watched texts, over that of the unedited model",
        }
        headers = [column[0].strip() for column in columns]
        said = [f"{header}: {meaning}" for header, meaning in meanings.items() if header in headers]
        for text in filter(None, (STYLES[style], "; ".join(said))):
            print_wrapped(self.console, text, "dim")

    @property
    def _kept(self) -> str:
        """The last of the main metrics: neighbours, or the unrelated question, which are to stay as they were."""
        return metric_names.main_metrics(self.report.kind)[-1]

    def _columns(self, style: str) -> list[list[str]]:
        """Editors, numbers of facts, and what there is of the main scores, the first with its interval."""
        points = [point for _, point in self.rows]
        found = [
            (metric, metric, [point.intervals.get(metric) for point in points])
            for metric in metric_names.main_metrics(self.report.kind)
        ]
        found.append((_UNEDITED, self._kept, [point.unedited.get(self._kept) for point in points]))
        columns = [
            name_column(self.console, [name for name, _ in self.rows]),
            right_aligned("n", [str(point.n) for point in points]),
        ]
        for header, metric, scores in found:
            if any(score is not None for score in scores):
                how = style if len(columns) == 2 else BARE
                columns.append(score_column(self.console, header, metric, scores, how))
        if any(point.perplexity is not None for point in points):
            ratios = ["–" if point.perplexity is None else format_score(point.perplexity, 2) for point in points]
            columns.append(right_aligned(_PERPLEXITY, [in_letters(self.console, ratio) for ratio in ratios]))
        return columns

    def _notes(self) -> list[tuple[str, str]]:
        """What went wrong, and which facts were asked where not all of them were."""
        editors = self.report.editors
        asked = {point.n: point.n_records for _, point in self.rows}
        notes = [("asked", f"{n_records} with {n} facts") for n, n_records in sorted(asked.items()) if n_records < n]
        notes += [
            ("collapsed", f"{visible(name)}: at {count(point.n, 'fact')}: {point.collapse}")
            for name, point in self.rows
            if point.n == self.report.collapse[name]
        ]
        notes += [
            ("not put in", f"{visible(name)}: {len(numbers)} of {points[-1].n} ({listed(numbers)}): {reason}")
            for name, points in editors.items()
            if points
            for reason, numbers in by_reason(points[-1].failed)
        ]
        return notes + [("unfinished", visible(name)) for name, points in editors.items() if not points]
