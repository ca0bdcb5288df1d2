"""A model of which memory does not hold a second copy: layers run twice, keep less, and give the very same edits."""

import pytest
import torch
from architectures import architecture
from hosts import hosted
from tiny_rome import REQUEST, rome
from torch.autograd.graph import saved_tensors_hooks

import rome_lens as rl
from rome_lens.backends import decoding
from rome_lens.editing import forward

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:transformer_lens")

OTHER = rl.EditRequest("a {}", subject="cd", target_new="xw")


@pytest.fixture
def little(monkeypatch):
    """Calls a function as if memory did not hold the weights twice, though they are laid out as ever."""
    make_ready = forward.make_ready

    def call(run):
        with monkeypatch.context() as patch:
            patch.setattr(forward, "make_ready", lambda *given, **how: make_ready(*given, **how) and False)
            return run()

    return call


def kept(run):
    """What is kept for gradients, in bytes, and what the function gives."""
    sizes = []

    def keep(x):
        sizes.append(x.numel() * x.element_size())
        return x

    with saved_tensors_hooks(keep, lambda x: x):
        found = run()
    return sum(sizes), found


@pytest.mark.parametrize(
    ("name", "host"),
    hosted(without=["mixtral"], at_landing=["gpt2", "llama", "gptj", "neox", "falcon", "bloom", "opt"]),
)
def test_the_edit_is_the_same_to_the_bit_and_less_is_kept(name, host, little):
    editor = rome(architecture(name, host))
    much, expected = kept(lambda: editor.edit(REQUEST))
    less, found = kept(lambda: little(lambda: editor.edit(REQUEST)))
    assert found.notes == expected.notes
    assert "whole forwards" not in " ".join(found.notes)
    assert torch.equal(found.u, expected.u)
    assert torch.equal(found.v, expected.v)
    assert found.loss_curve == expected.loss_curve
    assert less < 0.7 * much


def test_requests_together_are_the_same_to_the_bit(llama, little):
    editor = rome(llama)
    expected = editor.edit_many([REQUEST, OTHER], batch_size=2)
    found = little(lambda: editor.edit_many([REQUEST, OTHER], batch_size=2))
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one.u, other.u)
        assert torch.equal(one.v, other.v)


def test_fine_tuning_is_the_same_to_the_bit_and_less_is_kept(llama, little):
    editor = rl.FineTuning(llama, layer=1, num_steps=3)
    much, expected = kept(lambda: editor.edit(REQUEST))
    less, found = kept(lambda: little(lambda: editor.edit(REQUEST)))
    assert torch.equal(found.delta, expected.delta)
    assert less < 0.8 * much


@pytest.mark.parametrize("why", ["nothing is free", "the weights are large"])
def test_where_weights_are_not_laid_out_the_edit_is_the_same_but_for_rounding(why, gpt2, monkeypatch):
    editor = rome(gpt2)
    much, expected = kept(lambda: editor.edit(REQUEST))
    if why == "nothing is free":
        monkeypatch.setattr(decoding, "free_bytes", lambda device: 0)
    else:
        monkeypatch.setattr(forward, "MOST_LAID_OUT", 100)
    less, found = kept(lambda: editor.edit(REQUEST))
    assert (found.update - expected.update).norm() <= 1e-9 * expected.update.norm()
    assert found.notes == expected.notes
    assert less < 0.9 * much
