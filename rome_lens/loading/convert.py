"""A Hugging Face model in memory becomes a TransformerLens model, of either class, without asking the hub."""

import contextlib
import json
import logging
import os
import tempfile
import warnings
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import transformer_lens
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge
from transformers import PreTrainedModel

from rome_lens.errors import ModelError, one_line
from rome_lens.loading.agreement import Reference
from rome_lens.loading.hugging_face import Pretrained
from rome_lens.loading.options import HOOKED_TRANSFORMER, TRANSFORMER_BRIDGE, has_hooked_transformer
from rome_lens.loading.twin import twin_of
from rome_lens.loading.views import bytes_beside, without_sharing
from rome_lens.memory import free_bytes, size_in_words

logger = logging.getLogger(__name__)

# Some of the names that are used are in 3.x alone.
_host: Any = transformer_lens

# Free memory, in sizes of the model, in which whatever a converter makes has room.
_AMPLE = 1.5

# TransformerLens 3.9 reads the architecture off the path of a local folder where one of these words is in it.
_MISLEADING = ("llama", "gemma", "wav2vec2", "hubert")


class _NotHostedError(ModelError):
    """A class of TransformerLens does not host a model; the message says why and gives no advice."""


def to_transformer_lens(pretrained: Pretrained, *, backend: str) -> Any:
    """Build the TransformerLens model of the class that `backend` asks for, and compare it with the model.

    "auto" takes a HookedTransformer where the installed TransformerLens has that class, it fits into the free memory
    and it computes what the model computes, else a TransformerBridge that does; the logger `rome_lens.loading.convert`
    says why, of memory at level WARNING, else at level INFO.

    Args:
        pretrained: the model; a bridge is built around it and changes it.
        backend: one of `BACKENDS`.

    Raises:
        ModelError: TransformerLens does not host the model in that class, or in neither, or computes something else.
    """
    reference = Reference.of(pretrained.model, name=pretrained.name)
    against_hooked = None
    if backend != TRANSFORMER_BRIDGE and has_hooked_transformer():
        against_hooked = None if backend == HOOKED_TRANSFORMER else _room_missing(pretrained)
        level = logging.WARNING
        if against_hooked is None:
            try:
                return _hooked_transformer(pretrained, reference)
            except _NotHostedError as error:
                against_hooked, level = str(error), logging.INFO
        if backend != HOOKED_TRANSFORMER:
            logger.log(level, "%s; using a TransformerBridge", against_hooked)
    try:
        bridge = _bridge(pretrained, reference)
    except _NotHostedError as error:
        other = f"another version of TransformerLens than {version('transformer-lens')} may host it"
        if backend == TRANSFORMER_BRIDGE and _convertible(pretrained):
            other = f"the backend {HOOKED_TRANSFORMER!r} may be right"
        raise ModelError("; ".join(filter(None, (against_hooked, str(error), other)))) from error
    if backend == HOOKED_TRANSFORMER:
        # Only now is it known that this advice is good.
        raise ModelError(f"{against_hooked}; use the backend {TRANSFORMER_BRIDGE!r}")
    return bridge


def _bridge(pretrained: Pretrained, reference: Reference) -> TransformerBridge:
    """Wrap the model in a TransformerBridge, and check it against what the model said before.

    Raises:
        _NotHostedError: TransformerLens cannot host it, or computes something else.
    """
    if not _agrees_when_small(pretrained, reference, "TransformerBridge"):
        # Before it is wrapped: afterwards the model itself cannot be asked.
        reference = Reference.of(pretrained.model, name=pretrained.name, dear=True)
    bridge = _made(pretrained, "TransformerBridge")
    _check(bridge, reference)
    return bridge


def _hooked_transformer(pretrained: Pretrained, reference: Reference) -> Any:
    """Make a HookedTransformer of the model's own weights, unprocessed, and check it against the model.

    Raises:
        _NotHostedError: TransformerLens cannot host it, or computes something else.
    """
    hooked = _made(pretrained, "HookedTransformer")
    _check(hooked, reference)
    if not _agrees_when_small(pretrained, reference, "HookedTransformer"):
        _check(hooked, Reference.of(pretrained.model, name=pretrained.name, dear=True))
    return hooked


