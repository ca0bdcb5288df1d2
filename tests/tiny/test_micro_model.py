"""A model small enough to be worked out by hand: every score of its grids is written down here.

Two layers, no MLP weights, no norm, no position information; attention looks at all earlier positions alike (queries
and keys are zero) and copies (values and outputs are the identity). A layer therefore maps the residual r of a position
to r + mean(r of all positions up to it). Embedding and unembedding are the identity, so logits are residuals.

Prompt "a x", subject "a" swapped for "b", answer "a", with e_t the unit vector of token t:

clean      r0 = [a, x]  r1 = [2a, 1.5x + .5a]  r2 = [4a, 2.25x + 1.75a]
corrupted  r0 = [b, x]  r1 = [2b, 1.5x + .5b]  r2 = [4b, 2.25x + 1.75b]
"""

from math import exp, log

import pytest
import torch
from hosts import needs_hooked
from micro import WORDS, micro_model, softmax_of_a

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


def log_of_a(**logits):
    return log(softmax_of_a(**logits))


def divergence(**logits):
    """KL from the clean run's next tokens to those of these logits; the clean run has 2.25 for x and 1.75 for a."""
    before, here = (
        {word: value - log(sum(map(exp, all_logits.values()))) for word, value in all_logits.items()}
        for all_logits in (dict.fromkeys(WORDS, 0.0) | given for given in ({"x": 2.25, "a": 1.75}, logits))
    )
    return sum(exp(before[word]) * (before[word] - here[word]) for word in WORDS)


def a_less_x(logits, answer_ids):
    return logits[:, -1, answer_ids[-1]] - logits[:, -1, WORDS.index("x")]


# What each cell's last residual is, as above, and what a measure makes of it.
FINAL = {
    "resid": [[{"x": 2.25, "b": 0.75, "a": 1}, {"x": 2.25, "a": 0.75, "b": 1}], [None, {"x": 2.25, "a": 1.75}]],
    "attn": [
        [{"x": 2.25, "b": 1.25, "a": 0.5}, {"x": 2.25, "a": 0.75, "b": 1}],
        [None, {"x": 2.25, "a": 1.25, "b": 0.5}],
    ],
    "mlp": [[None, None], [None, None]],
}
MEASURES = {
    "log_probability": (log_of_a, {}),
    "logit_difference": (lambda **logits: logits.get("a", 0.0) - logits["x"], {"against": "x"}),
    "kl": (divergence, {}),
    "a_less_x()": (lambda **logits: logits.get("a", 0.0) - logits["x"], {"measure": a_less_x}),
}


@pytest.mark.parametrize("engine", ["auto", "plain"])
@pytest.mark.parametrize("name", MEASURES)
def test_every_measure_is_what_was_worked_out_by_hand(micro, name, engine):
    of, given = MEASURES[name]
    given = {"measure": name} | given
    traced = rl.causal_trace(micro, "a x", subject="a", swap="b", answer="a", window=1, engine=engine, **given)
    low, high = of(x=2.25, b=1.75), of(x=2.25, a=1.75)
    assert (traced.measure, traced.low, traced.high) == (name, pytest.approx(low), pytest.approx(high, abs=1e-12))
    by_hand = {
        stream: torch.tensor(
            [[low if cell is None else of(**cell) for cell in row] for row in grid], dtype=torch.float64
        )
        for stream, grid in FINAL.items()
    }
    torch.testing.assert_close(traced.scores, by_hand, rtol=0, atol=1e-12)
    effects = (by_hand["attn"] - low, traced.effect("attn"))
    torch.testing.assert_close(*effects, rtol=0, atol=1e-12)
    torch.testing.assert_close(effects[0] / (high - low), traced.normalized("attn"), rtol=0, atol=1e-12)
    # The residual stream's last layer at the last token restores everything.
    assert traced.peak("resid") == (1, 1)
    assert traced.falls is (name == "kl")
    assert not traced.notes
