"""A Hugging Face model written as a folder: by exports, with edited weights in it, and for the default model's copy."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rome_lens.errors import ModelError, one_line
from rome_lens.loading.progress import quiet

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


def plain_config(model: PreTrainedModel, *, name: str) -> Any:
    """A copy of the configuration, without the mark of a GGUF file, whose weights are plain numbers by now.

    Raises:
        ModelError: the weights are quantised.
    """
    config: Any = copy.deepcopy(model.config)
    quantization = getattr(config, "quantization_config", None)
    if quantization is not None:
        method = quantization.get("quant_method") if isinstance(quantization, dict) else quantization.quant_method
        method = getattr(method, "value", method)
        if method != "gguf":
            raise ModelError(
                f"the weights of {name} are quantised ({method}), and an edit would not survive that; give the model "
                "that they were made from"
            )
        del config.quantization_config
    return config


def write_pretrained(
    folder: Path, *, name: str, model: PreTrainedModel, tokenizer: Any, config: Any, weights: dict[str, Tensor]
) -> None:
    """Write configuration, weights and tokeniser into a folder, as `save_pretrained` of the model's class does.

    Args:
        folder: an empty folder.
        name: what to call the model in errors.
        model: gives its class, dtype and generation settings; its weights are not looked at.
        tokenizer: its tokeniser, or None.
        config: the configuration to write.
        weights: every tensor of the model, by the names of its `state_dict`; the dictionary is emptied.

    Raises:
        ModelError: the weights are not those of the model's class.
    """
    import torch
    from transformers import GenerationConfig

    # A model of the same class that holds no numbers: it knows how it is to be saved, and goes with this function.
    with torch.device("meta"):
        shell: Any = type(model)(config)
    shell.to(model.dtype)
    expected = set(shell.state_dict())
    # TransformerBridge gives an unembedding a bias of zeros where the model has none.
    added = sorted(name for name in set(weights) - expected if weights.pop(name).any())
    if missing := [*sorted(expected - set(weights)), *added]:
        raise ModelError(
            f"the weights of {name} are not those of a {type(model).__name__} any more ({missing[0]}, "
            f"{len(missing)} in all); give the name or the folder that it was loaded from"
        )
    generation = model.generation_config if model.can_generate() else None
    with quiet(f"writing {name}"):
        if generation is not None:
            shell.generation_config = GenerationConfig()
        shell.save_pretrained(folder, state_dict=weights)
        if generation is not None:
            # save_pretrained refuses settings that contradict each other, and many models come with such.
            generation.to_json_file(folder / "generation_config.json")
        if tokenizer is not None:
            try:
                tokenizer.save_pretrained(folder)
            except Exception as error:  # tokenizers raises bare Exception where the disk is full
                raise OSError(one_line(error)) from error
