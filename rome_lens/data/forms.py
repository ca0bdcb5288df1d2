"""The forms in which records are published, known by what is in them, and how each becomes a record."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

from rome_lens.data.blocks import Asked, answered, asked_beside, left_alone, ripples, texts_of
from rome_lens.data.entries import REQUEST, request_in, says_nothing
from rome_lens.data.fields import (
    REWRITE,
    FieldError,
    checked,
    in_question,
    joined_in,
    joined_of_rewrite,
    member,
    request_from,
    text_in,
    texts_in,
)
from rome_lens.data.record import CounterFactRecord, FollowUp, ZsreRecord
from rome_lens.data.ripple import EDIT, ripple_request
from rome_lens.facts import EditRequest

R = TypeVar("R", CounterFactRecord, ZsreRecord)

# EasyEdit's, in one record the one or the other.
_REPHRASED = ("rephrase_prompt", "rephrase")
_BESIDE = tuple(f"{name}{part}" for name in ("locality", "portability") for part in ("", "_prompt", "_ground_truth"))
# RippleEdits' blocks; of two spellings one is in the files.
_FOLLOWING = ("Logical_Generalization", "Subject_Aliasing", "Compositionality_I", "Compositionality_II")
_LEFT_ALONE = ("Relation_Specificity", "Relation_Specifity", "Forgetfulness")
_MULTI_HOP = "multi-hop"


@dataclass(frozen=True)
class Form(Generic[R]):
    """A form of records.

    Attributes:
        name: the words for it.
        fields: those that are read.
        convert: makes a record of its number and its fields; the names of what it passes over inside of fields go into
            the set. It raises a FieldError where a record breaks the form.
    """

    name: str
    fields: Sequence[str]
    convert: Callable[[int, Any, set[str]], R]

    def passed_over(self, record: Mapping[str, Any]) -> set[str]:
        """Fields that hold something and are not read."""
        return {
            name
            for name, value in record.items()
            if name not in self.fields and value != {} and not says_nothing(value)
        }


def counterfact_form(record: Any) -> Form[CounterFactRecord]:
    """The form of a record for `read_counterfact`."""
    if not isinstance(record, Mapping):
        return COUNTERFACT
    if record.get(REWRITE) is not None:
        return _MQUAKE if isinstance(record[REWRITE], list) else COUNTERFACT
    if record.get(EDIT) is not None:
        return _RIPPLE
    if record.get("locality") is not None or record.get("portability") is not None:
        return COUNTERFACT if _has_question(record) else _KNOW_EDIT
    return COUNTERFACT if record.get("prompt") is None else _EASY_EDIT


def zsre_form(record: Any) -> Form[ZsreRecord]:
    """The form of a record for `read_zsre`."""
    if not isinstance(record, Mapping) or record.get("prompt") is None or _has_question(record):
        return ZSRE
    blocks = record.get("locality") is not None or record.get("portability") is not None
    return _KNOW_EDIT_ZSRE if blocks else _EASY_EDIT_ZSRE


def _has_question(record: Mapping[str, Any]) -> bool:
    """Whether a record is one of MEND's."""
    return record.get("src") is not None


def _counterfact(number: int, record: Any, passed: set[str]) -> CounterFactRecord:
    rewrite, inside = member(record, REWRITE, "", Mapping, "an object"), f"{REWRITE}."
    request, relation = _rewritten(record, rewrite, inside)
    return CounterFactRecord(
        number=number,
        case_id=_case_id(number, record),
        relation=relation,
        request=request,
        paraphrases=texts_in(record, "paraphrase_prompts"),
        neighbours=texts_in(record, "neighborhood_prompts"),
        generation_prompts=texts_in(record, "generation_prompts", least=0),
    )


def _mquake(number: int, record: Any, passed: set[str]) -> CounterFactRecord:
    rewrites = record[REWRITE]
    if len(rewrites) != 1:
        raise FieldError(
            REWRITE,
            f"is a list of {len(rewrites)} rewrites; expected one: its questions follow from all of them at once, and "
            "a record edits one fact",
        )
    inside = f"{REWRITE}[0]."
    request, relation = _rewritten(record, rewrites[0], inside)
    question = rewrites[0].get("question")
    new = [text_in(record, "new_answer", ""), *texts_of(record.get("new_answer_alias"), "new_answer_alias")]
    answers = tuple(dict.fromkeys(new))
    return CounterFactRecord(
        number=number,
        case_id=_case_id(number, record),
        relation=relation,
        request=request,
        paraphrases=() if says_nothing(question) else (checked(question, f"{inside}question"),),
        neighbours=(),
        generation_prompts=(),
        follows=tuple(FollowUp(prompt, answers, _MULTI_HOP) for prompt in texts_in(record, "questions")),
    )


def _ripple(number: int, record: Any, passed: set[str]) -> CounterFactRecord:
    relation, request = ripple_request(record)
    following = [asked for name in _FOLLOWING for asked in ripples(record, name)]
    quiet = [asked for name in _LEFT_ALONE for asked in ripples(record, name)]
    neighbours, answers = left_alone(quiet, request, passed)
    tests = [test for name in (*_FOLLOWING, *_LEFT_ALONE) for test in record.get(name) or []]
    passed |= {
        name for name in ("condition_queries", "test_condition") for test in tests if not says_nothing(test.get(name))
    }
    return CounterFactRecord(
        number=number,
        case_id=_case_id(number, record),
        relation=relation,
        request=request,
        paraphrases=(),
        neighbours=neighbours,
        generation_prompts=(),
        neighbour_answers=answers,
        follows=_follow_ups(answered(following, passed)),
    )


