"""The settings of `load_model` that are not about which model: backend, device, dtype."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rome_lens.checks import choice
from rome_lens.errors import ModelError, SettingError, one_line

if TYPE_CHECKING:
    import torch

HOOKED_TRANSFORMER = "hooked-transformer"
TRANSFORMER_BRIDGE = "transformer-bridge"
BACKENDS = ("auto", HOOKED_TRANSFORMER, TRANSFORMER_BRIDGE)
"""The kinds of model that `load_model` can be asked for."""

_DTYPES = ("float32", "float64", "bfloat16", "float16")


def check_backend(backend: str) -> None:
    """Refuse a backend that does not exist, or that the installed TransformerLens does not have."""
    if choice("backend", backend, BACKENDS) == HOOKED_TRANSFORMER and not has_hooked_transformer():
        from importlib.metadata import version

        raise ModelError(
            f"TransformerLens {version('transformer-lens')} is installed, and HookedTransformer was removed in 4.0; "
            f"use the backend {TRANSFORMER_BRIDGE!r}, or install 'transformer-lens>=3.9,<4'"
        )


def has_hooked_transformer() -> bool:
    """Whether the installed TransformerLens still has its HookedTransformer."""
    try:
        # Not hasattr: from 4.1 on the missing name raises ImportError, which hasattr lets through.
        from transformer_lens import HookedTransformer  # noqa: F401
    except ImportError:
        return False
    return True


def as_dtype(dtype: str | torch.dtype | None) -> torch.dtype:
    """A dtype from its name, "float32" or "torch.float32"; float32 from None."""
    import torch

    name = "float32" if dtype is None else str(dtype).removeprefix("torch.")
    return getattr(torch, choice("dtype", name, _DTYPES))


def as_device(device: str | torch.device | None) -> torch.device:
    """A device that this machine has; from None its GPU where there is one, else the CPU."""
    import torch

    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        parsed = torch.device(device)
        if parsed.type == "meta":
            raise SettingError("device is 'meta', which holds no weights; choose cpu, cuda, cuda:1, mps, …")
        # The surest way to learn whether a device is there, of whatever kind.
        torch.empty(0, device=parsed)
    except (RuntimeError, AssertionError, NotImplementedError, ImportError, TypeError) as error:
        # torch explains a wrong name by all the names of its own build; the first sentence is enough.
        reason = one_line(error).split(". ")[0] if "Expected one of" not in str(error) else "no such kind of device"
        raise SettingError(
            f"device {str(device)!r} cannot be used ({reason}); choose cpu, cuda, cuda:1, mps, …"
        ) from error
    return parsed
