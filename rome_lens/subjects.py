"""What a subject is, and where it stands in a text: one rule for requests, facts, files and traces.

White space around a subject is not part of it. Where a text holds the subject several times, occurrences that stand as
words of their own go before those inside of other words. In a prompt with a place for its subject, `{}` is that place,
and `{{}}` is `{}` as text.
"""

import re
import unicodedata
from dataclasses import dataclass

from rome_lens.checks import as_text, as_whole, shown
from rome_lens.errors import PromptError, SettingError, SubjectError
from rome_lens.scripts import within_word, word_goes_on

PLACE = "{}"

# A number that goes on or has begun, the signs of C++ and C#, initials (U.S.A.), AT&T, O'Brien and don't, but not "'s".
_PART_BEHIND = re.compile(r"(?<=\d)[.,]\d|(?<=\w)(\+\+|#)|(?<=\w\.\w\.)\w\.|(?<=\w)&\w|(?<=\w)['\u2019](?!s\b)[^\W\d_]")
_PART_IN_FRONT = re.compile(r"(?<=\d)[.,]$|(?<=\w)&$|(?<!\w)\w['\u2019]$")
_BRACES = re.compile(r"(\{+)(\}+)")


@dataclass(frozen=True)
class Template:
    """A prompt around the place for its subject.

    Attributes:
        before: the text in front of the subject.
        after: the text behind it.
    """

    before: str
    after: str

    @classmethod
    def read(cls, prompt: str) -> "Template":
        """Take a prompt with one `{}` apart.

        `{}` that stands there once is the place, whatever stands around it. Of several, those within further braces,
        as in `{{}}`, are text, and lose one pair of them.

        Raises:
            PromptError: there is no place, or there are several.
        """
        pairs = list(_BRACES.finditer(prompt))
        # Of several, those with two braces or more on both sides are text.
        places = pairs if len(pairs) == 1 else [pair for pair in pairs if 1 in map(len, pair.groups())]
        if len(places) != 1:
            several = "" if not places else ", and {{}} where it is text"
            raise PromptError(
                f"the prompt {prompt!r} has {len(places)} places for the subject; write {PLACE} once, where it "
                f"stands{several}"
            )
        at = places[0].end(1) - 1
        others = [] if len(pairs) == 1 else pairs
        return cls(
            _as_text(prompt, 0, at, [pair for pair in others if pair.end() <= at]),
            _as_text(prompt, at + len(PLACE), len(prompt), [pair for pair in others if pair.start() > at]),
        )

    @classmethod
    def around(cls, text: str, span: tuple[int, int]) -> "Template":
        """A text around the characters (start, end) of its subject."""
        start, end = span
        return cls(text[:start], text[end:])

    @property
    def prompt(self) -> str:
        """The prompt, with `{}` where the subject stands.

        Raises:
            PromptError: braces of the text stand right around the subject, and others elsewhere.
        """
        plain = f"{self.before}{PLACE}{self.after}"
        if len(_BRACES.findall(plain)) == 1:
            return plain
        written = f"{_written(self.before)}{PLACE}{_written(self.after)}"
        try:
            kept = Template.read(written) == self
        except PromptError:
            kept = False
        if not kept:
            raise PromptError(
                f"the prompt {self.before + '…' + self.after!r} has braces right around its subject, and others "
                "elsewhere, which no prompt with {} can say; rephrase it"
            )
        return written


def _as_text(prompt: str, start: int, end: int, pairs: list[re.Match[str]]) -> str:
    """A part of a prompt, in which each pair of braces has lost one of its own."""
    parts, done = [], start
    for pair in pairs:
        parts += [prompt[done : pair.start()], pair[1][1:], pair[2][1:]]
        done = pair.end()
    return "".join((*parts, prompt[done:end]))


def _written(text: str) -> str:
    return _BRACES.sub(r"{\1\2}", text)


