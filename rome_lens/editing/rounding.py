"""What rounding takes of an edit that is written into weights."""

import math
from typing import Any

import torch

from rome_lens.backends import as_backend
from rome_lens.editing.history import check_same_model, unedited_matrix
from rome_lens.editing.patch import Patch

# Rows of a matrix that are looked at together.
_ROWS = 1024


@torch.no_grad()
def lost_share(patch: Patch, model: Any, *, force: bool) -> float:
    """The share of an edit that is lost in a model's weights (`Edit.lost_to_rounding`)."""
    backend = as_backend(model)
    check_same_model(patch, backend, force=force)
    lost = gained = 0.0
    for here in patch.layers:
        before = unedited_matrix(backend, here.layer)
        squares = torch.zeros(2, dtype=torch.float64, device=before.device)
        for first in range(0, len(before), _ROWS):
            which = slice(first, first + _ROWS)
            gain = here.update.rows(which).to(before.device)
            wanted = before[which].double() + gain
            off = wanted.to(before.dtype).double() - wanted
            squares += torch.stack([off.square().sum(), gain.square().sum()])
        of_layer = squares.tolist()
        lost, gained = lost + of_layer[0], gained + of_layer[1]
    return math.sqrt(lost / gained) if gained else 0.0
