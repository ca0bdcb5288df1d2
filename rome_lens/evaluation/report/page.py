"""A report as one HTML page that works offline: plotly.js is in it, and the same report gives the same bytes.

Names, prompts and what a model wrote are data: the template escapes them, and what a reader could not see in them, or
a browser would obey, is made visible.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rome_lens.evaluation.report.figures import metric_panels, relations_figure
from rome_lens.evaluation.report.metric_names import data_set_name, metric_in_words, model_name
from rome_lens.evaluation.report.page_records import chosen, drawn, failures, parts, template, values_of_records
from rome_lens.evaluation.report.record import EvaluatedRecord
from rome_lens.evaluation.report.scores import UNEDITED, EditorScores, Kind
from rome_lens.figures.page import render_page
from rome_lens.figures.scores import score_figure

_CLOUD_HEIGHT = 300


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
        template("page.html.j2"),
        settings=settings,
        parts=parts(),
        data_set=data_set_name(kind),
        model=model_name(settings),
        n_records=max((e.n_records for e in editors.values()), default=0),
        compared=UNEDITED in editors,
        metrics=metrics,
        editors=list(editors.values()),
        # A figure a metric, not one of all: the page lays them out for its own width.
        panels=drawn("scores", [score_figure([panel], editors=list(editors), reference=UNEDITED) for panel in panels]),
        clouds=drawn("relations", [relations_figure(editors, shown=[name]) for name in editors], _CLOUD_HEIGHT),
        **values_of_records(kind, {name: records.get(name, ()) for name in editors}, unevaluated),
        failed=failures({name: editor.failed for name, editor in editors.items()}, records),
        flagged=[
            {"editor": name, "number": number, "prompt": record and record.prompt, **_perplexity(record)}
            for name, editor in editors.items()
            for number, record in chosen(records.get(name, ()), editor.flagged)
        ],
        bound=settings.get("perplexity_bound"),
    )


def _perplexity(record: EvaluatedRecord | None) -> dict[str, float]:
    before, after = record.perplexity_before_and_after if record else (math.nan, math.nan)
    return {"before": before, "after": after, "ratio": after / before if before else math.nan}