def _easy_edit(number: int, record: Any, passed: set[str]) -> CounterFactRecord:
    request = request_in(record)
    if request.target_true is None:
        raise FieldError("ground_truth", "is missing; expected the answer that was true, which the new one is held to")
    neighbours, answers = left_alone(asked_beside(record, "locality"), request, passed)
    return CounterFactRecord(
        number=number,
        case_id=_case_id(number, record),
        relation=None,
        request=request,
        paraphrases=_rephrased(record)[1],
        neighbours=neighbours,
        generation_prompts=(),
        neighbour_answers=answers,
        follows=_follow_ups(answered(asked_beside(record, "portability"), passed)),
    )


def _zsre(number: int, record: Any, passed: set[str]) -> ZsreRecord:
    question, subject = text_in(record, "src", ""), text_in(record, "subject", "")
    answers = texts_in(record, "answers")
    prompt, named = in_question(question, subject)
    return ZsreRecord(
        number=number,
        case_id=number,
        request=request_from(prompt, named, answers[0], None, joined_in(record, ""), field="src"),
        rephrase=text_in(record, "rephrase", ""),
        unrelated=text_in(record, "loc", "") + "?",
        unrelated_answer=text_in(record, "loc_ans", ""),
    )


def _easy_edit_zsre(number: int, record: Any, passed: set[str]) -> ZsreRecord:
    request, (field, paraphrases) = request_in(record), _rephrased(record)
    if not paraphrases:
        raise FieldError(field, "is missing; expected a text")
    quiet = answered(asked_beside(record, "locality"), passed)
    if not quiet:
        raise FieldError("locality_prompt", "is missing; expected an unrelated question with its answer")
    rephrase, *others = paraphrases
    # There is one of each in a record.
    if others:
        passed.add(f"{field} behind the first")
    for asked in quiet[1:]:
        passed.add(asked.field + (" behind the first" if asked.field == quiet[0].field else ""))
    return ZsreRecord(
        number=number,
        case_id=_case_id(number, record),
        request=request,
        rephrase=rephrase,
        unrelated=_as_question(quiet[0].prompt),
        unrelated_answer=quiet[0].answers[0],
        follows=_follow_ups(answered(asked_beside(record, "portability"), passed)),
    )


def _rewritten(record: Any, rewrite: Any, inside: str) -> tuple[EditRequest, str | None]:
    """The request and the relation of a rewrite in the schema of CounterFact."""
    targets = [
        text_in(member(rewrite, name, inside, Mapping, "an object with the text str"), "str", f"{inside}{name}.")
        for name in ("target_new", "target_true")
    ]
    asked = text_in(rewrite, "prompt", inside), text_in(rewrite, "subject", inside)
    request = request_from(*asked, *targets, joined_of_rewrite(record, rewrite), inside=inside)
    relation = rewrite.get("relation_id")
    if relation is not None and not isinstance(relation, str):
        raise FieldError(f"{inside}relation_id", f"is {type(relation).__name__}; expected a text")
    return request, relation


def _case_id(number: int, record: Mapping[str, Any]) -> int | str:
    case_id = number if record.get("case_id") is None else record["case_id"]
    if isinstance(case_id, bool) or not isinstance(case_id, int | str):
        raise FieldError("case_id", f"is {type(case_id).__name__}; expected a whole number or a text")
    return case_id


def _rephrased(record: Mapping[str, Any]) -> tuple[str, tuple[str, ...]]:
    """The field that holds the prompt in other words, and the texts in it."""
    field = next((name for name in _REPHRASED if not says_nothing(record.get(name))), _REPHRASED[0])
    return field, tuple(texts_of(record.get(field), field))


def _as_question(text: str) -> str:
    """A question of Natural Questions, which stand there without their marks, with its mark."""
    return f"{text.rstrip()}?" if text.startswith("nq question") and not text.rstrip().endswith("?") else text


def _follow_ups(several: Sequence[Asked]) -> tuple[FollowUp, ...]:
    return tuple(FollowUp(asked.prompt, asked.answers, asked.about) for asked in several)


_OF_REWRITE = ("case_id", REWRITE, "answer_joined")
_OF_EASY_EDIT = ("case_id", *REQUEST, *_REPHRASED, *_BESIDE)
COUNTERFACT: Final = Form(
    "CounterFact", (*_OF_REWRITE, "paraphrase_prompts", "neighborhood_prompts", "generation_prompts"), _counterfact
)
"""As it was published."""

_MQUAKE: Final = Form("MQuAKE", (*_OF_REWRITE, "questions", "new_answer", "new_answer_alias"), _mquake)
_RIPPLE: Final = Form("RippleEdits", ("case_id", EDIT, *_FOLLOWING, *_LEFT_ALONE), _ripple)
_EASY_EDIT: Final = Form("EasyEdit's CounterFact", _OF_EASY_EDIT, _easy_edit)
_KNOW_EDIT: Final = Form("KnowEdit", _OF_EASY_EDIT, _easy_edit)
ZSRE: Final = Form("zsRE", ("subject", "src", "answers", "answer_joined", "rephrase", "loc", "loc_ans"), _zsre)
"""As MEND's files hold it."""

_EASY_EDIT_ZSRE: Final = Form("EasyEdit's zsRE", _OF_EASY_EDIT, _easy_edit_zsre)
_KNOW_EDIT_ZSRE: Final = Form("KnowEdit", _OF_EASY_EDIT, _easy_edit_zsre)
