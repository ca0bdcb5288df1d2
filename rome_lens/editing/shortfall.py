"""Why an edit falls short of its target: one rule, for the editor's notes and for the shell."""

import math
from collections.abc import Sequence
from typing import Literal

from rome_lens.editing.outcome import SAID, Loss, Probabilities

Cause = Literal["key", "value", "spill", "token"]
"""`key`: the value gives the target, but the bare prompt's key is not the one that is answered with it. `value`: the
value does not give it. `spill`: the value gives it, but the update changes other tokens of the text, too. `token`: it
is given, but for one token or another."""

# Of a token's probability under the value: where less is left after the bare prompt, the value is not what falls short.
_LEFT = 0.9


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
