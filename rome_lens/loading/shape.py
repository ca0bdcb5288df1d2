"""How large a model is, by its configuration alone: no weight is read or made."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from rome_lens.errors import ModelError, one_line
from rome_lens.loading.default_model import DEFAULT_MODEL, N_LAYERS
from rome_lens.loading.hugging_face import check_decoder, empty_model
from rome_lens.loading.pretrained import find_config
from rome_lens.loading.progress import quiet

# What Hugging Face's configurations call the width of an MLP's hidden layer; where none says it, it is four times
# d_model, as their models then have it.
_D_MLP = ("intermediate_size", "ffn_dim", "ffn_hidden_size", "n_inner")


@dataclass(frozen=True)
class Shape:
    """The sizes of a decoder.

    Attributes:
        name: what it is called once it is loaded.
        n_layers: how many blocks it has.
        d_model: width of the residual stream.
        d_mlp: width of a key.
        d_vocab: tokens that it embeds.
        n_parameters: all of them; weights that are tied count once.
        n_block: those of one block.
    """

    name: str
    n_layers: int
    d_model: int
    d_mlp: int
    d_vocab: int
    n_parameters: int
    n_block: int

    @classmethod
    def of(cls, name: str | os.PathLike[str]) -> Shape:
        """The shape of a model by its name: of one on the hub its configuration is fetched.

        Args:
            name: as `load_model` takes it.

        Raises:
            ModelNotFoundError: there is no model of that name.
            ModelError: its configuration cannot be read, is no decoder's, or does not say how large the model is.
        """
        name = os.fspath(name)
        if name == DEFAULT_MODEL:
            return cls(name, N_LAYERS, 576, 1536, 49_152, 134_515_008, 3_540_096)
        location, config = find_config(name)
        check_decoder(config, location)
        with quiet(f"looking at {name}"):
            return _shape(location.name, config)


def _shape(name: str, config: Any) -> Shape:
    import torch

    text = config.get_text_config()
    try:
        model = empty_model(config)
        n_layers, d_model, d_vocab = int(text.num_hidden_layers), int(text.hidden_size), int(text.vocab_size)
    except Exception as error:  # whatever a foreign config.json makes transformers stumble over
        raise ModelError(f"the configuration of {name!r} does not say how large it is ({one_line(error)})") from error
    stacks = (module for module in model.modules() if isinstance(module, torch.nn.ModuleList))
    block = next((stack[0] for stack in stacks if len(stack) == n_layers), None)
    d_mlp = next((size for size in (getattr(text, name, None) for name in _D_MLP) if size), 4 * d_model)
    if block is None or not any(d_mlp in weight.shape for weight in block.parameters()):
        raise ModelError(f"{name!r} is built in a way that is not known here: how wide its MLPs are cannot be told")
    return Shape(name, n_layers, d_model, int(d_mlp), d_vocab, _count(model), _count(block))


def _count(module: Any) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
