"""Every metric against numbers worked out by hand, and the conventions of those who published them (SPEC 4)."""

import math
import unicodedata

import pytest
from nltk.tokenize import word_tokenize
from texts_of import texts_of

from rome_lens.evaluation import metrics
from rome_lens.evaluation.metrics import (
    NEIGHBOUR,
    PARAPHRASE,
    REWRITE,
    begins_with,
    consistency,
    counterfact_scores,
    fluency,
    free_scores,
    harmonic_mean,
    may_begin_with,
    portability,
    zsre_scores,
)

KINDS = (REWRITE, PARAPHRASE, NEIGHBOUR)
HALF, QUARTER, EIGHTH = math.log(2), math.log(4), math.log(8)  # negative log-probabilities of 1/2, 1/4 and 1/8


def approx(value):
    return pytest.approx(value, abs=1e-12, rel=1e-12)


# --- what a model gives to answers ----------------------------------------------------------------------------------


def test_efficacy_and_paraphrases_want_the_new_object():
    scores = counterfact_scores(
        {
            "rewrite": [(HALF, EIGHTH)],
            "paraphrase": [(HALF, QUARTER), (EIGHTH, QUARTER)],
        }
    )
    # EM: 1/2 - 1/8. PM: the mean of 1/2 - 1/4 and 1/8 - 1/4.
    assert scores == approx({"ES": 100.0, "EM": 37.5, "PS": 50.0, "PM": 6.25})


def test_neighbours_want_the_true_object():
    scores = counterfact_scores({"neighborhood": [(HALF, EIGHTH), (EIGHTH, HALF), (QUARTER, HALF), (EIGHTH, QUARTER)]})
    # The true object less the new one: -3/8, 3/8, 1/4 and 1/8.
    assert scores == approx({"NS": 75.0, "NM": 100 * 3 / 8 / 4})


def test_a_tie_is_no_success_on_either_side():
    tied = {kind: [(QUARTER, QUARTER)] for kind in KINDS}
    assert counterfact_scores(tied) == {"ES": 0.0, "EM": 0.0, "PS": 0.0, "PM": 0.0, "NS": 0.0, "NM": 0.0}


def test_the_least_advantage_counts():
    less = math.nextafter(HALF, 0)
    assert counterfact_scores({"rewrite": [(less, HALF)], "neighborhood": [(less, HALF)]})["ES"] == 100.0
    assert counterfact_scores({"neighborhood": [(less, HALF)]})["NS"] == 0.0
    assert counterfact_scores({"neighborhood": [(HALF, less)]})["NS"] == 100.0


def test_kinds_that_were_not_asked_have_no_score():
    assert set(counterfact_scores({"paraphrase": [(1.0, 2.0)]})) == {"PS", "PM"}
    assert counterfact_scores({}) == {}


def test_objects_of_no_probability():
    assert counterfact_scores({"rewrite": [(1e4, 2e4)]}) == {"ES": 100.0, "EM": 0.0}
    assert counterfact_scores({"rewrite": [(0.0, 1e4)]}) == {"ES": 100.0, "EM": 100.0}


def test_zsre_counts_the_tokens_of_each_answer():
    right = {
        "rewrite": [[True, True, False]],
        "paraphrase": [[False]],
        "neighborhood": [[True, True], [False, True, False, False]],
    }
    # An answer of four tokens counts no more than one of two.
    assert zsre_scores(right) == approx({"efficacy": 200 / 3, "paraphrase": 0.0, "specificity": 100 * (1 + 1 / 4) / 2})


def test_free_answers_count_by_the_prompt():
    free = {"rewrite": [True], "paraphrase": [True, False], "neighborhood": [False, False, True]}
    assert free_scores(free, zsre=False) == approx({"ES_free": 100.0, "PS_free": 50.0, "NS_free": 100 / 3})
    assert free_scores(free, zsre=True) == approx(
        {"efficacy_free": 100.0, "paraphrase_free": 50.0, "specificity_free": 100 / 3}
    )


