"""A report as one HTML page that works offline: plotly.js is in it, and the same report gives the same bytes.

Names, prompts and what a model wrote are data: the template escapes them, and what a reader could not see in them, or
a browser would obey, is made visible.
"""

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from rome_lens.evaluation.report.figures import metric_panels, relations_figure
from rome_lens.evaluation.report.metric_names import Metric, data_set_name, metric_in_words, model_name, shown_metrics
from rome_lens.evaluation.report.report import UNEDITED
from rome_lens.evaluation.report.worst import WORST_IN_WORDS, worst_records
from rome_lens.figures.format import format_score
from rome_lens.figures.page import figure_html, render_page
from rome_lens.figures.scores import score_figure
from rome_lens.figures.style import fluid
from rome_lens.intervals import Estimate
from rome_lens.storage import write_whole

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from rome_lens.evaluation.report.report import EditorScores, Report

_MOST_ROWS = 200
_MOST_TEXTS = 3
_CLOUD_HEIGHT = 300
_KINDS = {"rewrite": "edited prompt", "paraphrase": "paraphrase", "neighborhood": "neighbour"}


def write_page(report: "Report", path: str | os.PathLike[str]) -> None:
    """Write a report as one HTML page.

    Raises:
        ArtefactError: the file cannot be written; nothing is left behind.
    """
    write_whole(path, report_page(report).encode())


def report_page(report: "Report") -> str:
    """A report as one HTML page: scores, figures, the worst records, failures and settings.

    The page fetches nothing, tells no time, and is the same for the same report.
    """
    names = shown_metrics(report.kind, (name for e in report.editors.values() for name in e.intervals))
    metrics = [metric_in_words(name) for name in names]
    return render_page(
        files("rome_lens.evaluation.report").joinpath("page.html.j2").read_text("utf-8"),
        settings=report.settings,
        data_set=data_set_name(report.kind),
        model=model_name(report.settings),
        n_records=max((e.n_records for e in report.editors.values()), default=0),
        unedited=UNEDITED,
        compared=UNEDITED in report.editors,
        metrics=metrics,
        editors=[_Row(editor, metrics) for editor in report.editors.values()],
        panels=[figure_html(figure, f"scores-{i}") for i, figure in enumerate(_score_figures(report))],
        clouds=[figure_html(figure, f"relations-{i}") for i, figure in enumerate(_relation_figures(report))],
        worst_in_words=WORST_IN_WORDS.get(report.kind, ""),
        worst=[(name, _worst(report, name)) for name in report.editors],
        failed=list(_failed(report)),
        flagged=list(_flagged(report)),
        bound=report.settings.get("perplexity_bound"),
        unevaluated=sorted(report.unevaluated.items()),
        most_rows=_MOST_ROWS,
    )


class _Row:
    """One editor's line in the table of scores."""

    def __init__(self, editor: "EditorScores", metrics: Sequence[Metric]) -> None:
        self.name, self.description = editor.name, editor.description
        self.n_records, self.n_failed, self.n_flagged = editor.n_records, len(editor.failed), len(editor.flagged)
        self.cells = [_cell(editor.intervals.get(metric.name), metric) for metric in metrics]


def _cell(score: Estimate | None, metric: Metric) -> dict[str, str] | None:
    if score is None:
        return None
    ends = {"mean": score.mean, "low": score.low, "high": score.high}
    return {name: format_score(end, metric.decimals) for name, end in ends.items()} | {"n": str(score.n)}


def _score_figures(report: "Report") -> Iterator["go.Figure"]:
    """A figure a metric, not one of all: the page lays them out for its own width."""
    for panel in metric_panels(report):
        yield fluid(score_figure([panel], editors=list(report.editors), reference=UNEDITED))


def _relation_figures(report: "Report") -> Iterator["go.Figure"]:
    for name in report.editors:
        figure = relations_figure(report, shown=[name])
        if figure is not None:
            yield fluid(figure, height=_CLOUD_HEIGHT)


def _worst(report: "Report", editor: str) -> list[dict[str, Any]]:
    """The worst records of an editor as the template shows them."""
    return [
        {
            **record,
            "score_list": [
                (name, format_score(record["scores"][name], metric_in_words(name).decimals))
                for name in shown_metrics(report.kind, record["scores"])
                if record["scores"][name] is not None
            ],
            "answer_list": [_answer(answer) for answer in record["answers"]],
            "text_list": record["texts"][:_MOST_TEXTS],
        }
        for record in worst_records(report.records.get(editor, ()), kind=report.kind)
    ]


def _answer(answer: Mapping[str, Any]) -> dict[str, Any]:
    """A prompt with what the model made of it, before and after, in words; `good` says whether that is as it should."""
    kind = answer["kind"]
    if "nll_new" in answer:
        prefers = ["new" if answer[b + "nll_new"] < answer[b + "nll_true"] else "old" for b in ("before_", "")]
        wanted = "old" if kind == "neighborhood" else "new"
        # Geometric means over the answer's tokens, which is what the margins compare.
        numbers = [f"{math.exp(-answer[name]):.3f}" for name in ("nll_new", "nll_true")]
        good, detail = prefers[1] == wanted, f"p(new) {numbers[0]}, p(old) {numbers[1]}"
        said = prefers
    else:
        said = [f"{sum(right)} of {len(right)}" for right in (answer["before_right"], answer["right"])]
        good, detail = all(answer["right"]), f"p {math.exp(-answer['nll']):.3f}"
    return {
        "kind": _KINDS.get(kind, kind),
        "prompt": answer["prompt"],
        "answer": answer.get("answer"),
        "before": said[0],
        "after": said[1],
        "good": good,
        "detail": detail,
        "free": answer.get("free"),
    }


def _failed(report: "Report") -> Iterator[dict[str, Any]]:
    for name, editor in report.editors.items():
        prompts = {record["number"]: record["prompt"] for record in report.records.get(name, ())}
        for number, reason in sorted(editor.failed.items()):
            yield {"editor": name, "number": number, "prompt": prompts.get(number), "reason": reason}


def _flagged(report: "Report") -> Iterator[dict[str, Any]]:
    for name, editor in report.editors.items():
        by_number = {record["number"]: record for record in report.records.get(name, ())}
        for number in editor.flagged:
            record = by_number.get(number, {})
            watched = record.get("perplexity")
            yield {
                "editor": name,
                "number": number,
                "prompt": record.get("prompt"),
                "before": watched["before"] if watched else math.nan,
                "after": watched["after"] if watched else math.nan,
                "ratio": watched["after"] / watched["before"] if watched and watched["before"] else math.nan,
            }
