"""Matrix products on the CPU through oneDNN where PyTorch would take the slower library.

PyTorch hands float32 products on x86 to MKL, which runs its plain AVX2 kernels on processors that are not Intel's.
oneDNN, in the same PyTorch, has AVX-512 kernels for all of them: the products are the same up to rounding and were
measured at twice the speed on an AMD EPYC. On an Intel Xeon MKL is the faster one: by a twentieth on many rows, and by
half on ten.
"""

import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

# The tensors that oneDNN is handed.
_KIND = ("cpu", torch.float32, torch.strided)


@contextmanager
def fast_products(*, device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """Route `linear` and `addmm` of the calling thread through oneDNN while the block lasts, where that helps.

    Nothing is changed off the CPU, for other types than float32, without AVX-512, on Intel's processors, or where the
    user has turned oneDNN off (`torch.backends.mkldnn.flags(enabled=False)`).
    """
    if device.type == "cpu" and dtype == torch.float32 and _available() and not _from_intel():
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


@cache
def _from_intel() -> bool:
    """Whether Intel made the processor, for which MKL has kernels of its own."""
    try:
        said = Path("/proc/cpuinfo").read_text("utf-8")
    except OSError:  # not Linux
        said = platform.processor()
    return "GenuineIntel" in said


class _OneDnn(TorchFunctionMode):
    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.nn.functional.linear and not kwargs and _plain(*args):
            return _linear(args[0], args[1], args[2] if len(args) > 2 else None)
        if func is torch.addmm and not kwargs and args[0].ndim == 1 and _plain(args[1], args[2], args[0]):
            bias, x, weight = args
            return _linear(x, weight.t(), bias)
        return func(*args, **kwargs)


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if torch.is_grad_enabled() and x.requires_grad:
        return _Linear.apply(x, weight, bias)
    return _product(x, weight, bias)


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


class _Linear(torch.autograd.Function):
    """The product with its gradient to what is multiplied; weights that are constant need none."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight)
        return _product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (weight,) = ctx.saved_tensors
        return _product(grads[0].contiguous(), weight.t(), None), None, None


def _plain(x: Any, *constants: Any) -> bool:
    """Whether these are strided float32 tensors on the CPU, and no gradient is asked of the constants."""
    if torch.is_grad_enabled() and any(isinstance(t, Tensor) and t.requires_grad for t in constants):
        return False
    return all(
        t is None or (isinstance(t, Tensor) and (t.device.type, t.dtype, t.layout) == _KIND and t.numel() > 0)
        for t in (x, *constants)
    )
