"""Models and callers in torch's inference mode, whose tensors no gradient can go through."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def ordinary_tensors(model: nn.Module) -> Iterator[None]:
    """Leave a caller's inference mode, and put copies in the place of parameters and buffers that were made in one.

    Such a tensor cannot be kept for a gradient, nor viewed as torch views others. The copies take as much memory as
    what they stand for, and go with the block; a model that was made as most are is left as it is. Whether gradients
    are recorded stays as it was.

    Args:
        model: the model.
    """
    with ExitStack() as stack:
        if torch.is_inference_mode_enabled():
            records = torch.is_grad_enabled()
            stack.enter_context(torch.inference_mode(False))  # which turns the recording of gradients on
            stack.enter_context(torch.set_grad_enabled(records))
        replaced = _replace(model)
        try:
            yield
        finally:
            for place, name, original, copy in replaced:
                if place.get(name) is copy:
                    place[name] = original


def _replace(model: nn.Module) -> list[tuple[dict[str, Tensor | None], str, Tensor, Tensor]]:
    """Put the copies in: where they stand now, under which name, what stood there, and the copy."""
    copies: dict[int, Tensor] = {}
    replaced: list[tuple[dict[str, Tensor | None], str, Tensor, Tensor]] = []
    for module in model.modules():
        for place in (module._parameters, module._buffers):
            for name, tensor in place.items():
                if tensor is None or not tensor.is_inference():
                    continue
                if id(tensor) not in copies:
                    copy = tensor.detach().clone()
                    wanted = tensor.requires_grad
                    copies[id(tensor)] = nn.Parameter(copy, wanted) if isinstance(tensor, nn.Parameter) else copy
                replaced.append((place, name, tensor, copies[id(tensor)]))  # pyright: ignore[reportArgumentType]
    for place, name, _, copy in replaced:
        place[name] = copy
    return replaced
