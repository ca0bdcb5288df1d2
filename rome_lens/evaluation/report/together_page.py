"""A report with checkpoints as one HTML page that works offline.

Names, prompts and what a model wrote are data: the template escapes them, and what a reader could not see in them, or
a browser would obey, is made visible.
"""

from collections.abc import Callable, Mapping, Sequence
from math import isfinite
from typing import Any

from rome_lens.evaluation.report.checkpoints import FEWEST, Checkpoint
from rome_lens.evaluation.report.metric_names import (
    Metric,
    data_set_name,
    main_metrics,
    metric_in_words,
    model_name,
    shown_metrics,
)
from rome_lens.evaluation.report.page_records import drawn, failures, parts, template, values_of_records
from rome_lens.evaluation.report.record import EvaluatedRecord
from rome_lens.evaluation.report.scores import UNEDITED, Kind
from rome_lens.evaluation.report.together_figures import (
    FACTS,
    across,
    curve_panels,
    disturbances_of,
    drawn_facts,
    retained,
    retention_panels,
)
from rome_lens.figures.curves import CurvePanel, Line, curve_figure
from rome_lens.figures.format import format_score
from rome_lens.figures.page import figure_html, render_page
from rome_lens.intervals import Estimate

# Sizes of a checkpoint, what they are called, what that means, and their form.
_SIZES = (
    ("perplexity", "perplexity", "perplexity of the watched texts, over that of the unedited model", ".2f"),
    ("relative_norm", "norm", "Frobenius norm of what the layers gained, over that of their matrices", ".3g"),
    ("drift", "drift", "how much of what the layers say over text is different, as the second moment predicts", ".3g"),
    ("shortfall", "shortfall", "what a fact lacks of its value at its key, as a share: the mean over the facts", ".3f"),
    ("load", "load", "share of the layers' capacity that the facts take", ".3g"),
    ("conflicts", "conflicts", "pairs of facts with nearly one key and other targets", "d"),
)


def together_page(
    kind: Kind,
    editors: Mapping[str, Sequence[Checkpoint]],
    last: Mapping[str, Sequence[EvaluatedRecord]],
    *,
    descriptions: Mapping[str, str],
    disturbances: Mapping[str, Sequence[Mapping[str, Any]]],
    collapse: Mapping[str, int | None],
    settings: Mapping[str, Any],
    unevaluated: Mapping[int, str],
) -> str:
    """A report with checkpoints as one HTML page: collapse, scores, curves, retention, the worst facts and settings.

    The page fetches nothing, tells no time, and is the same for the same report.

    Args:
        kind: the data set.
        editors: name -> its checkpoints in rising order; in front those of the unedited model, as `none`.
        last: editor -> its records at its last checkpoint.
        descriptions: editor -> a line about it.
        disturbances: editor -> who disturbs whom, as `DisturbedFact` has it; of sets alone.
        collapse: editor -> the first checkpoint at which its model had collapsed; None where it never did.
        settings: of the run, as JSON holds them.
        unevaluated: number of a record -> why it cannot be put to this model.
    """
    edited = {name: points for name, points in editors.items() if name != UNEDITED}
    points = [point for several in edited.values() for point in several]
    columns = _columns(kind, points)
    curves, retention, over = curve_panels(kind, editors), retention_panels(kind, editors), across(editors)
    at = sorted({point.n for point in points})
    together = settings.get("together", {})
    final = {name: several[-1] for name, several in edited.items() if several}

    def figures(name: str, panels: Sequence[CurvePanel]) -> list[str]:
        # A figure a panel, not one of all: the page lays them out for its own width, below one legend.
        return drawn(
            name, [curve_figure([panel], x_title=FACTS, y_title="", across=over, legend=False) for panel in panels]
        )

    return render_page(
        template("together_page.html.j2"),
        settings=settings,
        parts=parts(),
        data_set=data_set_name(kind),
        model=model_name(settings),
        most=at[-1] if at else 0,
        at=at,
        sampled=together.get("sample") is not None,
        collapsed=[
            {"name": name, "n": point.n, "why": point.collapse}
            for name, several in edited.items()
            for point in several
            if point.n == collapse.get(name)
        ],
        bounds=_bounds(kind, together, watched=any(point.perplexity is not None for point in points)),
        columns=[metric for metric, _ in columns],
        editors=[
            {
                "name": name,
                "description": descriptions.get(name, ""),
                "rows": [
                    {
                        "n": point.n,
                        "n_asked": point.n_records,
                        "collapsed": point.collapse is not None,
                        "cells": [cell(point) for _, cell in columns],
                    }
                    for point in several
                ],
            }
            for name, several in edited.items()
        ],
        lines=_once(curves),
        curves=figures("curves", curves),
        retained=retained(kind),
        ages=_once(retention),
        retention=figures("retention", retention),
        disturbances=[
            {
                "name": name,
                "which": drawn_facts(facts, final[name]),
                "figure": figure_html(disturbances_of(facts, final[name], title=""), f"disturbances-{number}"),
            }
            for number, (name, facts) in enumerate(disturbances.items())
        ],
        failed=failures({name: point.failed for name, point in final.items()}, last),
        **values_of_records(kind, {name: last.get(name, ()) for name in edited}, unevaluated),
    )


