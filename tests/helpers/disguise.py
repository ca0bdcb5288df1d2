"""Other devices that are the CPU in disguise: tensors that carry their label, and operations that refuse to mix them.

Code under `Disguise` sees a model on the device `privateuseone:0`, or spread over that and `privateuseone:1`. What an
accelerator refuses is an error here: an operation on tensors of several devices, but for copies, and for scalars and
indices of the CPU; and NumPy. What has to wait for a device (`item`, `tolist`, a truth value, a copy to the CPU) is
counted by where it was asked for.

It sees calls of PyTorch's functions, and not what these call in turn.
"""

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map

HERE, THERE, FURTHER = (torch.device(name) for name in ("cpu", "privateuseone:0", "privateuseone:1"))
# How a tensor knows where it is.
_LABEL = "_is_on"
_WAITS = {"item", "tolist", "__bool__", "__float__", "__int__", "__index__", "nonzero", "equal", "allclose", "unique"}
_ASKS = {"__get__", "size", "dim", "numel", "stride", "is_floating_point", "is_complex", "__len__", "__repr__"}
_INTO_GIVEN = {"copy_", "__setitem__", "__set__"}


class MixedDevicesError(RuntimeError):
    """An operation on tensors of several devices, or NumPy on a tensor that is not the CPU's."""


def put(tensor: Tensor, device: torch.device = THERE) -> Tensor:
    """Label a tensor."""
    setattr(tensor, _LABEL, device)
    return tensor


def put_model(model: Any) -> Any:
    """Label all that a model holds; its configuration names the second device."""
    _put_module(model, THERE)
    for module in model.modules():
        config = getattr(module, "cfg", None)
        if hasattr(config, "device"):
            config.device = str(THERE)
    return model


@contextmanager
def spread(model: Any) -> Iterator[Any]:
    """Label what a model holds: the first half of its layers on one device, the others and what unembeds on another.

    A HookedTransformer moves what enters its layers by itself, by the number of devices in its configuration. A
    TransformerBridge's modules do it as accelerate makes them do it.
    """
    put_model(model)
    handles = []
    n_layers = model.cfg.n_layers
    further = list(model.blocks)[n_layers // 2 :]
    hugging_face = getattr(model, "original_model", None)
    if hugging_face is None:
        for module in model.modules():
            if hasattr(getattr(module, "cfg", None), "n_devices"):
                module.cfg.n_devices = 2
        further += [model.ln_final, model.unembed]
    else:
        model.cfg.n_devices = 2
        further = [block.original_component for block in further]
        further += [model.ln_final.original_component, model.unembed.original_component]
        handles = [module.register_forward_pre_hook(_to_further, with_kwargs=True) for module in further]
    for module in further:
        _put_module(module, FURTHER)
    try:
        yield model
    finally:
        for handle in handles:
            handle.remove()


def _put_module(module: Any, device: torch.device) -> None:
    for tensor in [*module.parameters(), *module.buffers()]:
        put(tensor, device)


def _to_further(module: Any, args: Any, kwargs: Any) -> Any:
    return tree_map(lambda x: x.to(FURTHER) if isinstance(x, Tensor) else x, (args, kwargs))


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
        given = _tensors((args, settings))
        away = [x for x in given if _where(x) != HERE]
        if away:
            self._check(name, args, given)
        asked = settings.get("device")
        if asked is not None:
            settings["device"] = HERE
        result = func(*args, **settings)
        if name in _INTO_GIVEN:
            return result
        if func is torch.autograd.grad:
            like = args[1] if isinstance(args[1], list | tuple) else [args[1]]
            return tuple(x if x is None else put(x, _where(one)) for x, one in zip(result, like, strict=True))
        device = _of_result(name, args, away) if asked is None else torch.device(asked)
        return tree_map(lambda x: put(x, device) if isinstance(x, Tensor) and not hasattr(x, _LABEL) else x, result)

    def _check(self, name: str, args: Any, given: list[Tensor]) -> None:
        """Refuse what an accelerator refuses, and count what it waits for."""
        masked = name == "__getitem__" and any(x.dtype == torch.bool for x in _tensors(args[1]))
        if name in _WAITS or masked:
            self._wait("boolean index" if masked else name)
        if name in ("numpy", "__array__"):
            raise MixedDevicesError("a tensor of another device has no NumPy array; copy it to the CPU first")
        if name not in _ASKS and not _may_mix(name, args, given):
            shapes = [f"{tuple(x.shape)} on {_where(x)}" for x in given]
            raise MixedDevicesError(f"{name} of tensors of two devices: {', '.join(shapes)}")

    def _moved(self, name: str, args: list[Any], settings: dict[str, Any]) -> Tensor:
        """What `to` and `cpu` give: a copy where the device is another one."""
        tensor, rest = args[0], []
        device = HERE if name == "cpu" else _where(tensor)
        for value in [*args[1:], *([settings.pop("device")] if settings.get("device") is not None else [])]:
            if isinstance(value, str | torch.device):
                device = torch.device(value)
            elif isinstance(value, Tensor):
                device = _where(value)
                rest.append(value.dtype)
            else:
                rest.append(value)
        across = device != _where(tensor)
        if across and device == HERE:
            self._wait("copy to the CPU")
        moved = tensor.to(*rest, **settings) if rest or settings else tensor
        return put(moved.clone() if across and moved is tensor else moved, device)

    def _wait(self, what: str) -> None:
        frame = sys._getframe(1)
        while frame is not None and not frame.f_globals.get("__name__", "").startswith("rome_lens"):
            frame = frame.f_back
        place = "elsewhere" if frame is None else f"{frame.f_globals['__name__']}.{frame.f_code.co_name}"
        self.waits[f"{place}: {what}"] += 1


def _where(value: Any) -> torch.device:
    return getattr(value, _LABEL, HERE)


def _tensors(tree: Any) -> list[Tensor]:
    return [x for x in tree_flatten(tree)[0] if isinstance(x, Tensor)]


def _attribute(func: Any, tensor: Tensor) -> Any:
    """An attribute of a tensor: its device, or one that may be a tensor again, such as its gradient."""
    name = getattr(func.__self__, "__name__", "")
    if name == "device":
        return _where(tensor)
    if name == "is_cpu":
        return _where(tensor) == HERE
    found = func(tensor)
    return put(found, _where(tensor)) if isinstance(found, Tensor) else found


def _of_result(name: str, args: Any, away: list[Tensor]) -> torch.device:
    """Where the result of an operation is, if it is not asked to be somewhere."""
    if name == "__getitem__":
        return _where(args[0])
    return next((_where(x) for x in away if x.dim()), _where(away[0]) if away else HERE)


def _may_mix(name: str, args: Any, given: list[Tensor]) -> bool:
    if name in ("copy_", "grad", "backward"):
        return True
    if name in ("__getitem__", "__setitem__"):
        base, index = args[0], _tensors(args[1])
        if not all(_where(x) in (HERE, _where(base)) for x in index):
            return False
        # Without tensors in the index an assignment is a copy, from wherever.
        value = args[2] if name == "__setitem__" else base
        return not isinstance(value, Tensor) or not index or value.dim() == 0 or _where(value) == _where(base)
    device = _of_result(name, args, [x for x in given if _where(x) != HERE])
    return all(_where(x) == device or (x.dim() == 0 and _where(x) == HERE) for x in given)
