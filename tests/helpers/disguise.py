"""A second device that is the CPU in disguise: tensors that carry its label, and operations that refuse to mix them.

Code under `Disguise` sees a model on the device `privateuseone:0`. What an accelerator refuses is an error here:
an operation on tensors of both devices, but for copies, for scalars and for indices of the CPU; and NumPy. What has to
wait for the device (`item`, `tolist`, a truth value, a copy to the CPU) is counted by where it was asked for.

It sees calls of PyTorch's functions, and not what these call in turn.
"""

import sys
from collections import Counter
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map

THERE, HERE = torch.device("privateuseone:0"), torch.device("cpu")
# How a tensor knows that it is there.
_LABEL = "_is_there"
_WAITS = {"item", "tolist", "__bool__", "__float__", "__int__", "__index__", "nonzero", "equal", "allclose", "unique"}
_ASKS = {"__get__", "size", "dim", "numel", "stride", "is_floating_point", "is_complex", "__len__", "__repr__"}
_INTO_GIVEN = {"copy_", "__setitem__", "__set__"}


class MixedDevicesError(RuntimeError):
    """An operation on tensors of two devices, or NumPy on a tensor that is not the CPU's."""


def put(tensor: Tensor, there: bool = True) -> Tensor:
    """Label a tensor."""
    setattr(tensor, _LABEL, there)
    return tensor


def put_model(model: Any) -> Any:
    """Label all that a model holds; its configuration names the second device."""
    for tensor in [*model.parameters(), *model.buffers()]:
        put(tensor)
    for module in model.modules():
        config = getattr(module, "cfg", None)
        if hasattr(config, "device"):
            config.device = str(THERE)
    return model


class Disguise(TorchFunctionMode):
    """Labels tensors while it is entered.

    Attributes:
        waits: how often the device was waited for, by the module and function of rome_lens that asked.
    """

    def __init__(self) -> None:
        super().__init__()
        self.waits: Counter[str] = Counter()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, settings = getattr(func, "__name__", ""), dict(kwargs or {})
        if name == "__get__":
            return _attribute(func, args[0])
        if name in ("to", "cpu"):
            return self._moved(name, list(args), settings)
        given = [x for x in tree_flatten((args, settings))[0] if isinstance(x, Tensor)]
        there = [x for x in given if _is_there(x)]
        if there:
            self._check(name, args, given)
        asked = settings.get("device")
        if asked is not None:
            settings["device"] = HERE
        result = func(*args, **settings)
        if name in _INTO_GIVEN:
            return result
        label = bool(there) if asked is None else torch.device(asked) == THERE
        return tree_map(lambda x: put(x, label) if isinstance(x, Tensor) and not _is_there(x) else x, result)

    def _check(self, name: str, args: Any, given: list[Tensor]) -> None:
        """Refuse what an accelerator refuses, and count what it waits for."""
        masked = name == "__getitem__" and any(x.dtype == torch.bool for x in _tensors(args[1]))
        if name in _WAITS or masked:
            self._wait("boolean index" if masked else name)
        if name in ("numpy", "__array__"):
            raise MixedDevicesError("a tensor of the second device has no NumPy array; copy it to the CPU first")
        if name not in _ASKS and not _may_mix(name, args, given):
            shapes = [f"{tuple(x.shape)} {'there' if _is_there(x) else 'here'}" for x in given]
            raise MixedDevicesError(f"{name} of tensors of two devices: {', '.join(shapes)}")

    def _moved(self, name: str, args: list[Any], settings: dict[str, Any]) -> Tensor:
        """What `to` and `cpu` give: a copy where the device is another one."""
        tensor, rest = args[0], []
        there = name == "to" and _is_there(tensor)
        for value in [*args[1:], *([settings.pop("device")] if settings.get("device") is not None else [])]:
            if isinstance(value, str | torch.device):
                there = torch.device(value) == THERE
            elif isinstance(value, Tensor):
                there = _is_there(value)
                rest.append(value.dtype)
            else:
                rest.append(value)
        across = there != _is_there(tensor)
        if across and not there:
            self._wait("copy to the CPU")
        moved = tensor.to(*rest, **settings) if rest or settings else tensor
        return put(moved.clone() if across and moved is tensor else moved, there)

    def _wait(self, what: str) -> None:
        frame = sys._getframe(1)
        while frame is not None and not frame.f_globals.get("__name__", "").startswith("rome_lens"):
            frame = frame.f_back
        place = "elsewhere" if frame is None else f"{frame.f_globals['__name__']}.{frame.f_code.co_name}"
        self.waits[f"{place}: {what}"] += 1


def _is_there(value: Any) -> bool:
    return getattr(value, _LABEL, False)


def _tensors(tree: Any) -> list[Tensor]:
    return [x for x in tree_flatten(tree)[0] if isinstance(x, Tensor)]


def _attribute(func: Any, tensor: Tensor) -> Any:
    """An attribute of a tensor: its device, or one that may be a tensor again, such as its gradient."""
    name = getattr(func.__self__, "__name__", "")
    if name == "device":
        return THERE if _is_there(tensor) else HERE
    if name == "is_cpu":
        return not _is_there(tensor)
    found = func(tensor)
    return put(found, _is_there(tensor)) if isinstance(found, Tensor) else found


def _may_mix(name: str, args: Any, given: list[Tensor]) -> bool:
    if name == "copy_":
        return True
    if name == "__getitem__":
        return _is_there(args[0])
    if name == "__setitem__":
        # Without tensors in the index it is a copy, from wherever.
        value = args[2]
        as_is = not isinstance(value, Tensor) or _is_there(value) == _is_there(args[0]) or value.dim() == 0
        return as_is or not _tensors(args[1])
    return all(_is_there(x) or x.dim() == 0 for x in given)
