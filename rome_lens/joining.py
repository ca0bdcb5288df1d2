"""What stands between a prompt and its answer: a blank, or nothing, by what both sides write there.

Words are set apart by a blank. None stands behind what opens (brackets, quotes, `-`, `/`, a currency's sign), between
the digits of one number, in front of what closes, where scripts are written without spaces, and beside a token of the
model's own making. Where the same signs can be read either way, what people write most often is taken; whoever knows
better says so (`answer_joined`).
"""

import re
import unicodedata
from collections.abc import Collection

from rome_lens.checks import as_text
from rome_lens.errors import AnswerError, SettingError
from rome_lens.scripts import is_cjk_punctuation, is_unspaced

BLANK = " "

# Signs that open and close alike: the text in front of them tells which.
_BOTH_WAYS = "\"'`*"
# Final quotes by the initial ones that they belong to; German and Danish write some the other way around.
_QUOTES = {"”": "“„", "»": "«", "›": "‹", "’": "‘", "“": "„", "«": "»", "‹": "›", "‘": "‚"}
# Punctuation of category Po that nothing is closed with.
_NO_CLOSING = "\"'#%&*@\\/¡¿§¶†‡‰‱·•※"
_CONTRACTION = re.compile(r"['’](s|t|d|m|re|ve|ll)(?!\w)", re.IGNORECASE)
# What is written onto the word or the number in front of it: calls, indices, increments, suffixes, possessives.
_ONTO_A_WORD = re.compile(r"\(\)|\[\d*\]|\+\+|-[^\W\d]|[²³¹™®]")
_ONTO_A_NUMBER = re.compile(r"[%‰°′″]|\.\d")
# A prefix of a string in Python's notation, and of one that has begun otherwise.
_STRING_PREFIX = re.compile(r"(?<!\w)[bfru]{1,2}$", re.IGNORECASE)
_ABBREVIATION = re.compile(r"(?<!\w)(\w|\w+\.\w|etc|vs|cf|ca|mr|mrs|ms|dr|st|no)\.$", re.IGNORECASE)
_OPERATORS = "=><|&^"


def between(prompt: str, answer: str, *, tokens: Collection[str] = ()) -> str:
    """What stands between a prompt and its answer by the rule: a blank, or nothing.

    White space that either side brings at its end is taken as it is, and nothing is added to it.

    Args:
        prompt: the text up to the answer.
        answer: the answer.
        tokens: texts that the tokenizer takes as one token wherever they stand, special ones and others.

    Raises:
        AnswerError: the answer is empty.
    """
    check_answer(answer)
    return BLANK if _set_apart(prompt, answer, tokens) else ""


def otherwise(prompt: str, answer: str, joined: str) -> str | None:
    """The other choice of what stands between the two; None where white space of either side's own leaves none."""
    if joined.strip() or prompt[-1:].isspace() or answer[:1].isspace():
        return None
    return "" if joined else BLANK


def check_answer(answer: str) -> None:
    """Refuse an answer that is no text, or nothing but white space.

    Raises:
        AnswerError: it is one.
    """
    if not as_text("answer", answer, error=AnswerError).strip():
        raise AnswerError(f"the answer {answer!r} is empty; expected a word or a name")


def check_joined(joined: object) -> str:
    """What stands between a prompt and its answer, as a caller says it.

    Raises:
        SettingError: it is something else than "" or white space.
    """
    if not isinstance(joined, str) or joined.strip():
        raise SettingError(
            f"answer_joined is {joined!r}; expected what stands between the prompt and its answer: '' for nothing, "
            "' ' for a blank"
        )
    return joined


def _set_apart(prompt: str, answer: str, tokens: Collection[str]) -> bool:
    """Whether a blank stands between the two."""
    if not prompt or prompt[-1].isspace() or answer[0].isspace():
        return False
    # Text never holds a special token: what stands beside it is no word's neighbour. Others may be words themselves.
    if any(prompt.endswith(token) and not token[-1:].isalnum() for token in tokens if token.strip()):
        return False
    if any(answer.startswith(token) for token in tokens if token.strip()):
        return False
    if _runs_on(prompt[-1], answer[0]) or _closes(prompt, answer):
        return False
    return not _opens(prompt, answer)


def _runs_on(last: str, first: str) -> bool:
    """Whether two characters stand side by side in one number, or in writing without spaces."""
    if is_cjk_punctuation(last) or is_cjk_punctuation(first):
        return True
    sides = [c.isdecimal() or is_unspaced(c) for c in (last, first)]
    return all(sides)


