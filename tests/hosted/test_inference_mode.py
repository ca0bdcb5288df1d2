"""Callers in torch's inference mode, and models that were made in it: the same numbers, and nothing left behind."""

import copy
from contextlib import nullcontext

import pytest
import torch
from architectures import BACKENDS, own
from edits import w_out
from left_alone import left_alone
from tiny_rome import REQUEST, rome

import rome_lens as rl

ASK = {"prompt": "ab cde fgh", "subject": "cde", "answer": "x", "samples": 2}


@pytest.fixture(scope="module", params=BACKENDS)
def models(request):
    """One model made as usual, and one of the same weights made in inference mode."""
    plain = own("gpt2", request.param, dtype=torch.float32)
    with torch.inference_mode():
        made = own("gpt2", request.param, dtype=torch.float32)
        made.load_state_dict(plain.state_dict())
    return {"plain": plain, "made": made}


WORK = {
    "trace": lambda model: rl.causal_trace(model, **ASK, noise=0.3).scores["mlp"],
    "attribution": lambda model: rl.causal_trace(model, **ASK, noise=0.3, engine="attribution").scores["mlp"],
    "swap": lambda model: rl.causal_trace(model, **ASK, swap="xyz", engine="attribution").scores["resid"],
    "rome": lambda model: rome(model, v_num_grad_steps=3).edit(REQUEST).v,
    "fine-tuning": lambda model: rl.FineTuning(model, layer=1, num_steps=3).edit(REQUEST).delta,
    "stats": lambda model: rl.SecondMoment.collect(model, layers=[1], texts=["abc def"] * 9)[1].matrix,
}


@pytest.mark.parametrize(
    ("which", "mode"), [("plain", torch.inference_mode), ("made", nullcontext), ("made", torch.no_grad)]
)
@pytest.mark.parametrize("work", WORK)
def test_inference_mode_changes_no_number(models, work, which, mode):
    """F13: attribution, and whatever else takes gradients, of a model made in that mode or by a caller in it."""
    model, expected = models[which], WORK[work](models["plain"])
    with left_alone(model), mode():
        found = WORK[work](model)
        assert torch.is_inference_mode_enabled() == (mode is torch.inference_mode)
        assert torch.is_grad_enabled() == (mode is nullcontext)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("which", ["plain", "made"])
def test_edits_go_on_in_one_mode_and_off_in_the_other(models, which):
    model = models[which]
    original, edit = w_out(model).clone(), rome(models["plain"]).edit(REQUEST)
    for on, off in ((torch.inference_mode, nullcontext), (nullcontext, torch.inference_mode)):
        with on():
            edit.apply(model)
        twin = copy.deepcopy(model)
        with off():
            assert edit.is_applied(model)
            edit.revert(model)
            edit.revert(twin)
        assert torch.equal(w_out(model), original)
        assert torch.equal(w_out(twin), original)
