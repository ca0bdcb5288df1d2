"""What stands between a prompt and its answer: a blank, or nothing, by what both sides write there.

Words are set apart by a blank. None stands behind what opens (brackets, quotes, a hyphen, a slash, a currency's sign),
between the digits of one number, in front of what closes, where scripts are written without spaces, inside of code, and
beside a token of the model's own making. Where the same signs can be read either way, what people write most often is
taken; a caller who knows better can say so (`answer_joined`).
"""

import re
import unicodedata
from collections.abc import Collection, Iterable

from rome_lens.checks import as_text
from rome_lens.errors import AnswerError, SettingError
from rome_lens.scripts import is_cjk_punctuation, is_unspaced

BLANK = " "

# Quotes by those that they close; Finnish and Swedish open and close with one, German and Danish turn some around.
_CLOSES = {"”": "“„”", "»": "«»", "›": "‹›", "“": "„", "«": "»", "‹": "›", "’": "‘‚", "‘": "‚"}
# Punctuation of category Po that nothing is closed with.
_NO_CLOSING = "\"'#%&*@\\/¡¿§¶†‡‰‱·•※״׳"
# Elisions, where an apostrophe belongs to the word behind it as well.
_ELISION = re.compile(
    r"(?<!\w)([ldjncstmo]|qu|jusqu|lorsqu|puisqu|quoiqu|dell|dall|nell|sull|all|coll|quell|un|gl|sant)['’]$", re.I
)
_STRING_PREFIX = re.compile(r"(?<!\w)[bfru]{1,2}$", re.IGNORECASE)
# What is written onto the word or the number in front of it.
_ONTO_ANYTHING = re.compile(r"</|\\[)\]}]|['’]s(?!\w)")
_ONTO_A_WORD = re.compile(r"\+\+|[-‐‑][^\W\d_]{3,}|[²³¹™®₀-₉]|[\^_][\w{(]|n['’]t(?!\w)|@[\w-]+\.\w")
_ONTO_A_NUMBER = re.compile(r"[%‰°′″½¼¾]|[.:][0-9]|[-–‐‑×][0-9]|(st|nd|rd|th|s|er|e|º|ª)(?!\w)", re.IGNORECASE)
_ONTO_CODE = re.compile(r"\.[^\W\d]|\(|\[|--(?!\w)|/|\\")
# Words that stand in front of code, and signs that do.
_BEFORE_CODE = re.compile(r"((?<!\w)(import|from|return|await|new|yield|del|print)|[=+*/%<>&|!,;:(\[{])[ \t]*$")
_CODE_NAMES = ("self", "this", "super", "www", "localhost")
_CLOCK = re.compile(r"(?<!\w)(at|by|from|until|till|to|around|about|before|after)\s+\d{1,2}:$", re.IGNORECASE)
_DOLLARS = re.compile(r"(?<![A-Za-z])(US|HK|AU?|CA?|NZ|NT|MX|R|S)\$$")
_OPERATORS = "=<>|&^!+-*~"


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
    return not (_runs_on(prompt, answer) or _closes(prompt, answer) or _opens(prompt, answer))


def _runs_on(prompt: str, answer: str) -> bool:
    """Whether the two meet inside of one number, or in writing without spaces."""
    last, first = prompt[-1], answer[0]
    if is_cjk_punctuation(last) or is_cjk_punctuation(first) or (last.isdecimal() and first.isdecimal()):
        return True
    sides = _spaced(reversed(prompt)), _spaced(answer)
    # Signs and digits belong to every script: they go by what they meet.
    return False in sides and True not in sides


def _spaced(characters: Iterable[str]) -> bool | None:
    """Whether the letter that comes first is of a script with spaces; None where white space or nothing does."""
    for character in characters:
        if character.isspace():
            return None
        if is_unspaced(character):
            return False
        if character.isalpha():
            return True
    return None


def _closes(prompt: str, answer: str) -> bool:
    """Whether an answer begins with what closes a text, or is written onto its last word."""
    first, last = answer[0], prompt[-1]
    if _written_on(prompt, answer):
        return True
    if first in '"`':
        return _is_open(prompt, first)
    if first == "'":
        return _single_open(prompt) or (answer.startswith("''") and "``" in prompt)
    if first == "*":
        run = answer[: len(answer) - len(answer.lstrip("*"))]
        return _emphasis_open(prompt, run) and last != "*"
    if first == "$":
        return _is_open(prompt, "$")
    if first in _CLOSES and any(_unclosed(prompt, first, opening) for opening in _CLOSES[first]):
        return True
    category = unicodedata.category(first)
    if category == "Pe":
        return True
    if category != "Po" or first in _NO_CLOSING:
        return False
    # A word of its own may begin with a stop (.5, .NET, ./run), a negation or an operator with another sign.
    behind = answer[1:2]
    return not ((first in ".!?:" and behind.isalnum()) or answer in ("..",) or (behind and behind in "/=:"))


