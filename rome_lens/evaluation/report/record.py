"""What was measured of one record under one editor, and how its file in a run folder holds that."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from rome_lens.data.records import CounterFactRecord, ZsreRecord
from rome_lens.editing import Edit
from rome_lens.errors import RomeLensError
from rome_lens.evaluation.metrics import begins_with, counterfact_scores, fluency, free_scores, zsre_scores
from rome_lens.evaluation.questions import Question, Reading
from rome_lens.evaluation.updates import as_edits

Record = CounterFactRecord | ZsreRecord


@dataclass
class Measured:
    """What was measured of one record under one editor."""

    readings: list[tuple[Question, tuple[Reading, ...], tuple[Reading, ...]]] = field(default_factory=list)
    free: list[str] = field(default_factory=list)
    texts: list[tuple[str, str]] = field(default_factory=list)
    perplexity: tuple[float, float] | None = None


def written(
    record: Record, name: str, edit: Any, found: Measured, *, seconds: float, perplexity_bound: float
) -> dict[str, Any]:
    """All that is known of a record under an editor, as JSON holds it.

    Args:
        record: the record.
        name: the editor's.
        edit: what the editor gave: an edit, None, or the error that says why there is none.
        found: what was measured.
        seconds: how long the edit took.
        perplexity_bound: a ratio of perplexities beyond it, up or down, is flagged.
    """
    zsre = isinstance(record, ZsreRecord)
    before = _scores([(q, earlier) for q, earlier, _ in found.readings], zsre=zsre)
    scores = _scores([(q, now) for q, _, now in found.readings], zsre=zsre)
    said: dict[str, list[bool]] = {}
    for (question, _, _), text in zip(found.readings, found.free, strict=True):
        said.setdefault(question.kind, []).append(begins_with(text, question.answers[question.wanted].answer))
    scores |= free_scores(said, zsre=zsre)
    if found.texts:
        scores["GE"] = fluency([prompt + text for prompt, text in found.texts])
    watched = None
    if found.perplexity is not None:
        earlier, now = found.perplexity
        ratio = now / earlier
        watched = {
            "before": _finite(earlier),
            "after": _finite(now),
            "flagged": not 1 / perplexity_bound <= ratio <= perplexity_bound,
        }
        scores["PPL"] = _finite(ratio)
    failed = isinstance(edit, RomeLensError)
    return {
        **_heading(record, name),
        "error": str(edit) if failed else None,
        "before": before,
        "scores": scores,
        "answers": [
            _answer(question, earlier, now, free, zsre=zsre)
            for (question, earlier, now), free in zip(found.readings, found.free, strict=True)
        ],
        "texts": [{"prompt": prompt, "text": text} for prompt, text in found.texts],
        "perplexity": watched,
        "edit": None if failed or edit is None else _edit_facts(edit, seconds),
    }


def _scores(answered: Sequence[tuple[Question, tuple[Reading, ...]]], *, zsre: bool) -> dict[str, float]:
    if zsre:
        right: dict[str, list[tuple[bool, ...]]] = {}
        for question, (reading,) in answered:
            right.setdefault(question.kind, []).append(reading.right)
        return zsre_scores(right)
    nll: dict[str, list[tuple[float, float]]] = {}
    for question, (new, true) in answered:
        nll.setdefault(question.kind, []).append((new.nll, true.nll))
    return counterfact_scores(nll)


def _answer(
    question: Question, before: tuple[Reading, ...], now: tuple[Reading, ...], free: str, *, zsre: bool
) -> dict[str, Any]:
    asked = {"kind": question.kind, "prompt": question.prompt}
    if zsre:
        return {
            **asked,
            "answer": question.answers[0].answer.strip(),
            "nll": now[0].nll,
            "right": list(now[0].right),
            "before_nll": before[0].nll,
            "before_right": list(before[0].right),
            "free": free,
        }
    return {
        **asked,
        "nll_new": now[0].nll,
        "nll_true": now[1].nll,
        "before_nll_new": before[0].nll,
        "before_nll_true": before[1].nll,
        "free": free,
    }


def _edit_facts(edit: Any, seconds: float) -> dict[str, Any]:
    several = as_edits(edit)
    first = several[0] if several else None
    return {
        "layer": getattr(first or edit, "layer", None),
        "variant": first.variant if isinstance(first, Edit) else type(edit).__name__,
        "relative_norm": getattr(first, "relative_norm", None),
        "seconds": round(seconds, 3),
        "notes": list(getattr(first, "notes", ())),
    }


def _heading(record: Record, name: str) -> dict[str, Any]:
    request = record.request
    return {
        "number": record.number,
        "case_id": record.case_id,
        "editor": name,
        "relation": record.relation,
        "subject": request.subject,
        "prompt": request.text,
        "target_new": request.target_new,
        "target_true": request.target_true,
    }


def unfit(record: Record, name: str, reason: str) -> dict[str, Any]:
    """The same of a record that cannot be put to this model."""
    nothing = {"before": {}, "scores": {}, "answers": [], "texts": []}
    return {**_heading(record, name), "unfit": reason, "error": None, **nothing, "perplexity": None, "edit": None}


def _finite(number: float) -> float:
    """JSON has no infinity: a ruined model's perplexity is as large as a number gets."""
    return min(number, 1e300) if number == number else 1e300
