"""A Hugging Face model and its tokeniser, read by transformers from a folder, the hub, or a GGUF file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rome_lens.errors import ModelError, ModelNotFoundError, one_line
from rome_lens.loading.default_model import DEFAULT_MODEL
from rome_lens.loading.progress import quiet
from rome_lens.progress import Progress, silent

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class Pretrained:
    """A Hugging Face decoder in memory.

    Attributes:
        name: what to call it from now on: "smollm2-135m", the hub's name, or the folder's.
        model: in eval mode, with eager attention, as TransformerLens wants it.
        tokenizer: its tokeniser, adding BOS by itself where it has one, as TransformerLens wants it.
    """

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class Location:
    """Where to load from.

    Attributes:
        name: what to call the model.
        source: what transformers calls `pretrained_model_name_or_path`.
        local: it is a folder, and nothing is to be fetched.
        known: it is known to be a decoder and need not be looked at.
        gguf_file: the file in the folder that holds everything; None for Hugging Face's layout.
    """

    name: str
    source: str
    local: bool
    known: bool = False
    gguf_file: str | None = None

    def options(self) -> dict[str, Any]:
        # trust_remote_code=False, said out loud: without it transformers stops to ask at a terminal.
        options: dict[str, Any] = {"local_files_only": self.local, "trust_remote_code": False}
        return options | ({"gguf_file": self.gguf_file} if self.gguf_file else {})


@dataclass(frozen=True, slots=True)
class Wanted:
    """How a model is to be read.

    Attributes:
        dtype: the weights' type.
        device: where to put the model.
        tokenizer_as_stored: leave the tokeniser as its files have it, to be written out again.
        progress: called with steps done, steps in all (0 where unknown), and what is going on.
    """

    dtype: torch.dtype
    device: torch.device
    tokenizer_as_stored: bool = False
    progress: Progress = silent


def read_pretrained(location: Location, wanted: Wanted) -> Pretrained:
    """Read a decoder and its tokeniser.

    Raises:
        ModelNotFoundError: there is no model of that name.
        ModelError: there is one, but it is not a decoder or cannot be read.
        OutOfMemoryError: its weights do not fit into memory.
    """
    what = f"loading {location.name}"
    wanted.progress(0, 0, what)
    with quiet(what, progress=wanted.progress) as bar:
        if not location.known:
            config = read_config(location)
            check_decoder(config, location)
            _check_fits(config, location, wanted)
        tokenizer = _load_tokenizer(location, as_stored=wanted.tokenizer_as_stored)
        model = _load_weights(location, dtype=wanted.dtype, device=wanted.device, bar=bar)
        return Pretrained(location.name, model, tokenizer)


def read_config(location: Location) -> PreTrainedConfig:
    """A model's configuration.

    Raises:
        ModelNotFoundError: there is no model of that name.
        ModelError: its configuration cannot be read.
    """
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(location.source, **location.options())
    except Exception as error:  # whatever a foreign config.json makes transformers stumble over
        if location.local:
            raise ModelError(
                f"the config.json of {location.source!r} describes no model that transformers can load "
                f"({one_line(error)})"
            ) from error
        if isinstance(error, OSError):
            raise ModelNotFoundError(_not_on_the_hub(location.name, error)) from error
        raise ModelError(f"{location.name!r} cannot be loaded by transformers ({one_line(error)})") from error


def _not_on_the_hub(name: str, error: BaseException) -> str:
    causes = set()
    chain: BaseException | None = error
    while chain is not None:
        causes.add(type(chain).__name__)
        chain = chain.__cause__ or chain.__context__
    if "GatedRepoError" in causes:
        return f"{name!r} is gated on the hub: ask for access on its page, then run `hf auth login` and try again"
    missing = f"no model {name!r}: it is not {DEFAULT_MODEL!r}, there is no such folder, and the hub"
    if "RepositoryNotFoundError" in causes:
        return f"{missing} has none of that name, or only for those who are logged in (`hf auth login`)"
    return f"{missing} cannot be reached or does not have it"


def check_decoder(config: PreTrainedConfig, location: Location) -> None:
    """Refuse what predicts no next token.

    Raises:
        ModelError: the configuration is an encoder's, or an encoder-decoder's.
    """
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_MASKED_LM_MAPPING

    kind = type(config)
    reason = None
    if getattr(config, "is_encoder_decoder", False):
        reason = "an encoder-decoder answers another text and does not continue its own"
    elif kind not in MODEL_FOR_CAUSAL_LM_MAPPING or (
        # BERT and its family can be configured either way; without is_decoder they see the whole text at once.
        kind in MODEL_FOR_MASKED_LM_MAPPING and not getattr(config, "is_decoder", False)
    ):
        reason = "an encoder has no next token to predict"
    if reason:
        raise ModelError(f"{location.name!r} (a {config.model_type}) is not a language decoder: {reason}")


def empty_model(config: PreTrainedConfig) -> PreTrainedModel:
    """A model of this configuration that holds no numbers.

    Raises:
        Exception: whatever a foreign configuration makes transformers stumble over.
    """
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def _check_fits(config: PreTrainedConfig, location: Location, wanted: Wanted) -> None:
    """Refuse weights that memory does not hold, before they are fetched and read.

    Raises:
        OutOfMemoryError: they do not fit.
    """
    # Late: these import torch.
    import torch

    from rome_lens.memory import check_fits

    stored: Any = config.dtype
    if isinstance(stored, str):
        stored = getattr(torch, stored, None)
    # On a CPU weights whose type is kept are mapped, and take no memory of their own.
    if wanted.device.type == "cpu" and stored in (None, wanted.dtype):
        return
    try:
        n_parameters = sum(parameter.numel() for parameter in empty_model(config).parameters())
    except Exception:  # reading the model says what is wrong
        return
    instead = "choose another device or a smaller dtype"
    if stored is not None and stored.itemsize < wanted.dtype.itemsize:
        instead = f"load it in {_short(stored)}, as it is stored"
    what = f"to load {location.name!r} in {_short(wanted.dtype)}"
    check_fits(what, n_parameters * wanted.dtype.itemsize, wanted.device, instead=instead)


def _short(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")


def _load_tokenizer(location: Location, *, as_stored: bool) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    # TransformerLens works with a tokeniser that adds BOS by itself. Given another one, it loads it anew from the name
    # that it finds in it: once more from the hub, or for a GGUF file four seconds of parsing.
    adding = {} if as_stored else {"add_bos_token": True}
    try:
        try:
            tokenizer = AutoTokenizer.from_pretrained(location.source, **adding, **location.options())
        except ValueError:  # it has no BOS token
            tokenizer = AutoTokenizer.from_pretrained(location.source, **location.options())
    except Exception as error:  # tokenizers raises bare Exception
        raise ModelError(f"the tokeniser of {location.name!r} cannot be loaded ({one_line(error)})") from error
    if set(tokenizer.get_vocab()) <= set(tokenizer.all_special_tokens):
        # Where the files are missing, transformers makes up a tokeniser of the right class that knows no text.
        raise ModelError(f"{location.name!r} has no tokeniser (tokenizer.json, or the files that its class reads)")
    if as_stored:
        # How it was looked for is no part of it, yet would be written with it.
        for option in ("local_files_only", "trust_remote_code"):
            tokenizer.init_kwargs.pop(option, None)
    elif location.gguf_file and tokenizer.bos_token is not None:
        # The GGUF header's own "no BOS" has overruled the argument.
        tokenizer.add_bos_token = True
        tokenizer.init_kwargs["add_bos_token"] = True
    return tokenizer


def _load_weights(location: Location, *, dtype: torch.dtype, device: torch.device, bar: type) -> PreTrainedModel:
    import torch
    from transformers import AutoModelForCausalLM

    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            location.source,
            dtype=dtype,
            attn_implementation="eager",  # the one that shows its attention pattern, and TransformerLens's own choice
            output_loading_info=True,
            tqdm_class=bar,
            **location.options(),
        )
        model, report = loaded
        torch.nn.Module.to(model, device)
    except Exception as error:  # safetensors, pickle, torch and transformers each raise their own
        raise ModelError(f"the weights of {location.name!r} cannot be loaded ({one_line(error)})") from error
    if missing := sorted(report["missing_keys"]):
        # transformers fills these with random numbers.
        raise ModelError(
            f"the weights of {location.name!r} are incomplete: {len(missing)} tensors are missing, {missing[0]} first"
        )
    return model.eval()
