"""What callers give in the place of requests, facts, moments and edits: refused in one line, with advice."""

from pathlib import Path

import numpy as np
import pytest
import torch
from refused import refused

import rome_lens as rl

REQUEST = rl.EditRequest("{} is in the city", "the tower", "the", "of")
FACT = rl.Fact("{} is in", "the tower", "the")
RELEASED = {
    "prompt": "{} is in the city",
    "subject": "the tower",
    "target_new": {"str": "the", "id": "Q1"},
    "target_true": {"str": "of"},
}
RECORD = rl.CounterFactRecord(np.int64(0), np.int64(7), None, REQUEST, ["the city"], ("the tower",), ())


def rome(model, **settings):
    settings = {"layer": 0, "context_templates": ["{}"], "second_moment": torch.eye(model.cfg.d_mlp)} | settings
    return rl.ROME(model, **settings)


@pytest.mark.parametrize(
    ("given", "advice"),
    [
        (RELEASED, "write EditRequest('{} is in the city', subject='the tower', target_new='the', target_true='of')"),
        ({"prompt": "{} is"}, "write EditRequest('{} is', subject='...', target_new='...')"),
        (("{} is in", "the tower", "the"), "write EditRequest('{} is in', 'the tower', 'the')"),
        (FACT, "write EditRequest('{} is in', subject='the tower', target_new=..., target_true='the')"),
        (RECORD, "give its .request"),
        ([REQUEST], "edit takes one, and edit_many takes a list"),
        ("{} is in", "write EditRequest('{} is in', subject='The tower', target_new='Rome')"),
        (None, "the request is None; expected an EditRequest"),
        (b"x", "the request is b'x'; expected an EditRequest"),
        (np.arange(2000), "a ndarray of 2000 numbers"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_no_request(tiny, given, advice):
    for editor in (rome(tiny), rl.FineTuning(tiny, layer=0)):
        assert advice in refused(rl.SettingError, editor.edit, given)
        if not isinstance(given, list):
            assert "request 1 is" in refused(rl.SettingError, editor.edit_many, [REQUEST, given])
    with pytest.raises(rl.SettingError):
        rl.CounterFactRecord(0, 0, None, given, (), (), ())


@pytest.mark.parametrize("given", [REQUEST, RELEASED, "text", None, 3], ids=lambda value: type(value).__name__)
def test_what_are_no_requests(tiny, given):
    for editor in (rome(tiny), rl.FineTuning(tiny, layer=0)):
        assert refused(rl.SettingError, editor.edit_many, given).startswith("requests is ")


@pytest.mark.parametrize("given", ["requests.json", Path("requests.json")], ids=lambda value: type(value).__name__)
def test_a_file_of_requests_is_read_first(tiny, given):
    said = refused(rl.SettingError, rome(tiny).edit_many, given)
    assert said.endswith("expected a list of EditRequest, such as read_requests(path) reads from a file")


@pytest.mark.parametrize(
    ("given", "advice"),
    [
        (
            "c.safetensors",
            "is the path 'c.safetensors'; expected a SecondMoment, or a torch matrix [d_mlp, d_mlp]: read it",
        ),
        (np.eye(4), "torch.from_numpy(array) makes one"),
        ({0: rl.SecondMoment.from_matrix(torch.eye(2), layer=0)}, "give it with [0]"),
        (torch.ones(3), "this matrix has shape (3,)"),
        (torch.eye(3).bool(), "this matrix is of torch.bool"),
        (3, "second_moment is 3; expected a SecondMoment"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_no_second_moment(tiny, given, advice):
    assert advice in refused(rl.SettingError, rome, tiny, second_moment=given)
    assert advice in refused(rl.SettingError, rome(tiny).edit_many_under, [REQUEST], [given])


def test_second_moments_that_are_no_list(tiny):
    assert "expected a list of second moments" in refused(
        rl.SettingError, rome(tiny).edit_many_under, [REQUEST], torch.eye(4)
    )


@pytest.mark.parametrize("given", [None, 3, 2.5, b"text", ["text"], RELEASED], ids=lambda value: type(value).__name__)
def test_what_is_no_text(tiny, given):
    place = "{} is in"
    for step, error in (
        (lambda: rl.EditRequest(given, "a", "b"), rl.PromptError),
        (lambda: rl.EditRequest(place, given, "b"), rl.SubjectError),
        (lambda: rl.EditRequest(place, "a", given), rl.AnswerError),
        (lambda: rl.Fact(given, "a", "b"), rl.PromptError),
        (lambda: rl.Fact(place, given, "b"), rl.SubjectError),
        (lambda: rl.Fact(place, "a", given), rl.AnswerError),
        (lambda: rl.causal_trace(tiny, given, subject="a"), rl.PromptError),
        (lambda: rl.causal_trace(tiny, "a b", subject=given), rl.SubjectError),
        (lambda: rl.CounterFactRecord(0, 0, None, REQUEST, [given], (), ()), rl.SettingError),
        (lambda: rl.ZsreRecord(0, 0, REQUEST, given, "a", "b"), rl.SettingError),
        (lambda: rl.SecondMoment.collect(tiny, layers=[0], texts=[given]), rl.SettingError),
    ):
        assert "expected" in refused(error, step)
    if given is not None:
        for name in ("answer", "expect"):
            ask = {"prompt": "a b", "subject": "a", name: given}
            assert f"{name} is" in refused(rl.AnswerError, rl.causal_trace, tiny, **ask)
        refused(rl.AnswerError, rl.EditRequest, place, "a", "b", given)
        refused(rl.SubjectError, rl.causal_trace, tiny, "the tower is", subject="tower", swap=given)


def test_one_text_is_no_list_of_texts():
    assert "paraphrases is 'ab'" in refused(rl.SettingError, rl.CounterFactRecord, 0, 0, None, REQUEST, "ab", (), ())
    assert "watched is 'ab'" in refused(rl.SettingError, rl.Measures, watched="ab")


def test_what_are_no_facts_and_no_records(tiny):
    for given, advice in (
        (REQUEST, "expected a list of Fact"),
        ([REQUEST], "fact 0 is a EditRequest"),
        ([RELEASED], "fact 0 is a dict"),
        ("facts.json", "expected a list of Fact"),
    ):
        assert advice in refused(rl.SettingError, rl.average_causal_effect, tiny, given)
        assert advice in refused(
            rl.SettingError, rl.causal_trace, tiny, "the tower is", subject="the tower", facts=given
        )
    for given, advice in (
        ("counterfact.json", "as read_counterfact gives it"),
        ([{"requested_rewrite": RELEASED}], "record 0 is {"),
        ([REQUEST], "expected a CounterFactRecord"),
    ):
        assert advice in refused(rl.SettingError, rl.evaluate_counterfact, tiny, None, given)
    assert "expected a ZsreRecord" in refused(rl.SettingError, rl.evaluate_zsre, tiny, None, [RECORD])
    assert "expected Measures" in refused(
        rl.SettingError, rl.evaluate_counterfact, tiny, None, [RECORD], measures={"seed": 1}
    )


def test_what_are_no_edits(tiny):
    edit = rl.FineTuning(tiny, layer=0, num_steps=1).edit(REQUEST)
    ask = {"prompt": "the tower is", "subject": "the tower"}
    for given in (edit, "rome.safetensors", 3, ["rome.safetensors"], [None]):
        assert "edits" in refused(rl.SettingError, rl.causal_trace, tiny, **ask, edits=given)
    for given, advice in (
        (["x"], "load_edit"),
        ([3], "row 0 has 3"),
        (edit, "an entry for each row"),
        (None, "an entry"),
    ):
        assert advice in refused(rl.SettingError, rl.hooks_for_rows, tiny, given)


def test_what_is_no_path_no_shard_and_no_settings(tiny):
    for read in (
        rl.load_edit,
        rl.SecondMoment.load,
        rl.CausalTrace.load,
        rl.load_model,
        rl.read_counterfact,
        rl.read_requests,
        rl.read_known_facts,
    ):
        assert "expected a path" in refused(rl.SettingError, read, None)
    assert "shard is 3" in refused(rl.SettingError, rl.evaluate_counterfact, tiny, None, [RECORD], shard=3)
    assert "out is 3" in refused(rl.SettingError, rl.evaluate_counterfact, tiny, None, [RECORD], out=3)
    assert "expected Settings" in refused(rl.SettingError, rome, tiny, settings={"layer": 1})
    assert "choose one of" in refused(rl.SettingError, rome, tiny, variant=np.arange(2000))


def test_records_keep_pythons_numbers():
    assert {type(RECORD.number), type(RECORD.case_id)} == {int}
    assert RECORD.paraphrases == ("the city",)