def test_what_follows_takes_the_best_of_several_answers():
    right = [[[True, False], [True, True, False]], [[False]]]
    # 2/3 of the second answer's tokens, and none of the other prompt's.
    assert portability(right) == approx(100 / 3)
    assert free_scores({"follows": [True, False]}, zsre=False) == {"portability_free": 50.0}
    assert free_scores({"follows": [True, False]}, zsre=True) == {"portability_free": 50.0}


def test_all_that_is_scored_has_its_place_in_the_tables():
    nll, right = {k: [(1.0, 2.0)] for k in KINDS}, {k: [[True]] for k in KINDS}
    free = {k: [True] for k in (*KINDS, metrics.FOLLOWS)}
    counterfact = {*counterfact_scores(nll), *free_scores(free, zsre=False), "portability", "GE", "RS", "PPL"}
    assert counterfact == set(metrics.COUNTERFACT)
    assert {*zsre_scores(right), *free_scores(free, zsre=True), "portability", "PPL"} == set(metrics.ZSRE)
    assert len(set(metrics.COUNTERFACT)) == len(metrics.COUNTERFACT)
    assert metrics.COUNTERFACT[:3] == metrics.HARMONIC


# --- free answers ---------------------------------------------------------------------------------------------------


BLANKS = ("\u200bRome", "\ufeff Rome", " Rome\u200b is")
FULL_WIDTH = " \uff32\uff4f\uff4d\uff45"
BEGIN = {
    "Rome": [" Rome", " Rome, a city", " Rome's walls", '"Rome" is', "Rome是", *BLANKS, FULL_WIDTH],
    " rome ": ["\nROME is"],
    "New York": [" New York City", " New York's"],
    "Washington D.C.": [" Washington D.C., in"],
    "Caf\u00e9": [" Cafe\u0301 de"],
    "Cafe\u0301": [" Caf\u00e9 de"],
    "Straße": [" STRASSE 1"],
    "Łódź": [" ŁÓDŹ"],
    "दिल्ली": [" दिल्ली में"],
    "1999": [" 1999.", " 1999, 12 years later"],
    "1998": [" 1998,1999", "1998年"],
    "巴黎": ["巴黎是法国的首都", "巴黎。", "巴黎Paris", "“巴黎”是"],
    "東京": ["東京です", "東京って", "「東京」"],
    "パリ": ["ﾊﾟﾘです"],  # kana of half width
    "โรม": ["โรมเป็น"],
    "ວຽງຈັນ": ["ວຽງຈັນເປັນ"],
    "ភ្នំពេញ": ["ភ្នំពេញជា"],
    "ရန်ကုန်": ["ရန်ကုန်သည်"],
    "서울": ["서울입니다", unicodedata.normalize("NFD", "서울입니다")],
    "Paris": ["Paris는", "**Paris** is", "(Paris)", "Paris's"],
    "3": ["3月"],
    "十": ["十月"],
    "Рим": [" «Рим»"],
    '"Heroes"': [' "Heroes" by'],
    "C++": [" C++ and"],
    "U.S.": [" U.S. army", " U.S.是"],
    "Yahoo!": [" Yahoo!"],
    "l'Italie": ["L\u2019Italie"],
    "-5": ["\u22125"],
}
OTHERS = {
    "Rome": ["", " the city of Rome", " Romeo", " Rome2", " Rome_", ' "Romeo"'],
    "Caf": [" Caf\u00e9"],
    "Cafe": [" Caf\u00e9", " Cafe\u0301"],
    "दिल्ल": [" दिल्ली"],  # a vowel sign goes on with the word
    "New York": [" New Yorkers", " New"],
    "1999": [" 19991"],
    "19": [" 1998"],
    "3": [" 3.14", "3,14"],
    "1": [" 1,998 people", "1/2"],
    "10": ["10'000"],
    "12": ["12:30"],
    "一九四": ["一九四五年"],
    "๑๙": ["๑๙๙๘"],
    "巴黎": ["巴西", "巴", "在巴黎"],
    "人": ["人々"],
    "キ": ["キャベツ"],
    "โรม": ["โรมี", "โรมาเนีย"],
    "서우": ["서울"],
    "Jose": [" Jose\u0301", " José"],
    "U.S.": [" U.S.A."],
    "C++": [" C++11"],
    "C": ["C++ is"],
    "don": ["don't"],
    "می": ["می\u200cخواهم"],
    '"Heroes"': ["Heroes"],
}


