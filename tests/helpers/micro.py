"""A model small enough to be worked out by hand; test_micro_model says how."""

from math import exp

import torch
from architectures import home_made
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

WORDS = ["<s>", "a", "b", "x", "y"]


def softmax_of_a(**logits: float) -> float:
    """The probability of token a, where the tokens that are not named have the logit 0."""
    all_logits = dict.fromkeys(WORDS, 0.0) | logits
    return exp(all_logits["a"]) / sum(exp(value) for value in all_logits.values())


def micro_model(*, words=WORDS, spaced=True):
    """The model, made anew; without spaces its words are single characters."""
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<s>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace() if spaced else pre_tokenizers.Split(Regex("."), "isolated")
    if not spaced:
        tokenizer.decoder = decoders.Fuse()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", pad_token="<s>", name_or_path="micro", add_bos_token=True
    )
    n = len(words)
    widths = {"d_model": n, "n_heads": 1, "d_head": n, "d_mlp": 2, "d_vocab": n}
    model = home_made(fast, n_layers=2, n_ctx=4, act_fn="relu", normalization_type=None, **widths)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.W_E.copy_(torch.eye(n))
        model.W_U.copy_(torch.eye(n))
        for block in model.blocks:
            block.attn.W_V[0].copy_(torch.eye(n))
            block.attn.W_O[0].copy_(torch.eye(n))
    return model
