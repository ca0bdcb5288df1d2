"""Edits of `W_out`: the second moment, keys and values, closed forms, and edits as objects."""

from rome_lens.editing.edit import Edit, MatrixEdit
from rome_lens.editing.fine_tune import FineTuning
from rome_lens.editing.guard import CollapseGuard
from rome_lens.editing.history import applied_edits, forget_edits, stale_edits
from rome_lens.editing.hooks import hooks_for_rows
from rome_lens.editing.load import load_edit
from rome_lens.editing.outcome import Loss, Probabilities
from rome_lens.editing.rome import ROME
from rome_lens.editing.second_moment.collect import CollectSettings
from rome_lens.editing.second_moment.moment import SecondMoment
from rome_lens.editing.settings import FineTuningSettings, Settings, settings_for
from rome_lens.editing.together.alpha_edit import AlphaEdit
from rome_lens.editing.together.edit_set import EditSet
from rome_lens.editing.together.emmet import EMMET
from rome_lens.editing.together.finding_run import merge_facts
from rome_lens.editing.together.known_facts import Conflict
from rome_lens.editing.together.memit import MEMIT
from rome_lens.editing.together.set_fact import SetFact
from rome_lens.editing.value_settings import ValueSettings

__all__ = [
    "EMMET",
    "MEMIT",
    "ROME",
    "AlphaEdit",
    "CollapseGuard",
    "CollectSettings",
    "Conflict",
    "Edit",
    "EditSet",
    "FineTuning",
    "FineTuningSettings",
    "Loss",
    "MatrixEdit",
    "Probabilities",
    "SecondMoment",
    "SetFact",
    "Settings",
    "ValueSettings",
    "applied_edits",
    "forget_edits",
    "hooks_for_rows",
    "load_edit",
    "merge_facts",
    "settings_for",
    "stale_edits",
]
