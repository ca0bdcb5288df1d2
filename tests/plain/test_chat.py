"""Questions put through a chat template: where they begin, what follows them, and what no template takes."""

from types import SimpleNamespace

import pytest
from architectures import byte_tokenizer
from chat_templates import CHATML
from refused import refused

import rome_lens as rl
from rome_lens.chat import Chat, chat_prompt


@pytest.fixture
def tokenizer():
    made = byte_tokenizer()
    made.chat_template = CHATML
    return made


def test_a_question_is_put_between_what_the_template_says(tokenizer):
    chat = Chat.ask(tokenizer, "  Where is the Colosseum in Rome?\n", "It is in")
    assert chat.question == "Where is the Colosseum in Rome?"
    assert chat.before == "<s>system\nBe kind to Rome.</s>\n<s>user\n"
    assert chat.after == "</s>\n<s>assistant\nIt is in"
    assert chat.text == chat.before + chat.question + chat.after
    assert Chat.ask(tokenizer, chat.question).after == "</s>\n<s>assistant\n"


def test_a_reply_that_the_template_changes_is_refused(tokenizer):
    tokenizer.chat_template = (
        "{{ messages[0]['content'] }}{% if messages | length > 1 %}: {{ messages[1]['content'] | upper }}{% endif %}"
    )
    said = refused((rl.ModelError), Chat.ask, tokenizer, "Where?", "It is")
    assert "chat template cannot put a user's question" in said


def test_the_subject_is_the_questions(tokenizer):
    chat = Chat.ask(tokenizer, "Is Rome in Italy, the Rome of old?", "Rome is")
    # The template's own is the first, the reply's the last.
    assert [chat.occurrence("Rome", n) for n in (1, 2, -1, -2)] == [2, 3, 3, 2]
    assert chat.occurrence(" Italy ", 1) == 1
    with pytest.raises(rl.SubjectError, match="holds it 2 times"):
        chat.occurrence("Rome", 3)
    said = refused(rl.SubjectError, chat.occurrence, "assistant", 1)
    assert said.startswith("the subject 'assistant' is not in the prompt 'Is Rome in Italy")
    inside = Chat.ask(tokenizer, "Is Romeo old?")
    said = refused(rl.PromptError, inside.occurrence, "Rome", 1)
    assert said == (
        "the subject 'Rome' is inside of another word in the question, and a word of its own elsewhere in the chat; "
        "ask in other words"
    )


def test_the_first_token_of_the_question(tokenizer):
    chat = Chat.ask(tokenizer, "Where is Rome?")
    ids = tokenizer(chat.text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids[chat.first_token(tokenizer) :]) == chat.question + chat.after


@pytest.mark.parametrize("question", ["Where is {}?", "Where is {{}} in {} {{}}?", " {} is where? "])
def test_a_prompt_of_a_request_keeps_its_place(tokenizer, question):
    model = SimpleNamespace(tokenizer=tokenizer)
    request = rl.EditRequest(chat_prompt(model, question, reply="It is in {x}"), "the Colosseum", "Paris")
    asked = rl.EditRequest(question.strip(), "the Colosseum", "Paris")
    chat = Chat.ask(tokenizer, asked.text, "It is in {x}")
    assert request.text == chat.text
    start, end = asked.subject_span
    assert request.subject_span == (len(chat.before) + start, len(chat.before) + end)


def test_a_prompt_without_a_place(tokenizer):
    model = SimpleNamespace(tokenizer=tokenizer)
    assert chat_prompt(model, "Where is Rome?") == Chat.ask(tokenizer, "Where is Rome?").text


def _raising(tokenizer):
    tokenizer.chat_template = "{{ raise_exception('a system message first') }}"


def _changing(tokenizer):
    tokenizer.chat_template = "{{ messages[0]['content'] | upper }}"


@pytest.mark.parametrize(
    ("spoil", "question", "error", "message"),
    [
        (
            lambda t: setattr(t, "chat_template", None),
            "Where?",
            rl.ModelError,
            "the tokenizer has no chat template",
        ),
        (_raising, "Where?", rl.ModelError, "chat template cannot put a user's question: a system message first"),
        (_changing, "Where?", rl.PromptError, "the chat template does not keep the question 'Where?' as it is"),
        (lambda t: None, " ", rl.PromptError, "the prompt is empty"),
        (lambda t: None, None, rl.PromptError, "prompt is None; expected a text"),
        (lambda t: None, "{} and {}", rl.PromptError, "has 2 places for the subject"),
    ],
)
def test_what_cannot_be_asked(tokenizer, spoil, question, error, message):
    spoil(tokenizer)
    assert message in refused(error, chat_prompt, SimpleNamespace(tokenizer=tokenizer), question)


def test_a_reply_is_a_text(tokenizer):
    assert refused(rl.PromptError, Chat.ask, tokenizer, "Where?", 3) == "reply is 3; expected a text"
    assert "no tokenizer" in refused(rl.ModelError, chat_prompt, SimpleNamespace(), "Where?")
