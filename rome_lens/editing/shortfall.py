"""Why an edit falls short of its target and what may help: one rule and one text, for notes and for the shell."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rome_lens.editing.outcome import SAID, Loss, Probabilities
from rome_lens.facts import EditRequest

Cause = Literal["key", "value", "spill", "token"]
"""`key`: the value gives the target, but the bare prompt's key is not the one that is answered with it. `value`: the
value does not give it. `spill`: the value gives it, but the update changes other tokens of the text, too. `token`: it
is given, but for one token or another."""

# Of a token's probability under the value: where less is left after the bare prompt, the value is not what falls short.
_LEFT = 0.9


@dataclass(frozen=True)
class SettingNames:
    """What the settings that may help are called: in Python, or by a command's options."""

    layer: str = "layer"
    steps: str = "steps"
    clamp: str = "clamp_norm_factor"
    bare_weight: str = "bare_weight"
    p_rome: str = "variant='p-rome'"
    second_moment: str = "second moment"
    target: str = "target"


def shortfall(after: Probabilities, curve: Sequence[Loss], *, mean_key: bool) -> Cause | None:
    """Why an edit does not do what was asked; None where it does.

    Means are compared with means: the loss holds the target's mean negative log-probability, over all rows.

    Args:
        after: what the edit did.
        curve: the loss of its value at every evaluation.
        mean_key: the update answers the mean key of several rows, and not the bare prompt's own.
    """
    if after.reached:
        return None
    given = math.exp(-curve[-1].target) if curve else 0.0
    if given < SAID:
        return "value"
    got = after.target if after.target_mean is None else after.target_mean
    if got >= _LEFT * given:
        return "token"
    return "key" if mean_key else "spill"


def answers_mean_key(variant: str, *, n_templates: int, bare_weight: float | None) -> bool:
    """Whether an edit of this kind answers another key than the bare prompt's, so that a larger share may help."""
    return variant == "r-rome" and n_templates > 1 and bare_weight != 1


def not_reached(request: EditRequest, after: Probabilities, why: str) -> str:
    """That the target is not reached, and what may help."""
    return f"the target {request.target_new!r} is not reached, its probability is {after.target:.2g}: {why}"


def advice(
    request: EditRequest,
    after: Probabilities,
    curve: Sequence[Loss],
    *,
    variant: str,
    settings: Mapping[str, Any],
    names: SettingNames = SettingNames(),
) -> str | None:
    """What to say of ROME's edit that does not do what was asked, and what may help; None where it does.

    Args:
        request: what was asked.
        after: what the edit did.
        curve: the loss of its value at every evaluation.
        variant: of ROME.
        settings: what it was made with, as `Edit.settings` holds it.
        names: what the settings are called where it is read.
    """
    n_templates, bare_weight = len(settings["context_templates"]), settings["bare_weight"]
    mean_key = answers_mean_key(variant, n_templates=n_templates, bare_weight=bare_weight)
    cause = shortfall(after, curve, mean_key=mean_key)
    if cause is None:
        return None
    why = {
        "key": "the value says it, but the bare prompt's key differs from the one that is answered: raise "
        f"{names.bare_weight}, or take {names.p_rome}",
        "value": f"the value itself falls short: choose another {names.layer}, more {names.steps} or a larger "
        f"{names.clamp}",
        "spill": "the value says it, but the update changes other tokens of the text: choose another "
        f"{names.layer}, or a {names.second_moment} of more tokens",
        "token": f"a token of it has {after.target_mean:.2g} on average, but not each is the likeliest at its place: "
        f"choose another {names.layer}, more {names.steps} or a shorter {names.target}",
    }[cause]
    return not_reached(request, after, why)
