"""Edits for people who have no TransformerLens: a model that transformers loads, an adapter that peft loads.

What is written is Hugging Face's own form of the model with nothing but the edited matrices changed, so an edit that
was found on processed weights goes into the raw ones: processing moves neither the keys nor, but for a mean over
d_model that the following norm takes away, the values. Logits are the edited TransformerLens model's; where that one's
unembedding was centred, log-probabilities are.
"""

import contextlib
import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from rome_lens.backends import as_backend
from rome_lens.backends.modules import hugging_face_tree, is_wrapped
from rome_lens.backends.origin import EDITED_MODEL, NOTE, Held, held_in_folder, still_held
from rome_lens.backends.w_out import sketch_matrix
from rome_lens.editing.exact_sum import sum_on
from rome_lens.editing.history import held_now, is_held, unedited_matrix
from rome_lens.editing.patch import EditedLayer, Patch, name_of
from rome_lens.editing.record import records_of
from rome_lens.editing.weight_update import LowRank
from rome_lens.errors import EditError, EditStateError, ModelError, ModelMismatchError, SettingError
from rome_lens.loading.default_model import DEFAULT_MODEL
from rome_lens.loading.options import as_dtype
from rome_lens.loading.pretrained import load_pretrained
from rome_lens.loading.written import plain_config, write_pretrained
from rome_lens.storage import check_folder, whole_folder
from rome_lens.version import __version__

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_Piece = tuple[Patch, EditedLayer]
"""An edit, and one of the layers that it changes."""


def export_model(
    edits: Sequence[Patch], model_or_path: Any, out: str | os.PathLike[str], *, dtype: torch.dtype | None = None
) -> None:
    """Write an edited model as a folder that transformers loads: configuration, weights, tokeniser, and a note.

    Each edited matrix is the unedited one plus all its edits, summed exactly and rounded once, as in `Edit.apply`.
    The caller's model stays as it is.

    Args:
        edits: what goes in, in any order; several layers, several edits on one layer.
        model_or_path: the unedited model. Either a name or a folder as `load_model` takes them, read in `dtype`, with
            the tokeniser that comes with it. Or a transformers model, written in its own dtype, with the tokeniser of
            `model.name_or_path` where that is on this machine. Or a TransformerBridge with raw weights, written
            without whatever edits are applied to it, and with its tokeniser, which TransformerLens has set to add BOS.
        out: the folder; it must not exist, or be empty.
        dtype: for a name or a folder: what to read the weights in. By default what the edits were made in, so that the
            logits stay the same; bfloat16 would round the edit away in part.

    Raises:
        ModelMismatchError: an edit was made for another model.
        ModelError: weights that cannot be written: those of a HookedTransformer, processed or quantised ones.
        EditStateError: an edit is in the model already, or an edited layer of the bridge was changed outside rome_lens.
        SettingError: no edits, or one of them twice.
        ArtefactError: the folder holds something already, or cannot be written.
    """
    _check_edits(edits)
    check_folder(out)
    source = _source(model_or_path, edits, dtype=dtype)
    config = plain_config(source.model, name=source.name)
    weights = source.weights()
    by_module: dict[str, list[_Piece]] = {}
    for piece in _pieces(edits):
        by_module.setdefault(_module_of(*piece, source, weights), []).append(piece)
    layers: list[Held] = []
    for name, pieces in by_module.items():
        matrix, transposed = _as_w_out(source.modules[name], weights[f"{name}.weight"])
        edited = sum_on(matrix, [here.update for _, here in sorted(pieces, key=lambda piece: piece[0].id)])
        layers.append(_held_after(pieces, matrix, edited, source.held))
        weights[f"{name}.weight"] = edited.t().contiguous() if transposed else edited
    with whole_folder(out) as folder:
        write_pretrained(
            folder,
            name=source.name,
            model=source.model,
            tokenizer=source.tokenizer,
            config=config,
            weights=weights,
        )
        layers += [held for layer, held in source.held.items() if layer not in {held.layer for held in layers}]
        _write_note(folder, kind=EDITED_MODEL, model=source.name, edits=edits, layers=layers)


