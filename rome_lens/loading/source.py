"""How a run comes by its model: by name in every process, or the object that a caller gave."""

from collections.abc import Callable, Iterable
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import torch

from rome_lens import loading
from rome_lens.backends import as_backend
from rome_lens.errors import ModelError, SettingError
from rome_lens.loading.outline import Outline
from rome_lens.progress import Progress

# Digits of a fingerprint that do not depend on how many threads computed it.
_DIGITS = 6


@dataclass(frozen=True)
class ModelSource:
    """How a worker comes by the model.

    Attributes:
        name: as `load_model` takes it.
        backend: the same.
        device: the same.
        dtype: the same.
        made: the model itself, or a function that makes it, where a caller gave that.
    """

    name: str
    backend: str = "auto"
    device: str | None = None
    dtype: str | None = None
    made: Any = None

    def open(self, progress: Progress) -> Any:
        """The model."""
        if self.made is not None:
            return self.made() if _makes_a_model(self.made) else self.made
        return loading.load_model(
            self.name, backend=self.backend, device=self.device, dtype=self.dtype, progress=progress
        )

    def opened(self, progress: Progress) -> "ModelSource":
        """The same source with its model loaded, for several users in this process."""
        return replace(self, made=self.open(progress))

    @classmethod
    def of(cls, model: Any) -> "ModelSource":
        """From what a caller gave: a name, a model, or a function that makes one."""
        if isinstance(model, cls):
            return model
        if isinstance(model, str):
            return cls(model)
        if _makes_a_model(model):
            return cls(getattr(model, "__qualname__", type(model).__name__), made=model)
        return cls(as_backend(model).model_name, made=model)

    def to_dict(self) -> dict[str, Any]:
        """As a run's settings hold it."""
        return {"name": self.name, "backend": self.backend, "dtype": self.dtype}

    def check_layers(self, layers: Iterable[int | None]) -> None:
        """Refuse layers that the model does not have, as far as that is known before it is loaded.

        Raises:
            SettingError: a layer is none of the model's.
        """
        named = [layer for layer in layers if layer is not None]
        if named and self.made is None:
            try:
                outline = Outline.of(self.name)
            except ModelError:  # a run that is finished needs no model, and otherwise loading says the same
                return
            outline.check_layers(named)

    def check_executor(self, executor: Executor | None) -> None:
        """Refuse executors that cannot be handed the model.

        Raises:
            SettingError: it is an object, and the executor works in other processes.
        """
        # Those that are known to pickle what they are given.
        elsewhere = isinstance(executor, ProcessPoolExecutor) or type(executor).__module__.startswith("distributed.")
        if elsewhere and self.made is not None and not _makes_a_model(self.made):
            raise SettingError(
                "the model is an object, and other processes cannot share it; give its name, or a function without "
                "arguments that makes it"
            )


def _makes_a_model(model: Any) -> bool:
    return isinstance(model, Callable) and not hasattr(model, "hook_dict")


def describe_model(model: Any) -> dict[str, Any]:
    """What identifies a model, so that every process of a run can tell that it has the same one; as JSON holds it."""
    backend = as_backend(model)
    try:
        known = backend.fingerprint(0).to_dict()
        known["sketch"] = [rounded(number) for number in known["sketch"]]
    except ModelError:  # layers without one W_out: attention alone, or experts
        some = torch.arange(min(64, backend.d_vocab), device=backend.device)[:, None]
        known = {"model_name": backend.model_name, "n_layers": backend.n_layers, "d_model": backend.d_model}
        known["norm"] = backend.embeddings(some).double().norm().item()
    known["norm"] = rounded(known["norm"])
    return {"model": known, "backend": backend.name, "dtype": str(backend.dtype).removeprefix("torch.")}


def rounded(number: float) -> float:
    return float(f"{number:.{_DIGITS}g}")