def find_subject(text: str, subject: str, occurrence: int = 1) -> tuple[int, int]:
    """Character span (start, end) of the chosen occurrence of a subject, overlapping ones counted.

    Args:
        text: the text.
        subject: the subject, letter for letter; white space around it is ignored.
        occurrence: which occurrence: 1 is the first, -1 the last. Counted are those that stand as words of their own
            ("Rome" in "Rome's", not in "Romeo"), and all of them where there is none.

    Raises:
        SubjectError: the text does not hold the subject, or not that often.
        SettingError: an occurrence that is no whole number, or 0.
    """
    wanted = as_text("subject", subject, error=SubjectError).strip()
    if not wanted:
        raise SubjectError("the subject is empty; expected a part of the prompt, such as 'The Eiffel Tower'")
    number = as_whole(occurrence)
    if not number:
        raise SettingError(
            f"occurrence is {shown(occurrence)}; expected 1 for the first occurrence of the subject, -1 for the last"
        )
    starts = occurrences(text, wanted)
    if not starts:
        raise SubjectError(f"the subject {wanted!r} is not in the prompt {text!r}{_near_miss(text, wanted)}")
    index = number - 1 if number > 0 else len(starts) + number
    if not 0 <= index < len(starts):
        apart = " as a word of its own" if is_apart(text, starts[0], starts[0] + len(wanted)) else ""
        raise SubjectError(
            f"occurrence {number} of the subject {wanted!r} was asked for, but the prompt holds it {len(starts)} "
            f"time{'s' if len(starts) > 1 else ''}{apart if len(starts) < len(_everywhere(text, wanted)) else ''}"
        )
    return starts[index], starts[index] + len(wanted)


def placed(prompt: str, subject: str) -> tuple[str, str]:
    """The prompt with `{}` in the subject's place, and the subject, of a prompt that holds the one or the other.

    Where it holds both, the subject as a word of its own is the place, and `{}` is text. If `{}` begins the prompt,
    where subjects stand, either may be meant.

    Raises:
        SubjectError: the subject is empty, or the prompt holds neither.
        PromptError: there are several places, or either may be meant.
    """
    wanted = subject.strip()
    if not wanted:
        raise SubjectError(f"the subject of the prompt {prompt!r} is empty; name who or what it is about")
    if wanted not in prompt:
        if PLACE not in prompt:
            raise SubjectError(
                f"the subject {wanted!r} is not in the prompt {prompt!r}{_near_miss(prompt, wanted)}, or write {PLACE} "
                "where it stands"
            )
        return prompt, subject
    if PLACE in prompt and PLACE not in wanted:
        if not is_apart(prompt, *find_subject(prompt, wanted)):  # inside of another word it is there by chance
            return prompt, subject
        if prompt.lstrip().startswith(PLACE):
            raise PromptError(
                f"the prompt {prompt!r} holds {PLACE} and the subject {wanted!r}, and either may be its place; write "
                f"{{{{}}}} where {PLACE} is text, or let the subject stand in one place"
            )
    return in_text(prompt, wanted)


def in_text(text: str, subject: str, occurrence: int = 1) -> tuple[str, str]:
    """The text with `{}` in the place of its subject, and the subject without white space around it.

    Args:
        text: the text; braces in it are text.
        subject: the subject, letter for letter.
        occurrence: which occurrence, as `find_subject` takes it.

    Raises:
        SubjectError: the text does not hold the subject, or not that often. PromptError: no prompt can say it.
        SettingError: an occurrence that is no whole number, or 0.
    """
    return Template.around(text, find_subject(text, subject, occurrence)).prompt, subject.strip()


def occurrences(text: str, subject: str) -> list[int]:
    """Where the occurrences of a subject begin that count: as words of their own, or, if there are none, all."""
    starts = _everywhere(text, subject)
    return [i for i in starts if is_apart(text, i, i + len(subject))] or starts


def occurrence_at(text: str, subject: str, start: int) -> int | None:
    """Which occurrence of a subject begins at a place: 1 is the first. None where those that count begin elsewhere."""
    places = occurrences(text, subject)
    return places.index(start) + 1 if start in places else None


def is_apart(text: str, start: int, end: int) -> bool:
    """Whether no word of the text runs on across either end of a span."""
    if within_word(text, start) or word_goes_on(text, end):
        return False
    return not (_PART_BEHIND.match(text, end) or _PART_IN_FRONT.search(text[:start]))


def _everywhere(text: str, subject: str) -> list[int]:
    return [i for i in range(len(text)) if text.startswith(subject, i)]


def _near_miss(prompt: str, subject: str) -> str:
    """A hint where the subject differs from the prompt only in case or in its Unicode form."""
    at = prompt.lower().find(subject.lower())
    if at >= 0 and len(prompt.lower()) == len(prompt):
        return f"; the prompt writes it {prompt[at : at + len(subject)]!r}"
    if unicodedata.normalize("NFC", subject) in unicodedata.normalize("NFC", prompt):
        return "; the same letters are there in another Unicode form (NFC or NFD): copy the subject from the prompt"
    return "; give it letter for letter"
