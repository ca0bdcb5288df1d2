"""Rank-one edits of `W_out`: the second moment, keys and values, closed forms, and edits as objects."""

from rome_lens.editing.applied import applied_edits
from rome_lens.editing.edit import Edit, Loss, Probabilities, load_edit
from rome_lens.editing.hooks import hooks_for_rows
from rome_lens.editing.rome import ROME
from rome_lens.editing.second_moment import SecondMoment
from rome_lens.editing.settings import Settings, settings_for

__all__ = [
    "ROME",
    "Edit",
    "Loss",
    "Probabilities",
    "SecondMoment",
    "Settings",
    "applied_edits",
    "hooks_for_rows",
    "load_edit",
    "settings_for",
]
