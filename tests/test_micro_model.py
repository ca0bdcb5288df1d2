"""A model small enough to be worked out by hand: every score of its grids is written down here.

Two layers, no MLP weights, no norm, no position information; attention looks at all earlier positions alike (queries
and keys are zero) and copies (values and outputs are the identity). A layer therefore maps the residual r of a position
to r + mean(r of all positions up to it). Embedding and unembedding are the identity, so logits are residuals.

Prompt "a x", subject "a" swapped for "b", answer "a", with e_t the unit vector of token t:

clean      r0 = [a, x]  r1 = [2a, 1.5x + .5a]  r2 = [4a, 2.25x + 1.75a]
corrupted  r0 = [b, x]  r1 = [2b, 1.5x + .5b]  r2 = [4b, 2.25x + 1.75b]
"""

from math import exp

import pytest
import torch
from architectures import BACKENDS, HOOKED
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import rome_lens as rl

pytestmark = pytest.mark.skipif(HOOKED not in BACKENDS, reason="built by hand as a HookedTransformer")

WORDS = ["<s>", "a", "b", "x", "y"]


def softmax_of_a(**logits: float) -> float:
    """The probability of token a, where the tokens that are not named have the logit 0."""
    all_logits = dict.fromkeys(WORDS, 0.0) | logits
    return exp(all_logits["a"]) / sum(exp(value) for value in all_logits.values())


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
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<s>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", pad_token="<s>", name_or_path="micro", add_bos_token=True
    )
    n = len(WORDS)
    cfg = HookedTransformerConfig(
        n_layers=2, d_model=n, n_heads=1, d_head=n, d_mlp=2, d_vocab=n, n_ctx=4, act_fn="relu",
        normalization_type=None, dtype=torch.float64,
    )  # fmt: skip
    model = HookedTransformer(cfg, fast).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.W_E.copy_(torch.eye(n))
        model.W_U.copy_(torch.eye(n))
        for block in model.blocks:
            block.attn.W_V[0].copy_(torch.eye(n))
            block.attn.W_O[0].copy_(torch.eye(n))
    return model


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
    for stream, grid in expected.items():
        torch.testing.assert_close(
            traced.scores[stream], torch.tensor(grid, dtype=torch.float64), rtol=0, atol=1e-12, msg=stream
        )


def test_a_window_over_both_layers_restores_all_that_attention_gave(micro):
    traced = rl.causal_trace(micro, "a x", subject="a", swap="b", answer="a", window=2)
    # l = 1 covers layers 0 and 1, l = 0 layer 0 alone (SPEC 1: l - w/2 .. l + w/2 - 1).
    assert traced.scores["attn"][1, 1] == pytest.approx(softmax_of_a(x=2.25, a=1.75), abs=1e-12)
    assert traced.scores["attn"][0, 1] == pytest.approx(FIRST_HALF, abs=1e-12)
    # At position 0 the embedding alone stays corrupted: b + a after layer 0, and layer 1 adds nothing that is read.
    assert traced.scores["attn"][1, 0] == pytest.approx(softmax_of_a(x=2.25, b=1.25, a=0.5), abs=1e-12)
