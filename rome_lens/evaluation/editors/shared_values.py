"""Editors that differ in their second moment alone find keys and values, which take the time, once for both."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rome_lens.editing import ROME
from rome_lens.editing.solved import Solved
from rome_lens.evaluation.editors.named import IDENTITY, EditorSpec
from rome_lens.facts import EditRequest
from rome_lens.progress import Progress


@dataclass
class LastSolved:
    """The requests that one of several such editors was asked for last, and what was found for them."""

    requests: list[EditRequest] | None = None
    solved: Solved | None = None


class SharingEditor:
    """An editor that shares what it finds with others, which differ in their second moment alone.

    Attributes:
        editor: the editor itself.
        layer: the layer that it edits.
    """

    def __init__(self, editor: ROME, last: LastSolved) -> None:
        self._last, self.editor, self.layer = last, editor, editor.layer

    def edit(self, request: EditRequest) -> Any:
        """An edit for one request."""
        return self.edit_many([request])[0]

    def edit_many(self, requests: Sequence[EditRequest], *, progress: Progress | None = None) -> list[Any]:
        """An edit a request; they are solved if the last ones were others."""
        last = self._last
        if last.solved is None or last.requests != list(requests):
            last.requests = last.solved = None
            last.solved = self.editor.solve(requests, progress=progress)
            last.requests = list(requests)
        return self.editor.edits(last.solved)


def share_values(specs: Sequence[EditorSpec], editors: Mapping[str, Any]) -> dict[str, Any]:
    """The editors; those that differ in their second moment alone share what they find.

    Args:
        specs: what they were made from.
        editors: name -> editor.
    """
    shared = dict(editors)
    for pair in shared_pairs(specs):
        last = LastSolved()
        shared |= {name: SharingEditor(editors[name], last) for name in pair}
    return shared


def shared_pairs(specs: Sequence[EditorSpec]) -> list[tuple[str, str]]:
    """Names of the editors that share their values: r-ROME, and r-ROME with C = I."""
    pairs = []
    for spec in specs:
        if spec.kind == IDENTITY:
            first = next((s for s in specs if s.kind == "r-rome" and s.settings == spec.settings), None)
            if first is not None and all(first.name != name for name, _ in pairs):
                pairs.append((first.name, spec.name))
    return pairs
