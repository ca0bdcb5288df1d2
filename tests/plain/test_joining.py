"""What stands between a prompt and its answer: a blank between words, nothing where people write nothing."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from refused import refused

from rome_lens.errors import AnswerError, SettingError
from rome_lens.facts import EditRequest, Fact
from rome_lens.joining import between, check_joined, otherwise


def _cases(name):
    """Prompt and answer of every line, which stand around ¦ in it; ↵ is a new line, and # begins a comment."""
    lines = (Path(__file__).parent / name).read_text("utf-8").splitlines()
    return [tuple(line.replace("↵", "\n").split("¦")) for line in lines if not line.startswith("# ")]


CLOSE = _cases("written_close.txt")
APART = _cases("written_apart.txt")


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
        assert "answer_joined is '-'" in refused(SettingError, kind, "{} is", "x", "y", answer_joined="-")