def _written_on(prompt: str, answer: str) -> bool:
    """Whether an answer is a part of the word, the number or the code that it follows."""
    first, last = answer[0], prompt[-1]
    suffix = answer[1:]
    return bool(
        _ONTO_ANYTHING.match(answer)
        or (first == "{" and last == "}")
        or ((last.isalnum() or last in ")]}") and _ONTO_A_WORD.match(answer))
        # contractions, and suffixes of Turkish names
        or (last.isalpha() and first in "'’" and suffix.islower() and suffix.isalpha() and len(suffix) < 6)
        or (last.isdecimal() and _ONTO_A_NUMBER.match(answer))
        or (last == "°" and answer in ("C", "F", "K"))
        or (unicodedata.category(last) == "No" and first.isupper())  # H₂O
        or (last.isupper() and prompt[-2:-1].isupper() and re.match(r"[-‐‑]\d", answer))  # COVID-19
        or (last == ":" and answer.startswith(("//", "\\")))
        or (answer == "#" and last.isalpha() and not prompt[-2:-1].strip())  # C#, F#
        or (_ONTO_CODE.match(answer) and _is_code(prompt))
    )


def _is_code(prompt: str) -> bool:
    """Whether a prompt ends in a name in code, a file's or a host's: not in a word among others."""
    line = prompt.rsplit("\n", 1)[-1]
    word = line.split()[-1] if line.split() else ""
    inside = word.rstrip(".")
    if not inside or not (inside[-1].isalnum() or inside[-1] in "_)]"):
        return False
    if re.fullmatch(r"(\w\.)+\w", inside):  # e.g., U.S.
        return False
    alone = line.strip() == word and word[:1].islower()
    signs = re.search(r"[\w)\]][._/\\=(\[]|::|->|^[/~$]", inside)
    return alone or bool(signs) or inside in _CODE_NAMES or bool(_BEFORE_CODE.search(line[: len(line) - len(word)]))


def _opens(prompt: str, answer: str) -> bool:
    """Whether a prompt ends with what opens a text, or joins it to what follows."""
    last, before = prompt[-1], prompt[:-1]
    category, tight = unicodedata.category(last), bool(before) and not before[-1].isspace()
    # A sign of one number only, in front of digits that no other number stands before.
    signs_number = answer[0].isdecimal() and not re.search(r"(\d|(?<!\w)\w)\s*$", before)
    if last in "\"'`*_" or category in ("Pi", "Pf"):
        return _opens_quote(prompt, answer)
    if category == "Ps" or last in "\\@¡¿±√":
        return True
    if last == "/":
        return tight or " / " not in prompt
    if last == "$":
        return bool(_DOLLARS.search(prompt)) or (not before.rstrip()[-1:].isdecimal() and _is_open(prompt, "$"))
    if category == "Sc" or last == "%":
        return not before.rstrip()[-1:].isdecimal()
    if last == "#":
        return (tight and not before[-1].isalnum() and before[-1] != "#") or (before[-1:] in (" ", "\t"))
    if last == "+" and tight:
        return (before[-1] != "+" and answer[0].isdecimal()) or before[-1] in ")]"  # C++
    if last == "+":
        return signs_number
    if last == ".":
        return _joins_parts(prompt, answer)
    if last in ",:":
        return _joins_digits(prompt, answer)
    if category == "Pd" or last == "−":
        return not before.endswith(last) if tight else signs_number
    if last == "<" and not tight:
        return answer[0].isalpha() and before.rstrip()[-1:].isalpha() and "#include" in prompt
    if last in _OPERATORS:
        in_front = prompt.rstrip(_OPERATORS)
        return not in_front[-1:].isspace() or (last == "~" and answer[0].isdecimal())
    return False


