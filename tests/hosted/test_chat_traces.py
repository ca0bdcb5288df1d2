"""Chat models traced as they are asked: the same numbers as of the text they read, and figures from the question on."""

import pytest
import torch
from chat_templates import SHORT
from consoles import printed
from refused import refused

import rome_lens as rl
from rome_lens.cli.trace_report import print_saved_trace, print_trace
from rome_lens.figures.plotly_text import literal

QUESTION, SUBJECT, REPLY = "is cd up?", "cd", "it"
TEXT = f"s: cd\nu: {QUESTION}\na: {REPLY}"
SETTINGS = {"noise": 2.0, "samples": 2, "window": 2, "answer": "x"}


@pytest.fixture
def chat(llama, monkeypatch):
    """A model with a chat template."""
    monkeypatch.setattr(llama.tokenizer, "chat_template", SHORT)
    return llama


def ask(model, **settings):
    return rl.causal_trace(model, QUESTION, subject=SUBJECT, **({"chat": True} | SETTINGS | settings))


def test_it_is_the_trace_of_the_text_that_the_model_reads(chat):
    asked = ask(chat, reply=REPLY, streams=("resid", "mlp", "heads"))
    # The template's own "cd" comes first.
    plain = rl.causal_trace(chat, TEXT, subject=SUBJECT, occurrence=2, streams=("resid", "mlp", "heads"), **SETTINGS)
    for stream, scores in plain.scores.items():
        assert torch.equal(asked.scores[stream], scores)
    assert (asked.prompt, asked.subject_span, asked.occurrence) == (TEXT, plain.subject_span, 2)
    assert (asked.question, asked.reply, plain.question, plain.shown_from) == (QUESTION, REPLY, None, 0)
    assert asked.asked == f"{QUESTION} {REPLY}"
    assert plain.asked == plain.prompt


def test_without_a_reply_the_answer_is_the_assistants_first_token(chat):
    asked = ask(chat)
    assert asked.prompt == TEXT.removesuffix(REPLY)
    assert (asked.asked, asked.reply) == (QUESTION, None)


def test_pictures_begin_with_the_question(chat, tmp_path):
    asked = ask(chat, reply=REPLY, streams=("mlp", "heads"), heads_at="last-subject")
    first = TEXT.index(QUESTION)
    assert asked.shown_from == first
    mlp, heads = asked.heat_maps()
    assert mlp.labels == asked.marked_tokens()[first:]
    assert mlp.labels[:5] == ("i", "s", " ", "c*", "d*")
    assert mlp.first == first
    assert mlp.scores == asked.scores["mlp"][:, first:].tolist()
    assert len(heads.labels) == 4
    assert heads.first == 0
    layer, pos = asked.peak("mlp", positions=range(first, len(asked.tokens)))
    assert mlp.peak == (layer, pos - first)
    drawn = asked.figure().data[0]
    assert drawn.customdata[3][0][1] == first + 3
    assert drawn.customdata[3][1][3] == literal(mlp.said[1][3])
    assert asked.figure().layout.title.text.startswith(f"{QUESTION} {REPLY} [x]")
    path = tmp_path / "trace.safetensors"
    asked.save(path)
    assert rl.CausalTrace.load(path) == asked
    for show in (print_trace, print_saved_trace):
        lines = printed(show, asked).splitlines()
        assert lines[0] == f"{QUESTION} {REPLY} → x"
        assert lines[1].startswith("asked through the tokenizer's chat template; its tokens in front of")
    best = max(range(3, 5), key=lambda row: max(asked.scores["mlp"][:, first + row]))
    assert f'token "{"cd"[best - 3]}*"' in printed(print_trace, asked).split("best of the subject")[1]


def test_neurons_and_swaps_of_a_chat(chat):
    asked = ask(chat, reply=REPLY, swap="ef", noise=None)
    found = rl.trace_neurons(chat, asked, n_best=3)
    assert (found.low, found.high) == (asked.low, asked.high)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        (
            {"chat": False, "reply": "it"},
            rl.SettingError,
            "reply is 'it', and no chat was asked for; it goes with chat",
        ),
        ({"chat": 1}, rl.SettingError, "chat is 1; expected True or False"),
        ({"prepend_bos": True}, rl.SettingError, "prepend_bos is True, but a chat template says what stands in front"),
        (
            {"occurrence": 2},
            rl.SubjectError,
            "occurrence 2 of the subject 'cd' was asked for, but the prompt",
        ),
    ],
)
def test_what_no_chat_has(chat, settings, error, message):
    assert message in refused(error, ask, chat, **settings)


def test_a_model_without_a_template(llama):
    assert "has no chat template" in refused(rl.ModelError, ask, llama)