def export_adapter(edits: Sequence[Patch], out: str | os.PathLike[str]) -> None:
    """Write edits as a LoRA adapter that peft loads onto the unedited model, of the rank that they have on a layer.

    Args:
        edits: what goes in; several layers, several edits on one layer.
        out: the folder; it must not exist, or be empty.

    Raises:
        EditError: an edit changes a whole matrix, or the name of its module in Hugging Face's model is unknown.
        ModelMismatchError: the edits were made for different models.
        SettingError: no edits, or one of them twice.
        ArtefactError: the folder holds something already, or cannot be written.
    """
    from safetensors.torch import save_file

    _check_edits(edits)
    check_folder(out)
    modules: dict[str, list[LowRank]] = {}
    pieces = _pieces(edits)
    for patch, here in sorted(pieces, key=lambda piece: (piece[1].layer, piece[0].id)):
        if not isinstance(here.update, LowRank):
            raise EditError(
                f"the edit {patch.label} changes a whole matrix, and an adapter holds edits of low rank; write a whole "
                "model with to_hf"
            )
        if here.module is None:
            raise EditError(
                f"the Hugging Face name of the MLP's output in layer {here.layer} of {here.fingerprint.model_name} is "
                "unknown, and an adapter is bound to that name; write a whole model with to_hf, or make the edit on a "
                "TransformerBridge"
            )
        modules.setdefault(here.module, []).append(here.update)
    if len({here.module_transposed for _, here in pieces}) > 1:
        raise ModelMismatchError(
            "some of the edits are for a model with Linear and some for one with Conv1D; write an adapter for each"
        )
    ranks = {name: sum(update.rank for update in updates) for name, updates in modules.items()}
    rank = Counter(ranks.values()).most_common(1)[0][0]
    other_ranks = {name: r for name, r in ranks.items() if r != rank}
    factors: dict[str, Tensor] = {}
    for name, updates in modules.items():
        # peft adds (alpha / r) B A, transposed for Conv1D: [d_model, r] times [r, d_mlp].
        prefix = f"base_model.model.{name}"
        factors[f"{prefix}.lora_A.weight"] = torch.cat([update.left for update in updates])
        factors[f"{prefix}.lora_B.weight"] = torch.cat([update.right for update in updates]).t()
    first = edits[0].layers[0]
    model_name = first.fingerprint.model_name
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": model_name,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": rank,
        "rank_pattern": other_ranks,
        "alpha_pattern": other_ranks,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": not first.module_transposed,
        "target_modules": list(modules),
    }
    with whole_folder(out) as folder:
        plain = {name: x.detach().to("cpu", torch.float32).contiguous() for name, x in factors.items()}
        save_file(plain, folder / "adapter_model.safetensors", metadata={"format": "pt"})
        _write_json(folder / "adapter_config.json", settings)
        _write_note(folder, kind="lora_adapter", model=model_name, edits=edits)


@dataclass(frozen=True)
class _Source:
    """An unedited Hugging Face model, perhaps with a TransformerBridge's wrappers in it.

    Attributes:
        name: what to call it.
        model: the model; never changed.
        tokenizer: its tokeniser, or None.
        unedited: what belongs in place of a parameter that carries edits, by the parameter's id and in its layout.
        held: by layer, the edits that the weights held before.
    """

    name: str
    model: "PreTrainedModel"
    tokenizer: Any
    unedited: Mapping[int, Tensor] = field(default_factory=dict)
    held: Mapping[int, Held] = field(default_factory=dict)

    @property
    def modules(self) -> dict[str, nn.Module]:
        return dict(hugging_face_tree(self.model))

    def weights(self) -> dict[str, Tensor]:
        """What the model's `state_dict` would be without wrappers and edits; tensors are the model's own."""
        weights = {}
        for name, module in hugging_face_tree(self.model):
            kept = {k: b for k, b in module._buffers.items() if k not in module._non_persistent_buffers_set}
            for key, tensor in (module._parameters | kept).items():
                if tensor is not None:
                    weights[f"{name}.{key}" if name else key] = self.unedited.get(id(tensor), tensor).detach()
        if any(tensor.is_meta for tensor in weights.values()):
            raise ModelError(f"part of {self.name} is offloaded to disk; give its name or folder instead")
        return weights


def _source(model_or_path: Any, edits: Sequence[Patch], *, dtype: torch.dtype | None) -> _Source:
    if isinstance(model_or_path, str | os.PathLike):
        pretrained = load_pretrained(
            model_or_path, dtype=dtype or _dtype_of(edits), device=torch.device("cpu"), tokenizer_as_stored=True
        )
        held = _held_in(os.fspath(model_or_path))
        return _Source(pretrained.name, pretrained.model, pretrained.tokenizer, held=held)
    from transformers import PreTrainedModel

    if isinstance(model_or_path, PreTrainedModel):
        return _source_of_transformers(model_or_path)
    backend = as_backend(model_or_path)
    original = getattr(model_or_path, "original_model", None)
    name = backend.model_name
    if not isinstance(original, PreTrainedModel):
        raise ModelError(
            f"{name} is a {type(model_or_path).__name__} and holds no Hugging Face model to write; give the name or "
            "the folder that it was loaded from, as load_model takes it"
        )
    if getattr(model_or_path, "_weights_processed", False):
        raise ModelError(
            f"the weights of {name} were processed when compatibility mode was enabled, and the raw ones are gone; "
            "give the name or the folder that it was loaded from, as load_model takes it"
        )
    unedited = {}
    for layer in sorted(records_of(model_or_path)):
        w_out, matrix = backend.w_out(layer), unedited_matrix(backend, layer)
        unedited[id(w_out.parameter)] = matrix.t() if w_out.transposed else matrix
    return _Source(name, original, backend.tokenizer, unedited, held=held_now(backend))


