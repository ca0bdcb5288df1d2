"""The records on which an editor did worst, for a page that shows them with all that the model wrote."""

import math
from collections.abc import Sequence

from rome_lens.evaluation.metrics import harmonic_mean
from rome_lens.evaluation.report.metric_names import main_metrics
from rome_lens.evaluation.report.record import EvaluatedRecord
from rome_lens.evaluation.report.scores import Kind

WORST_IN_WORDS: dict[Kind, str] = {
    "counterfact": "lowest harmonic mean of a record's ES, PS and NS; among equals lowest PM + NM, then lowest number",
    "zsre": "lowest mean of a record's efficacy, paraphrase and specificity; among equals lowest number",
}
"""How `worst_records` chooses, by kind of report."""

_TIES = ("PM", "NM")


def worst_records(records: Sequence[EvaluatedRecord], *, kind: Kind, most: int = 10) -> list[EvaluatedRecord]:
    """The worst of an editor's records, the very worst first.

    A score that a record lacks is left out of its mean; records without any of these scores come last.

    Args:
        records: of one editor.
        kind: `counterfact` or `zsre`; `WORST_IN_WORDS` says how each is ordered.
        most: how many records at most.
    """
    return sorted(records, key=lambda record: _order(record, kind))[:most]


def _order(record: EvaluatedRecord, kind: Kind) -> tuple[float, float, int]:
    scores = record.scores
    main = [scores[name] for name in main_metrics(kind) if name != "S" and _known(scores.get(name))]
    if not main:
        return math.inf, 0.0, record.number
    if kind == "zsre":
        return sum(main) / len(main), 0.0, record.number
    ties = sum(scores[name] for name in _TIES if _known(scores.get(name)))
    return harmonic_mean(main), ties, record.number


def _known(score: float | None) -> bool:
    return score is not None and not math.isnan(score)
