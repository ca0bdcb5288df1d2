"""What stands between a prompt and its answer: a blank between words, nothing where people write nothing."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from refused import refused

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
    # Elisions, contractions and suffixes; LaTeX, HTML and paths; numbers of every kind; signs that scripts share.
    ("La capitale de l'", "Italie"),
    ("l’", "homme"),
    ("Qu'est-ce qu'", "il"),
    ("dell'", "Italia"),
    ("Mr. O'", "Neil"),
    ("aujourd’", "hui"),
    ("I do", "n't"),
    ("Türkiye'nin başkenti Ankara", "'dır"),
    ("Ankara", "’dır"),
    ("o", "'clock"),
    ("don’", "t"),
    ("the U.S.", "'s"),
    ('"Titanic"', "'s"),
    ("Paris (France)", "'s"),
    ("np", ".array"),
    ("import os", ".path"),
    ("self", ".x"),
    ("www.google", ".com"),
    ("arr", "[i]"),
    ("print", "(x)"),
    ("/usr", "/bin"),
    ("https:", "//www"),
    ("user", "@example.com"),
    ("C:", "\\Windows"),
    ("<b>Paris", "</b>"),
    ("x", "^2"),
    ("$\\alpha", "$"),
    ("\\(x", "\\)"),
    ("\\frac{1}", "{2}"),
    ("法国的首都是", "“巴黎”"),
    ("“巴黎”", "是"),
    ("阿尔伯特·", "爱因斯坦"),
    ("巴黎……", "是"),
    ("巴黎", "——"),
    ("巴黎(法国)", "是"),
    ("50%", "的"),
    ("法国的首都是:", "巴黎"),
    ("温度是", "-5"),
    ("价格是", "$5"),
    ("ราคา", "฿5"),
    ("བོད་ཀྱི་རྒྱལ་ས་", "ལྷ་ས"),
    ("The population is 1,", "000"),
    ("The meeting is at 10:", "30"),
    ("localhost:", "8080"),
    ("The 19", "th"),
    ("the 1990", "s"),
    ("1914", "-1918"),
    ("1990", "–1995"),
    ("COVID", "-19"),
    ("10°", "C"),
    ("H₂", "O"),
    ("CO", "₂"),
    ("5", "½"),
    ("10", "×10"),
    ("±", "5"),
    ("is −", "5"),
    ("5−", "3"),
    ("√", "2"),
    ("From US$3 to US$", "5"),
    ("Den heter ”Paris", "”"),
    ("Den heter »Paris", "»"),
    ("``x", "''"),
    ("It’s ‘yes", "’"),
    ("print(f'abc {x}", "'"),
    ("ptr->", "x"),
    ("</think>", "x"),
    ("x = -", "5"),
    ("cd /", "usr"),
    ('["a","', "b"),
    ("www.", "google"),
    ("x = np.", "array"),
    ("return self.", "x"),
    ("file.", "txt"),
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
    # Arrows and operators that stand by themselves, sentences' ends, code as a word, inches, emphasis that is closed.
    ("cheese =>", "fromage"),
    ("France -> Paris, Italy ->", "Rome"),
    ("if x ==", "5"),
    ("if x >=", "5"),
    ("def f(x) ->", "int"),
    ("a &&", "b"),
    ("a ||", "b"),
    ("if a <", "b"),
    ('"I love Paris,"', "he"),
    ("'I love Paris,'", "he"),
    ('The song "Hello,"', "by"),
    ("Robert Downey Jr.", "was"),
    ("Apple Inc.", "is"),
    ("He left.", "then"),
    ("The end.", "and"),
    ("et al.", "showed"),
    ("In 1998.", "5"),
    ("France - Paris\nItaly -", "Rome"),
    ("Italy --", "Rome"),
    ("- France\n-", "Italy"),
    ("A -", "b"),
    ("London / Berlin, Paris /", "Rome"),
    ("a ~", "b"),
    ("#", "Title"),
    ("##", "Title"),
    ("An empty list in Python is written", "[]"),
    ("The call returns", "()"),
    ("git commit", "-m"),
    ("ls", "-l"),
    ("x equals", "-y"),
    ("It is", "./run.sh"),
    ("The parent directory is", ".."),
    ("if", "!x"),
    ('The 12" record "Thriller"', "is"),
    ('The 12" single is called', '"Angie"'),
    ("In the '90s it was called", "'Paris'"),
    ("« Oui »", "et"),
    ("קוראים לו", "״פריז״"),
    ("This is _very_", "nice"),
    ("__init__", "method"),
    ("The answer is ___", "Paris"),
    ("18+", "rating"),
    ("costs $5 and let $x$", "be"),
    ("Question 3:", "42"),
    ("in 2010,", "2011"),
    ("James'", "book"),
    ("He said 'yes'", "and"),
    ("U.S.", "is"),
    ("e.g.", "paris"),
    ("He is 5'10\"", "tall"),
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
    assert refused(SettingError, check_joined, joined) == (
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