@pytest.mark.parametrize(("text", "answer"), texts_of(BEGIN))
def test_texts_that_begin_with_the_answer(text, answer):
    assert begins_with(text, answer)
    assert may_begin_with(text, answer)


@pytest.mark.parametrize(("text", "answer"), texts_of(OTHERS))
def test_texts_that_do_not_begin_with_the_answer(text, answer):
    assert not begins_with(text, answer)


MAY_BEGIN = {
    "Rome": ["", " ", " Ro", ' "', "\u200b"],
    "New York": [" NEW", " New "],
    "Café": [" Cafe"],
    "東京": [" \ufffd", " 東\ufffd", "「"],  # a token may end in the middle of a character
    "서울": ["서"],
}
MAY_NOT_BEGIN = {"Rome": [" Ra", " the", ' "Ra', " \ufffdo"], "東京": [" 西\ufffd"]}


@pytest.mark.parametrize(("text", "answer"), [*texts_of(MAY_BEGIN), *texts_of(MAY_NOT_BEGIN)])
def test_the_beginning_of_a_text_may_become_the_answer(text, answer):
    assert may_begin_with(text, answer) is (text in MAY_BEGIN.get(answer, ()))


def test_an_answer_of_quotation_marks_is_what_it_is():
    assert begins_with(' " is', '"')
    assert not begins_with("Rome", '"')


# --- what a model writes --------------------------------------------------------------------------------------------


def test_fluency_is_the_entropy_of_pairs_and_triples_in_bits():
    # Pairs: ab twice, ba once of 3; triples: aba, bab. H2 = log2(3) - 2/3, H3 = 1.
    h2 = math.log2(3) - 2 / 3
    assert fluency(["a b a b"]) == approx(100 * (2 / 3 * h2 + 4 / 3 * 1) / 2)
    # Four words of their own: three pairs, two triples.
    assert fluency(["one two three four"]) == approx(100 * (2 / 3 * math.log2(3) + 4 / 3) / 2)


def test_without_spaces_every_character_is_a_word():
    spaced = fluency(["a b c d e f g h , h f c i j k l a m n o"])
    assert fluency(["法国的首都是巴黎，黎是的红花草木法水火土"]) == approx(spaced)
    assert fluency(["法国的首都是巴黎，巴黎是一个美丽的城市。"]) > 300
    assert fluency(["月张张张"]) == approx(fluency(["a b b b"]))
    # A vowel sign or a tone is a part of its letter.
    assert fluency(["กินข้าว"]) == approx(fluency(["กิ น ข้ า ว"]))


def test_other_words_of_a_mixed_text_stay_words():
    assert fluency(["I love 東京 and don't"]) == approx(fluency(["I love a b and don't"]))
    assert fluency(["Rome《罗马》is"]) == approx(fluency(["a b c d e f"]))
    assert fluency(["iPhone的iPhone的"]) == approx(fluency(["a b a b"]))


@pytest.mark.parametrize("text", ["Rome, in 1998 (“the city”)… isn't", "서울은 한국의 수도입니다.", "Café—Ωμέγα"])
def test_texts_with_spaces_are_nltks_business_alone(text):
    words = word_tokenize(text, preserve_line=True)
    assert fluency([text]) == fluency([" ".join(str(words.index(word)) for word in words)])


def test_fluency_is_averaged_over_texts():
    assert fluency(["a b a b", "x x x x"]) == approx(fluency(["a b a b"]) / 2)


def test_punctuation_is_a_word():
    # NLTK's tokenizer parts "don't" and the full stop at the end.
    assert fluency(["I don't."]) == approx(fluency(["1 2 3 4"]))


