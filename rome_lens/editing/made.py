"""Makes an `Edit` of one layer from what an editor found, with what is noted of every edit."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rome_lens.backends import Backend
from rome_lens.backends.modules import hugging_face_module
from rome_lens.editing.answers import alike
from rome_lens.editing.edit import Edit
from rome_lens.editing.history import unedited_fingerprint
from rome_lens.editing.outcome import Earlier, Origin, Outcome, found_on
from rome_lens.editing.patch import EditedLayer
from rome_lens.editing.weight_update import WeightUpdate
from rome_lens.tokens import TokenisedPrompt


@dataclass(frozen=True)
class Found:
    """What an editor found for one request.

    Attributes:
        outcome: the request, and what the edit does about it.
        update: what `W_out` of the layer gains, on the CPU.
        target: the bare prompt, followed by the target.
        old: the bare prompt, followed by the old answer.
        notes: what is to be noted of this request.
        key_norm: length of the key that is answered; None where that is not one key.
        key_dot: product of that key with the update's direction.
    """

    outcome: Outcome
    update: WeightUpdate
    target: TokenisedPrompt
    old: TokenisedPrompt
    notes: tuple[str, ...] = ()
    key_norm: float | None = None
    key_dot: float | None = None


def make_edits(
    backend: Backend,
    found: Sequence[Found],
    *,
    variant: str,
    settings: Mapping[str, Any],
    notes: tuple[str, ...],
    made_on: tuple[Earlier, ...],
    started: float,
) -> list[Edit]:
    """Edits of one layer, each with one request.

    Args:
        backend: the model, unedited but for the edits that were in it while these were found.
        found: a request each, all of one layer.
        variant: the editor's name.
        settings: everything that was set, as JSON holds it, with its `source`.
        notes: what is to be noted of all of them, between where the settings come from and `made_on`.
        made_on: the edits that were in the weights while they were found.
        started: when the work on them began, by `time.perf_counter`.
    """
    if not found:
        return []
    layer = found[0].update.layer
    others = found_on(made_on, layer, second_moment="second_moment" in settings)
    fingerprint = unedited_fingerprint(backend, layer)
    module, transposed = hugging_face_module(backend, layer) or (None, True)
    norm = backend.w_out(layer).matrix.double().norm().item()
    origin = Origin(
        variant=variant,
        settings=settings,
        backend=backend.name,
        dtype=str(backend.dtype).removeprefix("torch."),
        seconds=(time.perf_counter() - started) / len(found),
        made_on=made_on,
    )
    edits = []
    for one in found:
        edited = EditedLayer(
            one.update, fingerprint, one.update.norm / norm, module, transposed, one.key_norm, one.key_dot
        )
        said = (f"settings: {settings['source']}", *notes, *others, *alike(one.target, one.old), *one.notes)
        edits.append(Edit((one.outcome,), (edited,), replace(origin, notes=said)))
    return edits
