"""Facts and requests: what a trace asks a model about, what an edit changes, and the reader of published facts."""

import json
import os
from dataclasses import dataclass
from pathlib import Path

from rome_lens.checks import as_path, as_text
from rome_lens.errors import AnswerError, ArtefactError, PromptError, SubjectError

_PLACE = "{}"


@dataclass(frozen=True)
class _AboutSubject:
    """A prompt with one place for its subject."""

    prompt: str
    subject: str

    def __post_init__(self) -> None:
        as_text("prompt", self.prompt, error=PromptError)
        as_text("subject", self.subject, error=SubjectError)
        places = self.prompt.count(_PLACE)
        if places != 1:
            raise PromptError(
                f"the prompt {self.prompt!r} has {places} places for the subject; write {_PLACE} once, where it stands"
            )
        if not self.subject.strip():
            raise SubjectError(f"the subject of the prompt {self.prompt!r} is empty; name who or what it is about")

    @property
    def text(self) -> str:
        """The prompt with the subject filled in."""
        return self.prompt.replace(_PLACE, self.subject)

    @property
    def subject_span(self) -> tuple[int, int]:
        """The subject's characters in `text`: the first, and the one after the last."""
        start = self.prompt.index(_PLACE)
        return start, start + len(self.subject)


@dataclass(frozen=True)
class Fact(_AboutSubject):
    """A subject, a prompt that ends where the answer begins, and the answer.

    Attributes:
        prompt: the prompt with one `{}` where the subject stands. Nothing else in it is special: not `%s`, not `{0}`.
        subject: the subject, as it stands in the prompt; braces in it are text.
        answer: what completes the prompt, without the space in front.

    Raises:
        PromptError: the prompt is no text, or has no `{}`, or several.
        SubjectError: the subject is no text, empty or blank.
        AnswerError: the answer is no text, empty or blank.
    """

    answer: str

    def __post_init__(self) -> None:
        super().__post_init__()
        as_text("answer", self.answer, error=AnswerError)
        if not self.answer.strip():
            raise AnswerError(f"the answer to {self.text!r} is empty; give the text that completes it")


@dataclass(frozen=True)
class EditRequest(_AboutSubject):
    """What an edit shall make the model say.

    Attributes:
        prompt: a prompt with one `{}` where the subject stands; it ends where the target begins.
        subject: whom or what the fact is about, as it stands in the prompt; braces in it are text.
        target_new: what the model shall say after the prompt, of one token or several, without the space in front.
        target_true: what it says now, if that is known; None lets the editor ask the model.

    Raises:
        PromptError: the prompt is no text, or has no `{}`, or several.
        SubjectError: the subject is no text, empty or blank.
        AnswerError: a target is no text, empty or blank, or both are the same.
    """

    target_new: str
    target_true: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        as_text("target_new", self.target_new, error=AnswerError)
        if self.target_true is not None:
            as_text("target_true", self.target_true, error=AnswerError)
        for target in (self.target_new, self.target_true):
            if target is not None and not target.strip():
                raise AnswerError(f"a target of {self.text!r} is empty; give the text that shall complete it")
        if self.target_true is not None and self.target_true.strip() == self.target_new.strip():
            raise AnswerError(
                f"target_new and target_true of {self.text!r} are both {self.target_new.strip()!r}; "
                "an edit needs a target that is not the old answer"
            )


def read_known_facts(path: str | os.PathLike[str]) -> list[Fact]:
    """Read facts in the form in which the ROME authors published theirs (`known_1000.json`).

    The file is a JSON list of objects with the texts `subject`, `prompt` and `attribute` (the answer); other keys are
    ignored. The prompt holds the subject itself, or `{}` in its place. Where the subject occurs more than once, the
    first occurrence counts, as in the released code.

    Raises:
        ArtefactError: no such file, not JSON, or a record that is no fact; records are counted from 0.
    """
    name = repr(as_path("the file", path))
    try:
        records = json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except FileNotFoundError as error:
        raise ArtefactError(f"there is no file {name} to read facts from") from error
    except OSError as error:
        raise ArtefactError(f"cannot read facts from {name}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ArtefactError(f"{name} is not JSON, which known facts are kept in: {error}") from error
    if not isinstance(records, list) or not records:
        raise ArtefactError(
            f"{name} holds no known facts: expected a JSON list of objects with subject, prompt, attribute"
        )
    return [_known_fact(record, where=f"record {index} of {name}") for index, record in enumerate(records)]


def _known_fact(record: object, *, where: str) -> Fact:
    if not isinstance(record, dict):
        raise ArtefactError(f"{where} is no JSON object; expected one with subject, prompt and attribute")
    for key in ("subject", "prompt", "attribute"):
        if key not in record:
            raise ArtefactError(f"{where} has no {key!r}; expected the texts subject, prompt and attribute")
        if not isinstance(record[key], str):
            raise ArtefactError(f"{where}: {key!r} is {type(record[key]).__name__}; expected a text")
    subject, prompt = record["subject"], record["prompt"]
    # A subject with braces in it can bring the only `{}` of a prompt, which is then no place for a subject.
    if subject and (_PLACE not in prompt or _PLACE in subject):
        if subject not in prompt:
            raise ArtefactError(f"{where}: the subject {subject!r} is not in the prompt {prompt!r}")
        prompt = prompt.replace(subject, _PLACE, 1)
    try:
        return Fact(prompt, subject, record["attribute"])
    except PromptError as error:
        raise ArtefactError(f"{where}: {error}") from error
