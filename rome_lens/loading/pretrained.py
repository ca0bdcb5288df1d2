"""From a name to a Hugging Face model and its tokeniser: the default model, a folder, or a name on the hub."""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from rome_lens.errors import ArtefactError, ModelError, ModelNotFoundError
from rome_lens.loading.converted import Check, cached_conversion, check_room, converted_path, write_conversion
from rome_lens.loading.default_model import DEFAULT_MODEL, alone_in_the_cache, fetch_default_model
from rome_lens.loading.hugging_face import Location, Pretrained, Wanted, read_config, read_pretrained
from rome_lens.loading.progress import quiet
from rome_lens.progress import Progress, silent

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig

_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")

logger = logging.getLogger(__name__)


def load_pretrained(
    name: str | os.PathLike[str],
    *,
    dtype: torch.dtype,
    device: torch.device,
    cache_dir: str | os.PathLike[str] | None = None,
    progress: Progress = silent,
    tokenizer_as_stored: bool = False,
) -> Pretrained:
    """Load a decoder and its tokeniser.

    Args:
        name: "smollm2-135m", a folder in the Hugging Face layout, or a name on the hub.
        dtype: the weights' type.
        device: where to put the model.
        cache_dir: the default model's cache.
        progress: called with steps done, steps in all (0 where unknown), and what is going on.
        tokenizer_as_stored: leave the tokeniser as its files have it, to be written out again.

    Raises:
        ModelNotFoundError: there is no model of that name.
        ModelError: there is one, but it is not a decoder or cannot be read.
        DownloadError: the default model could not be fetched.
    """
    wanted = Wanted(dtype, device, tokenizer_as_stored, progress)
    if os.fspath(name) == DEFAULT_MODEL:
        return _read_default(wanted, cache_dir=cache_dir)
    return read_pretrained(locate(os.fspath(name)), wanted)


def default_model_folder(cache_dir: str | os.PathLike[str] | None = None, *, progress: Progress | None = None) -> Path:
    """The default model as a folder in Hugging Face's layout, for transformers itself; made where it is not there yet.

    Args:
        cache_dir: as in `default_model_path`.
        progress: as in `load_model`.

    Raises:
        DownloadError: the model could not be fetched.
        ArtefactError: the folder cannot be written.
    """
    state = cached_conversion(cache_dir)
    return state.path if state.intact else _convert_default(progress or silent, cache_dir=cache_dir)


def _read_default(wanted: Wanted, *, cache_dir: str | os.PathLike[str] | None) -> Pretrained:
    """The default model from its converted copy, which is made first where there is none, or else from its GGUF file.

    The copy's checksums are looked at while it is read: nothing that does not hold is handed out.
    """
    path = converted_path(cache_dir)
    if os.path.lexists(path):
        check = Check(path)
        try:
            pretrained = read_pretrained(_folder(path), wanted)
            if check.intact():
                return pretrained
        except ModelError:
            if check.intact():
                raise
    try:
        folder = _convert_default(wanted.progress, cache_dir=cache_dir)
    except ArtefactError as error:
        logger.warning("%s; %s is read from its GGUF file, which takes longer", error, DEFAULT_MODEL)
        return read_pretrained(_gguf(wanted.progress, cache_dir=cache_dir), wanted)
    return read_pretrained(_folder(folder), wanted)


def _convert_default(progress: Progress, *, cache_dir: str | os.PathLike[str] | None) -> Path:
    """Make the converted copy, one process at a time; the others wait and share it."""
    import torch

    location = _gguf(progress, cache_dir=cache_dir)
    waiting = f"waiting for another process that is converting {DEFAULT_MODEL}"
    try:
        with alone_in_the_cache(Path(location.source), progress, waiting):
            state = cached_conversion(cache_dir)
            if state.intact:  # the process that we waited for has made it
                return state.path
            if state.present:
                logger.warning(
                    "the converted %s is damaged or outdated (%s): converting it again", DEFAULT_MODEL, state.path
                )
            check_room(state)
            as_it_is = Wanted(torch.float32, torch.device("cpu"), tokenizer_as_stored=True, progress=progress)
            read = read_pretrained(location, as_it_is)
            return write_conversion(read.model, read.tokenizer, cache_dir=cache_dir)
    except OSError as error:
        raise ArtefactError(f"cannot write in {location.source!r}: {error.strerror or error}") from error


def _folder(path: Path) -> Location:
    return Location(DEFAULT_MODEL, str(path), local=True, known=True)


def _gguf(progress: Progress, *, cache_dir: str | os.PathLike[str] | None) -> Location:
    path = fetch_default_model(cache_dir, progress=progress).path
    return Location(DEFAULT_MODEL, str(path.parent), local=True, known=True, gguf_file=path.name)


def find_config(name: str) -> tuple[Location, PreTrainedConfig]:
    """Where a model of this name is, the default one aside, and its configuration: of one on the hub it is fetched.

    Raises:
        ModelNotFoundError: there is no model of that name.
        ModelError: its configuration cannot be read.
    """
    with quiet(f"looking at {name}"):
        location = locate(name)
        return location, read_config(location)


def locate(name: str) -> Location:
    """Where a model of this name is, the default one aside.

    Raises:
        ModelNotFoundError: nowhere, and the hub has no such names.
    """
    folder = Path(name).expanduser()
    if name and folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ModelNotFoundError(
                f"the folder {name!r} holds no model: it has no config.json (the Hugging Face layout); "
                "a model of that name on the hub is found by its full name, owner/name"
            )
        return Location(folder.resolve().name, str(folder.resolve()), local=True)
    if folder.is_file():
        raise ModelNotFoundError(f"{name!r} is a file; a model is given by its folder, with config.json and weights")
    if _HUB_NAME.fullmatch(name) and not name.startswith("."):
        official = _official_name(name)
        return Location(official, official, local=False)
    raise ModelNotFoundError(
        f"no model {name!r}: there is no such folder, and it is neither {DEFAULT_MODEL!r} nor a name on the hub"
    )


def _official_name(name: str) -> str:
    """The hub's name for what TransformerLens also calls "gpt2-small" or "pythia-70m"."""
    from transformer_lens.supported_models import MODEL_ALIASES

    for official, aliases in MODEL_ALIASES.items():
        if name.lower() in (alias.lower() for alias in aliases):
            return official
    return name
