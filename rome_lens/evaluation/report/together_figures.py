"""Curves over the number of facts, an editor a line; retention by age; who disturbs whom."""

from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go
from plotly.colors import sample_colorscale

from rome_lens.evaluation.report.checkpoints import AgeGroup, Checkpoint
from rome_lens.evaluation.report.figures import LOGARITHMIC
from rome_lens.evaluation.report.metric_names import data_set_name, main_metrics, metric_in_words
from rome_lens.evaluation.report.scores import UNEDITED, Kind
from rome_lens.figures.curves import Across, CurvePanel, Line, curve_figure
from rome_lens.figures.disturbances import DisturbedFact, disturbance_figure, which_facts
from rome_lens.figures.plotly_text import shortened
from rome_lens.figures.style import editor_colours

FACTS = "facts in the model"
"""What the curves run over, in words."""

# Columns of an editor's name above a panel.
_NAME = 40
_PERCENT = (0.0, 100.0)
# Facts of one age from the oldest to the youngest, on white and on black pages.
_AGES = ["#0b7bbf", "#7a6fd0", "#c23b4a", "#d9600f", "#b98a00"]


def together_figures(
    kind: Kind,
    editors: Mapping[str, Sequence[Checkpoint]],
    disturbances: Mapping[str, Sequence[Mapping[str, Any]]],
) -> dict[str, go.Figure]:
    """The figures of a report with checkpoints: `curves`, `retention` and `disturbances-<editor>`, as far as there is
    something to draw.

    Args:
        kind: the data set.
        editors: name -> its checkpoints in rising order; those of the unedited model as `none`.
        disturbances: name -> who disturbs whom at its last checkpoint, as `DisturbedFact` has it.
    """
    data_set, figures = data_set_name(kind), {}
    curves, ages = curve_panels(kind, editors), retention_panels(kind, editors)
    over = across(editors)
    if curves:
        title = f"{data_set}: many facts in one model, with 95 % intervals; dotted: {UNEDITED}"
        figures["curves"] = curve_figure(curves, x_title=FACTS, y_title="", title=title, one_scale=False, across=over)
    if ages:
        title = f"{data_set}: what is left of the facts of each checkpoint at the later ones"
        figures["retention"] = curve_figure(ages, x_title=FACTS, y_title=retained(kind), title=title, across=over)
    for name in disturbances:
        title = f"Who disturbs whom · {name}"
        figures[f"disturbances-{name}"] = disturbances_of(disturbances[name], editors[name][-1], title=title)
    return figures


def across(editors: Mapping[str, Sequence[Checkpoint]]) -> Across:
    """The axis of all curves: the checkpoints, in powers of ten."""
    at = sorted({point.n for points in editors.values() for point in points})
    return Across("with {} facts", ticks=at or None, logarithmic=True)


def retained(kind: Kind) -> str:
    """What retention shows, in words."""
    metric = metric_in_words(main_metrics(kind)[0])
    return f"{metric.name}: {metric.title}, %"


def curve_panels(kind: Kind, editors: Mapping[str, Sequence[Checkpoint]]) -> list[CurvePanel]:
    """The main scores and the perplexity over the number of facts, ready to draw: a panel each, an editor a line."""
    colours = dict(zip(editors, editor_colours(list(editors), UNEDITED), strict=True))
    panels = []
    for metric in map(metric_in_words, main_metrics(kind)):
        lines = [_score_line(name, points, metric.name, colours[name]) for name, points in editors.items()]
        panels.append(
            CurvePanel(
                f"{metric.name}: {metric.title}, %",
                [line for line in lines if line is not None],
                decimals=metric.decimals,
                bounds=_PERCENT,
            )
        )
    ratios = {name: {p.n: p.perplexity for p in points if p.perplexity is not None} for name, points in editors.items()}
    perplexity = metric_in_words("PPL")
    panels.append(
        CurvePanel(
            perplexity.title,
            [
                Line(name, [*found.values()], None, None, None, colours[name], at=[*found], dotted=name == UNEDITED)
                for name, found in ratios.items()
                if found
            ],
            decimals=perplexity.decimals,
            logarithmic=any(ratio > LOGARITHMIC for found in ratios.values() for ratio in found.values()),
        )
    )
    return [panel for panel in panels if panel.lines]


def retention_panels(kind: Kind, editors: Mapping[str, Sequence[Checkpoint]]) -> list[CurvePanel]:
    """What is left of the facts of each checkpoint, ready to draw: a panel an editor, a line the facts of one age."""
    ages = {
        (age.first, age.last): _group_name(age) for points in editors.values() for point in points for age in point.ages
    }
    ordered = sorted(ages)
    places = [place / max(1, len(ordered) - 1) for place in range(len(ordered))]
    colours = dict(zip(ordered, sample_colorscale(_AGES, places) if ordered else [], strict=True))
    metric = metric_in_words(main_metrics(kind)[0])
    panels = []
    for name, points in editors.items():
        lines = []
        for group in ordered:
            found = {
                point.n: age.scores[metric.name]
                for point in points
                for age in point.ages
                if (age.first, age.last) == group and metric.name in age.scores
            }
            if found:
                score = list(found.values())
                lines.append(Line(ages[group], score, None, None, None, str(colours[group]), at=list(found)))
        panels.append(CurvePanel(shortened(name, _NAME), lines, decimals=metric.decimals, bounds=_PERCENT))
    return [panel for panel in panels if panel.lines]


def _group_name(age: AgeGroup) -> str:
    """The facts of one age, as legends name them."""
    return f"fact {age.first}" if age.first == age.last else f"facts {age.first} to {age.last}"


def disturbances_of(facts: Sequence[Mapping[str, Any]], last: Checkpoint, *, title: str) -> go.Figure:
    """Who disturbs whom of an editor's set.

    Args:
        facts: those that are drawn, as `DisturbedFact` has them.
        last: the checkpoint that they are taken from.
        title: of the figure; empty for a page, which has its own heading.
    """
    drawn = [DisturbedFact(**fact) for fact in facts]
    return disturbance_figure(drawn, title=title, subtitle=drawn_facts(facts, last))


def drawn_facts(facts: Sequence[Mapping[str, Any]], last: Checkpoint) -> str:
    """Words below such a figure; the arguments are those of `disturbances_of`."""
    return which_facts(len(facts), last.n - len(last.failed))


def _score_line(name: str, points: Sequence[Checkpoint], metric: str, colour: str) -> Line | None:
    """An editor's line with its band, the unedited model's dotted and without one; None where it has no such score."""
    found = {point.n: point.intervals[metric] for point in points if metric in point.intervals}
    mean, low, high = ([getattr(one, end) for one in found.values()] for end in ("mean", "low", "high"))
    if not found:
        return None
    if name == UNEDITED:
        return Line(name, mean, None, None, None, colour, at=[*found], dotted=True)
    return Line(name, mean, low, high, None, colour, at=[*found])
