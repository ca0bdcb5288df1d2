"""What a model did with one record under one editor, and the record that is kept of it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from rome_lens.data.records import CounterFactRecord, ZsreRecord
from rome_lens.editing import Edit
from rome_lens.errors import RomeLensError
from rome_lens.evaluation.metrics import (
    FOLLOWS,
    NEIGHBOUR,
    PORTABILITY,
    begins_with,
    counterfact_scores,
    fluency,
    free_scores,
    portability,
    zsre_scores,
)
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
    own = isinstance(record, CounterFactRecord) and bool(record.neighbour_answers)
    scores = _scores(found, lambda asked: asked.after, zsre=zsre)
    scores |= free_scores(_by_kind(found.asked, _says_answer), zsre=zsre)
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
        answers=[_answer(asked, own=own) for asked in found.asked],
        texts=[{"prompt": prompt, "text": text} for prompt, text in found.texts],
        perplexity=perplexity,
        edit=None if failed or edit is None else _edit_facts(edit, seconds),
    )


def _by_kind(several: Sequence[AskedQuestion], what: Callable[[AskedQuestion], Any]) -> dict[str, list[Any]]:
    by_kind: dict[str, list[Any]] = {}
    for asked in several:
        by_kind.setdefault(asked.question.kind, []).append(what(asked))
    return by_kind


def _says_answer(asked: AskedQuestion) -> bool:
    """Whether the model writes an answer by itself that is wanted."""
    return any(begins_with(asked.free, answer.answer) for answer in asked.question.wanted_answers)


def _scores(
    found: Findings, readings: Callable[[AskedQuestion], tuple[Reading, ...]], *, zsre: bool
) -> dict[str, float]:
    direct = [asked for asked in found.asked if asked.question.kind != FOLLOWS]
    if zsre:
        scores = zsre_scores(_by_kind(direct, lambda asked: readings(asked)[0].right))
    else:
        # Without a true object there is nothing to hold the new one to.
        pairs = [asked for asked in direct if len(asked.question.answers) > 1]
        scores = counterfact_scores(_by_kind(pairs, lambda asked: tuple(answer.nll for answer in readings(asked))))
    following = [[answer.right for answer in readings(a)] for a in found.asked if a.question.kind == FOLLOWS]
    return scores | {PORTABILITY: portability(following)} if following else scores


def _answer(asked: AskedQuestion, *, own: bool) -> dict[str, Any]:
    """What a model made of a prompt, as a record keeps it.

    Args:
        asked: the prompt and its answers.
        own: whether neighbours have answers of their own.
    """
    question, before, now = asked.question, asked.before, asked.after
    answer: dict[str, Any] = {"kind": question.kind, "prompt": question.prompt}
    if question.kind == FOLLOWS or len(question.answers) == 1:
        best, earlier = _best(now), _best(before)
        answer |= {
            "answer": question.answers[best].answer.strip(),
            "nll": now[best].nll,
            "right": list(now[best].right),
            "before_nll": before[earlier].nll,
            "before_right": list(before[earlier].right),
        }
    else:
        answer |= {"answer": question.answers[1].answer.strip()} if own and question.kind == NEIGHBOUR else {}
        answer |= {
            "nll_new": now[0].nll,
            "nll_true": now[1].nll,
            "before_nll_new": before[0].nll,
            "before_nll_true": before[1].nll,
        }
    return {**answer, "free": asked.free}


def _best(readings: Sequence[Reading]) -> int:
    """Which of several answers the model gives best: most of its tokens first, then the most probable."""
    return max(range(len(readings)), key=lambda n: (fmean(readings[n].right), -readings[n].nll))


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
