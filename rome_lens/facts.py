"""Facts and requests: what a trace asks a model about, what an edit changes, and the reader of published facts."""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from rome_lens.checks import as_path, as_text, keep
from rome_lens.errors import AnswerError, ArtefactError, PromptError, SettingError, SubjectError
from rome_lens.joining import check_joined
from rome_lens.subjects import Template, in_text, occurrence_at, placed


@dataclass(frozen=True, repr=False)
class _AboutSubject:
    """A prompt with one place for its subject."""

    prompt: str
    subject: str

    def __post_init__(self) -> None:
        as_text("prompt", self.prompt, error=PromptError)
        subject = as_text("subject", self.subject, error=SubjectError).strip()
        if not subject:
            raise SubjectError(f"the subject of the prompt {self.prompt!r} is empty; name who or what it is about")
        template = Template.read(self.prompt)
        if subject != self.subject:
            # White space around a subject is the prompt's: which token it belongs to is no matter of the subject.
            front, behind = self.subject.split(subject)
            template = Template(template.before + front, behind + template.after)
            keep(self, prompt=template.prompt, subject=subject)

    @property
    def text(self) -> str:
        """The prompt with the subject filled in."""
        template = Template.read(self.prompt)
        return template.before + self.subject + template.after

    @property
    def subject_span(self) -> tuple[int, int]:
        """The subject's characters in `text`: the first, and the one after the last."""
        start = len(Template.read(self.prompt).before)
        return start, start + len(self.subject)

    @property
    def asked(self) -> tuple[str, str, int]:
        """What `causal_trace` takes for the same place in the same text: prompt, subject and occurrence.

        Raises:
            SubjectError: the subject is inside of another word there, and elsewhere a word of its own.
        """
        text = self.text
        occurrence = occurrence_at(text, self.subject, self.subject_span[0])
        if occurrence is None:
            raise SubjectError(
                f"the subject {self.subject!r} of {text!r} is inside of another word, and elsewhere a word of its own; "
                "name a prompt and a subject"
            )
        return text, self.subject, occurrence

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self.as_dict().items())})"

    def as_dict(self) -> dict[str, Any]:
        """All fields, as JSON holds them; `answer_joined` where it is set."""
        return {name: value for name, value in asdict(self).items() if name != "answer_joined" or value is not None}


@dataclass(frozen=True, repr=False)
class Fact(_AboutSubject):
    """A subject, a prompt that ends where the answer begins, and the answer.

    Attributes:
        prompt: the prompt with one `{}` where the subject stands. Nothing else in it is special: not `%s`, not `{0}`;
            a `{}` that is text is written `{{}}` there.
        subject: the subject, as it stands in the prompt; braces in it are text. White space around it is the prompt's,
            and moves there.
        answer: what completes the prompt.
        answer_joined: what stands between the prompt and the answer: "" or white space. None goes by what both sides
            write there (`rome_lens.joining`): a blank between words, nothing behind an opening quote, and so on.

    Raises:
        PromptError: the prompt is no text, or has no `{}`, or several.
        SubjectError: the subject is no text, empty or blank.
        AnswerError: the answer is no text, empty or blank.
        SettingError: `answer_joined` is not white space.
    """

    answer: str
    answer_joined: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        as_text("answer", self.answer, error=AnswerError)
        if not self.answer.strip():
            raise AnswerError(f"the answer to {self.text!r} is empty; give the text that completes it")
        if self.answer_joined is not None:
            check_joined(self.answer_joined)

    @classmethod
    def in_text(
        cls, text: str, *, subject: str, answer: str, answer_joined: str | None = None, occurrence: int = 1
    ) -> Self:
        """A fact whose prompt holds the subject itself, in place of `{}`.

        Args:
            text: the prompt; braces in it are text.
            subject: the subject, letter for letter.
            answer: what completes the prompt.
            answer_joined: as the attribute.
            occurrence: which occurrence of the subject: 1 is the first, -1 the last (`causal_trace`).

        Raises:
            SubjectError: the text does not hold the subject, or not that often. Others as the class.
        """
        return cls(*in_text(text, subject, occurrence), answer, answer_joined)


@dataclass(frozen=True, repr=False)
class EditRequest(_AboutSubject):
    """What an edit shall make the model say.

    Attributes:
        prompt: a prompt with one `{}` where the subject stands; it ends where the target begins. A `{}` that is text is
            written `{{}}` there.
        subject: whom or what the fact is about, as it stands in the prompt; braces in it are text. White space around
            it is the prompt's, and moves there.
        target_new: what the model shall say after the prompt, of one token or several.
        target_true: what it says now, if that is known; None lets the editor ask the model.
        answer_joined: what stands between the prompt and either target: "" or white space. None goes by what both sides
            write there (`rome_lens.joining`): a blank between words, nothing behind an opening quote, and so on.

    Raises:
        PromptError: the prompt is no text, or has no `{}`, or several.
        SubjectError: the subject is no text, empty or blank.
        AnswerError: a target is no text, empty or blank, or both are the same.
        SettingError: `answer_joined` is not white space.
    """

    target_new: str
    target_true: str | None = None
    answer_joined: str | None = None

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
        if self.answer_joined is not None:
            check_joined(self.answer_joined)

    @property
    def words(self) -> str:
        """The request for people to read: `text → target`."""
        return f"{self.text} → {self.target_new.strip()}"

    @classmethod
    def in_text(
        cls,
        text: str,
        *,
        subject: str,
        target_new: str,
        target_true: str | None = None,
        answer_joined: str | None = None,
        occurrence: int = 1,
    ) -> Self:
        """A request whose prompt holds the subject itself, in place of `{}`.

        Args:
            text: the prompt; braces in it are text.
            subject: the subject, letter for letter.
            target_new: as the attribute.
            target_true: as the attribute.
            answer_joined: as the attribute.
            occurrence: which occurrence of the subject: 1 is the first, -1 the last (`causal_trace`).

        Raises:
            SubjectError: the text does not hold the subject, or not that often. Others as the class.
        """
        return cls(*in_text(text, subject, occurrence), target_new, target_true, answer_joined)


def read_known_facts(path: str | os.PathLike[str]) -> list[Fact]:
    """Read facts in the form in which the ROME authors published theirs (`known_1000.json`).

    The file is a JSON list of objects with the texts `subject`, `prompt` and `attribute` (the answer), and perhaps
    `answer_joined` (see `Fact`); other keys are ignored. The prompt holds the subject itself, and then braces in it are
    text, or `{}` in its place. Where the subject occurs more than once, the first occurrence counts, as in the released
    code, one that stands as a word of its own before those inside of other words.

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
    joined = record.get("answer_joined")
    try:
        return Fact(*placed(record["prompt"], record["subject"]), record["attribute"], joined)
    except (PromptError, SettingError) as error:
        raise ArtefactError(f"{where}: {error}") from error
