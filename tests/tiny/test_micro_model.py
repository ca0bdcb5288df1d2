"""A model small enough to be worked out by hand: every score of its grids is written down here.

Two layers, no MLP weights, no norm, no position information; attention looks at all earlier positions alike (queries
and keys are zero) and copies (values and outputs are the identity). A layer therefore maps the residual r of a position
to r + mean(r of all positions up to it). Embedding and unembedding are the identity, so logits are residuals.

Prompt "a x", subject "a" swapped for "b", answer "a", with e_t the unit vector of token t:

clean      r0 = [a, x]  r1 = [2a, 1.5x + .5a]  r2 = [4a, 2.25x + 1.75a]
corrupted  r0 = [b, x]  r1 = [2b, 1.5x + .5b]  r2 = [4b, 2.25x + 1.75b]
"""

import pytest
import torch
from hosts import needs_hooked
from micro import micro_model, softmax_of_a

import rome_lens as rl

pytestmark = needs_hooked

HIGH = softmax_of_a(x=2.25, a=1.75)
LOW = softmax_of_a(x=2.25, b=1.75)
# Residual of position 0 restored after layer 0: the last position's second layer adds half of 2a instead of 2b.
EARLY = softmax_of_a(x=2.25, b=0.75, a=1)
# What attention gave at the last position in layer 0, or its residual there: .5a instead of .5b, which grows by half;
# position 0 still gives 2b.
FIRST_HALF = softmax_of_a(x=2.25, a=0.75, b=1)
# Attention's output at the last position in layer 1: (1.5x + 2.5a) / 2 on top of the corrupted 1.5x + .5b.
SECOND_HALF = softmax_of_a(x=2.25, a=1.25, b=0.5)


@pytest.fixture(scope="module")
def micro():
    return micro_model()


@pytest.mark.parametrize("engine", ["auto", "plain"])
def test_every_score_is_what_was_worked_out_by_hand(micro, engine):
    traced = rl.causal_trace(micro, "a x", subject="a", swap="b", answer="a", window=1, engine=engine)
    assert traced.high == pytest.approx(HIGH, abs=1e-12)
    assert traced.low == pytest.approx(LOW, abs=1e-12)
    expected = {
        "resid": [[EARLY, FIRST_HALF], [LOW, HIGH]],
        "mlp": [[LOW, LOW], [LOW, LOW]],
        # Attention at position 0 in layer 0 gave a; its residual is then b + a, and half of it reaches the end.
        "attn": [[softmax_of_a(x=2.25, b=1.25, a=0.5), FIRST_HALF], [LOW, SECOND_HALF]],
    }
    by_hand = {stream: torch.tensor(grid, dtype=torch.float64) for stream, grid in expected.items()}
    torch.testing.assert_close(traced.scores, by_hand, rtol=0, atol=1e-12)


def test_a_window_over_both_layers_restores_all_that_attention_gave(micro):
    traced = rl.causal_trace(micro, "a x", subject="a", swap="b", answer="a", window=2)
    # l = 1 covers layers 0 and 1, l = 0 layer 0 alone (SPEC 1: l - w/2 .. l + w/2 - 1).
    assert traced.scores["attn"][1, 1] == pytest.approx(softmax_of_a(x=2.25, a=1.75), abs=1e-12)
    assert traced.scores["attn"][0, 1] == pytest.approx(FIRST_HALF, abs=1e-12)
    # At position 0 the embedding alone stays corrupted: b + a after layer 0, and layer 1 adds nothing that is read.
    assert traced.scores["attn"][1, 0] == pytest.approx(softmax_of_a(x=2.25, b=1.25, a=0.5), abs=1e-12)
