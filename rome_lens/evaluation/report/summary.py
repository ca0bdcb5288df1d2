"""From records to a report: means over records, and 95 % intervals by bootstrap over records."""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import numpy as np

from rome_lens.evaluation.metrics import COUNTERFACT, HARMONIC, ZSRE, consistency
from rome_lens.evaluation.report.report import EditorScores, Report
from rome_lens.intervals import Estimate, estimate, mean


def report_of(
    kind: str,
    records: Mapping[str, Sequence[Mapping[str, Any]]],
    *,
    references: Mapping[str, Sequence[str]],
    settings: Mapping[str, Any],
    descriptions: Mapping[str, str],
    seed: int,
) -> Report:
    """Summarise the records of a run.

    Args:
        kind: `counterfact` or `zsre`.
        records: editor -> its records, as their files hold them, by number.
        references: new object -> texts about it, for RS.
        settings: of the run.
        descriptions: editor -> a line about it.
        seed: of the intervals.
    """
    records = {name: _with_consistency(several, references) for name, several in records.items()}
    unevaluated = {
        record["number"]: record["unfit"] for several in records.values() for record in several if record.get("unfit")
    }
    editors = {
        name: _editor_scores(kind, name, descriptions.get(name, ""), several, seed=seed)
        for name, several in records.items()
    }
    return Report(kind, editors, records, settings, unevaluated)


def _with_consistency(
    records: Sequence[Mapping[str, Any]], references: Mapping[str, Sequence[str]]
) -> list[dict[str, Any]]:
    """RS needs all reference texts of the run, so it comes last."""
    theirs = [references.get(record["target_new"]) for record in records]
    comparable = [place for place, record in enumerate(records) if record["texts"] and theirs[place]]
    scores: dict[int, float] = {}
    if comparable:
        texts = [[each["prompt"] + each["text"] for each in records[place]["texts"]] for place in comparable]
        compared = consistency(
            texts,
            [theirs[place] or () for place in comparable],
            [text for each in references.values() for text in each],
        )
        scores = dict(zip(comparable, compared, strict=True))
    return [
        {**record, "scores": {**record["scores"], "RS": scores[place]}} if place in scores else dict(record)
        for place, record in enumerate(records)
    ]


def _editor_scores(
    kind: str, name: str, description: str, records: Sequence[Mapping[str, Any]], *, seed: int
) -> EditorScores:
    evaluated = [record for record in records if not record.get("unfit")]
    intervals: dict[str, Estimate] = {}
    if whole := _whole(kind, evaluated):
        columns = [[record["scores"][metric] for record in whole] for metric in HARMONIC]
        intervals["S"] = estimate(columns, _harmonic, seed=seed)
    for metric in COUNTERFACT if kind == "counterfact" else ZSRE:
        values = [record["scores"][metric] for record in evaluated if metric in record["scores"]]
        if values:
            intervals[metric] = estimate([values], mean, seed=seed)
    return EditorScores(
        name=name,
        description=description,
        intervals=intervals,
        by_relation=_by_relation(kind, evaluated),
        n_records=len(evaluated),
        failed={record["number"]: record["error"] for record in evaluated if record["error"]},
        flagged=tuple(
            record["number"] for record in evaluated if record["perplexity"] and record["perplexity"]["flagged"]
        ),
    )


def _whole(kind: str, records: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The records that have all of what S is made of: a caller's own may lack neighbours, say."""
    if kind != "counterfact":
        return []
    return [record for record in records if all(metric in record["scores"] for metric in HARMONIC)]


def _by_relation(kind: str, records: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    relations: dict[str, list[Mapping[str, float]]] = {}
    for record in _whole(kind, records):
        if record["relation"]:
            relations.setdefault(record["relation"], []).append(record["scores"])
    return {
        relation: {"n": len(several), **{metric: fmean(scores[metric] for scores in several) for metric in HARMONIC}}
        for relation, several in sorted(relations.items())
    }


def _harmonic(*columns: np.ndarray, axis: int) -> np.ndarray:
    """Harmonic mean of the columns' means: S is taken over records, not of each."""
    means = np.stack([column.mean(axis=axis) for column in columns])
    with np.errstate(divide="ignore"):
        return np.where((means > 0).all(axis=0), len(columns) / (1 / means).sum(axis=0), 0.0)
