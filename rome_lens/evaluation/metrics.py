"""The metrics of an edit, from what a model gave to answers and from what it wrote (paper, 3.3 and 3.4).

All are in percent, the mean over a record's prompts; over records they are averaged by `scores`. Tokens are not seen
here: an answer comes with its mean negative log-probability, or with which of its tokens were the most probable ones.
"""

import math
import re
import string
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import groupby, pairwise
from statistics import fmean
from typing import Final

import numpy as np

from rome_lens.scripts import is_cjk_punctuation, is_hangul, is_unspaced, is_word_character, word_goes_on

REWRITE: Final = "rewrite"
PARAPHRASE: Final = "paraphrase"
NEIGHBOUR: Final = "neighborhood"
FOLLOWS: Final = "follows"
"""What a prompt is asked for, in the data sets' words; `follows` where its answer follows from the edited fact."""

PORTABILITY: Final = "portability"
"""The metric of what follows from a fact, in either data set."""

# fmt: off
COUNTERFACT = ("ES", "PS", "NS", "EM", "PM", "NM", "portability", "GE", "RS",
               "ES_free", "PS_free", "NS_free", "portability_free", "PPL")
ZSRE = ("efficacy", "paraphrase", "specificity", "portability",
        "efficacy_free", "paraphrase_free", "specificity_free", "portability_free", "PPL")
# fmt: on
"""All metrics of a record, in the order of tables; `PPL` is the perplexity of watched text, after over before."""

HARMONIC = ("ES", "PS", "NS")
"""What S is the harmonic mean of."""

_SUCCESS = {REWRITE: "ES", PARAPHRASE: "PS", NEIGHBOUR: "NS"}
_MAGNITUDE = {REWRITE: "EM", PARAPHRASE: "PM", NEIGHBOUR: "NM"}
_ACCURACY = {REWRITE: "efficacy", PARAPHRASE: "paraphrase", NEIGHBOUR: "specificity"}
_WORD = re.compile(r"\w")
# What goes on with a number behind its last digit: 3 is no 3.14, and 1 no 1,998; "in 1998,1999" holds two numbers.
_GROUPED = re.compile(r"[.,]\d{1,3}(?!\d)|\.\d|'\d{3}(?!\d)|:\d\d(?!\d)|/\d")
# What goes on with a word behind its last letter: C is no C++, and "don" no "don't"; "'s" belongs to no name.
_SIGNED = re.compile(r"\+\+|#|'(?!s\b)[^\W\d_]")
# Apostrophes, hyphens and minus signs in the form that keyboards have.
_ALIKE = str.maketrans({"\u2019": "'", "\u2018": "'", "\u02bc": "'", "\u2212": "-", "\u2010": "-", "\u2011": "-"})
# What chat models put around an answer.
_MARKUP = "*_([{【《〈"
_QUOTES = "\"'`´‘’‚‛“”„‟«»‹›「『《〈〝﹁﹃"
_WIDTHLESS = "\u00ad\u200b\u200c\u200d\u200e\u200f\u2060\ufeff"
_CUT = "\N{REPLACEMENT CHARACTER}"


def counterfact_scores(nll: Mapping[str, Sequence[tuple[float, float]]]) -> dict[str, float]:
    """ES, PS, NS and their magnitudes EM, PM, NM.

    Args:
        nll: for each kind of prompt, the mean negative log-probabilities (natural logarithm) of the new and of the true
            object after each prompt; a neighbour's own answer is its true object.
    """
    scores = {}
    for kind, pairs in nll.items():
        sign = -1 if kind == NEIGHBOUR else 1
        # At the neighbours the true object is to win.
        scores[_SUCCESS[kind]] = 100 * fmean(sign * true > sign * new for new, true in pairs)
        scores[_MAGNITUDE[kind]] = 100 * sign * fmean(math.exp(-new) - math.exp(-true) for new, true in pairs)
    return scores


def zsre_scores(right: Mapping[str, Sequence[Sequence[bool]]]) -> dict[str, float]:
    """Efficacy, paraphrase and specificity: the share of an answer's tokens that were the most probable ones.

    Args:
        right: for each kind of prompt and each prompt, whether each of the answer's tokens was, teacher forced.
    """
    return {_ACCURACY[kind]: 100 * fmean(fmean(tokens) for tokens in answers) for kind, answers in right.items()}


def portability(right: Sequence[Sequence[Sequence[bool]]]) -> float:
    """The share of an answer's tokens that were the most probable ones, where answers follow from the edited fact.

    Args:
        right: for each prompt and each text that answers it, whether each of its tokens was, teacher forced. The text
            with the largest share counts.
    """
    return 100 * fmean(max(fmean(tokens) for tokens in answers) for answers in right)


def free_scores(free: Mapping[str, Sequence[bool]], *, zsre: bool) -> dict[str, float]:
    """The share of prompts after which the model, left to itself, writes the answer.

    Args:
        free: for each kind of prompt, whether `begins_with` held after each prompt.
        zsre: name the scores as zsRE does.
    """
    names = {**(_ACCURACY if zsre else _SUCCESS), FOLLOWS: PORTABILITY}
    return {f"{names[kind]}_free": 100 * fmean(said) for kind, said in free.items()}


