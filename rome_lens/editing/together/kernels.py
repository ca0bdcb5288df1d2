"""What it costs to move a layer's `W_out`, as a kernel between keys: by the text's second moment or its null space.

All editors of many facts minimise `Σ |Δᵀk - r|² + penalty · tr(Δᵀ M Δ)` and differ in M alone. With `A = M⁻¹`, the
update is `Σ outer(A k_j, c_j)`, where `A k_j` depends on its own key only, and `kᵀ A k'` is all that a key knows of
another: kernel ridge regression. Of MEMIT and EMMET M is the second moment of the text's keys; of AlphaEdit A is a
projection onto the directions that text hardly uses.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from rome_lens.editing.second_moment.moment import SecondMoment
from rome_lens.errors import SettingError

# Keys are weighed in blocks of one shape, so that the bits of one do not depend on how many others there are.
_AT_A_TIME = 32


class Kernel(ABC):
    """How the keys of one layer are weighed.

    Attributes:
        name: in files.
        layer: the layer, counted from 0.
    """

    name: ClassVar[str]
    layer: int

    @torch.no_grad()
    def weigh(self, keys: Float[Tensor, "fact d_mlp"]) -> Float[Tensor, "fact d_mlp"]:
        """`A k` of each key, in float64; the bits of each are those that it has alone."""
        weighed = torch.empty(keys.shape, dtype=torch.float64)
        block = torch.empty(_AT_A_TIME, keys.shape[1], dtype=torch.float64)
        for start in range(0, len(keys), _AT_A_TIME):
            part = keys[start : start + _AT_A_TIME]
            block.zero_()[: len(part)] = part
            weighed[start : start + len(part)] = self._weigh(block)[: len(part)]
        return weighed

    @abstractmethod
    def _weigh(self, keys: Float[Tensor, "fact d_mlp"]) -> Float[Tensor, "fact d_mlp"]:
        """Those of a block."""

    @abstractmethod
    def features(self, keys: Float[Tensor, "fact d_mlp"]) -> Float[Tensor, "fact direction"]:
        """Keys in the directions in which the update may move: where there are more facts than directions, the system
        is solved there.
        """

    @property
    @abstractmethod
    def metric(self) -> Float[Tensor, "direction direction"]:
        """M in these directions, a new matrix."""

    @abstractmethod
    def as_update(self, moved: Float[Tensor, "direction d_model"]) -> Float[Tensor, "d_mlp d_model"]:
        """An update from what it does in these directions."""

    @abstractmethod
    def text_energy(self, matrix: Float[Tensor, "d_mlp d_model"]) -> float:
        """`E |matrixᵀ k|²` over the keys of text, `tr(matrixᵀ C matrix)`."""

    @property
    @abstractmethod
    def width(self) -> int:
        """How many directions there are: no set of facts has more leverage than that."""

    @cached_property
    def id(self) -> str:
        """What two kernels share exactly when they weigh alike: 16 hexadecimal digits."""
        digest = hashlib.sha256(repr((self.name, self.layer, self.numbers)).encode())
        for name, tensor in sorted(self.tensors.items()):
            digest.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]

    @property
    @abstractmethod
    def numbers(self) -> Mapping[str, Any]:
        """What it was made with, as JSON holds it."""

    @property
    @abstractmethod
    def tensors(self) -> Mapping[str, Tensor]:
        """What it is made of."""


@dataclass(frozen=True, eq=False)
class TextKernel(Kernel):
    """`A = (d_mlp (C + ridge))⁻¹`: a direction costs what text uses it (MEMIT 2210.07229, equation 14).

    In units of d_mlp, since over text the mean of `kᵀ C⁻¹ k` is d_mlp, whatever the model: a penalty of 1 halves what
    a key like those of text is answered with. The published λ count tokens; λ / d_mlp is the penalty here.

    Attributes:
        moment: C of the layer.
        ridge: what is added to the diagonal of C, in units of its mean (ENCORE's λ_n I, 2502.01636, over λ); None is
            the least with which C can be inverted.
    """

    name = "text"
    moment: SecondMoment
    ridge: float | None = None

    @property
    def layer(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.moment.layer

    @property
    def width(self) -> int:
        return self.moment.d_mlp

    @property
    def numbers(self) -> Mapping[str, Any]:
        return {"ridge": self.ridge}

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        return {"second_moment": self.moment.matrix}

    def _weigh(self, keys: Float[Tensor, "fact d_mlp"]) -> Float[Tensor, "fact d_mlp"]:
        return self.moment.solve(keys, self.ridge).to(keys) / self.width

    def features(self, keys: Float[Tensor, "fact d_mlp"]) -> Float[Tensor, "fact direction"]:
        return keys

    @property
    def metric(self) -> Float[Tensor, "direction direction"]:
        matrix = self.moment.matrix.to("cpu", torch.float64, copy=True)
        diagonal = matrix.diagonal()
        diagonal += (self.moment.ridge if self.ridge is None else self.ridge) * diagonal.mean()
        return matrix.mul_(self.width)

    def as_update(self, moved: Float[Tensor, "direction d_model"]) -> Float[Tensor, "d_mlp d_model"]:
        return moved

    def text_energy(self, matrix: Float[Tensor, "d_mlp d_model"]) -> float:
        matrix = matrix.to("cpu", torch.float64)
        return float((matrix * (self.moment.matrix.to(matrix) @ matrix)).sum())


@dataclass(frozen=True, eq=False)
class NullSpaceKernel(Kernel):
    """`A = B Bᵀ / scale`, a projection onto directions that text hardly uses (AlphaEdit 2410.02355, section 3.2).

    Attributes:
        layer: the layer.
        basis: [d_mlp, direction] B: eigenvectors of C, of length 1, by rising eigenvalue.
        values: [direction] their eigenvalues.
        total: the sum of all eigenvalues of C: the mean squared length of a key over text.
        scale: what a penalty is in units of; 1 for the released code's L2.
    """

    name = "null_space"
    layer: int
    basis: Float[Tensor, "d_mlp direction"]
    values: Float[Tensor, " direction"]
    total: float
    scale: float

    @classmethod
    def of(
        cls, moment: SecondMoment, *, energy: float, threshold: float | None, scale: float | None
    ) -> "NullSpaceKernel":
        """The eigenvectors of C that an update may move.

        Args:
            moment: C of the layer.
            energy: the share of the text's energy, `tr C`, that lies in these directions at most.
            threshold: instead: those whose eigenvalue is below this, as the released code takes them, in units of
                squared activations.
            scale: as the attribute; None is the mean squared length of a key, so that a penalty has no unit.

        Raises:
            SettingError: no direction may be moved.
        """
        values, vectors = torch.linalg.eigh(moment.matrix.to("cpu", torch.float64))
        values = values.clamp(min=0)
        held = values.cumsum(0)
        total = held[-1].item()
        n = int((values < threshold).sum()) if threshold is not None else int((held <= energy * total).sum())
        if not n:
            given = f"energy is {energy:g}" if threshold is None else f"threshold is {threshold:g}"
            raise SettingError(
                f"{given}, and no direction of layer {moment.layer} may be moved: the smallest eigenvalue of its "
                f"second moment is {values[0].item():.3g}, a share of {values[0].item() / total:.2g} of the text's "
                "energy; give more"
            )
        basis, of_basis = vectors[:, :n].contiguous(), values[:n].contiguous()
        return cls(moment.layer, basis, of_basis, total, total if scale is None else scale)

    @property
    def width(self) -> int:
        return self.basis.shape[1]

    @property
    def share(self) -> float:
        """The share of the text's energy in these directions."""
        return self.values.sum().item() / self.total

    @property
    def numbers(self) -> Mapping[str, Any]:
        return {"total": self.total, "scale": self.scale}

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        return {"basis": self.basis, "values": self.values}

    def _weigh(self, keys: Float[Tensor, "fact d_mlp"]) -> Float[Tensor, "fact d_mlp"]:
        return self.features(keys) @ self.basis.t() / self.scale

    def features(self, keys: Float[Tensor, "fact d_mlp"]) -> Float[Tensor, "fact direction"]:
        return keys @ self.basis

    @property
    def metric(self) -> Float[Tensor, "direction direction"]:
        return torch.eye(self.width, dtype=torch.float64).mul_(self.scale)

    def as_update(self, moved: Float[Tensor, "direction d_model"]) -> Float[Tensor, "d_mlp d_model"]:
        return self.basis @ moved

    def text_energy(self, matrix: Float[Tensor, "d_mlp d_model"]) -> float:
        """Of an update, which lies in these directions; of other matrices what lies in them."""
        moved = self.basis.t() @ matrix.to(self.basis)
        return float((self.values[:, None] * moved.square()).sum())
