"""Where Hugging Face's model keeps `W_out`: by the name of the module, for files that transformers and peft read."""

import copy
import warnings
from collections.abc import Iterator
from typing import Any

from torch import nn

from rome_lens.backends.base import Backend
from rome_lens.errors import RomeLensError

# Architectures whose projections are `transformers.pytorch_utils.Conv1D`, which keeps [d_mlp, d_model]. All others use
# `nn.Linear`, which keeps [d_model, d_mlp].
_CONV1D = frozenset({"GPT2LMHeadModel", "GPT2LMHeadCustomModel", "OpenAIGPTLMHeadModel"})

# Under this name a TransformerBridge keeps each module that it has put a wrapper around.
_WRAPPED = "_original_component"


def hugging_face_module(backend: Backend, layer: int) -> tuple[str, bool] | None:
    """The module of Hugging Face's model whose weight is `W_out` of a layer.

    A TransformerBridge holds that module. A HookedTransformer holds a copy of its weight alone; there the name follows
    from the architecture, by the table that TransformerLens builds its bridges with.

    Args:
        backend: the model.
        layer: the layer.

    Returns:
        The name, such as `model.layers.4.mlp.down_proj`, and whether the weight is [d_model, d_mlp] (`nn.Linear`) and
        not [d_mlp, d_model] (GPT-2's `Conv1D`). None where that is not known: another source of weights than Hugging
        Face, an architecture without a bridge, a layer without a `W_out`.
    """
    try:
        w_out = backend.w_out(layer)
    except RomeLensError:
        return None
    original = getattr(backend.model, "original_model", None)
    if isinstance(original, nn.Module):
        # Asked of the tree anew: processing replaces the parameters of a bridge, in the modules where they were.
        tree = hugging_face_tree(original)
        name = next((name for name, module in tree if module._parameters.get("weight") is w_out.parameter), None)
        return None if name is None else (name, w_out.transposed)
    architecture = getattr(backend.model.cfg, "original_architecture", None)
    name = _name_by_architecture(backend.model.cfg, architecture, layer) if isinstance(architecture, str) else None
    return None if name is None else (name, architecture not in _CONV1D)


def hugging_face_tree(module: nn.Module, name: str = "") -> Iterator[tuple[str, nn.Module]]:
    """All modules of a Hugging Face model, by the names that they had before a TransformerBridge put its wrappers in.

    A wrapper shows what it wraps several times over; only what it wraps is followed.

    Args:
        module: the model, or a part of it.
        name: that of the part.
    """
    while (inside := module._modules.get(_WRAPPED)) is not None:
        module = inside
    yield name, module
    for child_name, child in module._modules.items():
        if child is not None:
            yield from hugging_face_tree(child, f"{name}.{child_name}" if name else child_name)


def is_wrapped(model: nn.Module) -> bool:
    """Whether a TransformerBridge has put its wrappers into a model."""
    return any(_WRAPPED in module._modules for module in model.modules())


def _name_by_architecture(cfg: Any, architecture: str, layer: int) -> str | None:
    try:
        from transformer_lens.factories.architecture_adapter_factory import ArchitectureAdapterFactory

        # The table's makers read the configuration and write into it, so they get one of their own.
        cfg = copy.deepcopy(cfg)
        cfg.architecture = architecture
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            adapter = ArchitectureAdapterFactory.select_architecture_adapter(cfg)
        blocks: Any = (adapter.component_mapping or {})["blocks"]
        mlp = blocks.submodules["mlp"]
        # OPT keeps its projections in the block itself: there the MLP has no name.
        parts = (blocks.name, str(layer), mlp.name, mlp.submodules["out"].name)
        return ".".join(part for part in parts if part)
    except Exception:  # eighty tables, made for another class's configuration: one that fails tells no name
        return None
