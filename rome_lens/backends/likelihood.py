"""Log-probabilities of tokens, from logits of any precision, in float64.

A joint probability of a dozen tokens is soon below what float32 holds (1e-45), and below what float64 holds (1e-323)
after a few dozen: logarithms are added up, and only the sum is ever exponentiated.
"""

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor


def log_probabilities(logits: Float[Tensor, "*place d_vocab"], ids: Int[Tensor, "*place"]) -> Float64[Tensor, "*place"]:
    """The log-probability of one token at each place, natural logarithm."""
    chosen = logits.gather(-1, ids.to(logits.device)[..., None])[..., 0]
    return chosen.double() - normalisers(logits)


def normalisers(logits: Float[Tensor, "*place d_vocab"]) -> Float64[Tensor, "*place"]:
    """The logarithm of the sum of the exponentials at each place: what a logit exceeds its log-probability by."""
    logits = at_least_float32(logits)
    highest = logits.detach().amax(dim=-1, keepdim=True)
    # Each exponential is right to float32's rounding, and these errors are independent: the sum, in float64, is righter
    # than they are. A copy of all logits in float64 would take twice the memory for nothing that the logits hold.
    total = (logits - highest).exp().sum(dim=-1, dtype=torch.float64)
    return highest[..., 0].double() + total.log()


def at_least_float32(logits: Float[Tensor, "*place d_vocab"]) -> Float[Tensor, "*place d_vocab"]:
    """Logits in a precision that exponentials can be added up in."""
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
