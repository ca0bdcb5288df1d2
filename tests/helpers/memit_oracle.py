"""MEMIT and AlphaEdit over several layers the plain way, as their released code inserts values that are given.

Layer by layer, on a model that is really edited: keys and the last block's output are read anew by whole forwards, one
text at a time, and each layer takes an equal share of what is still missing, by a system of d_mlp equations.
"""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from hooked import forward
from torch import Tensor

from rome_lens.backends import as_backend
from rome_lens.facts import EditRequest

Solve = Callable[[Tensor, Tensor, int], Tensor]
"""What a layer gains, [d_mlp, d_model], of keys [fact, d_mlp], what is missing [fact, d_model], and the layer."""


@torch.no_grad()
def read(
    model: Any, request: EditRequest, *, layer: int, last: int, templates: Sequence[str], bare_weight: float
) -> tuple[Tensor, Tensor]:
    """The mean key of a layer over the templates, and the last block's output under the bare one, the first."""
    backend, keys, outputs = as_backend(model), [], []
    for template in templates:
        text = template.replace("{}", request.text)
        end = template.index("{}") + request.subject_span[1] - 1
        encoded = model.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        (*_, place) = (i for i, (first, stop) in enumerate(encoded["offset_mapping"]) if first <= end < stop)
        seen: dict[str, Tensor] = {}

        def keep(what: str, seen: dict[str, Tensor] = seen) -> Any:
            return lambda x, hook=None: seen.update({what: x.detach().clone()})

        hooks = [
            (f"blocks.{layer}.mlp.hook_post", keep("key")),
            (backend.stream_hook("resid", last), keep("output")),
        ]
        forward(model, torch.tensor([encoded["input_ids"]]), hooks)
        keys.append(seen["key"].reshape(len(encoded["input_ids"]), -1)[place].double())
        outputs.append(seen["output"][0, place].double())
    others = torch.stack(keys[1:]).mean(dim=0) if len(keys) > 1 else keys[0]
    return bare_weight * keys[0] + (1 - bare_weight) * others, outputs[0]


def inserted(
    model: Any, requests: Sequence[EditRequest], goals: Tensor, solve: Solve, *, layers: Sequence[int], **how: Any
) -> list[Tensor]:
    """What each layer gains.

    Args:
        model: in float64; it is copied.
        requests: what is asked.
        goals: [fact, d_model] z of each, for the last layer's block.
        solve: the method.
        layers: from the lowest.
        how: the templates and the bare one's weight, as `read` takes them.
    """
    edited, updates = copy.deepcopy(model), []
    for place, layer in enumerate(layers):
        readings = [read(edited, request, layer=layer, last=layers[-1], **how) for request in requests]
        keys, outputs = (torch.stack(each) for each in zip(*readings, strict=True))
        update = solve(keys, (goals - outputs) / (len(layers) - place), layer)
        w_out = as_backend(edited).w_out(layer)
        w_out.write(w_out.matrix.double() + update)
        updates.append(update)
    return updates


def memit(moments: dict[int, Tensor], number: float) -> Solve:
    """(λ C + K Kᵀ)⁻¹ K R."""
    return lambda keys, lacks, layer: torch.linalg.solve(number * moments[layer] + keys.t() @ keys, keys.t() @ lacks)


def alpha_edit(moments: dict[int, Tensor], threshold: float, l2: float) -> Solve:
    """[P K Kᵀ + L2]⁻¹ P K R, P the directions of C below the threshold."""

    def solve(keys: Tensor, lacks: Tensor, layer: int) -> Tensor:
        u, values, _ = torch.linalg.svd(moments[layer])
        small = u[:, values < threshold]
        projected = small @ small.t() @ keys.t()
        return torch.linalg.solve(projected @ keys + l2 * torch.eye(len(u), dtype=u.dtype), projected @ lacks)

    return solve