def _made(pretrained: Pretrained, kind: str) -> Any:
    try:
        return _convert(pretrained) if kind == "HookedTransformer" else _boot(pretrained)
    except _NotHostedError:
        raise
    except Exception as error:  # converters and adapters of eighty architectures, each failing in its own way
        name, source = pretrained.name, type(pretrained.model).__name__
        raise _NotHostedError(
            f"TransformerLens cannot host {name!r}, a {source}, as a {kind} ({one_line(error)})"
        ) from error


def _boot(pretrained: Pretrained) -> TransformerBridge:
    model = pretrained.model
    bridge = TransformerBridge.boot_transformers(
        # Only a label here, but one that TransformerLens looks up: a folder called "gptj" would pass for GPT-J.
        model.name_or_path or pretrained.name,
        hf_model=model,
        tokenizer=pretrained.tokenizer,
        device=str(model.device),
        dtype=model.dtype,
    )
    bridge.cfg.model_name = pretrained.name
    return bridge.eval()


def _agrees_when_small(pretrained: Pretrained, reference: Reference, kind: str) -> bool:
    """Hold a small model of the same settings, in float32, against what it says itself, made in the same way.

    That is done where a text longer than the model's windows was too dear, and where rounding could hide a difference.

    Args:
        pretrained: the model, not wrapped yet.
        reference: what it said.
        kind: the class of TransformerLens.

    Returns:
        False where the dear text is what is left: no small model can be made.

    Raises:
        _NotHostedError: the small model computes something else; or not even it can be hosted, and the dear
            text would only show the same of the large one.
    """
    if reference.whole and reference.exact:
        return True
    try:
        twin = twin_of(pretrained.model)
        said = Reference.of(twin, name=pretrained.name, small=True)
        difference = said.difference(_made(Pretrained(said.name, twin, pretrained.tokenizer), kind))
    except _NotHostedError:
        if reference.whole:
            return True
        raise
    except Exception as error:  # configurations of two hundred families, with rules of their own on their widths
        logger.info("no small model like %r can be made and compared (%s)", pretrained.name, one_line(error))
        return reference.whole
    if difference is not None:
        raise _computes_otherwise(said, kind, difference)
    return True


def _check(model: Any, reference: Reference) -> None:
    """Refuse a model that computes something else.

    Raises:
        _NotHostedError: it does, or it cannot be run.
    """
    kind = type(model).__name__
    try:
        difference = reference.difference(model)
    except Exception as error:  # a forward of any architecture, failing in its own way
        raise _NotHostedError(
            f"as a {kind} {reference.name!r}, a {reference.kind}, cannot be run ({one_line(error)})"
        ) from error
    if difference is not None:
        raise _computes_otherwise(reference, kind, difference)


def _computes_otherwise(reference: Reference, kind: str, difference: str) -> _NotHostedError:
    name, source = reference.name, reference.kind
    made = "that it was read from" if kind == "HookedTransformer" else "that it wraps"
    return _NotHostedError(f"as a {kind} {name!r} computes other logits than the {source} {made} ({difference})")


def _convertible(pretrained: Pretrained) -> bool:
    """Whether the installed TransformerLens has the other class and knows the architecture there."""
    try:
        with _as_folder(pretrained.model) as folder:
            _configuration(pretrained.model, folder, device="meta")
    except Exception:  # one converter per architecture, each failing in its own way
        return False
    return has_hooked_transformer()


