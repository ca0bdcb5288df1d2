"""What a model did with one record under one editor, and the record that is kept of it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from rome_lens.data.records import CounterFactRecord, ZsreRecord
from rome_lens.editing import Edit
from rome_lens.errors import RomeLensError
from rome_lens.evaluation.metrics import begins_with, counterfact_scores, fluency, free_scores, zsre_scores
from rome_lens.evaluation.questions import Question, Reading
from rome_lens.evaluation.report.record import EvaluatedRecord

Record = CounterFactRecord | ZsreRecord


@dataclass
class AskedQuestion:
    """What a model gave to one question.

    Attributes:
        question: what was asked.
        before: [answer] of the unedited model.
        after: the same under the edit.
        free: what the model writes by itself.
    """

    question: Question
    before: tuple[Reading, ...]
    after: tuple[Reading, ...]
    free: str = ""


@dataclass
class Findings:
    """What was found out about one record under one editor.

    Attributes:
        asked: its questions with their answers.
        texts: what the model writes about the subject: prompts and what follows them.
        perplexity: of the watched texts, without and with the edit; None where none are watched.
    """

    asked: list[AskedQuestion] = field(default_factory=list)
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
    scores = _scores(found, lambda asked: asked.after, zsre=zsre)
    said = _by_kind(found, lambda asked: begins_with(asked.free, asked.question.wanted_answer.answer))
    scores |= free_scores(said, zsre=zsre)
    if found.texts:
        scores["GE"] = fluency([prompt + text for prompt, text in found.texts])
    perplexity = None
    if found.perplexity is not None:
        before, after = found.perplexity
        ratio = after / before
        flagged = not 1 / perplexity_bound <= ratio <= perplexity_bound
        perplexity = {"before": finite(before), "after": finite(after), "flagged": flagged}
        scores["PPL"] = finite(ratio)
    failed = isinstance(edit, RomeLensError)
    return EvaluatedRecord(
        **_asked(record, name),
        error=str(edit) if failed else None,
        before=_scores(found, lambda asked: asked.before, zsre=zsre),
        scores=scores,
        answers=[_answer(asked, zsre=zsre) for asked in found.asked],
        texts=[{"prompt": prompt, "text": text} for prompt, text in found.texts],
        perplexity=perplexity,
        edit=None if failed or edit is None else _edit_facts(edit, seconds),
    )


def _by_kind(found: Findings, what: Callable[[AskedQuestion], Any]) -> dict[str, list[Any]]:
    by_kind: dict[str, list[Any]] = {}
    for asked in found.asked:
        by_kind.setdefault(asked.question.kind, []).append(what(asked))
    return by_kind


def _scores(
    found: Findings, readings: Callable[[AskedQuestion], tuple[Reading, ...]], *, zsre: bool
) -> dict[str, float]:
    if zsre:
        return zsre_scores(_by_kind(found, lambda asked: readings(asked)[0].right))
    return counterfact_scores(_by_kind(found, lambda asked: tuple(answer.nll for answer in readings(asked))))


def _answer(asked: AskedQuestion, *, zsre: bool) -> dict[str, Any]:
    question, before, now = asked.question, asked.before, asked.after
    answer: dict[str, Any] = {"kind": question.kind, "prompt": question.prompt}
    if zsre:
        answer |= {
            "answer": question.answers[0].answer.strip(),
            "nll": now[0].nll,
            "right": list(now[0].right),
            "before_nll": before[0].nll,
            "before_right": list(before[0].right),
        }
    else:
        answer |= {
            "nll_new": now[0].nll,
            "nll_true": now[1].nll,
            "before_nll_new": before[0].nll,
            "before_nll_true": before[1].nll,
        }
    return {**answer, "free": asked.free}


def as_edits(answer: Any) -> tuple[Edit, ...] | None:
    """What an editor gave, as edits of `W_out` that hooks can carry; None where it is anything else."""
    if answer is None:
        return ()
    several = tuple(answer) if isinstance(answer, Sequence) else (answer,)
    return several if all(isinstance(edit, Edit) for edit in several) else None


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


def finite(number: float) -> float:
    """JSON has no infinity: a ruined model's perplexity is as large as a number gets."""
    return min(number, 1e300) if number == number else 1e300