def begins_with(text: str, answer: str) -> bool:
    """Whether a text begins with an answer, and a word ends there; case and Unicode's forms do not matter.

    Where a word ends depends on its script (`rome_lens.scripts`): it does behind "巴黎" in "巴黎是", and not behind
    "Rome" in "Romeo". Quotation marks and characters of no width in front of either are passed over.
    """
    said, wanted = _comparable(text, answer)
    return said.startswith(wanted) and not _goes_on(said, len(wanted))


def _goes_on(text: str, end: int) -> bool:
    """Whether what ends in front of `text[end]` is only a part of what stands there."""
    number = _GROUPED.match(text, end) and text[end - 1 : end].isdecimal()
    # 一九四 is no 一九四五, though ideographs may end a word anywhere.
    counted = text[end : end + 1].isnumeric() and text[:end].isnumeric()
    signed = text[end - 1 : end].isalpha() and _SIGNED.match(text, end)
    if number or counted or signed or word_goes_on(text, end):
        return True
    # Of an answer that ends in a sign: "U.S." in "U.S.A.".
    last, behind = text[end - 1 : end], text[end : end + 1]
    if not behind or is_word_character(last) or is_cjk_punctuation(last):
        return False
    return is_word_character(behind) and not is_unspaced(behind) and not is_hangul(behind)


def may_begin_with(text: str, answer: str) -> bool:
    """Whether a text that goes on may yet begin with an answer, or does; a character may be cut at its end."""
    # Taken apart: what a letter's beginning looks like does not depend on the accent that is yet to come.
    said, wanted = (unicodedata.normalize("NFKD", part) for part in _comparable(text.rstrip(_CUT), answer))
    return said.startswith(wanted) or wanted.startswith(said)


def _comparable(text: str, answer: str) -> tuple[str, str]:
    """Both without case and Unicode's forms, and without what may stand in front of an answer."""
    said, wanted = (
        unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", part).casefold()).translate(_ALIKE).strip()
        for part in (text, answer)
    )
    in_front = _WIDTHLESS + _QUOTES + _MARKUP + string.whitespace
    # An answer of nothing but quotation marks is what it is.
    return (said.lstrip(in_front), bare) if (bare := wanted.lstrip(in_front)) else (said, wanted)


def fluency(texts: Sequence[str]) -> float:
    """GE: entropy of a text's 2- and 3-grams of words, (2/3 H2 + 4/3 H3) / 2 in bits, the mean over texts, x100.

    Words and punctuation are separated by NLTK's tokenizer, as in the released code, which also splits sentences first
    (that takes a download, and moves a full stop now and then). Of scripts that are written without spaces between
    words, which NLTK does not cut, every character counts as a word.
    """
    return 100 * fmean(_entropy(text) for text in texts)


def _entropy(text: str) -> float:
    from nltk.tokenize import word_tokenize

    words = word_tokenize(_set_apart(text), preserve_line=True)
    pairs = list(pairwise(words))
    triples = list(zip(words, words[1:], words[2:], strict=False))
    return (2 / 3 * _bits(pairs) + 4 / 3 * _bits(triples)) / 2


def _set_apart(text: str) -> str:
    """The text with spaces around the characters of scripts that have none between words, and their punctuation."""
    if not any(map(is_unspaced, text)):
        return text
    units: list[str] = []
    for character in text:
        # A vowel sign or a tone belongs to the letter in front of it.
        if units and unicodedata.category(character).startswith("M"):
            units[-1] += character
        else:
            units.append(character)
    return "".join(f" {unit} " if is_unspaced(unit[0]) or is_cjk_punctuation(unit[0]) else unit for unit in units)


def _bits(grams: Sequence[tuple[str, ...]]) -> float:
    n = len(grams)
    return sum(count / n * math.log2(n / count) for count in Counter(grams).values())


def consistency(
    texts: Sequence[Sequence[str]], references: Sequence[Sequence[str]], corpus: Sequence[str]
) -> list[float]:
    """RS: cosine of the TF-IDF vectors of a record's generations and of its reference texts, x100.

    The inverse document frequencies are those of a corpus: of all reference texts of a run. Of scripts that are written
    without spaces between words, every character counts as a word.

    Args:
        texts: [record] what the model wrote about each record's subject.
        references: [record] texts about its new object; a record without any has none of the other's words either.
        corpus: texts, a document each.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    if not any(_WORD.search(text) for text in corpus):
        return [0.0] * len(texts)
    # The stubs know no functions here.
    vectorizer = TfidfVectorizer(analyzer=_words)  # pyright: ignore[reportArgumentType]
    vectorizer.fit(sorted(set(map(_set_apart, corpus))))
    written, expected = (
        vectorizer.transform([_set_apart(" ".join(each)) for each in several]) for several in (texts, references)
    )
    return [100 * float(cosine) for cosine in np.asarray(written.multiply(expected).sum(axis=1)).ravel()]


def _words(text: str) -> list[str]:
    """Runs of letters, digits and marks: Python's patterns know no marks, and would cut Indic words at their vowels."""
    return ["".join(run) for within, run in groupby(text.lower(), is_word_character) if within]


def harmonic_mean(scores: Sequence[float]) -> float:
    """Of percentages; 0 where one of them is 0."""
    return len(scores) / sum(1 / score for score in scores) if all(score > 0 for score in scores) else 0.0
