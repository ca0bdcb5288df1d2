"""Scripts with and without spaces, and where words end in them."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from texts_of import texts_of

from rome_lens.scripts import is_cjk_punctuation, is_unspaced, is_word_character, within_word, word_goes_on


@pytest.mark.parametrize("character", "黎龍東々〻〇〆ーｰひカｶﾞㄅㆠ𠮷กำิລາខြမᦀབꦏᬅᨀꪀꀀ")
def test_scripts_without_spaces(character):
    assert is_unspaced(character)
    assert not is_cjk_punctuation(character)


@pytest.mark.parametrize("character", "aéЖγא한ᄒaａ1１๑༡ 　.。、・「（$฿￥_-\n")
def test_what_is_not_of_such_a_script(character):
    assert not is_unspaced(character)


@pytest.mark.parametrize(
    "character", "、。「」『』【】《》〈〉（）：？！；，．・〜～｡｢｣､･［］｛｝＂＇－／゠︵﹁﹏﹑＄％￥"
)
def test_east_asian_punctuation(character):
    assert is_cjk_punctuation(character)


@pytest.mark.parametrize("character", ".,:;!?()\"'“”…—a黎ーヽ々〇１Ａ한 　")
def test_what_is_no_east_asian_punctuation(character):
    assert not is_cjk_punctuation(character)


GO_ON = {
    "Rome": ["Romeo", "Rome2", "Rome_x"],
    "19": ["1998"],
    "Jose": ["Jose\u0301"],
    "दिल्ल": ["दिल्ली"],
    "می": ["می\u200cخواهم"],  # behind a zero-width non-joiner the word goes on
    "क्": ["क्\u200dष"],
    "โรม": ["โรมี"],
    "ข้าวน": ["ข้าวนา"],
    "人": ["人々"],
    "パリ": ["パリー"],
    "キ": ["キャベツ"],
    "か": ["か\u3099"],
    "ក": ["ក្រុង"],
    "서": ["서\u11af"],  # the syllable is not complete
}
END = {
    "Rome": ["Rome", "Rome is", "Rome's", "Rome-born", "Rome是", "Rome\u200b is", "Rome\u200d"],
    "C++": ["C++", "C++ is"],
    "U.S.": ["U.S. army"],
    "巴黎": ["巴黎是法国的首都", "巴黎Rome", "巴黎2024", "巴黎。", "巴黎 是"],
    "東京": ["東京です", "東京って"],
    "โรม": ["โรมเป็น"],
    "ໂຣມ": ["ໂຣມແມ່ນ"],
    "រ៉ូម": ["រ៉ូមគឺ"],
    "1998": ["1998年"],
}


@pytest.mark.parametrize(("text", "word"), texts_of(GO_ON))
def test_words_that_go_on(text, word):
    assert word_goes_on(text, len(word))
    assert within_word(text, len(word))


@pytest.mark.parametrize(("text", "word"), texts_of(END))
def test_words_that_end(text, word):
    assert not word_goes_on(text, len(word))
    assert not within_word(text, len(word))


@pytest.mark.parametrize(("text", "word"), [("서울입니다", "서울"), ("Paris는", "Paris"), ("1998년", "1998")])
def test_particles_are_written_onto_korean_words(text, word):
    assert not word_goes_on(text, len(word))
    # In front of a word there are none: 서울 in 북서울 stands inside another.
    assert within_word(text, len(word))


def test_at_both_ends_of_a_text_no_word_runs_on():
    for index in (-1, 0, 4, 5):
        assert not within_word("Rome", index)
        assert not word_goes_on("Rome", index)
    assert not within_word("", 0)


def test_a_mark_behind_a_blank_belongs_to_nothing():
    assert not within_word(" \u0301", 1)


@given(st.characters(exclude_categories=["Cs"]))
def test_no_character_is_both(character):
    assert not (is_unspaced(character) and is_cjk_punctuation(character))
    if is_unspaced(character) and unicodedata.category(character)[0] in "LM":
        assert is_word_character(character)


@given(st.text(st.sampled_from("aé1_ .'巴ー\u0301한는ก")))
def test_what_goes_on_at_the_end_of_a_word_stands_inside_one(text):
    assert all(within_word(text, i) for i in range(len(text) + 1) if word_goes_on(text, i))
