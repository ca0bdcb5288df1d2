"""What a subject is: the words that a text holds, the place that a prompt keeps for it, and white space around it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from refused import refused

from rome_lens.errors import PromptError, SubjectError
from rome_lens.facts import EditRequest, Fact
from rome_lens.subjects import Template, find_subject, placed


@pytest.mark.parametrize(
    ("text", "subject", "at"),
    [
        ("Romeo was born in Rome, which is a city in", "Rome", 18),
        ("In which Italian city was It filmed?", "It", 26),
        ("Rome's rivals met in Romeo's house", "Rome", 0),
        ("In 1984, 19 of them", "19", 9),
        ("Cote and Co. are", "Co", 9),
        # Accents belong to the letter in front of them, in either form.
        ("Jose\u0301 and Jose are", "Jose", 10),
        # Scripts without spaces have no words of their own; Hangul's particles end none.
        ("北京市在北京", "北京", 0),
        ("서울은 한국의 수도이고 서울 시장은", "서울", 0),
        # There is none that stands by itself.
        ("Was it a cat?", "at", 10),
        ("C++ and C# are", "C#", 8),
        # A part of a number or a name is no word of its own.
        ("C++ is older than C", "C", 18),
        ("3.14 and 3", "3", 9),
        ("1,998 and 1", "1", 10),
        ("AT&T and T", "T", 9),
        ("O'Brien met O", "O", 12),
        ("Rome's rivals left Rome", "Rome", 0),
    ],
)
def test_words_of_their_own_go_before_those_inside_of_others(text, subject, at):
    assert find_subject(text, subject) == (at, at + len(subject))


def test_an_occurrence_that_no_word_of_its_own_has():
    assert refused(SubjectError, find_subject, "Romeo left Rome for Rome", "Rome", 3) == (
        "occurrence 3 of the subject 'Rome' was asked for, but the prompt holds it 2 times as a word of its own"
    )


@pytest.mark.parametrize(
    ("prompt", "before", "after"),
    [
        ("{} is in", "", " is in"),
        ("In {{}} is", "In {", "} is"),
        ("\\textbf{{}} is", "\\textbf{", "} is"),
        ("In {}, an empty dict is written {{}} and", "In ", ", an empty dict is written {} and"),
        ("{{}} is what {} says of {{}} and {{{}}}", "{} is what ", " says of {} and {{}}"),
        ("{ {} }{{}}{x}%s{0}", "{ ", " }{}{x}%s{0}"),
    ],
)
def test_braces_that_are_text(prompt, before, after):
    assert Template.read(prompt) == Template(before, after)


@pytest.mark.parametrize(("prompt", "places"), [("{}{}", 2), ("{{}} {{}}", 0), ("{{}} {} {}", 2), ("", 0)])
def test_a_prompt_without_the_one_place(prompt, places):
    with pytest.raises(PromptError, match=f"has {places} places for the subject; write {{}} once"):
        Template.read(prompt)


_TEXT = st.text("ab {}", max_size=12)


@given(before=_TEXT, after=_TEXT)
def test_any_text_around_a_subject_is_read_back(before, after):
    template = Template(before, after)
    try:
        prompt = template.prompt
    except PromptError:
        # What {} cannot say: braces right around the subject, and others elsewhere.
        assert before.endswith("{")
        assert after.startswith("}")
        return
    assert Template.read(prompt) == template


@given(
    before=st.text("abé東 ", max_size=6),
    subject=st.text("ab{}é東", min_size=1, max_size=6),
    after=st.text("abé東 ", max_size=6),
    front=st.text(" \n\t\u00a0\u3000", max_size=2),
    behind=st.text(" \n\t\u00a0\u3000", max_size=2),
)
def test_white_space_around_a_subject_moves_into_the_prompt(before, subject, after, front, behind):
    blank = EditRequest(f"{before}{{}}{after}", front + subject + behind, "x")
    assert blank == EditRequest(f"{before}{front}{{}}{behind}{after}", subject, "x")
    assert blank.text == before + front + subject + behind + after
    start, end = blank.subject_span
    assert blank.text[start:end] == blank.subject == subject
    assert Fact(f"{before}{{}}{after}", front + subject + behind, "x").subject_span == blank.subject_span


def test_a_request_or_a_fact_of_a_text_that_holds_its_subject():
    text = "In Python, an empty dict is written {} and its type in Python is"
    request = EditRequest.in_text(text, subject=" Python", target_new="set", answer_joined="")
    assert (request.text, request.subject_span, request.answer_joined) == (text, (3, 9), "")
    assert request.prompt == "In {}, an empty dict is written {{}} and its type in Python is"
    assert request.asked == (text, "Python", 1)
    fact = Fact.in_text(text, subject="Python", answer="dict", occurrence=-1)
    assert (fact.text, fact.text[slice(*fact.subject_span)], fact.asked) == (text, "Python", (text, "Python", 2))


def test_where_a_trace_cannot_be_asked_for_the_same_place():
    with pytest.raises(SubjectError, match="inside of another word, and elsewhere a word of its own"):
        _ = EditRequest("{}o was born in Rome, in", "Rome", "France").asked


@pytest.mark.parametrize(
    ("prompt", "subject", "place"),
    [
        ("{} is in", "Rome", ("{} is in", "Rome")),
        ("{} is in", " Rome", ("{} is in", " Rome")),
        ("Rome is in", " Rome", ("{} is in", "Rome")),
        ("In Python, {} is a", "Python", ("In {}, {{}} is a", "Python")),
        ("{} was filmed in the Italian city of", "It", ("{} was filmed in the Italian city of", "It")),
    ],
)
def test_a_prompt_holds_its_subject_or_braces_in_its_place(prompt, subject, place):
    assert placed(prompt, subject) == place


@pytest.mark.parametrize(
    ("prompt", "subject", "error", "message"),
    [
        ("{} won the Tour de France in", "France", PromptError, "either may be its place; write {{}} where {} is text"),
        (
            "Paris is in",
            "Rome",
            SubjectError,
            "'Rome' is not in the prompt 'Paris is in'; give it letter for letter, or",
        ),
        ("{} is in", " ", SubjectError, "is empty; name who or what it is about"),
        ("{} and {}", "Rome", PromptError, "has 2 places"),
    ],
)
def test_a_prompt_in_which_the_subject_s_place_is_not_to_be_found(prompt, subject, error, message):
    assert message in refused(error, lambda: EditRequest(*placed(prompt, subject), "x"))
