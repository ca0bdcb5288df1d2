"""A report with checkpoints as one HTML page that works offline."""

from collections.abc import Mapping, Sequence
from typing import Any

from rome_lens.evaluation.report.checkpoints import Checkpoint
from rome_lens.evaluation.report.record import EvaluatedRecord
from rome_lens.evaluation.report.scores import Kind


def together_page(
    kind: Kind,
    editors: Mapping[str, Sequence[Checkpoint]],
    last: Mapping[str, Sequence[EvaluatedRecord]],
    *,
    descriptions: Mapping[str, str],
    disturbances: Mapping[str, Sequence[Mapping[str, Any]]],
    collapse: Mapping[str, int | None],
    settings: Mapping[str, Any],
    unevaluated: Mapping[int, str],
) -> str:
    """The page."""
    raise NotImplementedError
