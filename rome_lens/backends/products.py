"""Matrix products on the CPU through oneDNN where PyTorch would take the slower library.

PyTorch hands float32 products on x86 to MKL, which runs its plain AVX2 kernels on processors that are not Intel's.
oneDNN, in the same PyTorch, has AVX-512 kernels for all of them: the products are the same up to rounding and were
measured at twice the speed on an AMD EPYC. Intel's processors lose nothing by it.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


@contextmanager
def fast_products(*, device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """Route `linear` and `addmm` of the calling thread through oneDNN while the block lasts, where that helps.

    Nothing is changed off the CPU, for other types than float32, without AVX-512, or where the user has turned oneDNN
    off (`torch.backends.mkldnn.flags(enabled=False)`).
    """
    if device.type == "cpu" and dtype == torch.float32 and _available():
        with _OneDnn():
            yield
    else:
        yield


def _available() -> bool:
    return (
        torch.backends.mkldnn.is_available()
        and torch.backends.mkldnn.enabled
        and torch.backends.cpu.get_cpu_capability() == "AVX512"
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


class _OneDnn(TorchFunctionMode):
    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.nn.functional.linear and not kwargs and _plain(*args):
            return _linear(args[0], args[1], args[2] if len(args) > 2 else None)
        if func is torch.addmm and not kwargs and _plain(*args) and args[0].ndim == 1:
            bias, x, weight = args
            return _linear(x, weight.t(), bias)
        return func(*args, **kwargs)


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


def _plain(*tensors: Any) -> bool:
    """Whether these are strided float32 tensors on the CPU that no gradient is asked of."""
    return not torch.is_grad_enabled() and all(
        t is None
        or (
            isinstance(t, Tensor)
            and t.device.type == "cpu"
            and t.dtype == torch.float32
            and t.layout == torch.strided
            and t.numel() > 0
        )
        for t in tensors
    )
