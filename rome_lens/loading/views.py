"""Weights of one model under the names and shapes of another, in the very memory where they are.

TransformerLens's converters give views of Hugging Face's parameters wherever a weight is only named, transposed or
split. Taken as they are they cost no memory, and where the weights are mapped from their file, nothing is read before
it is used. But a model's parameters are changed in place, so no two of them may share a number.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass
class _Stretch:
    """A stretch of one storage, in bytes, and the weights that lie in it."""

    first: int
    end: int
    members: list[Tensor] = field(default_factory=list)


def without_sharing(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same weights without their gradients, each with numbers of its own.

    Args:
        weights: by name, in whatever layout; on any device, the meta device too.

    Returns:
        In the same order: the tensor itself, or a copy of one that shares some of its numbers with an earlier one or
        with itself. A copy keeps its layout where that has no gaps.
    """
    separate: dict[str, Tensor] = {}
    stretches: dict[int, list[_Stretch]] = {}
    for name, weight in weights.items():
        tensor = weight.detach()
        taken = stretches.setdefault(tensor.untyped_storage()._cdata, [])
        separate[name] = tensor if _take(tensor, taken) else tensor.clone()
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


def _take(tensor: Tensor, taken: list[_Stretch]) -> bool:
    """Note that a tensor's numbers are taken, unless one of them is already."""
    if tensor.numel() == 0:
        return True
    steps = [(size - 1, stride) for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if size > 1]
    if any(stride == 0 for _, stride in steps):
        return False
    first = int(tensor.storage_offset()) * tensor.itemsize
    end = first + (sum(most * stride for most, stride in steps) + 1) * tensor.itemsize
    near = [stretch for stretch in taken if stretch.first < end and first < stretch.end]
    joined = _Stretch(min([first, *(s.first for s in near)]), max([end, *(s.end for s in near)]))
    joined.members = [member for stretch in near for member in stretch.members]
    if joined.members and _meets(tensor, joined):
        return False
    joined.members.append(tensor)
    taken[:] = [stretch for stretch in taken if stretch not in near] + [joined]
    return True


def _meets(tensor: Tensor, stretch: _Stretch) -> bool:
    """Whether a tensor has a number in common with those that lie in the stretch."""
    import torch

    size = tensor.itemsize
    if stretch.first % size or any(member.itemsize != size for member in stretch.members):
        return True  # numbers of different sizes over one another
    used = torch.zeros((stretch.end - stretch.first) // size, dtype=torch.bool)

    def place(member: Tensor) -> Tensor:
        return used.as_strided(member.shape, member.stride(), member.storage_offset() - stretch.first // size)

    for member in stretch.members:
        place(member).fill_(True)
    return bool(place(tensor).any())
