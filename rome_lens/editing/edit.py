"""An edit as an object: how it goes into models, hooks, files and folders, and out again."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from rome_lens.checks import as_real, shown
from rome_lens.editing.export import export_adapter, export_model
from rome_lens.editing.guard import CollapseGuard
from rome_lens.editing.history import apply_edit, is_applied, revert_edit
from rome_lens.editing.hooks import Hook, edit_hooks
from rome_lens.editing.patch import Patch, name_of
from rome_lens.editing.rounding import lost_share
from rome_lens.errors import CollapseError, SettingError
from rome_lens.storage import save_tensors

FORM = 2
"""The form of the files that `Edit.save` writes; those of form 1 hold one request, one layer and flat settings."""


@dataclass(frozen=True, eq=False, repr=False)
class Edit(Patch):
    """What `W_out` of one or more layers gains so that requests are answered, with all that it came from.

    Made by an editor, such as `ROME`. An edit changes nothing by itself: put it into a model's weights with `apply` or
    `applied`, run it through hook points with `hooks`, write it into a model for others with `to_hf` and `to_peft`.

    Edits of today's editors answer one request by changing one layer, by a rank-one matrix (`ROME`) or by a whole one
    (`FineTuning`). For these, `request`, `layer`, `u`, `v`, `before`, `after` and so on say directly what `outcomes`
    and `layers` hold.

    !!! example
        ```python
        edit = editor.edit(rl.EditRequest("{} is in", subject="The tower", target_new="Rome"))
        edit.layer, edit.u, edit.v       # W_out of that layer gains outer(u, v)
        with edit.applied(model):
            ...                          # the edited model; afterwards the weights are the very bits again
        ```

    Attributes:
        outcomes: each request with what the model said before and what it says with the edit.
        layers: what changes, each layer once, from the lowest.
        origin: what it was made with.
    """

    def scaled(self, factor: float) -> "Edit":
        """The same edit, stronger or weaker: what every layer gains, times a number.

        What it says of the outcome is that of the edit as it was made.

        Args:
            factor: what the updates are multiplied by, such as 0.5.

        Raises:
            SettingError: it is no finite number.
        """
        times = as_real(factor)
        if times is None:
            raise SettingError(f"factor is {shown(factor)}; expected a finite number, such as 0.5")
        layers = tuple(
            replace(here, update=here.update.scaled(times), relative_norm=here.relative_norm * abs(times))
            for here in self.layers
        )
        return replace(self, layers=layers)

    def apply(self, model: Any, *, force: bool = False, guard: CollapseGuard | None = None) -> None:
        """Write the edit into a model's weights, on top of the edits that are in them: all of its layers, or none.

        Args:
            model: a HookedTransformer or a TransformerBridge; its processing does not matter.
            force: put it on a model of the same shape with other weights, such as a fine-tuned one.
            guard: looks at the model with the edit in its weights, and refuses an edit with which it has collapsed.

        Raises:
            CollapseError: the guard refused it, and it is out again.
            EditStateError: it is on already, or a layer was changed outside rome_lens since our last edit.
            ModelMismatchError: another model; ModelError: not a model of ours.
        """
        apply_edit(self, model, force=force)
        told = None if guard is None else guard.told(model)
        if told is not None:
            revert_edit(self, model)
            raise CollapseError(f"the model has collapsed with {name_of(self)}: {told}; it is out again", self)

    def revert(self, model: Any) -> None:
        """Take the edit out again: the other edits stay, and after the last one the weights are the very bits.

        Warns:
            UserWarning: edits that were found while this one was in the weights stay; `stale_edits` lists them.

        Raises:
            EditStateError: it is not on, or a layer was changed outside rome_lens since our last edit.
        """
        revert_edit(self, model)

    def is_applied(self, model: Any) -> bool:
        """Whether the edit is in this model's weights."""
        return is_applied(self, model)

    @contextmanager
    def applied(self, model: Any, *, force: bool = False) -> Iterator[Any]:
        """The model with the edit in its weights, for as long as the block lasts, exceptions or not.

        Raises:
            EditStateError, ModelMismatchError, ModelError: as `apply` does.
        """
        self.apply(model, force=force)
        try:
            yield model
        finally:
            if self.is_applied(model):
                self.revert(model)

    def hooks(self, model: Any, *, rows: Sequence[int] | None = None, force: bool = False) -> list[tuple[str, Hook]]:
        """The same edit through hook points, weights untouched: for `model.run_with_hooks(..., fwd_hooks=...)`.

        Args:
            model: a HookedTransformer or a TransformerBridge.
            rows: rows of the batch that are edited; None is all of them. For several edits in one batch, join their
                lists, or let `hooks_for_rows` make one.
            force: as in `apply`.

        Raises:
            EditStateError: the edit is in the model's weights, and would count twice.
            ModelMismatchError: another model; ModelError: not a model of ours.
        """
        return edit_hooks(self, model, rows=rows, force=force)

    def lost_to_rounding(self, model: Any, *, force: bool = False) -> float:
        """The share of the edit that rounding takes away when it is written into a model's weights.

        Over all layers, `|D' - D| / |D|` in Frobenius norms, where D is what `W_out` is to gain and D' what the
        unedited matrix gains once the sum is rounded into the model's precision. Some 1e-5 in float32, and much of an
        edit in bfloat16, whose numbers have 8 bits. Through `hooks` nothing of it is lost.

        Args:
            model: a HookedTransformer or a TransformerBridge, with or without the edit in its weights.
            force: as in `apply`.

        Raises:
            EditStateError: a layer was changed outside rome_lens since our last edit.
            ModelMismatchError: another model; ModelError: not a model of ours.
        """
        return lost_share(self, model, force=force)

    def to_hf(self, model_or_path: Any, out: str | os.PathLike[str]) -> None:
        """Write the edited model as a folder that transformers loads.

        Args:
            model_or_path: the unedited model: a name or a folder as `load_model` takes them, a transformers model, or
                a TransformerBridge.
            out: the folder.

        Raises:
            ModelMismatchError: another model. ArtefactError: the folder cannot be written.
        """
        export_model([self], model_or_path, out)

    def to_peft(self, out: str | os.PathLike[str]) -> None:
        """Write the edit as a LoRA adapter of its rank that peft loads onto the unedited model.

        Raises:
            EditError: the update is a whole matrix, or the module's name in Hugging Face's model is unknown.
            ArtefactError: the folder cannot be written.
        """
        export_adapter([self], out)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the edit to a file (safetensors; its metadata holds all that is no tensor).

        Raises:
            ArtefactError: the file cannot be written.
        """
        settings = {
            "outcomes": [one.to_dict() for one in self.outcomes],
            "layers": [here.to_dict() for here in self.layers],
            "origin": self.origin.to_dict(),
        }
        save_tensors(path, kind="edit", tensors=self._update_tensors(), settings=settings, form=FORM)

    def _update_tensors(self) -> dict[str, Tensor]:
        """What the layers gain, as files hold it."""
        return {
            f"layers.{here.layer}.{name}": tensor
            for here in self.layers
            for name, tensor in here.update.tensors.items()
        }


MatrixEdit = Edit
"""The name that edits of fine-tuning had; they are `Edit`s whose update is a whole matrix."""
