"""From records to a report: means over records, and 95 % intervals by bootstrap over records."""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import numpy as np

from rome_lens.evaluation.metrics import COUNTERFACT, HARMONIC, ZSRE, consistency
from rome_lens.evaluation.report.record import EvaluatedRecord
from rome_lens.evaluation.report.report import Report
from rome_lens.evaluation.report.scores import EditorScores, Kind
from rome_lens.intervals import Estimate, estimate, mean


def report_of(
    kind: Kind,
    records: Mapping[str, Sequence[EvaluatedRecord]],
    *,
    references: Mapping[str, Sequence[str]],
    settings: Mapping[str, Any],
    descriptions: Mapping[str, str],
    seed: int,
) -> Report:
    """Summarise the records of a run.

    Args:
        kind: `counterfact` or `zsre`.
        records: editor -> its records, by number.
        references: new object -> texts about it, for RS.
        settings: of the run.
        descriptions: editor -> a line about it.
        seed: of the intervals.
    """
    records = {name: with_consistency(several, references) for name, several in records.items()}
    return Report(
        kind,
        editors={
            name: editor_scores(kind, name, descriptions.get(name, ""), several, seed=seed)
            for name, several in records.items()
        },
        records={name: [record.to_dict() for record in several] for name, several in records.items()},
        settings=settings,
        unevaluated={record.number: record.unfit for each in records.values() for record in each if record.unfit},
    )


def with_consistency(
    records: Sequence[EvaluatedRecord], references: Mapping[str, Sequence[str]]
) -> list[EvaluatedRecord]:
    """RS needs all reference texts of the run, so it comes last."""
    comparable = [record for record in records if record.texts and references.get(record.target_new)]
    if not comparable:
        return list(records)
    scores = consistency(
        [[each["prompt"] + each["text"] for each in record.texts] for record in comparable],
        [references[record.target_new] for record in comparable],
        [text for each in references.values() for text in each],
    )
    compared = {id(record): record.with_score("RS", score) for record, score in zip(comparable, scores, strict=True)}
    return [compared.get(id(record), record) for record in records]


def editor_scores(
    kind: Kind, name: str, description: str, records: Sequence[EvaluatedRecord], *, seed: int
) -> EditorScores:
    """All metrics of some records under one editor.

    Args:
        kind: the data set.
        name: the editor's.
        description: its settings, in a line.
        records: with RS, if it is wanted.
        seed: of the intervals.
    """
    evaluated = [record for record in records if not record.unfit]
    # The records that have all of what S is made of: a caller's own may lack neighbours, say.
    whole = [record for record in evaluated if kind == "counterfact" and record.scores.keys() >= set(HARMONIC)]
    intervals: dict[str, Estimate] = {}
    if whole:
        columns = [[record.scores[metric] for record in whole] for metric in HARMONIC]
        intervals["S"] = estimate(columns, _harmonic, seed=seed)
    for metric in COUNTERFACT if kind == "counterfact" else ZSRE:
        values = [record.scores[metric] for record in evaluated if metric in record.scores]
        if values:
            intervals[metric] = estimate([values], mean, seed=seed)
    return EditorScores(
        name=name,
        description=description,
        intervals=intervals,
        by_relation=_by_relation(whole),
        n_records=len(evaluated),
        failed={record.number: record.error for record in evaluated if record.error},
        flagged=tuple(record.number for record in evaluated if record.flagged),
    )


def _by_relation(records: Sequence[EvaluatedRecord]) -> dict[str, dict[str, float]]:
    relations: dict[str, list[Mapping[str, float]]] = {}
    for record in records:
        if record.relation:
            relations.setdefault(record.relation, []).append(record.scores)
    return {
        relation: {"n": len(several), **{metric: fmean(scores[metric] for scores in several) for metric in HARMONIC}}
        for relation, several in sorted(relations.items())
    }


def _harmonic(*columns: np.ndarray, axis: int) -> np.ndarray:
    """Harmonic mean of the columns' means: S is taken over records, not of each."""
    means = np.stack([column.mean(axis=axis) for column in columns])
    with np.errstate(divide="ignore"):
        return np.where((means > 0).all(axis=0), len(columns) / (1 / means).sum(axis=0), 0.0)
