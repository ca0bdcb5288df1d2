"""White space, blanks and tokens that a model has not, through traces, edits, evaluations and averages."""

import pytest
import torch
from architectures import BACKENDS, architecture, home_made, own
from hosts import needs_hooked
from known_facts import said_next
from refused import refused
from tiny_rome import rome

import rome_lens as rl
from rome_lens.backends import as_backend
from rome_lens.editing.prompts import tokenise_request
from rome_lens.errors import AnswerError, FactNotKnownError, PromptError, SettingError
from rome_lens.evaluation.questions import questions_of

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:transformer_lens")

TRACE = {"streams": ("resid",), "samples": 2, "noise": 1.0}


@pytest.fixture(scope="module")
def model():
    return architecture("gpt2", BACKENDS[0])


def probability(model, text, answer):
    """Of the answer's bytes after a text, by plain forwards, in float64."""
    encode = model.tokenizer
    start = len(encode(text, add_special_tokens=False).input_ids)
    ids = torch.tensor([encode(text + answer, add_special_tokens=False).input_ids])
    with torch.no_grad():
        logits = model(ids)[0, start - 1 : -1]
    return logits.softmax(dim=-1)[torch.arange(len(logits)), ids[0, start:]].prod().item()


def test_a_subject_with_white_space_at_its_end_is_edited_where_the_stripped_one_is(model):
    editor = rome(model)
    asked = [("ab {} fgh", "cde"), ("ab {}fgh", "cde "), ("ab{}fgh", " cde ")]
    edits = [editor.edit(rl.EditRequest(prompt, subject, "xy")) for prompt, subject in asked]
    assert all(edit.id == edits[0].id for edit in edits)
    assert all(torch.equal(edit.u, edits[0].u) and torch.equal(edit.v, edits[0].v) for edit in edits)


def test_an_average_breaks_the_tokens_that_a_trace_breaks(model):
    alone = rl.causal_trace(model, "ab cde fgh", subject="cde", **TRACE)
    for prompt, subject in [("ab {} fgh", "cde"), ("ab {}fgh", "cde ")]:
        fact = rl.Fact(prompt, subject, alone.answer, "")
        (average,) = rl.average_causal_effect(model, [fact], severed=(), **TRACE).facts
        assert tuple(average["subject_span"]) == alone.subject_span
        assert average["low"] == pytest.approx(alone.low, rel=1e-12)


@pytest.mark.parametrize(
    ("prompt", "answer", "joined"),
    [
        ("ab in 19", "45", ""),
        ('ab it is "', "x", ""),
        ("ab it is", "x", " "),
        ("ab 東京は：", "東", ""),
        ("ab 東は", "19", ""),
    ],
)
def test_the_answer_that_is_traced_edited_and_measured_is_the_one_that_follows(model, prompt, answer, joined):
    trace = rl.causal_trace(model, prompt, subject="ab", answer=answer, **TRACE)
    assert trace.answer == joined + answer
    assert trace.high == pytest.approx(probability(model, prompt, joined + answer), rel=1e-9)
    request = rl.EditRequest.in_text(prompt, subject="ab", target_new=answer, target_true="q")
    rows = tokenise_request(
        as_backend(model), request, templates=("{}", 'He said "no. {}'), prepend_bos=False, essence_at="last"
    )
    assert [row.answer for row in rows.rewriting] == [joined + answer] * 2
    (row, *_), *_ = (
        question.answers for question in questions_of(as_backend(model), _record(request), prepend_bos=False)
    )
    assert row.answer == joined + answer


def _record(request):
    return rl.CounterFactRecord(0, 0, None, request, (), (), ())


@pytest.mark.parametrize("joined", ["", " ", "\n"])
def test_a_caller_says_what_stands_between(model, joined):
    trace = rl.causal_trace(model, "ab is in", subject="ab", answer="x", answer_joined=joined, **TRACE)
    assert trace.high == pytest.approx(probability(model, "ab is in", joined + "x"), rel=1e-9)
    edit = rome(model).edit(rl.EditRequest("{} is in", "ab", "x", answer_joined=joined))
    assert edit.before.target == pytest.approx(probability(model, "ab is in", joined + "x"), rel=1e-6)


