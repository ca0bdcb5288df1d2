"""Scripts and their words: which are written without spaces between words, and where a word ends in a text.

No dictionary is asked. In scripts without spaces every character may be the last of a word; elsewhere a word goes on as
long as letters, digits and marks follow one another.
"""

import unicodedata
from functools import lru_cache

# As the names of their characters begin. Those that Unicode's line breaking (UAX 14) parts between any two letters
# (ideographs and kana) or only with a dictionary (Southeast Asia), and those of their kin; Hangul sets words apart.
_UNSPACED = (
    *("CJK ", "IDEOGRAPHIC ", "VERTICAL IDEOGRAPHIC ", "KANGXI ", "HANGZHOU ", "BOPOMOFO ", "YI ", "NUSHU ", "TANGUT "),
    *("HIRAGANA ", "KATAKANA", "HALFWIDTH KATAKANA", "COMBINING KATAKANA", "VERTICAL KANA ", "HENTAIGANA "),
    *("THAI ", "LAO ", "KHMER ", "MYANMAR ", "TIBETAN ", "TAI ", "NEW TAI ", "AHOM "),
    *("JAVANESE ", "BALINESE ", "BATAK ", "BUGINESE "),
)
# What these scripts share with others, or set off with spaces: digits, punctuation, currencies, blanks, controls.
_SHARED = ("Nd", "P", "Sc", "Z", "C")
# (first, last) of the blocks whose punctuation is East Asian: its own, that of kana, vertical, small, wide and narrow.
_CJK_PUNCTUATION = ((0x3001, 0x303F), (0x30A0, 0x30FF), (0xFE10, 0xFE1F), (0xFE30, 0xFE6F), (0xFF00, 0xFFEF))
# Zero-width joiner and non-joiner stand inside words, of Persian and of India.
_JOINERS = "\u200c\u200d"
# Letters by category, but part of the syllable in front of them: vowels of Thai and Lao, and signs that repeat.
_DEPENDENT = "ะาำๅະາຳ々〻"
# The same behind kana: long vowels, repetitions, small letters. (Small tsu may begin a particle: って.)
_DEPENDENT_KANA = "ーｰゝゞヽヾぁぃぅぇぉゃゅょゎァィゥェォャュョヮｧｨｩｪｫｬｭｮ"


@lru_cache(maxsize=4096)
def is_unspaced(character: str) -> bool:
    """Whether a character belongs to a script that is written without spaces between words.

    Letters, marks and signs such as 々, 〇 and ー do, half-width kana too; digits and punctuation belong to no script.
    Hangul sets words apart, though not the particles behind them.
    """
    name = unicodedata.name(character, "")
    return name.startswith(_UNSPACED) and not unicodedata.category(character).startswith(_SHARED)


def is_hangul(character: str) -> bool:
    """Whether a character is one of Hangul's syllables or letters."""
    return unicodedata.name(character, "").startswith(("HANGUL ", "HALFWIDTH HANGUL "))


def is_cjk_punctuation(character: str) -> bool:
    """Whether a character is East Asian punctuation, or a sign of full or half width: no space stands beside it.

    What other scripts have as well (… — “ ”) is not: there, only the text around it can say.
    """
    category = unicodedata.category(character)
    return category[0] in "PS" and any(first <= ord(character) <= last for first, last in _CJK_PUNCTUATION)


def is_word_character(character: str) -> bool:
    """Whether a character may be part of a word: a letter, a mark, a digit, or `_`."""
    return character.isalnum() or character == "_" or _is_mark(character)


def within_word(text: str, index: int) -> bool:
    """Whether a word runs across the place in front of `text[index]`, as one does inside "Romeo" and not beside "'s".

    What stands on both sides is part of a word, of a script that sets words apart; or a mark, a vowel sign or the like
    stands behind, which belongs to the character in front of it in any script. False at either end of the text.
    """
    before, after = _around(text, index)
    if not before or not after:
        return False
    if _belongs_to(before, after):
        return True
    return all(is_word_character(c) and not is_unspaced(c) for c in (before, after))


def word_goes_on(text: str, end: int) -> bool:
    """Whether the word whose characters end in front of `text[end]` goes on there.

    The same as `within_word`, but for what follows it in Hangul: particles are written onto the word that they follow,
    be it Korean or not ("서울입니다", "Paris는").
    """
    before, after = _around(text, end)
    if before and after and (is_hangul(before) or is_hangul(after)):
        return _belongs_to(before, after)
    return within_word(text, end)


def _around(text: str, index: int) -> tuple[str, str]:
    """The characters on both sides of a place, joiners passed over; empty where the text ends."""
    before, after = text[: max(index, 0)].rstrip(_JOINERS), text[max(index, 0) :].lstrip(_JOINERS)
    return before[-1:], after[:1]


def _belongs_to(before: str, after: str) -> bool:
    """Whether a character is no more than an addition to the one in front of it."""
    if before.isspace():
        return False
    kana = "KANA" in unicodedata.name(before, "")
    # The vowels and finals of Hangul that is written letter by letter (NFD) complete a syllable.
    jamo = "\u1160" <= after <= "\u11ff" or "\ud7b0" <= after <= "\ud7ff"
    return _is_mark(after) or jamo or after in _DEPENDENT or (kana and after in _DEPENDENT_KANA)


def _is_mark(character: str) -> bool:
    return unicodedata.category(character).startswith("M")
