"""`W_out` of one layer: read as TransformerLens shapes it, written where the model really keeps it.

Rank-one editing needs `value = key @ W_out + b_out` with the key and the value passing hook points of the model. That
is tried on a prompt before anything is edited, since a mixture of experts, a norm after the MLP or an architecture
that is new may be otherwise.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from rome_lens.errors import ArtefactError, ModelError
from rome_lens.storage import read_fields

# How many numbers of a matrix a fingerprint keeps, and how far apart they may be: rounding to bfloat16 moves them by
# about 2e-3, another model's are about 1 away.
_SKETCHES = 8
_SAME_SKETCH = 1e-2
_SAME_NORM = 1e-2
# The fields of a fingerprint as files hold them.
_FIELDS = {
    "model_name": str,
    **dict.fromkeys(("layer", "n_layers", "d_model", "d_mlp"), int),
    "norm": int | float,
    "sketch": list | tuple,
}


@dataclass(frozen=True)
class WOut:
    """The matrix that takes an MLP's hidden activations back to the residual stream.

    Attributes:
        parameter: the model's own parameter, in the model's own layout.
        transposed: it is stored [d_model, d_mlp] (Hugging Face's `Linear`) and not [d_mlp, d_model].
        bias: [d_model], or None.
    """

    parameter: nn.Parameter
    transposed: bool
    bias: Tensor | None

    @property
    def matrix(self) -> Float[Tensor, "d_mlp d_model"]:
        """A view of the parameter, without its gradient."""
        data = self.parameter.detach()
        return data.t() if self.transposed else data

    def write(self, matrix: Float[Tensor, "d_mlp d_model"]) -> None:
        """Put a matrix in place of this one, in the parameter's dtype and on its device."""
        # A tensor that was made in inference mode can be written to in that mode alone.
        mode = torch.inference_mode() if self.parameter.is_inference() else torch.no_grad()
        with mode:
            self.parameter.copy_(matrix.t() if self.transposed else matrix)


@dataclass(frozen=True)
class Fingerprint:
    """Identifies a model's layer, whichever class holds it and however its weights were processed.

    Attributes:
        model_name: the model's name; said in errors, not compared, since names differ with the way of loading.
        layer: the layer.
        n_layers: of the model.
        d_model: width of the residual stream.
        d_mlp: width of the MLP.
        norm: Frobenius norm of `W_out` less its mean over d_model, which TransformerLens's processing takes away.
        sketch: a few fixed random projections of that matrix, in units of the norm.
    """

    model_name: str
    layer: int
    n_layers: int
    d_model: int
    d_mlp: int
    norm: float
    sketch: tuple[float, ...]

    def apart(self, other: "Fingerprint", less: Float[Tensor, "d_mlp d_model"] | None = None) -> float:
        """How far the other layer of the same widths is from this one, in units of this one's norm, by its sketch.

        Args:
            other: of the other layer.
            less: what to take out of the other layer's matrix first.
        """
        theirs = np.multiply(other.sketch, other.norm)
        if less is not None:
            norm, sketch = sketch_matrix(less)
            theirs = theirs - np.multiply(sketch, norm)
        gap = theirs - np.multiply(self.sketch, self.norm)
        return float(np.sqrt(np.mean(np.square(gap)))) / (self.norm or 1.0)

    def difference(self, other: "Fingerprint") -> str | None:
        """What tells another fingerprint from this one, in words; None where nothing does."""
        for what in ("n_layers", "d_model", "d_mlp", "layer"):
            mine, theirs = getattr(self, what), getattr(other, what)
            if mine != theirs:
                return f"{what} {mine} against {theirs}"
        apart = float(np.sqrt(np.mean(np.square(np.subtract(self.sketch, other.sketch)))))
        if abs(self.norm - other.norm) > _SAME_NORM * self.norm or not apart <= _SAME_SKETCH:
            return f"other weights in layer {self.layer}"
        return None

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Fingerprint":
        """The reverse of `to_dict`; unknown fields are left alone.

        Raises:
            ArtefactError: a field is missing or is no number.
        """
        try:
            known = read_fields(values, _FIELDS)
            sketch = known["sketch"]
            numbers = [known["norm"], *sketch]
            if len(sketch) != _SKETCHES or not all(isinstance(n, int | float) and math.isfinite(n) for n in numbers):
                raise ValueError(f"expected a norm and {_SKETCHES} projections, all finite")
        except ValueError as error:
            raise ArtefactError(f"the fingerprint of a model is damaged ({error})") from error
        return cls(**known | {"norm": float(known["norm"]), "sketch": tuple(map(float, sketch))})


@torch.no_grad()
def sketch_matrix(matrix: Float[Tensor, "d_mlp d_model"]) -> tuple[float, tuple[float, ...]]:
    """Norm and projections of a `W_out`, computed on the CPU in float64 whatever the model's dtype and device."""
    d_mlp, d_model = matrix.shape
    left, right = _directions(d_mlp, d_model)
    centred = matrix.detach().to("cpu", torch.float64)
    centred = centred - centred.mean(dim=1, keepdim=True)
    norm = centred.norm().item()
    projections = ((left @ centred) * right).sum(dim=1) / (norm or 1.0)
    return norm, tuple(projections.tolist())


@cache
def _directions(d_mlp: int, d_model: int) -> tuple[Tensor, Tensor]:
    # A legacy generator, whose stream NumPy has promised never to change.
    random = np.random.RandomState(0)
    left, right = random.standard_normal((_SKETCHES, d_mlp)), random.standard_normal((_SKETCHES, d_model))
    return torch.from_numpy(left), torch.from_numpy(right)


def as_w_out(weight: Any, bias: Any, *, transposed: bool, d_model: int, name: str, layer: int) -> WOut:
    """The parameter as a `WOut`.

    Raises:
        ModelError: there is none (a mixture of experts), or it is quantised.
    """
    if not isinstance(weight, nn.Parameter) or weight.ndim != 2:
        raise ModelError(
            f"layer {layer} of {name} has no W_out of its own (a mixture of experts, or a layer without an MLP); "
            "rank-one editing needs one matrix there: choose another layer or model"
        )
    if not weight.is_floating_point():
        raise ModelError(f"W_out of layer {layer} of {name} is quantised ({weight.dtype}); load it in float32")
    if weight.shape[0 if transposed else 1] != d_model:
        raise ModelError(f"W_out of layer {layer} of {name} has shape {tuple(weight.shape)} and no side of {d_model}")
    return WOut(weight, transposed, None if bias is None else bias.detach())
