"""Editors that differ in their second moment alone find keys and values, which take the time, once for both."""

from collections.abc import Mapping, Sequence
from typing import Any

from rome_lens.editing import ROME
from rome_lens.errors import RomeLensError
from rome_lens.evaluation.editors.named import IDENTITY, EditorSpec
from rome_lens.facts import EditRequest
from rome_lens.progress import Progress


class SharedValues:
    """Two editors of the same keys and values under two second moments: the values are optimised once for both.

    What is found for the second while the first edits is kept until the second is asked for the same requests.

    Attributes:
        first: edits under the first second moment.
        second: edits under the second one.
    """

    def __init__(self, editor: ROME, other: ROME) -> None:
        """Join an editor with one that differs in its second moment alone."""
        self._editor, self._other = editor, other
        self._kept: dict[EditRequest, Any] = {}
        self.first, self.second = _First(self, editor), _Second(self, other)

    def edit_first(self, requests: Sequence[EditRequest], progress: Progress | None) -> list[Any]:
        """Edits of the first editor; those of the second are kept."""
        moments = [self._editor.second_moment, self._other.second_moment]
        self._kept = {}
        try:
            mine, theirs = self._editor.edit_many_under(requests, moments, progress=progress)
        except RomeLensError:
            # Which of the two it is that cannot edit shows when each edits by itself.
            return self._editor.edit_many(requests, progress=progress)
        self._kept = dict(zip(requests, theirs, strict=True))
        return mine

    def edit_second(self, requests: Sequence[EditRequest], progress: Progress | None) -> list[Any]:
        """Edits of the second editor."""
        missing = [request for request in requests if request not in self._kept]
        more = self._other.edit_many(missing, progress=progress) if missing else []
        found = self._kept | dict(zip(missing, more, strict=True))
        self._kept = {}
        return [found[request] for request in requests]


class _First:
    """The first of two editors that share values."""

    def __init__(self, shared: SharedValues, editor: ROME) -> None:
        self._shared, self.editor, self.layer = shared, editor, editor.layer

    def edit(self, request: EditRequest) -> Any:
        return self.edit_many([request])[0]

    def edit_many(self, requests: Sequence[EditRequest], *, progress: Progress | None = None) -> list[Any]:
        return self._shared.edit_first(requests, progress)


class _Second(_First):
    """The second of them."""

    def edit_many(self, requests: Sequence[EditRequest], *, progress: Progress | None = None) -> list[Any]:
        return self._shared.edit_second(requests, progress)


def share_values(specs: Sequence[EditorSpec], editors: Mapping[str, Any]) -> dict[str, Any]:
    """The editors, those that differ in their second moment alone joined.

    Args:
        specs: what they were made from.
        editors: name -> editor.
    """
    joined = dict(editors)
    for first, second in shared_pairs(specs):
        shared = SharedValues(editors[first], editors[second])
        joined |= {first: shared.first, second: shared.second}
    return joined


def shared_pairs(specs: Sequence[EditorSpec]) -> list[tuple[str, str]]:
    """Names of the editors that share their values: r-ROME, and r-ROME with C = I."""
    pairs = []
    for spec in specs:
        if spec.kind == IDENTITY:
            first = next((s for s in specs if s.kind == "r-rome" and s.settings == spec.settings), None)
            if first is not None and all(first.name != name for name, _ in pairs):
                pairs.append((first.name, spec.name))
    return pairs