def _closes(prompt: str, answer: str) -> bool:
    """Whether an answer begins with what closes a text, or is written onto its last word."""
    first, last = answer[0], prompt[-1]
    if _CONTRACTION.match(answer) and last.isalnum():
        return True
    if (last.isalnum() or last in ")]}") and _ONTO_A_WORD.match(answer):
        return True
    if last.isdecimal() and _ONTO_A_NUMBER.match(answer):
        return True
    if answer == "#":  # C#, F#
        return last.isalpha()
    if first == "'":
        return len(re.findall(r"(?<!\w)'(?=\w)", prompt)) > len(re.findall(r"(?<=\w)'(?!\w)", prompt))
    if first in _BOTH_WAYS:
        run = _run_at(answer, 0)
        return prompt.count(run) % 2 == 1 and not (first == "*" and prompt.endswith("*"))
    if first in _QUOTES and any(prompt.count(opening) > _closed(prompt, opening) for opening in _QUOTES[first]):
        return True
    category = unicodedata.category(first)
    if category == "Pe":
        return True
    if category == "Po" and first not in _NO_CLOSING:
        # A word of its own begins with a stop: .5, .NET, .py; `!=` is an operator.
        return not (first == "." and answer[1:2].isalnum()) and not answer.startswith(("!=", ":=", "::"))
    return False


def _opens(prompt: str, answer: str) -> bool:
    """Whether a prompt ends with what opens a text, or joins it to what follows."""
    last, before = prompt[-1], prompt[:-1]
    category, tight = unicodedata.category(last), bool(before) and not before[-1].isspace()
    if last in _BOTH_WAYS or category in ("Pi", "Pf"):
        return _opening_quote(prompt, answer)
    if category == "Ps" or last in "/\\@_~¡¿":
        return True
    if category == "Pd":
        return last in "-‐‑" or tight
    if category == "Sc":
        number = before.rstrip()[-1:].isdecimal()
        return not number and (not tight or not before[-1].isalnum() or prompt.count(last) % 2 == 1)
    if last == "#":
        return not before[-1:].isalnum()
    if last == "%":
        return not before.rstrip()[-1:].isdecimal()
    if last == "+":
        return _joins_terms(before, answer)
    if last == ".":
        return _joins_parts(before, answer)
    if last == ":":
        return before.endswith(":")
    if last == "<":
        return tight or answer[0].isalpha()
    return last in _OPERATORS and tight


def _opening_quote(prompt: str, answer: str) -> bool:
    """Whether the quote that a prompt ends with is an opening one."""
    last = prompt[-1]
    run = _run_at(prompt, len(prompt) - 1)
    before = prompt[: len(prompt) - len(run)]
    free = not before or before[-1].isspace()
    if last == "*":
        # `*` by itself is an item's bullet at the beginning of a line, a product between numbers, emphasis elsewhere.
        if free and len(run) == 1:
            return bool(before.strip(" \t")) and before[-1] != "\n" and not answer[0].isdecimal()
        return free or prompt.count(run) % 2 == 1
    if free or unicodedata.category(before[-1]) in ("Ps", "Pi", "Sm", "Pd") or before[-1] in "=:,/\\|&":
        return last not in _QUOTES or unicodedata.category(last) == "Pi" or free
    if last in ('"', "`"):
        return prompt.count(last) % 2 == 1 and not before[-1].isdecimal()  # behind a number it stands for inches
    if last == "'":
        return bool(_STRING_PREFIX.search(before)) or is_unspaced(before[-1]) or is_cjk_punctuation(before[-1])
    if unicodedata.category(last) == "Pf":
        return False
    return all(prompt.count(opening) <= prompt[:-1].count(last) for opening in _QUOTES.get(last, ""))


def _joins_terms(before: str, answer: str) -> bool:
    """Whether the `+` behind a text joins what follows: a sum written closely, or a number's sign."""
    if not before or before[-1].isspace():
        return answer[0].isdecimal() and not before.rstrip()[-1:].isalnum()
    if before[-1] == "+":
        return False  # C++
    return before[-1].isdecimal() or before[-1] in ")]" or answer[0].isdecimal()


def _joins_parts(before: str, answer: str) -> bool:
    """Whether the stop behind a text is no sentence's end: a decimal's, a name's in code, a file's or a host's."""
    if not before or before[-1].isspace():
        return True
    if before[-1].isdecimal():
        return answer[0].isdecimal()
    if before[-1] == ".":
        return False
    return answer[0].islower() and not _ABBREVIATION.search(f"{before}.")


def _run_at(text: str, index: int) -> str:
    """The run of one character that a place of a text is in."""
    character = text[index]
    start, end = index, index + 1
    while start and text[start - 1] == character:
        start -= 1
    while end < len(text) and text[end] == character:
        end += 1
    return text[start:end]


def _closed(prompt: str, opening: str) -> int:
    """How often a text closes what such a quote opens."""
    return sum(prompt.count(closing) for closing, openings in _QUOTES.items() if opening in openings)
