"""`--chat` and `--reply`: questions through a chat template, traced and edited."""

import json

import pytest
from chat_templates import WORDS
from tiny_shell import EDIT, FAST, TARGET, in_json, refusal

import rome_lens as rl
from rome_lens.chat import chat_prompt

QUESTION, SUBJECT, REPLY = "where stands the tower ?", "the tower", "the city of"
TRACE = ("trace", QUESTION, "-s", SUBJECT, "--noise", "1", "--window", "1", "--samples", "2")


@pytest.fixture(autouse=True)
def template(house, monkeypatch):
    monkeypatch.setattr(house.model.tokenizer, "chat_template", WORDS)


def done(result):
    """What was printed; that the few steps of these tests reach no target is said on stderr."""
    assert result.exit_code == 0, result.stderr
    return result.stdout


def test_trace(shell):
    traced = in_json(shell.run(*TRACE, "--chat", "--reply", REPLY, "--json"))
    assert traced["prompt"] == f"the museum stands . {QUESTION} . it is . {REPLY}"
    assert (traced["question"], traced["reply"], traced["shown_from"]) == (QUESTION, REPLY, 4)
    without = in_json(shell.run(*TRACE, "--chat", "--json"))
    assert without["prompt"] == f"the museum stands . {QUESTION} . it is . "
    assert in_json(shell.run(*TRACE, "--json"))["question"] is None


def test_the_eiffel_tower_is_asked_about_where_nothing_else_is(shell):
    asked = in_json(shell.run("trace", "--chat", "--json", "--answer", "city"))
    assert (asked["question"], asked["reply"]) == ("In which city is the Eiffel Tower?", "It is located in the city of")
    asked = in_json(shell.run("trace", "--chat", "--reply", "In", "--json", "--answer", "city"))
    assert asked["reply"] == "In"
    said = refusal(shell.run("trace", "--chat", "--edit", "EDIT"), code=2)
    assert said == "--chat asks a question, which an edit does not hold; give PROMPT and --subject"


def test_edit(shell, house):
    others = ["--paraphrase", "where is the tower", "--neighbour", "where is the museum"]
    found = json.loads(done(shell.run(*FAST, "--chat", "--reply", REPLY, *others, "--json")))
    asked = chat_prompt(house.model, "where stands {}", reply=REPLY)
    assert found["edit"]["request"]["prompt"] == asked
    assert found["edit"]["request"]["target_new"] == TARGET
    looked_at = [effect["prompt"] for effect in found["prompts"]]
    questions = ("where stands the tower", "where is the tower", "where is the museum")
    assert looked_at == [f"the museum stands . {question} . it is . {REPLY}" for question in questions]


def test_an_edit_of_a_chat_is_traced_by_its_own_prompt(shell, tmp_path):
    path = str(tmp_path / "edit.safetensors")
    done(shell.run(*FAST, "--chat", "--save", path))
    traced = in_json(shell.run("trace", "--edit", path, "--noise", "1", "--samples", "2", "--window", "1", "--json"))
    assert traced["prompt"] == "the museum stands . where stands the tower . it is . "


@pytest.mark.parametrize("method", ["memit", "emmet"])
def test_a_set(shell, many, tmp_path, method):
    path = str(tmp_path / "set.safetensors")
    args = ["edit", "--requests", "REQUESTS", "--method", method, "--chat", "--second-moment", "C1", "--template", "{}"]
    done(shell.run(*args, "--steps", "2", "--save", path))
    made = rl.load_edit(path)
    assert {fact.request.prompt.split(".")[0] for fact in made.facts} == {"the museum stands "}


def test_a_reply_goes_with_chat(shell):
    said = "reply is 'it', and no chat was asked for; it goes with chat"
    assert refusal(shell.run(*TRACE, "--reply", "it"), code=2) == said
    assert refusal(shell.run(*EDIT, "--reply", "it"), code=2) == said
    assert not shell.loads


def test_what_stands_in_front_is_the_templates(shell):
    for args in (TRACE, EDIT):
        said = refusal(shell.run(*args, "--chat", "--bos"), code=2)
        assert said == "prepend_bos is True, but a chat template says what stands in front; leave prepend_bos off"


def test_sets_that_are_joined_ask_nothing(shell, many):
    said = refusal(shell.run("edit", "--plus", "SET", "--plus", "SET", "--chat"), code=2)
    assert "asks a question, and nothing is asked; leave it out" in said


def test_a_model_without_a_template(shell, house, monkeypatch):
    monkeypatch.setattr(house.model.tokenizer, "chat_template", None)
    for args in (TRACE, EDIT):
        assert "the tokenizer has no chat template" in refusal(shell.run(*args, "--chat"), code=1)
