"""A guard reads texts with edits and without, and refuses those with which a model has collapsed."""

import math

import evaluation_oracle as oracle
import pytest
import torch
from architectures import BACKENDS, architecture, byte_tokenizer, hugging_face_model
from left_alone import left_alone
from refused import refused

import rome_lens as rl
from rome_lens.backends import as_backend
from rome_lens.editing import guard
from rome_lens.errors import SettingError

TEXTS = ("the tower is in rome", "so the tower is in rome")
REQUEST = rl.EditRequest("{} is in", "the tower", "rome")


@pytest.fixture(params=BACKENDS)
def model(request):
    return architecture("gpt2", request.param)


@pytest.fixture
def edit(model):
    """The opposite of what makes the model say the target: its text is less likely."""
    return rl.FineTuning(model, layer=1, num_steps=4, lr=0.05).edit(REQUEST).scaled(-1.0)


def editor_of(model):
    moment = rl.SecondMoment.from_matrix(torch.eye(64, dtype=torch.float64), layer=1)
    return rl.MEMIT(model, layers=1, second_moments=moment, context_templates=["{}"], v_num_grad_steps=2)


def test_the_ratio_is_that_of_a_plain_reading(model, edit):
    with edit.applied(model):
        ratio = rl.CollapseGuard(texts=TEXTS).ratio(model)
    plain, tokenizer = hugging_face_model("gpt2"), byte_tokenizer()
    before = oracle.perplexity(plain, tokenizer, TEXTS)
    weight = plain.get_submodule(edit.module).weight
    kept = weight.detach().clone()
    with torch.no_grad():
        weight.add_(edit.update)
        after = oracle.perplexity(plain, tokenizer, TEXTS)
        weight.copy_(kept)
    assert ratio == pytest.approx(after / before, rel=1e-9)
    assert ratio > 1.001
    assert rl.CollapseGuard(texts=TEXTS).ratio(model) == 1


def test_an_edit_that_is_refused_is_out_again(model, edit):
    with edit.applied(model):
        ratio = rl.CollapseGuard(texts=TEXTS).ratio(model)
    below, above = (rl.CollapseGuard(ratio * times, TEXTS) for times in (0.999, 1.001))
    with left_alone(model), pytest.raises(rl.CollapseError, match="the model has collapsed with the edit") as refused:
        edit.apply(model, guard=below)
    assert refused.value.edit == edit
    edit.apply(model, guard=above)
    assert edit.is_applied(model)
    edit.revert(model)


def test_what_other_edits_did_counts_too(model, edit):
    other = rl.FineTuning(model, layer=2, num_steps=1, lr=1e-6).edit(REQUEST)
    with edit.applied(model):
        ratio = rl.CollapseGuard(texts=TEXTS).ratio(model)
        with pytest.raises(rl.CollapseError):
            other.apply(model, guard=rl.CollapseGuard(1 + 0.9 * (ratio - 1), TEXTS))
        assert rl.applied_edits(model) == (edit,)


def test_a_set_that_is_refused_is_handed_over(model):
    editor = editor_of(model)
    made = editor.edit_together([REQUEST], guard=rl.CollapseGuard(1e9))
    with left_alone(model), pytest.raises(rl.CollapseError, match="would collapse with 1 facts together") as refused:
        editor.edit_together([REQUEST], guard=Ruined())
    assert refused.value.edit == made


class Ruined(rl.CollapseGuard):
    """Says of every model that it has collapsed."""

    def told(self, model):
        assert rl.applied_edits(model), "the set has to be in the weights while it is looked at"
        return "it babbles"


def test_a_model_without_numbers_has_collapsed(model, edit, monkeypatch):
    def read(logits, ids):
        return torch.full(ids.shape, torch.nan if rl.applied_edits(model) else -1.0, dtype=torch.float64)

    monkeypatch.setattr(guard, "log_probabilities", read)
    monkeypatch.setattr(
        rl.CollapseGuard, "ratio", lambda self, host: guard.perplexity_of(as_backend(host), self.texts) / math.e
    )
    with edit.applied(model):
        assert rl.CollapseGuard(texts=TEXTS).told(model).startswith("texts are inf times as perplexing")
    assert rl.CollapseGuard(texts=TEXTS).told(model) is None


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"perplexity": 1}, "perplexity is 1; expected a factor above 1, such as 2"),
        ({"texts": ()}, "texts is an empty list; expected one text or more"),
        ({"texts": "abc"}, "texts is 'abc'"),
    ],
)
def test_what_is_no_guard_is_refused(given, said):
    assert refused(SettingError, rl.CollapseGuard, **given).startswith(said)


def test_texts_of_one_token_are_refused(model):
    with pytest.raises(SettingError, match="none of the texts has two tokens"):
        rl.CollapseGuard(texts=("a",)).ratio(model)
