"""Tensors as text, to the bit, for records in JSON."""

import base64

import numpy as np
import torch
from torch import Tensor

# JSON, and numpy, have no bfloat16: its bits are kept as those of whole numbers.
_BITS = {torch.bfloat16: torch.int16}


def as_text(tensor: Tensor) -> str:
    """A tensor's numbers as text: their type, and their bytes in base 64."""
    tensor = tensor.detach().cpu().contiguous()
    kind = str(tensor.dtype).removeprefix("torch.")
    array = tensor.view(_BITS[tensor.dtype]).numpy() if tensor.dtype in _BITS else tensor.numpy()
    name = kind if tensor.dtype in _BITS else array.dtype.str
    return f"{name}:{base64.b64encode(array.tobytes()).decode()}"


def as_tensor(text: str) -> Tensor:
    """What `as_text` wrote, flat."""
    kind, _, numbers = text.partition(":")
    bits = next((dtype for dtype in _BITS if str(dtype).endswith(f".{kind}")), None)
    array = np.frombuffer(base64.b64decode(numbers), dtype=np.int16 if bits is not None else np.dtype(kind)).copy()
    return torch.from_numpy(array) if bits is None else torch.from_numpy(array).view(bits)