@pytest.mark.parametrize("text", ["", " \n ", "word", "two words", "same same same same"])
def test_texts_without_any_variety(text):
    assert fluency([text]) == 0.0
    assert math.copysign(1, fluency([text])) == 1


def test_three_words():
    # Two pairs: one bit. One triple: none.
    assert fluency(["one two three"]) == approx(100 * 2 / 3 / 2)


def _cosine(first, second):
    dot = sum(first[word] * second.get(word, 0.0) for word in first)
    return 100 * dot / math.sqrt(sum(x * x for x in first.values()) * sum(x * x for x in second.values()))


def test_consistency_is_the_cosine_of_tf_idf_vectors():
    references = [["rome is old", "rome has walls"], ["cars are old"]]
    texts = [["Rome is", "is unknown"], ["old cars", "cars"]]
    # Three documents; idf = ln((1 + n) / (1 + documents with the word)) + 1, scikit-learn's smooth one.
    rare, common = math.log(4 / 2) + 1, math.log(4 / 3) + 1
    first = _cosine(
        {"rome": common, "is": 2 * rare},
        {"rome": 2 * common, "is": rare, "old": common, "has": rare, "walls": rare},
    )
    second = _cosine({"old": common, "cars": 2 * rare}, {"cars": rare, "are": rare, "old": common})
    assert consistency(texts, references, [*references[0], *references[1]]) == approx([first, second])


def compared(texts, references):
    """With all references for a corpus, as a run has it."""
    return consistency(texts, references, [text for each in references for text in each])


def test_letters_of_their_own_are_words():
    assert compared([["a b c"]], [["a b c"]]) == approx([100.0])


def test_without_spaces_characters_are_compared():
    assert compared([["巴黎是首都"]], [["巴黎是城"]]) == approx(compared([["a b c d e"]], [["a b c f"]]))
    assert compared([["東京です"]], [["北京市"]])[0] > 0


def test_the_same_text_is_wholly_consistent_and_case_does_not_matter():
    assert compared([["Rome is OLD"]], [["rome", "is old"]]) == approx([100.0])


@pytest.mark.parametrize("text", ["nothing alike", "", "?!"])
def test_no_common_word_is_no_consistency(text):
    assert compared([[text]], [["rome is old"]]) == [0.0]


@pytest.mark.parametrize("references", [[[]], [[""]], [["?!", "…"]]])
def test_references_without_words(references):
    assert compared([["rome is old"]], references) == [0.0]


def test_a_record_without_references_among_others():
    assert compared([["rome"], ["rome"]], [["rome"], []]) == approx([100.0, 0.0])


def test_no_records_at_all():
    assert compared([], []) == []


def test_a_text_of_the_corpus_is_one_document_however_often_it_comes():
    texts, references = [["rome is new"]], [["rome is old", "paris is new"]]
    once = consistency(texts, references, references[0])
    assert consistency(texts, references, references[0] * 3 + references[0][:1]) == approx(once)
    # A word that many texts hold says less.
    assert consistency(texts, references, [*references[0], "rome a", "rome b", "is c"]) != pytest.approx(once, abs=0.1)


# --- S --------------------------------------------------------------------------------------------------------------


def test_the_harmonic_mean():
    assert harmonic_mean([100.0, 50.0, 25.0]) == approx(300 / 7)
    assert harmonic_mean([40.0]) == approx(40.0)
    assert harmonic_mean([100.0, 0.0, 100.0]) == 0.0


@pytest.mark.parametrize(
    ("s", "parts"),
    [
        (89.2, (100.0, 96.4, 75.4)),
        (30.5, (22.2, 24.7, 78.1)),
        (66.9, (99.1, 48.7, 70.3)),
        (91.5, (99.9, 99.1, 78.9)),
    ],
)
def test_the_published_scores_are_harmonic_means(s, parts):
    assert harmonic_mean(parts) == pytest.approx(s, abs=0.06)


def test_indic_words_are_compared_whole():
    same, other = (metrics.consistency([["दिल्ली"]], [[word]], ["दिल्ली", "दल्लु"])[0] for word in ("दिल्ली", "दल्लु"))
    assert (round(same), other) == (100, 0)
