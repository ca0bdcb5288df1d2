"""Edits of `W_out`: the second moment, keys and values, closed forms, and edits as objects."""

from rome_lens.editing.edit import Edit, MatrixEdit
from rome_lens.editing.fine_tune import FineTuning
from rome_lens.editing.history import applied_edits, forget_edits, stale_edits
from rome_lens.editing.hooks import hooks_for_rows
from rome_lens.editing.load import load_edit
from rome_lens.editing.outcome import Loss, Probabilities
from rome_lens.editing.rome import ROME
from rome_lens.editing.second_moment.collect import CollectSettings
from rome_lens.editing.second_moment.moment import SecondMoment
from rome_lens.editing.settings import FineTuningSettings, Settings, settings_for

__all__ = [
    "ROME",
    "CollectSettings",
    "Edit",
    "FineTuning",
    "FineTuningSettings",
    "Loss",
    "MatrixEdit",
    "Probabilities",
    "SecondMoment",
    "Settings",
    "applied_edits",
    "forget_edits",
    "hooks_for_rows",
    "load_edit",
    "settings_for",
    "stale_edits",
]