def test_expect_takes_the_answer_as_the_model_gives_it_and_says_so(model):
    text = next(t for c in "abcdefghijklmnop" if said_next(model, t := f"ab is {c}").isalpha())
    said = said_next(model, text)
    trace = rl.causal_trace(model, text, subject="ab", expect=said, **TRACE)
    assert trace.answer == said
    assert trace.notes[0] == f"the model gives the answer as {said!r}; {' ' + said!r} was looked for first"
    with pytest.raises(FactNotKnownError, match="does not know this fact"):
        rl.causal_trace(model, text, subject="ab", expect=said, answer_joined=" ", **TRACE)
    with pytest.raises(FactNotKnownError, match="nor does it say '~'"):
        rl.causal_trace(model, text, subject="ab", expect="~", **TRACE)
    asked = rl.Fact.in_text(text, subject="ab", answer=said)
    (fact,) = rl.average_causal_effect(model, [asked], severed=(), **TRACE).facts
    assert fact["notes"] == list(trace.notes)


def test_what_is_joined_needs_an_answer(model):
    with pytest.raises(SettingError, match="answer_joined is '', and no answer was given"):
        rl.causal_trace(model, "ab is", subject="ab", answer_joined="", **TRACE)


def test_an_old_answer_that_is_longer_than_the_context(model):
    request = rl.EditRequest("{} is", "ab", "x", "y" * 70)
    for editor in (rome(model), rl.FineTuning(model, layer=1)):
        said = refused(PromptError, editor.edit, request)
        assert "the prompt with its answer takes 75 positions, and gpt2 has 64; shorten" in said


@pytest.fixture(params=BACKENDS)
def beyond(request):
    """A model, its tokenizer with a token more than the model embeds."""
    model = own("gpt2", request.param)
    model.tokenizer.add_tokens(["<FACT>"])
    return model


def test_a_token_that_the_model_does_not_embed(beyond):
    name = as_backend(beyond).model_name
    told = f"the text holds the token '<FACT>' (id 258), and {name} embeds 258 tokens; leave it out, or load a model"
    answer = f"the answer '<FACT>' holds the token '<FACT>' (id 258), and {name} gives logits to 258 tokens; name"
    editor, facts = rome(beyond), [rl.Fact("{} is", "<FACT>", "x")]
    for kind, message, call in [
        (PromptError, told, lambda: rl.causal_trace(beyond, "ab <FACT> is", subject="ab", **TRACE)),
        (PromptError, told, lambda: rl.causal_trace(beyond, "ab is", subject="ab", answer="<FACT>x", **TRACE)),
        (AnswerError, answer, lambda: rl.causal_trace(beyond, "ab is", subject="ab", answer="<FACT>", **TRACE)),
        (PromptError, told, lambda: editor.edit(rl.EditRequest("{} is", "<FACT>", "x"))),
        (AnswerError, answer, lambda: editor.edit(rl.EditRequest("{} is", "ab", "<FACT>"))),
        (AnswerError, answer, lambda: editor.edit(rl.EditRequest("{} is", "ab", "x", "<FACT>"))),
        (AnswerError, answer, lambda: rl.FineTuning(beyond, layer=1).edit(rl.EditRequest("{} is", "ab", "<FACT>"))),
        (PromptError, told, lambda: rl.SecondMoment.collect(beyond, layers=[1], texts=["ab <FACT>"])),
        (PromptError, told, lambda: rl.causal_trace(beyond, "ab is", subject="ab", facts=facts)),
    ]:
        assert refused(kind, call).startswith(message)


@needs_hooked  # only a HookedTransformer has fewer logits than embeddings
def test_an_answer_that_a_model_has_no_logit_for():
    model = home_made(d_mlp=16, d_vocab_out=60, act_fn="gelu")
    with pytest.raises(AnswerError, match=r"holds the token 'Ġ' \(id \d+\), and .* gives logits to 60 tokens"):
        rl.causal_trace(model, "ab is", subject="ab", answer="x", **TRACE)
