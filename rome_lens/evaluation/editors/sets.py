"""Editors of many facts by name: made on a model, and asked for one fact where records are edited by themselves."""

from collections.abc import Mapping, Sequence
from typing import Any

from rome_lens.editing import EMMET, MEMIT, AlphaEdit, Edit
from rome_lens.editing.together.editor import TogetherEditor
from rome_lens.editing.together.finding_run import FindingRun
from rome_lens.evaluation.editors.moments import Moments
from rome_lens.facts import EditRequest
from rome_lens.progress import Progress

SETS: Mapping[str, type[TogetherEditor]] = {"memit": MEMIT, "emmet": EMMET, "alphaedit": AlphaEdit}
"""Editors of sets, by their names."""


def make_set_editor(
    kind: str, model: Any, moments: Moments, settings: Mapping[str, Any], *, seed: int, prepend_bos: bool
) -> TogetherEditor:
    """An editor of sets.

    Args:
        kind: one of `SETS`.
        model: the model.
        moments: the second moments that are there; of the layers that are named, or of all.
        settings: what it is made with.
        seed: of its templates.
        prepend_bos: BOS stands in front of every prompt.

    Raises:
        SettingError, ModelMismatchError, ModelError: as the editors raise.
    """
    given = {"seed": seed, "prepend_bos": prepend_bos, **settings}
    given["context_templates"] = moments.templates(given)
    layers = given.get("layers")
    wanted = moments.layers if layers is None else layers if isinstance(layers, list | tuple) else [layers]
    found = {layer: moment for layer in wanted if (moment := moments.given(layer)) is not None}
    return SETS[kind](model, second_moments=found or None, **given)


class Alone:
    """An editor of sets that is asked for sets of one fact.

    Attributes:
        editor: the editor.
        layers: those that it edits.
    """

    def __init__(self, editor: TogetherEditor) -> None:
        self.editor, self.layers = editor, editor.layers

    def edit(self, request: EditRequest) -> Edit:
        """A set of one fact."""
        return self.edit_many([request])[0]

    def edit_many(self, requests: Sequence[EditRequest], *, progress: Progress | None = None) -> list[Edit]:
        """A set of one fact for each request, their values found side by side."""
        facts, _ = self.editor.facts_of(requests, FindingRun(progress=progress))
        return [self.editor.solve([fact]) for fact in facts]
