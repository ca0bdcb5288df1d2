"""What an editor's model was at each checkpoint: scores with intervals, the unedited model's beside them, and sizes."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import fmean
from typing import Any

from rome_lens.evaluation.metrics import HARMONIC, harmonic_mean
from rome_lens.evaluation.report.metric_names import main_metrics
from rome_lens.evaluation.report.record import EvaluatedRecord
from rome_lens.evaluation.report.scores import UNEDITED, Kind
from rome_lens.evaluation.report.summary import editor_scores, with_consistency
from rome_lens.intervals import Estimate

FEWEST = 10
"""Fewer facts have no S that tells anything: from so many on it may count as a collapse."""


@dataclass(frozen=True)
class AgeGroup:
    """Facts that came into the model between two checkpoints.

    Attributes:
        first: the first of them, counted from 1.
        last: the last.
        n: how many of them were asked.
        scores: metric -> mean; S is taken over these facts.
    """

    first: int
    last: int
    n: int
    scores: Mapping[str, float]


@dataclass(frozen=True)
class Checkpoint:
    """A model with the first n facts, asked about them.

    Attributes:
        n: facts in the model.
        n_records: facts that were asked.
        intervals: metric -> `Estimate`, in the order in which tables print them.
        unedited: the same of the unedited model on the same prompts.
        perplexity: of the watched texts, over that of the unedited model; None where none are watched.
        relative_norm: Frobenius norm of what the layers gained, over that of their matrices.
        drift: how much of what the layers say over text is different, predicted from the second moment; None where
            that is not known.
        shortfall: the mean over the facts of what each lacks of its value at its key, as a share; None where not known.
        load: the share of the layers' capacity that the facts take; None for what is no set.
        conflicts: pairs of facts with nearly one key and other targets; None for what is no set.
        ages: the same scores of the facts of each earlier checkpoint.
        failed: number of a record -> why its fact could not be put in.
        collapse: what tells that the model collapsed, in words; None where nothing does.
    """

    n: int
    n_records: int
    intervals: Mapping[str, Estimate]
    unedited: Mapping[str, Estimate]
    perplexity: float | None
    relative_norm: float | None
    drift: float | None
    shortfall: float | None
    load: float | None
    conflicts: int | None
    ages: tuple[AgeGroup, ...]
    failed: Mapping[int, str]
    collapse: str | None

    @property
    def scores(self) -> dict[str, float]:
        """Metric -> mean, in percent."""
        return {name: score.mean for name, score in self.intervals.items()}

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        return asdict(self)


def checkpoint_of(
    kind: Kind,
    n: int,
    records: Sequence[EvaluatedRecord],
    *,
    state: Mapping[str, Any],
    texts: Mapping[str, float] | None,
    together: Mapping[str, Any],
    references: Mapping[str, Sequence[str]],
    unedited: Mapping[str, Estimate],
    seed: int,
) -> Checkpoint:
    """A checkpoint of one editor, from what a run kept of it.

    Args:
        kind: the data set.
        n: facts in the model.
        records: those that were asked.
        state: what is known of the model without asking it.
        texts: perplexity of the watched texts, `before` and `after`.
        together: the run's checkpoints and what counts as a collapse, as its settings hold them.
        references: new object -> texts about it, for RS.
        unedited: scores of the unedited model on the same prompts (`unedited_scores`).
        seed: of the intervals.
    """
    records = with_consistency(records, references)
    scores = editor_scores(kind, UNEDITED, "", records, seed=seed)
    return Checkpoint(
        n=n,
        n_records=scores.n_records,
        intervals=scores.intervals,
        unedited=unedited,
        perplexity=None if texts is None else texts["after"] / texts["before"],
        ages=_ages(kind, records, [at for at in together["at"] if at <= n], state.get("numbers", ())),
        failed={int(number): reason for number, reason in state.get("failed", {}).items()},
        collapse=collapse_at(kind, records, texts, together),
        **{name: state.get(name) for name in ("relative_norm", "drift", "shortfall", "load", "conflicts")},
    )


def unedited_scores(kind: Kind, records: Sequence[EvaluatedRecord], *, seed: int) -> Mapping[str, Estimate]:
    """What the unedited model scored on the prompts of records.

    Args:
        kind: the data set.
        records: of any editor.
        seed: of the intervals.
    """
    before = [replace(record, scores=record.before) for record in records]
    return editor_scores(kind, UNEDITED, "", before, seed=seed).intervals


def collapse_at(
    kind: Kind, records: Sequence[EvaluatedRecord], texts: Mapping[str, float] | None, together: Mapping[str, Any]
) -> str | None:
    """What tells that a model collapsed, in words; None where nothing does.

    Args:
        kind: the data set.
        records: those that were asked.
        texts: perplexity of the watched texts, `before` and `after`.
        together: what counts as a collapse.
    """
    told = []
    if texts is not None and texts["after"] > together["perplexity"] * texts["before"]:
        told.append(f"perplexity {texts['after'] / texts['before']:.3g} times that of the unedited model")
    whole = _whole(kind, records)
    if kind == "counterfact" and len(whole) >= FEWEST:
        score = harmonic_mean([fmean(record.scores[metric] for record in whole) for metric in HARMONIC])
        if score < together["score"]:
            told.append(f"S {score:.1f}")
    return ", ".join(told) or None


def _whole(kind: Kind, records: Sequence[EvaluatedRecord]) -> list[EvaluatedRecord]:
    """The records that have all of what the main scores are made of."""
    needed = HARMONIC if kind == "counterfact" else main_metrics(kind)
    return [record for record in records if not record.unfit and record.scores.keys() >= set(needed)]


def _ages(
    kind: Kind, records: Sequence[EvaluatedRecord], at: Sequence[int], numbers: Sequence[int]
) -> tuple[AgeGroup, ...]:
    place_of = {number: place for place, number in enumerate(numbers)}
    groups = []
    for begin, end in zip([0, *at], at, strict=False):
        mine = [r for r in _whole(kind, records) if begin <= place_of.get(r.number, -1) < end]
        if mine:
            names = HARMONIC if kind == "counterfact" else main_metrics(kind)
            scores = {name: fmean(record.scores[name] for record in mine) for name in names}
            if kind == "counterfact":
                scores = {"S": harmonic_mean([scores[name] for name in HARMONIC]), **scores}
            groups.append(AgeGroup(begin + 1, end, len(mine), scores))
    return tuple(groups)
