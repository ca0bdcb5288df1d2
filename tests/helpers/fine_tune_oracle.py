"""Fine-tuning the plain way, as the released code's baseline does it: the model's own parameter, one request at a time.

Slow and obviously right: `FineTuning` is held against it (tests/hosted/test_fine_tune.py). Unlike the released code it
reads every token of the target after those before it, and not all of them from the prompt's last position.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rome_lens.backends import as_backend
from rome_lens.facts import EditRequest


@dataclass(frozen=True)
class PlainTuning:
    """What fine-tuning finds.

    Attributes:
        delta: [d_mlp, d_model] what `W_out` gained.
        losses: the loss of every evaluation.
    """

    delta: Tensor
    losses: list[float]


def plain_fine_tuning(
    model: Any,
    request: EditRequest,
    *,
    layer: int,
    norm_constraint: float | None = None,
    num_steps: int = 25,
    lr: float = 5e-4,
    weight_decay: float = 0.0,
    stop_loss: float = 1e-2,
    prepend_bos: bool = False,
) -> PlainTuning:
    """Train `W_out` of one layer until the model gives the target, then put it back as it was.

    Args:
        model: a HookedTransformer or a TransformerBridge, in evaluation mode; nobody else uses it meanwhile.
        request: what to train it for.
        layer: the layer.
        norm_constraint: no weight gets farther than this from where it began.
        num_steps: evaluations of the loss, at most.
        lr: Adam's learning rate.
        weight_decay: Adam's.
        stop_loss: where a loss below it is met, no step is taken any more.
        prepend_bos: put BOS in front.
    """
    tokenizer = model.tokenizer
    bos = [tokenizer.bos_token_id] if prepend_bos else []
    prompt = bos + tokenizer(request.text, add_special_tokens=False)["input_ids"]
    target = tokenizer(" " + request.target_new.strip(), add_special_tokens=False)["input_ids"]
    tokens = torch.tensor([prompt + target])

    w_out = as_backend(model).w_out(layer)
    weight = w_out.parameter
    original = weight.detach().clone()
    wanted = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    for parameter, _ in wanted:
        parameter.requires_grad_(parameter is weight)
    adam = torch.optim.Adam([weight], lr=lr, weight_decay=weight_decay)
    losses = []
    for _ in range(num_steps):
        adam.zero_grad()
        log_probs = model(tokens).log_softmax(dim=-1)
        said = [log_probs[0, position - 1, tokens[0, position]] for position in range(len(prompt), tokens.shape[1])]
        loss = -torch.stack(said).mean()
        losses.append(loss.item())
        if loss < stop_loss:
            break
        loss.backward()
        adam.step()
        if norm_constraint is not None:
            with torch.no_grad():
                weight.clamp_(original - norm_constraint, original + norm_constraint)
    delta = weight.detach() - original
    with torch.no_grad():
        weight.copy_(original)
    weight.grad = None
    for parameter, want in wanted:
        parameter.requires_grad_(want)
    return PlainTuning(delta.t() if w_out.transposed else delta, losses)
