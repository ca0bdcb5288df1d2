"""What the pages of reports share: their templates, their figures, and the records that they show in full.

Names, prompts and what a model wrote are data: `records.html.j2` escapes them and makes them visible.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from typing import Any

import plotly.graph_objects as go

from rome_lens.evaluation.report.metric_names import metric_in_words, shown_metrics
from rome_lens.evaluation.report.record import EvaluatedRecord
from rome_lens.evaluation.report.scores import UNEDITED, Kind
from rome_lens.evaluation.report.worst import WORST_IN_WORDS, worst_records
from rome_lens.figures.page import figure_html
from rome_lens.figures.style import fluid

_MOST_ROWS = 200
_MOST_TEXTS = 3
_KINDS = {"rewrite": "edited prompt", "paraphrase": "paraphrase", "neighborhood": "neighbour", "follows": "follows"}


def template(name: str) -> str:
    """The text of a template of this folder."""
    return files("rome_lens.evaluation.report").joinpath(name).read_text("utf-8")


def parts() -> dict[str, str]:
    """The templates that pages of reports import."""
    return {"records.html.j2": template("records.html.j2")}


def values_of_records(
    kind: Kind, records: Mapping[str, Sequence[EvaluatedRecord]], unevaluated: Mapping[int, str]
) -> dict[str, Any]:
    """What the names in `records.html.j2` stand for.

    Args:
        kind: the data set.
        records: editor -> its records, of which the worst are shown.
        unevaluated: number of a record -> why it cannot be put to this model.
    """
    return {
        "unedited": UNEDITED,
        "worst_in_words": WORST_IN_WORDS.get(kind, ""),
        "worst": [(name, worst_records(several, kind=kind)) for name, several in records.items()],
        "scores_of": lambda record: [
            (name, metric_in_words(name).decimals)
            for name in shown_metrics(kind, record.scores)
            if record.scores[name] is not None
        ],
        "answers_of": lambda record: [_answer(answer) for answer in record.answers],
        "most_texts": _MOST_TEXTS,
        "unevaluated": sorted(unevaluated.items()),
        "most_rows": _MOST_ROWS,
    }


def drawn(name: str, figures: Sequence[go.Figure | None], height: float | None = None) -> list[str]:
    """Figures for the page, of its own width; None is no figure."""
    shown = [fluid(figure, height=height) for figure in figures if figure is not None]
    return [figure_html(figure, f"{name}-{number}") for number, figure in enumerate(shown)]


def chosen(records: Sequence[EvaluatedRecord], numbers: Sequence[int]) -> Iterator[tuple[int, EvaluatedRecord | None]]:
    """The records of these numbers; None where there is none."""
    by_number = {record.number: record for record in records}
    return ((number, by_number.get(number)) for number in numbers)


def failures(
    failed: Mapping[str, Mapping[int, str]], records: Mapping[str, Sequence[EvaluatedRecord]]
) -> list[dict[str, Any]]:
    """Rows of the table of records without an edit.

    Args:
        failed: editor -> number of a record -> why it has none.
        records: editor -> its records, for their prompts.
    """
    return [
        {"editor": name, "number": number, "prompt": record and record.prompt, "reason": reasons[number]}
        for name, reasons in failed.items()
        for number, record in chosen(records.get(name, ()), sorted(reasons))
    ]


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
