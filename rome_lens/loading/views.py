"""Weights of one model under the names and shapes of another, in the very memory where they are.

TransformerLens's converters give views of Hugging Face's parameters wherever a weight is only named, transposed or
split. Taken as they are they cost no memory, and where the weights are mapped from their file, nothing is read before
it is used. But a model's parameters are changed in place, so no two of them may share a number.
"""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor


def without_sharing(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same weights without their gradients, each with numbers of its own.

    Args:
        weights: by name, in whatever layout; on any device, the meta device too.

    Returns:
        In the same order: the tensor itself, or a copy of one that shares some of its numbers with an earlier one or
        with itself. A copy keeps its layout where that has no gaps.
    """
    separate: dict[str, Tensor] = {}
    taken: dict[int, list[tuple[int, int, Tensor]]] = {}
    for name, weight in weights.items():
        tensor = weight.detach()
        first, end = _stretch(tensor)
        here = taken.setdefault(tensor.untyped_storage()._cdata, [])
        repeats = any(size > 1 and stride == 0 for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
        if first < end and (repeats or any(first < e and f < end and _meet(tensor, other) for f, e, other in here)):
            separate[name] = tensor.clone()
        else:
            separate[name] = tensor
            here.append((first, end, tensor))
    return separate


def bytes_beside(weights: Mapping[str, Tensor], own: Iterable[Tensor]) -> int:
    """Memory that weights take beside the tensors that they were made from, as `without_sharing` gives them.

    Args:
        weights: by name.
        own: the tensors.
    """
    known = {tensor.untyped_storage()._cdata for tensor in own}
    new = {tensor.untyped_storage()._cdata: tensor.untyped_storage() for tensor in without_sharing(weights).values()}
    return sum(storage.nbytes() for key, storage in new.items() if key not in known)


def _stretch(tensor: Tensor) -> tuple[int, int]:
    """Where a tensor's numbers lie in its storage, in bytes: the first one, and what is behind the last."""
    if tensor.numel() == 0:
        return 0, 0
    first = int(tensor.storage_offset())
    last = first + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return first * tensor.itemsize, (last + 1) * tensor.itemsize


def _meet(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors of one storage have a number in common."""
    if one.itemsize != other.itemsize:
        return True  # numbers of different sizes over one another
    (first, end), (its_first, its_end) = _stretch(one), _stretch(other)
    start = min(first, its_first) // one.itemsize
    used = torch.zeros(max(end, its_end) // one.itemsize - start, dtype=torch.bool)

    def place(tensor: Tensor) -> Tensor:
        return used.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset() - start)

    place(other).fill_(True)
    return bool(place(one).any())
