"""A record of a data set: the edit that it asks for, and the prompts that show what else changed."""

from dataclasses import dataclass

from rome_lens.checks import as_text, as_texts, is_list, keep, shown, whole_number
from rome_lens.errors import SettingError
from rome_lens.facts import EditRequest
from rome_lens.kinds import request_of


@dataclass(frozen=True)
class FollowUp:
    """A prompt whose answer follows from the edited fact.

    Attributes:
        prompt: the whole prompt.
        answers: texts that answer it once the fact is edited; any of them is right.
        about: how it follows, in the data set's words, such as `Reasoning`.

    Raises:
        SettingError: a field is of another kind, or there is no answer.
    """

    prompt: str
    answers: tuple[str, ...]
    about: str

    def __post_init__(self) -> None:
        for name in ("prompt", "about"):
            as_text(name, getattr(self, name))
        keep(self, answers=as_texts("answers", self.answers))
        if not self.answers:
            raise SettingError(f"answers is empty; expected a text at least that answers {shown(self.prompt)}")


@dataclass(frozen=True)
class CounterFactRecord:
    """A fact that a model is to unlearn for another, and the prompts that show what else changed (paper, section 3.4).

    Attributes:
        number: place in the data set, from 0.
        case_id: the data set's own name for it.
        relation: such as `P176`; None where the data set names none.
        request: the edit that is asked for; `target_true` is the fact, without which neither ES nor PS is known. Its
            `answer_joined`, which a file may give beside the prompt or beside the rewrite, holds for all prompts of the
            record.
        paraphrases: whole prompts that ask the same in other words.
        neighbours: whole prompts that the edit should leave as they are: about other subjects of which `target_true` is
            true as well, or with answers of their own.
        generation_prompts: beginnings of texts about the subject.
        neighbour_answers: the answer to each neighbour; empty where that is `target_true` for all of them.
        follows: prompts whose answers follow from the edited fact.

    Raises:
        SettingError: a field is of another kind, or there are not as many answers as neighbours.
    """

    number: int
    case_id: int | str
    relation: str | None
    request: EditRequest
    paraphrases: tuple[str, ...]
    neighbours: tuple[str, ...]
    generation_prompts: tuple[str, ...]
    neighbour_answers: tuple[str, ...] = ()
    follows: tuple[FollowUp, ...] = ()

    def __post_init__(self) -> None:
        _keep_names(self)
        names = ("paraphrases", "neighbours", "generation_prompts", "neighbour_answers")
        keep(self, request=request_of(self.request), **{name: as_texts(name, getattr(self, name)) for name in names})
        keep(self, follows=_follow_ups(self.follows))
        if self.neighbour_answers and len(self.neighbour_answers) != len(self.neighbours):
            raise SettingError(
                f"neighbour_answers has {len(self.neighbour_answers)} texts for {len(self.neighbours)} neighbours; "
                "expected one for each, or none where target_true answers them all"
            )


@dataclass(frozen=True)
class ZsreRecord:
    """A question with its answer, as MEND's files hold them (paper, section 3.3).

    Attributes:
        number: place in the data set, from 0.
        case_id: the data set's own name for it; the same number where it has none, as in MEND's files.
        request: the question and its first answer. Its `answer_joined`, which a file may give beside the question,
            holds for it, its rephrasing and what follows.
        rephrase: the question in other words.
        unrelated: a question about something else, with its question mark.
        unrelated_answer: the answer to that.
        follows: prompts whose answers follow from the edited fact.

    Raises:
        SettingError: a field is of another kind.
    """

    number: int
    case_id: int | str
    request: EditRequest
    rephrase: str
    unrelated: str
    unrelated_answer: str
    follows: tuple[FollowUp, ...] = ()

    def __post_init__(self) -> None:
        _keep_names(self)
        keep(self, request=request_of(self.request), follows=_follow_ups(self.follows))
        for name in ("rephrase", "unrelated", "unrelated_answer"):
            as_text(name, getattr(self, name))

    @property
    def relation(self) -> None:
        """None: the files name no relations."""
        return


def _keep_names(record: CounterFactRecord | ZsreRecord) -> None:
    """By what a record is known, as files hold it: Python's own numbers."""
    keep(record, number=whole_number("number", record.number))
    if not isinstance(record.case_id, str):
        keep(record, case_id=whole_number("case_id", record.case_id, expected="a whole number or a text"))


def _follow_ups(given: object) -> tuple[FollowUp, ...]:
    """What follows from a fact, as a record holds it.

    Raises:
        SettingError: it is no list, or one of it is no FollowUp.
    """
    if not is_list(given):
        raise SettingError(f"follows is {shown(given)}; expected a list of FollowUp")
    several = tuple(given)  # pyright: ignore[reportArgumentType]
    for index, one in enumerate(several):
        if not isinstance(one, FollowUp):
            written = "FollowUp('The tower is in the country of', answers=('Italy',), about='Reasoning')"
            raise SettingError(f"follows[{index}] is {shown(one)}; expected a FollowUp: write {written}")
    return several