def _source_of_transformers(model: "PreTrainedModel") -> _Source:
    from transformers import AutoTokenizer

    name = model.name_or_path or type(model).__name__
    if is_wrapped(model):
        raise ModelError(
            f"a TransformerBridge was built around this {type(model).__name__} and has changed it; give the bridge, or "
            "the name or the folder that it was loaded from"
        )
    tokenizer = None
    if model.name_or_path:
        with contextlib.suppress(Exception):  # a folder without one, a name that is not on this machine
            tokenizer = AutoTokenizer.from_pretrained(
                model.name_or_path, local_files_only=True, trust_remote_code=False
            )
    return _Source(name, model, tokenizer, held=_held_in(model.name_or_path))


def _dtype_of(edits: Sequence[Patch]) -> torch.dtype:
    """The widest of the dtypes that the edits were made in; float32 where none is said."""
    return reduce(torch.promote_types, [as_dtype(edit.dtype or None) for edit in edits])


def _module_of(patch: Patch, here: EditedLayer, source: _Source, weights: Mapping[str, Tensor]) -> str:
    """The module that a layer of an edit was made for: the one of its name, or else the one with the very weights."""
    mine = here.fingerprint
    shapes = {True: (mine.d_model, mine.d_mlp), False: (mine.d_mlp, mine.d_model)}
    fitting = [
        name
        for name, module in source.modules.items()
        if (isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D")
        and str(here.layer) in name.split(".")
        and tuple(weights[f"{name}.weight"].shape) == shapes[isinstance(module, nn.Linear)]
    ]
    for name in [here.module] if here.module in fitting else fitting:
        matrix, _ = _as_w_out(source.modules[name], weights[f"{name}.weight"])
        norm, sketch = sketch_matrix(matrix)
        now = replace(mine, norm=norm, sketch=sketch)
        held = still_held(source.held, now)
        # Other edits may lie on the same layer, as they may in memory.
        if mine.difference(now) is not None and (held is None or mine.difference(held.original) is not None):
            continue
        if is_held(patch, here, now, held):
            raise EditStateError(
                f"{name_of(patch)} is in the weights of {source.name} already; give the unedited model that it was "
                "made on"
            )
        return name
    reason = f"other weights in layer {here.layer}" if fitting else f"no such matrix in layer {here.layer}"
    raise ModelMismatchError(
        f"the edit was made for layer {here.layer} of {mine.model_name}, and {source.name} is another model ({reason})"
        "; give the unedited model that it was made on"
    )


def _as_w_out(module: nn.Module, weight: Tensor) -> tuple[Tensor, bool]:
    """A module's weight as [d_mlp, d_model], and whether that transposed it."""
    transposed = isinstance(module, nn.Linear)
    return (weight.t() if transposed else weight), transposed


def _pieces(edits: Sequence[Patch]) -> list[_Piece]:
    return [(patch, here) for patch in edits for here in patch.layers]


def _check_edits(edits: Sequence[Patch]) -> None:
    if not edits:
        raise SettingError("there are no edits to write; give at least one")
    for edit, other in pairwise(sorted(edits, key=lambda e: e.id)):
        if edit.id == other.id:
            raise SettingError(f"{name_of(edit)} is given twice")
    first: dict[int, EditedLayer] = {}
    for _, here in _pieces(edits):
        other = first.setdefault(here.layer, here)
        mine, theirs = edits[0].layers[0].fingerprint, here.fingerprint
        difference = other.fingerprint.difference(theirs)
        if difference is not None or (mine.n_layers, mine.d_model) != (theirs.n_layers, theirs.d_model):
            raise ModelMismatchError(
                f"the edits were made for different models, {mine.model_name} and {theirs.model_name} "
                f"({difference or 'other sizes'}); write them one model at a time"
            )


def _held_in(name: str | None) -> dict[int, Held]:
    """What a folder's note says of the edits in it; nothing for a name, or where the note has no fingerprints."""
    if not name or name == DEFAULT_MODEL:
        return {}
    folder = Path(name).expanduser()
    return held_in_folder(folder, None) if folder.is_dir() else {}


def _held_after(pieces: Sequence[_Piece], matrix: Tensor, edited: Tensor, before: Mapping[int, Held]) -> Held:
    """What a layer holds once edits were written into it, on top of those that it held before."""
    mark = pieces[0][1].fingerprint
    now, then = (replace(mark, norm=norm, sketch=sketch) for norm, sketch in map(sketch_matrix, (matrix, edited)))
    earlier = still_held(before, now)
    edits, original = ((), now) if earlier is None else (earlier.edits, earlier.original)
    return Held(mark.layer, (*edits, *(_described(patch) for patch, _ in pieces)), original, then)


def _described(edit: Patch) -> dict[str, Any]:
    return {"id": edit.id, **edit.to_dict()}


def _write_note(folder: Path, *, kind: str, model: str, edits: Sequence[Patch], layers: Sequence[Held] = ()) -> None:
    mine = {edit.id for edit in edits}
    earlier = [dict(edit) for held in layers for edit in held.edits if edit.get("id") not in mine]
    note = {"rome_lens": __version__, "kind": kind, "model": model, "edits": [*earlier, *map(_described, edits)]}
    _write_json(folder / NOTE, note | ({"layers": [held.to_dict() for held in layers]} if layers else {}))


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
