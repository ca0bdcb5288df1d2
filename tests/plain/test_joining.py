"""What stands between a prompt and its answer: a blank between words, nothing where people write nothing."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rome_lens.errors import AnswerError, SettingError
from rome_lens.facts import EditRequest, Fact
from rome_lens.joining import between, check_joined, otherwise

CLOSE = [
    # Digits of one number, and what is written onto it.
    ("World War II ended in 19", "45"),
    ("pi is about 3.", "14"),
    ("pi is about 3", ".14"),
    ("a share of 50", "%"),
    ("at 20", "°C"),
    ("١٩", "٤٥"),
    # Brackets and quotes that open, in every style.
    ('It is called "', "Paris"),
    ("It is called '", "Paris"),
    ("It is called “", "Paris"),
    ("Es heißt „", "Paris"),
    ("Es heißt »", "Paris"),
    ("Il s'appelle «", "Paris"),
    ("(", "Paris"),
    ("in the list [", "Paris"),
    ('"Hi", she said. "', "Bob"),
    ("¿", "Dónde"),
    # ... and those that close, with other punctuation.
    ("Paris", ","),
    ("the city of Paris", "."),
    ("wait", "..."),
    ("he left (for Paris", ")"),
    ('he said "yes', '"'),
    ("he said 'yes", "'"),
    ("ist „Paris", "“"),
    ("Is it Paris", "?!"),
    ("Rome", "'s"),
    ("Rome", "’s"),
    # Dashes, slashes, currencies.
    ("pre-", "war"),
    ("Paris—", "the"),
    ("and/", "or"),
    ("https://", "www"),
    ("It costs $", "5"),
    ("It costs US$", "5"),
    ("It costs €", "5"),
    ("Paris", "-based"),
    # East Asia.
    ("法国的首都是：", "巴黎"),
    ("法国的首都是？", "巴黎"),
    ("他说「", "巴黎"),
    ("法国的首都是", "巴黎"),
    ("法国的首都是", "，"),
    ("佐々", "木"),
    ("二〇", "一"),
    ("ﾌﾗﾝｽﾉｼｭﾄﾊ", "ﾊﾟﾘ"),
    ("成立于", "1998"),
    ("1998", "年"),
    ("（", "Paris"),
    ("กรุงเทพ", "ไทย"),
    # Code.
    ("print(", "x"),
    ("print", "()"),
    ('print("', "hello"),
    ('print(f"', "hello"),
    ("x='", "a"),
    ("x", "[0]"),
    ("self._", "name"),
    ("np.", "array"),
    ("std::", "vector"),
    ("ptr->", "next"),
    ("2+2=", "4"),
    ("i", "++"),
    ("#include <", "stdio.h>"),
    ("type `", "ls"),
    ("in **", "Paris"),
    ("C", "#"),
    ("AT&", "T"),
    ("@", "user"),
    # White space of their own.
    ("in the city of ", "Paris"),
    ("in the city of\n", "Paris"),
    ("in the city of", " Paris"),
]
APART = [
    ("The Eiffel Tower is in the city of", "Paris"),
    ("It was founded in", "1998"),
    ("In 1998", "Paris"),
    ("Where is it?", "Paris"),
    ("The answer:", "Paris"),
    ("It is in Paris.", "The"),
    ("Mr.", "smith"),
    ("She said 'yes'", "and"),
    ('She said "yes"', "and"),
    ("She said “yes”", "and"),
    ("„Paris“", "ist"),
    ("»Paris«", "ist"),
    ("the dogs'", "owner"),
    ("5'10\"", "tall"),
    ("Paris (France)", "is"),
    ("Paris", "(France)"),
    ("It is called", '"Paris"'),
    ("It is called", "'Paris'"),
    ("Paris —", "the"),
    ("It costs 5 €", "a"),
    ("It costs 5$", "a"),
    ("let $x$", "be"),
    ("2 + 2 =", "4"),
    ("if x <", "5"),
    ("C++", "is"),
    ("C#", "is"),
    ("50%", "of"),
    ("**bold**", "text"),
    ("`ls`", "lists"),
    ("It is made by", ".NET"),
    ("if a", "!= b"),
    ("The temperature is", "-5"),
    ("東京は", "Paris"),
    ("The capital is", "東京"),
    ("서울은", "한국"),
    ("wait…", "Paris"),
    ("a smile 😀", "Paris"),
]


@pytest.mark.parametrize(("prompt", "answer"), CLOSE)
def test_nothing_stands_where_people_write_nothing(prompt, answer):
    assert between(prompt, answer) == ""


@pytest.mark.parametrize(("prompt", "answer"), APART)
def test_a_blank_stands_between_words(prompt, answer):
    assert between(prompt, answer) == " "


@pytest.mark.parametrize(
    ("prompt", "answer", "joined"),
    [
        ("Where is it? [/INST]", "Paris", ""),
        ("Where is it? [/NOTE]", "Paris", " "),
        ("It is called", "Zorblax", ""),
        # A word that the tokenizer takes whole is a word nevertheless.
        ("The king Zorblax", "is", " "),
        # Blanks that the tokenizer takes whole are no neighbours.
        ("It is called", "Paris", " "),
    ],
)
def test_beside_a_token_of_the_model_s_own_making_nothing_stands(prompt, answer, joined):
    assert between(prompt, answer, tokens=["[/INST]", "Zorblax", "  ", ""]) == joined


@pytest.mark.parametrize(
    ("prompt", "answer", "joined", "other"),
    [("of", "Paris", " ", ""), ('"', "Paris", "", " "), ("of ", "Paris", "", None), ("of", " Paris", "", None)],
)
def test_the_other_choice(prompt, answer, joined, other):
    assert between(prompt, answer) == joined
    assert otherwise(prompt, answer, joined) == other


@given(prompt=st.text(min_size=1), answer=st.text(min_size=1))
def test_any_two_texts_have_a_rule(prompt, answer):
    if not answer.strip():
        with pytest.raises(AnswerError):
            between(prompt, answer)
        return
    joined = between(prompt, answer)
    assert joined in ("", " ")
    if prompt[-1].isspace() or answer[0].isspace():
        assert joined == ""


@pytest.mark.parametrize("joined", ["x", " x ", None, 0, b" ", True])
def test_what_cannot_stand_between_them(joined):
    with pytest.raises(SettingError) as told:
        check_joined(joined)
    assert str(told.value) == (
        f"answer_joined is {joined!r}; expected what stands between the prompt and its answer: '' for nothing, ' ' for "
        "a blank"
    )


def test_requests_and_facts_hold_it():
    assert EditRequest("{} is", "x", "y", answer_joined="\n").answer_joined == "\n"
    assert Fact("{} is", "x", "y").as_dict() == {"prompt": "{} is", "subject": "x", "answer": "y"}
    assert Fact("{} is", "x", "y", "").as_dict()["answer_joined"] == ""
    assert repr(Fact("{} is", "x", "y")) == "Fact(prompt='{} is', subject='x', answer='y')"
    for kind in (EditRequest, Fact):
        with pytest.raises(SettingError, match="answer_joined is '-'"):
            kind("{} is", "x", "y", answer_joined="-")
