"""Where a model was loaded from, and which edits its weights held by then; it lies on the model, as its edits do."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rome_lens.backends.base import Backend
from rome_lens.backends.w_out import Fingerprint
from rome_lens.errors import RomeLensError
from rome_lens.subjects import Template

NOTE = "rome_lens.json"
"""The file in an exported folder that says what was edited: `rome_lens` (our version), `kind`, `model`, `edits`, and
for a whole model `layers`, as `Held.to_dict` writes them."""

EDITED_MODEL = "edited_model"
"""The kind of a folder with a whole model in it."""

_ATTRIBUTE = "_rome_lens_origin"


@dataclass(frozen=True)
class Held:
    """Edits that a layer's `W_out` holds since before the model was loaded, so that none can be taken out.

    Attributes:
        layer: the layer.
        edits: what each of them was, as `Edit.to_dict` says it, with its `id` (which files of 0.1.0 lack).
        original: of the layer before any of them.
        edited: of the layer with them.
    """

    layer: int
    edits: tuple[Mapping[str, Any], ...]
    original: Fingerprint
    edited: Fingerprint

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it; the edits by their ids."""
        ids = [edit.get("id") for edit in self.edits]
        fingerprints = {"original": self.original.to_dict(), "edited": self.edited.to_dict()}
        return {"layer": self.layer, "edits": ids, **fingerprints}

    def is_in(self, now: Fingerprint) -> bool:
        """Whether a layer is still the edited one, and not the original, or a third that was put there since."""
        return self.edited.difference(now) is None and self.edited.apart(now) < self.original.apart(now)

    def has(self, number: str, described: Mapping[str, Any]) -> bool:
        """Whether an edit is one of them.

        Args:
            number: its id.
            described: what `Edit.to_dict` says of it, as JSON holds it.
        """
        return any(
            edit["id"] == number
            if "id" in edit
            else all(described.get(name) == value for name, value in edit.items() if name in described)
            for edit in self.edits
        )


@dataclass(frozen=True)
class Origin:
    """Where a model came from.

    Attributes:
        name: what `load_model` takes: the default model's name, one on the hub, or a folder's whole path.
        held: by layer, the edits that were in it.
    """

    name: str
    held: Mapping[int, Held] = field(default_factory=dict)


def keep_origin(backend: Backend, name: str, *, folder: Path | None) -> None:
    """Note on a model where it was loaded from.

    Args:
        backend: the model, as it was loaded.
        name: what `load_model` was given.
        folder: the folder, where it is one.
    """
    if folder is not None:
        name = str(folder.resolve())
    held = {} if folder is None else held_in_folder(folder, backend.fingerprint)
    # Plain assignment to a TransformerBridge would be handed on to the model inside.
    backend.model.__dict__[_ATTRIBUTE] = Origin(name, held)


def loaded_from(backend: Backend) -> str:
    """What `load_model` takes to load this model again; where that was not noted, the model's name."""
    return _origin(backend).name


def held_edits(backend: Backend, now: Fingerprint) -> Held | None:
    """What was noted of a layer when its model was loaded; None where nothing was, or the layer has changed since.

    Args:
        backend: the model.
        now: of the layer without the edits that were applied since.
    """
    return still_held(_origin(backend).held, now)


def still_held(held: Mapping[int, Held], now: Fingerprint) -> Held | None:
    """The edits that a layer held, by what was noted of every layer, where it still does."""
    here = held.get(now.layer)
    return here if here is not None and here.is_in(now) else None


def layers_held(backend: Backend) -> tuple[int, ...]:
    """The layers that held edits when the model was loaded."""
    return tuple(sorted(_origin(backend).held))


def held_in_folder(folder: Path, fingerprint: Any) -> dict[int, Held]:
    """What the note in a folder says that its weights hold; nothing where there is none that can be read.

    Args:
        folder: the folder.
        fingerprint: gives that of a layer as it is in the folder, by its number.
    """
    try:
        note = json.loads((folder / NOTE).read_text(encoding="utf-8"))
        if note["kind"] != EDITED_MODEL:
            return {}
        known = {
            here["layer"]: (Fingerprint.from_dict(here["original"]), Fingerprint.from_dict(here["edited"]))
            for here in note.get("layers", ())
        }
        by_layer: dict[int, list[Mapping[str, Any]]] = {}
        for edit in note["edits"]:
            for layer in _layers_of(edit):
                by_layer.setdefault(layer["layer"], []).append(edit)
        return {
            layer: Held(layer, tuple(edits), *(known.get(layer) or (_original_of(edits[0], layer), fingerprint(layer))))
            for layer, edits in by_layer.items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, RomeLensError):
        return {}


def in_words(edits: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """Edits of a note, a line each."""
    lines = []
    for edit in edits:
        outcomes = edit.get("outcomes", [edit])
        request, n_more = outcomes[0]["request"], len(outcomes) - 1
        template = Template.read(str(request["prompt"]))
        words = f"{template.before}{request['subject']}{template.after} → {str(request['target_new']).strip()}"
        layers = ", ".join(str(here["layer"]) for here in _layers_of(edit))
        number = f", {edit['id']}" if "id" in edit else ""
        more = f" and {n_more} more" if n_more else ""
        lines.append(f"{words}{more} (layer{'s' if ',' in layers else ''} {layers}{number})")
    return tuple(lines)


def _layers_of(edit: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """The layers of an edit in a note, which says those of an edit of one layer without a list."""
    return edit.get("layers", [edit])


def _original_of(edit: Mapping[str, Any], layer: int) -> Fingerprint:
    """Of a layer before the first edit in it."""
    return Fingerprint.from_dict(next(here["fingerprint"] for here in _layers_of(edit) if here["layer"] == layer))


def _origin(backend: Backend) -> Origin:
    """What was noted on a model; of one that was not loaded by us no more than its name is known."""
    return backend.model.__dict__.get(_ATTRIBUTE) or Origin(backend.model_name)