def _convert(pretrained: Pretrained) -> Any:
    model = pretrained.model
    with _as_folder(model) as folder:
        cfg = _configuration(model, folder, device=str(model.device))
        weights = _translated(cfg, model, folder)
    cfg.model_name = pretrained.name
    cfg.tokenizer_name = None  # it names the folder that is gone
    with warnings.catch_warnings():
        # The warning is for those who choose the class; here it is chosen because the user's TransformerLens has it.
        warnings.filterwarnings("ignore", message="HookedTransformer is deprecated", category=DeprecationWarning)
        hooked = _host.HookedTransformer(cfg, pretrained.tokenizer, move_to_device=False)
    # Not load_and_process_state_dict: nothing is to be processed, yet it rounds float64 weights to float32 and walks
    # the whole model once per tensor, which for thirty layers takes seconds. The weights stay where they are: a copy of
    # them would take as much memory once more, and those of a mapped file would all be read.
    weights = hooked.fill_missing_keys(weights)
    own = hooked.state_dict()
    weights = {name: weight.to(own[name].dtype) for name, weight in weights.items() if name in own}
    hooked.load_state_dict(without_sharing(weights), strict=False, assign=True)
    # nn.Module's own `to`: the class's announces on stdout where it moves.
    torch.nn.Module.to(hooked, model.device)
    return hooked.eval()


@contextlib.contextmanager
def _as_folder(model: PreTrainedModel) -> Iterator[str]:
    """A folder with the model's configuration: TransformerLens reads one, or an official name, and never an object."""
    with tempfile.TemporaryDirectory(prefix="rl_", dir=_neutral_folder()) as folder:
        (Path(folder) / "config.json").write_text(json.dumps(_describe(model)), encoding="utf-8")
        yield folder


def _configuration(model: PreTrainedModel, folder: str, *, device: str) -> Any:
    """TransformerLens's configuration of a model, whose weights are on a device."""
    return _host.loading.get_pretrained_model_config(
        folder, hf_cfg=_describe(model), device=device, fold_ln=False, dtype=model.dtype
    )


def _translated(cfg: Any, held: PreTrainedModel, folder: str) -> dict[str, Tensor]:
    """A model's weights under TransformerLens's names and shapes: views of its own wherever nothing is computed."""
    return _host.loading.get_pretrained_state_dict(folder, cfg, held, dtype=cfg.dtype)


def _room_missing(pretrained: Pretrained) -> str | None:
    """Why a HookedTransformer does not fit into the memory that is free beside the model; None where it does.

    Most converters give views of the model's weights. Which do not is found out on a model of the same class that
    holds no numbers, and only where memory is short.
    """
    model = pretrained.model
    held = sum(parameter.nbytes for parameter in model.parameters())
    free = free_bytes(model.device)
    if free > _AMPLE * held:
        return None
    with _as_folder(model) as folder:
        try:
            cfg = _configuration(model, folder, device="meta")
        except Exception:  # not a model for that class: the conversion says so
            return None
        try:
            with torch.device("meta"):
                empty: Any = type(model)(model.config).to(model.dtype)  # pyright: ignore[reportArgumentType]
            weights = _translated(cfg, empty, folder)
            needed = bytes_beside(weights, (*empty.parameters(), *empty.buffers()))
        except Exception:  # a converter that looks at its numbers: what it makes is not known
            needed = held
    if needed < free:
        return None
    return (
        f"as a HookedTransformer {pretrained.name!r} takes {size_in_words(needed)} beside what was read, and "
        f"{size_in_words(free)} are free"
    )


def _describe(model: Any) -> dict[str, Any]:
    """The model's configuration as TransformerLens 3.9 expects to read it."""
    described = model.config.to_dict()
    # Weights from a GGUF file are plain tensors by now, and their configuration names no class.
    described.pop("quantization_config", None)
    described["architectures"] = [type(model).__name__]
    # The name that transformers 5 dropped for GPT-2 and GPT-J.
    if "n_positions" in described:
        described.setdefault("n_ctx", described["n_positions"])
    return described


def _neutral_folder() -> str:
    """A folder for temporary files whose path does not mislead TransformerLens about the architecture."""
    folders = [tempfile.gettempdir(), "/tmp", "/var/tmp", "/dev/shm", str(Path.cwd())]
    for folder in folders:
        path = Path(folder).resolve()
        if path.is_dir() and os.access(path, os.W_OK) and not any(word in str(path).lower() for word in _MISLEADING):
            return str(path)
    raise _NotHostedError(
        f"TransformerLens cannot read a model below {folders[0]!r}, whose path names an architecture; "
        f"set TMPDIR to a folder without {' and '.join(_MISLEADING[:2])} in its path"
    )
