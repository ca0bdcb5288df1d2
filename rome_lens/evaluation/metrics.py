"""The metrics of an edit, from what a model gave to answers and from what it wrote (paper, 3.3 and 3.4).

All are in percent, the mean over a record's prompts; over records they are averaged by `scores`. Tokens are not seen
here: an answer comes with its mean negative log-probability, or with which of its tokens were the most probable ones.
"""

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise
from statistics import fmean

import numpy as np

REWRITE, PARAPHRASE, NEIGHBOUR = "rewrite", "paraphrase", "neighborhood"
"""What a prompt is asked for, in the data sets' words."""

COUNTERFACT = ("ES", "PS", "NS", "EM", "PM", "NM", "GE", "RS", "ES_free", "PS_free", "NS_free", "PPL")
ZSRE = ("efficacy", "paraphrase", "specificity", "efficacy_free", "paraphrase_free", "specificity_free", "PPL")
"""All metrics of a record, in the order of tables; `PPL` is the perplexity of watched text, after over before."""

HARMONIC = ("ES", "PS", "NS")
"""What S is the harmonic mean of."""

_SUCCESS = {REWRITE: "ES", PARAPHRASE: "PS", NEIGHBOUR: "NS"}
_MAGNITUDE = {REWRITE: "EM", PARAPHRASE: "PM", NEIGHBOUR: "NM"}
_ACCURACY = {REWRITE: "efficacy", PARAPHRASE: "paraphrase", NEIGHBOUR: "specificity"}
_WORD = re.compile(r"\w")
_CUT = "\N{REPLACEMENT CHARACTER}"


def counterfact_scores(nll: Mapping[str, Sequence[tuple[float, float]]]) -> dict[str, float]:
    """ES, PS, NS and their magnitudes EM, PM, NM.

    Args:
        nll: for each kind of prompt, the mean negative log-probabilities (natural logarithm) of the new and of the true
            object after each prompt.
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


def free_scores(free: Mapping[str, Sequence[bool]], *, zsre: bool) -> dict[str, float]:
    """The share of prompts after which the model, left to itself, writes the answer.

    Args:
        free: for each kind of prompt, whether `begins_with` held after each prompt.
        zsre: name the scores as zsRE does.
    """
    names = _ACCURACY if zsre else _SUCCESS
    return {f"{names[kind]}_free": 100 * fmean(said) for kind, said in free.items()}


def begins_with(text: str, answer: str) -> bool:
    """Whether a text begins with an answer, and a word ends there; case and Unicode's forms do not matter."""
    said, wanted = _plain(text), _plain(answer)
    behind = said[len(wanted) :][:1]
    # An accent or a vowel sign belongs to the letter in front of it.
    goes_on = bool(_WORD.match(behind)) or unicodedata.category(behind or " ").startswith("M")
    return said.startswith(wanted) and not goes_on


def may_begin_with(text: str, answer: str) -> bool:
    """Whether a text that goes on may yet begin with an answer, or does; a character may be cut at its end."""
    said, wanted = _plain(text.rstrip(_CUT)), _plain(answer)
    return said.startswith(wanted) or wanted.startswith(said)


def _plain(text: str) -> str:
    # Taken apart: what a letter's beginning looks like does not depend on the accent that is yet to come.
    return unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", text).casefold()).strip()


def fluency(texts: Sequence[str]) -> float:
    """GE: entropy of a text's 2- and 3-grams of words, (2/3 H2 + 4/3 H3) / 2 in bits, the mean over texts, x100.

    Words and punctuation are told apart by NLTK's tokenizer, as in the released code, which also splits sentences first
    (that takes a download, and moves a full stop now and then).
    """
    return 100 * fmean(_entropy(text) for text in texts)


def _entropy(text: str) -> float:
    from nltk.tokenize import word_tokenize

    words = word_tokenize(text, preserve_line=True)
    pairs = list(pairwise(words))
    triples = list(zip(words, words[1:], words[2:], strict=False))
    return (2 / 3 * _bits(pairs) + 4 / 3 * _bits(triples)) / 2


def _bits(grams: Sequence[tuple[str, ...]]) -> float:
    n = len(grams)
    return sum(count / n * math.log2(n / count) for count in Counter(grams).values())


def consistency(
    texts: Sequence[Sequence[str]], references: Sequence[Sequence[str]], corpus: Sequence[str]
) -> list[float]:
    """RS: cosine of the TF-IDF vectors of a record's generations and of its reference texts, x100.

    The inverse document frequencies are those of a corpus: of all reference texts of a run.

    Args:
        texts: [record] what the model wrote about each record's subject.
        references: [record] texts about its new object; a record without any has none of the other's words either.
        corpus: texts, a document each.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    if not any(_WORD.search(text) for text in corpus):
        return [0.0] * len(texts)
    vectorizer = TfidfVectorizer(token_pattern=r"(?u)\b\w+\b").fit(sorted(set(corpus)))
    written = vectorizer.transform([" ".join(each) for each in texts])
    expected = vectorizer.transform([" ".join(each) for each in references])
    return [100 * float(cosine) for cosine in np.asarray(written.multiply(expected).sum(axis=1)).ravel()]


def harmonic_mean(scores: Sequence[float]) -> float:
    """Of percentages; 0 where one of them is 0."""
    return len(scores) / sum(1 / score for score in scores) if all(score > 0 for score in scores) else 0.0
