"""The scores of editors as plotly figures: the plain records that the figures draw, made from them."""

import math
from collections.abc import Iterator, Mapping, Sequence

import plotly.graph_objects as go

from rome_lens.evaluation.report.metric_names import data_set_name, metric_in_words, shown_metrics
from rome_lens.evaluation.report.scores import UNEDITED, EditorScores, Kind
from rome_lens.figures.groups import GroupPoint, group_figure
from rome_lens.figures.scores import MetricPanel, score_figure

LOGARITHMIC = 20.0
"""Above this ratio a linear axis shows nothing but its largest value."""

_ACROSS, _UPWARDS = "NS", "PS"


def report_figures(kind: Kind, editors: Mapping[str, EditorScores]) -> dict[str, go.Figure]:
    """`scores`: every metric with its intervals; `relations`, for CounterFact: NS against PS, a point a relation."""
    figures = {}
    panels = metric_panels(kind, editors)
    if panels:
        title = f"{data_set_name(kind)}: means over records with 95 % intervals"
        figures["scores"] = score_figure(panels, editors=list(editors), title=title, reference=UNEDITED)
    title = f"{data_set_name(kind)}: PS against NS, a point a relation; rings: {UNEDITED}"
    relations = relations_figure(editors, title=title)
    if relations is not None:
        figures["relations"] = relations
    return figures


def metric_panels(kind: Kind, editors: Mapping[str, EditorScores]) -> list[MetricPanel]:
    """A panel for every metric that some editor has."""
    names = shown_metrics(kind, (name for editor in editors.values() for name in editor.intervals))
    return [_panel(editors, name) for name in names]


def relations_figure(
    editors: Mapping[str, EditorScores], *, title: str = "", shown: Sequence[str] | None = None
) -> go.Figure | None:
    """NS against PS, a panel an editor and a point a relation; None where records have no relation or lack a score."""
    groups = {name: list(_points(editor)) for name, editor in editors.items()}
    if not any(groups[name] for name in (groups if shown is None else shown)):
        return None
    across, upwards = (f"{name}: {metric_in_words(name).title}, %" for name in (_ACROSS, _UPWARDS))
    return group_figure(groups, x_title=across, y_title=upwards, title=title, reference=UNEDITED, shown=shown)


def _panel(editors: Mapping[str, EditorScores], name: str) -> MetricPanel:
    words = metric_in_words(name)
    scores = {editor: e.intervals[name] for editor, e in editors.items() if name in e.intervals}
    ends = [end for s in scores.values() for end in (s.mean, s.low, s.high)]
    # Only a ratio has nothing but positive values and spans powers of ten.
    ratio = words.anchor == 1.0 and all(end > 0 for end in ends)
    return MetricPanel(
        name=name,
        title=words.title,
        intervals=scores,
        bounds=words.bounds,
        anchor=words.anchor,
        logarithmic=ratio and max((e for e in ends if math.isfinite(e)), default=1.0) > LOGARITHMIC,
        decimals=words.decimals,
    )


def _points(editor: EditorScores) -> Iterator[GroupPoint]:
    for relation, means in editor.by_relation.items():
        if _ACROSS in means and _UPWARDS in means:
            yield GroupPoint(relation, x=means[_ACROSS], y=means[_UPWARDS], n=int(means["n"]))
