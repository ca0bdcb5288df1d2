"""What an editor gave for a record, as edits that hooks can carry, many records at once."""

from collections.abc import Sequence
from typing import Any

from rome_lens.backends import Backend
from rome_lens.editing import Edit
from rome_lens.editing.hooks import RowUpdates


def as_edits(answer: Any) -> tuple[Edit, ...] | None:
    """What an editor gave, as edits of `W_out` that hooks can carry; None where it is anything else."""
    if answer is None:
        return ()
    several = tuple(answer) if isinstance(answer, Sequence) else (answer,)
    return several if all(isinstance(edit, Edit) for edit in several) else None


def updates_of(backend: Backend, edits: Sequence[Sequence[Edit]]) -> RowUpdates:
    """Hooks for the edits of many records, each of which owns the rows that ask about it."""
    return RowUpdates(backend, [[here.update for edit in each for here in edit.layers] for each in edits])