def _opens_quote(prompt: str, answer: str) -> bool:
    """Whether the quote, or the sign of emphasis, that a prompt ends with is an opening one."""
    last = prompt[-1]
    before = prompt.rstrip(last)
    run = prompt[len(before) :]
    free = not before or before[-1].isspace()
    if last in '"`':
        return _is_open(prompt, last)
    if last in "*_":
        if free:
            # `*` by itself is an item's bullet at the beginning of a line, a product between numbers; `___` is a gap.
            bullet = last == "*" and len(run) == 1 and (not before.strip(" \t") or before[-1] == "\n")
            return len(run) < 3 and not bullet and not answer[0].isdecimal()
        if _emphasis_open(before, run):
            return False
        return last == "_" or before[-1].isdecimal() or not before[-1].isalnum()
    if last == "'":
        if _single_open(before):
            return False
        return free or not before[-1].isalnum() or bool(_STRING_PREFIX.search(before)) or _elides(prompt)
    if last == "’":
        return not _unclosed(before, "’", "‘") and _elides(prompt)
    if any(_unclosed(before, last, opening) for opening in _CLOSES.get(last, "")):
        return False
    return free or unicodedata.category(last) == "Pi" or unicodedata.category(before[-1]) in ("Ps", "Pi", "Pd")


def _elides(prompt: str) -> bool:
    """Whether the apostrophe at a text's end stands for letters, and a word goes on: not behind a plural's s."""
    before = prompt[-2:-1]
    return bool(_ELISION.search(prompt)) or is_unspaced(before) or (before.isalpha() and before not in "sSxXzZ")


def _is_open(text: str, sign: str) -> bool:
    """Whether the last of a text's signs that open and close alike has opened something."""
    is_open = False
    for match in re.finditer(re.escape(sign) + ("+" if sign != "$" else ""), text):
        before, behind = text[: match.start()][-1:], text[match.end() :][:1]
        if sign == '"' and (len(match[0]) % 2 == 0 or (not is_open and before.isdecimal())):
            continue  # an empty string, or inches
        if sign == "$" and not is_open and behind.isdecimal():
            continue  # a price
        is_open = not is_open
    return is_open


def _single_open(text: str) -> bool:
    """Whether a straight single quote is open: apostrophes, and years as in '90s, are none."""
    opened = len(re.findall(r"(?<![\w'])'(?=[^\W\d]|\d(?!\d?s?\b))|(?<!\w)[bfru]{1,2}'(?=\w)", text))
    return opened > len(re.findall(r"(?<=[\w.,!?…])'(?!\w)", text))


def _emphasis_open(text: str, run: str) -> bool:
    """Whether such a run of signs has opened an emphasis: in front of a word, and behind none."""
    sign = re.escape(run[0])
    opened = re.findall(rf"(?<![\w{sign}]){sign}{{{len(run)}}}(?=\w|[^\W_])(?!{sign})", text)
    closed = re.findall(rf"(?<=[^\s{sign}]){sign}{{{len(run)}}}(?![\w{sign}])", text)
    return len(opened) > len(closed)


def _unclosed(text: str, closing: str, opening: str) -> bool:
    """Whether a text opens such a quote and does not close it."""
    if closing == opening:
        return text.count(closing) % 2 == 1
    if closing == "’":  # of which most are apostrophes
        return text.count(opening) > len(re.findall(r"’(?!\w)", text))
    return text.count(opening) > text.count(closing)


def _joins_parts(prompt: str, answer: str) -> bool:
    """Whether the stop at a text's end is no sentence's: a decimal's, a name's in code, a file's or a host's."""
    before = prompt[:-1]
    if not before or before[-1].isspace():
        return True
    if before[-1].isdecimal():
        year = re.search(r"(?<![\d.,])[12]\d{3}$", before)
        return answer[0].isdecimal() and not year
    return answer[0].isalpha() and answer[0].islower() and before[-1] != "." and _is_code(prompt)


def _joins_digits(prompt: str, answer: str) -> bool:
    """Whether a comma or a colon at a text's end stands inside of a number, a time or an address."""
    digits = re.match(r"\d*", answer)
    n_digits = len(digits[0]) if digits else 0
    if prompt[-1] == ",":
        return n_digits == 3 and bool(re.search(r"(?<!\d)\d{1,3}(,\d{3})*,$", prompt))
    host = re.search(r"(localhost|\w\.\w[\w.]*):$", prompt)
    return prompt.endswith("::") or (n_digits > 0 and bool(host or (n_digits == 2 and _CLOCK.search(prompt))))
