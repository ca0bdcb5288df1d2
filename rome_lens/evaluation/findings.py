"""What a model did with one record under one editor, and the record that is kept of it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from rome_lens.data.records import CounterFactRecord, ZsreRecord
from rome_lens.editing import Edit
from rome_lens.errors import RomeLensError
from rome_lens.evaluation.metrics import begins_with, counterfact_scores, fluency, free_scores, zsre_scores
from rome_lens.evaluation.questions import Question, Reading
from rome_lens.evaluation.report.record import EvaluatedRecord
from rome_lens.evaluation.updates import as_edits

Record = CounterFactRecord | ZsreRecord


@dataclass
class Findings:
    """What was found out about one record under one editor.

    Attributes:
        questions: what was asked.
        before: [question][answer] of the unedited model.
        after: the same under the edit.
        free: [question] what the model writes by itself.
        texts: what it writes about the subject: prompts and what follows them.
        perplexity: of the watched texts, without and with the edit; None where none are watched.
    """

    questions: list[Question] = field(default_factory=list)
    before: list[tuple[Reading, ...]] = field(default_factory=list)
    after: list[tuple[Reading, ...]] = field(default_factory=list)
    free: list[str] = field(default_factory=list)
    texts: list[tuple[str, str]] = field(default_factory=list)
    perplexity: tuple[float, float] | None = None


def evaluated(
    record: Record, name: str, edit: Any, found: Findings, *, seconds: float, perplexity_bound: float
) -> EvaluatedRecord:
    """All that is known of a record under an editor.

    Args:
        record: the record.
        name: the editor's.
        edit: what the editor gave: an edit, None, or the error that says why there is none.
        found: what was found out.
        seconds: how long the edit took.
        perplexity_bound: a ratio of perplexities beyond it, up or down, is flagged.
    """
    zsre = isinstance(record, ZsreRecord)
    scores = _scores(found.questions, found.after, zsre=zsre)
    said: dict[str, list[bool]] = {}
    for question, text in zip(found.questions, found.free, strict=True):
        said.setdefault(question.kind, []).append(begins_with(text, question.wanted_answer.answer))
    scores |= free_scores(said, zsre=zsre)
    if found.texts:
        scores["GE"] = fluency([prompt + text for prompt, text in found.texts])
    perplexity = None
    if found.perplexity is not None:
        before, after = found.perplexity
        ratio = after / before
        flagged = not 1 / perplexity_bound <= ratio <= perplexity_bound
        perplexity = {"before": _finite(before), "after": _finite(after), "flagged": flagged}
        scores["PPL"] = _finite(ratio)
    failed = isinstance(edit, RomeLensError)
    return EvaluatedRecord(
        **_asked(record, name),
        error=str(edit) if failed else None,
        before=_scores(found.questions, found.before, zsre=zsre),
        scores=scores,
        answers=[
            _answer(*each, zsre=zsre)
            for each in zip(found.questions, found.before, found.after, found.free, strict=True)
        ],
        texts=[{"prompt": prompt, "text": text} for prompt, text in found.texts],
        perplexity=perplexity,
        edit=None if failed or edit is None else _edit_facts(edit, seconds),
    )


def _scores(questions: Sequence[Question], readings: Sequence[tuple[Reading, ...]], *, zsre: bool) -> dict[str, float]:
    by_kind: dict[str, list[Any]] = {}
    for question, answers in zip(questions, readings, strict=True):
        by_kind.setdefault(question.kind, []).append(answers[0].right if zsre else tuple(a.nll for a in answers))
    return zsre_scores(by_kind) if zsre else counterfact_scores(by_kind)


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


def unfit(record: Record, name: str, reason: str) -> EvaluatedRecord:
    """The same of a record that cannot be put to this model."""
    return EvaluatedRecord(**_asked(record, name), unfit=reason)


def _asked(record: Record, name: str) -> dict[str, Any]:
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


def _finite(number: float) -> float:
    """JSON has no infinity: a ruined model's perplexity is as large as a number gets."""
    return min(number, 1e300) if number == number else 1e300
