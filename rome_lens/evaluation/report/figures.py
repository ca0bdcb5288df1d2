"""A report as plotly figures. The figures know no evaluation: here it becomes the plain records that they draw."""

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rome_lens.evaluation.report.metric_names import data_set_name, metric_in_words, shown_metrics
from rome_lens.evaluation.report.report import UNEDITED
from rome_lens.figures.groups import GroupPoint, group_figure
from rome_lens.figures.scores import MetricPanel, score_figure

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from rome_lens.evaluation.report.report import Report

# Above this ratio a linear axis shows nothing but its largest value.
_LOGARITHMIC = 20.0
_ACROSS, _UPWARDS = "NS", "PS"


def report_figures(report: "Report") -> dict[str, "go.Figure"]:
    """`scores`: every metric with its intervals; `relations`, for CounterFact: NS against PS, a point a relation."""
    figures = {}
    panels = metric_panels(report)
    if panels:
        title = f"{data_set_name(report.kind)}: means over records with 95 % intervals"
        figures["scores"] = score_figure(panels, editors=list(report.editors), title=title, reference=UNEDITED)
    relations = relations_figure(
        report, title=f"{data_set_name(report.kind)}: PS against NS, a point a relation; rings: {UNEDITED}"
    )
    if relations is not None:
        figures["relations"] = relations
    return figures


def metric_panels(report: "Report") -> list[MetricPanel]:
    """A panel for every metric that some editor has."""
    editors = report.editors
    names = shown_metrics(report.kind, (name for editor in editors.values() for name in editor.intervals))
    return [_panel(report, name) for name in names]


def relations_figure(report: "Report", *, title: str = "", shown: Sequence[str] | None = None) -> "go.Figure | None":
    """NS against PS, a panel an editor and a point a relation; None where records have no relation or lack a score."""
    groups = {name: list(_points(report, name)) for name in report.editors}
    if not any(groups[name] for name in (groups if shown is None else shown)):
        return None
    across, upwards = (f"{name}: {metric_in_words(name).title}, %" for name in (_ACROSS, _UPWARDS))
    return group_figure(groups, x_title=across, y_title=upwards, title=title, reference=UNEDITED, shown=shown)


def _panel(report: "Report", name: str) -> MetricPanel:
    words = metric_in_words(name)
    scores = {editor: e.intervals[name] for editor, e in report.editors.items() if name in e.intervals}
    ends = [end for s in scores.values() for end in (s.mean, s.low, s.high)]
    # Only a ratio has nothing but positive values and spans powers of ten.
    ratio = words.anchor == 1.0 and all(end > 0 for end in ends)
    return MetricPanel(
        name=name,
        title=words.title,
        intervals=scores,
        bounds=words.bounds,
        anchor=words.anchor,
        logarithmic=ratio and max((e for e in ends if math.isfinite(e)), default=1.0) > _LOGARITHMIC,
        decimals=words.decimals,
    )


def _points(report: "Report", editor: str) -> Iterator[GroupPoint]:
    for relation, means in report.editors[editor].by_relation.items():
        if _ACROSS in means and _UPWARDS in means:
            yield GroupPoint(relation, x=means[_ACROSS], y=means[_UPWARDS], n=int(means["n"]))
