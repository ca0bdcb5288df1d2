"""A report as one HTML page that works offline: plotly.js is in it, and the same report gives the same bytes.

Names, prompts and what a model wrote are data: the template escapes them, and what a reader could not see in them, or
a browser would obey, is made visible.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from typing import Any

import plotly.graph_objects as go

from rome_lens.evaluation.report.figures import metric_panels, relations_figure
from rome_lens.evaluation.report.metric_names import data_set_name, metric_in_words, model_name, shown_metrics
from rome_lens.evaluation.report.record import EvaluatedRecord
from rome_lens.evaluation.report.scores import UNEDITED, EditorScores, Kind
from rome_lens.evaluation.report.worst import WORST_IN_WORDS, worst_records
from rome_lens.figures.page import figure_html, render_page
from rome_lens.figures.scores import score_figure
from rome_lens.figures.style import fluid

_MOST_ROWS = 200
_MOST_TEXTS = 3
_CLOUD_HEIGHT = 300
_KINDS = {"rewrite": "edited prompt", "paraphrase": "paraphrase", "neighborhood": "neighbour", "follows": "follows"}


def report_page(
    kind: Kind,
    editors: Mapping[str, EditorScores],
    records: Mapping[str, Sequence[EvaluatedRecord]],
    *,
    settings: Mapping[str, Any],
    unevaluated: Mapping[int, str],
) -> str:
    """A report as one HTML page: scores, figures, the worst records, failures and settings.

    The page fetches nothing, tells no time, and is the same for the same report.

    Args:
        kind: the data set.
        editors: name -> scores.
        records: editor -> its records.
        settings: of the run, as JSON holds them.
        unevaluated: number of a record -> why it cannot be put to this model.
    """
    panels = metric_panels(kind, editors)
    metrics = [metric_in_words(panel.name) for panel in panels]
    return render_page(
        files("rome_lens.evaluation.report").joinpath("page.html.j2").read_text("utf-8"),
        settings=settings,
        data_set=data_set_name(kind),
        model=model_name(settings),
        n_records=max((e.n_records for e in editors.values()), default=0),
        unedited=UNEDITED,
        compared=UNEDITED in editors,
        metrics=metrics,
        editors=list(editors.values()),
        # A figure a metric, not one of all: the page lays them out for its own width.
        panels=_drawn("scores", [score_figure([panel], editors=list(editors), reference=UNEDITED) for panel in panels]),
        clouds=_drawn("relations", [relations_figure(editors, shown=[name]) for name in editors], _CLOUD_HEIGHT),
        worst_in_words=WORST_IN_WORDS.get(kind, ""),
        worst=[(name, worst_records(records.get(name, ()), kind=kind)) for name in editors],
        scores_of=lambda record: [
            (name, metric_in_words(name).decimals)
            for name in shown_metrics(kind, record.scores)
            if record.scores[name] is not None
        ],
        answers_of=lambda record: [_answer(answer) for answer in record.answers],
        most_texts=_MOST_TEXTS,
        failed=[
            {"editor": name, "number": number, "prompt": record and record.prompt, "reason": editor.failed[number]}
            for name, editor in editors.items()
            for number, record in _chosen(records.get(name, ()), sorted(editor.failed))
        ],
        flagged=[
            {"editor": name, "number": number, "prompt": record and record.prompt, **_perplexity(record)}
            for name, editor in editors.items()
            for number, record in _chosen(records.get(name, ()), editor.flagged)
        ],
        bound=settings.get("perplexity_bound"),
        unevaluated=sorted(unevaluated.items()),
        most_rows=_MOST_ROWS,
    )


def _drawn(name: str, figures: Sequence[go.Figure | None], height: float | None = None) -> list[str]:
    """Figures for the page, of its own width; None is no figure."""
    drawn = [fluid(figure, height=height) for figure in figures if figure is not None]
    return [figure_html(figure, f"{name}-{number}") for number, figure in enumerate(drawn)]


def _answer(answer: Mapping[str, Any]) -> dict[str, Any]:
    """A prompt with what the model made of it, before and after, in words; `good` says whether that is as it should."""
    kind = answer["kind"]
    if "nll_new" in answer:
        other = "its own" if "answer" in answer else "old"
        prefers = ["new" if answer[b + "nll_new"] < answer[b + "nll_true"] else other for b in ("before_", "")]
        wanted = other if kind == "neighborhood" else "new"
        # Geometric means over the answer's tokens, which is what the margins compare.
        numbers = [f"{math.exp(-answer[name]):.3f}" for name in ("nll_new", "nll_true")]
        good, detail = prefers[1] == wanted, f"p(new) {numbers[0]}, p({other}) {numbers[1]}"
        said, read = prefers, "prefers"
    else:
        said = [f"{sum(right)} of {len(right)}" for right in (answer["before_right"], answer["right"])]
        good, detail = all(answer["right"]), f"p {math.exp(-answer['nll']):.3f}"
        read = "right tokens"
    return {
        "kind": _KINDS.get(kind, kind),
        "prompt": answer["prompt"],
        "answer": answer.get("answer"),
        "read": read,
        "before": said[0],
        "after": said[1],
        "good": good,
        "detail": detail,
        "free": answer.get("free"),
    }


def _chosen(records: Sequence[EvaluatedRecord], numbers: Sequence[int]) -> Iterator[tuple[int, EvaluatedRecord | None]]:
    """The records of these numbers; None where there is none."""
    by_number = {record.number: record for record in records}
    return ((number, by_number.get(number)) for number in numbers)


def _perplexity(record: EvaluatedRecord | None) -> dict[str, float]:
    before, after = record.perplexity_before_and_after if record else (math.nan, math.nan)
    return {"before": before, "after": after, "ratio": after / before if before else math.nan}