_Cell = Callable[[Checkpoint], dict[str, str] | None]


def _columns(kind: Kind, points: Sequence[Checkpoint]) -> list[tuple[Metric, _Cell]]:
    """The table's columns that some checkpoint has a number for, each with its cell of a checkpoint."""
    present = shown_metrics(kind, (name for point in points for name in point.intervals))
    main = [metric_in_words(name) for name in present if name in main_metrics(kind)]
    others = [metric_in_words(name) for name in present if name not in main_metrics(kind)]
    # The last of the main metrics is what has to stay: neighbours, or the unrelated question.
    kept = metric_in_words(main_metrics(kind)[-1])
    unedited = Metric(f"{kept.name}, {UNEDITED}", "", f"{kept.name} of the unedited model on the same prompts")
    columns: list[tuple[Metric, _Cell]] = [
        *((metric, _score(metric)) for metric in main),
        (unedited, lambda point: _estimated(point.unedited.get(kept.name), kept)),
        *((Metric(title, "", meaning), _size(name, form)) for name, title, meaning, form in _SIZES),
        *((metric, _score(metric)) for metric in others),
    ]
    return [(metric, cell) for metric, cell in columns if any(cell(point) for point in points)]


def _score(metric: Metric) -> _Cell:
    return lambda point: _estimated(point.intervals.get(metric.name), metric)


def _estimated(score: Estimate | None, metric: Metric) -> dict[str, str] | None:
    if score is None:
        return None
    mean, low, high = (format_score(end, metric.decimals) for end in (score.mean, score.low, score.high))
    return {"text": mean, "low": low, "high": high}


def _size(name: str, form: str) -> _Cell:
    def cell(point: Checkpoint) -> dict[str, str] | None:
        size = getattr(point, name)
        return None if size is None else {"text": format(size, form) if isfinite(size) else format_score(size)}

    return cell


def _bounds(kind: Kind, together: Mapping[str, Any], *, watched: bool) -> str:
    """What counts as a collapse, in words; empty where nothing can."""
    told = []
    if watched and "perplexity" in together:
        told.append(f"a perplexity above {together['perplexity']:g} times that of the unedited model")
    if kind == "counterfact" and "score" in together:
        told.append(f"an S below {together['score']:g} from {FEWEST} facts on")
    return " or ".join(told)


def _once(panels: Sequence[CurvePanel]) -> list[Line]:
    """The lines of all panels, each name once: a legend."""
    return list({line.name: line for panel in panels for line in panel.lines}.values())
