"""Curves over the number of facts, an editor a line; retention by age; who disturbs whom."""

from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from rome_lens.evaluation.report.checkpoints import Checkpoint
from rome_lens.evaluation.report.scores import Kind


def together_figures(
    kind: Kind,
    editors: Mapping[str, Sequence[Checkpoint]],
    disturbances: Mapping[str, Sequence[Mapping[str, Any]]],
) -> dict[str, go.Figure]:
    """The figures of a report with checkpoints."""
    raise NotImplementedError
