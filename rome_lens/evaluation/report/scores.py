"""The scores of one editor, and the name of the one that leaves the model as it is."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from rome_lens.intervals import Estimate

Kind = Literal["counterfact", "zsre"]
"""The data sets that edits are measured on, as run folders and reports name them."""

UNEDITED = "none"
"""The name of the editor that leaves the model as it is."""


@dataclass(frozen=True)
class EditorScores:
    """All metrics of one editor.

    Attributes:
        name: the editor's, such as `r-rome`.
        description: its settings, in a line for people.
        intervals: metric -> `Estimate`, in the order in which tables print them.
        by_relation: relation -> metric -> mean over its records; `n` is their number.
        n_records: how many records were evaluated.
        failed: number of a record -> why no edit could be made for it; it counts as the model left as it was.
        flagged: numbers of the records whose edit moved the perplexity by more than the bound.
    """

    name: str
    description: str
    intervals: Mapping[str, Estimate]
    by_relation: Mapping[str, Mapping[str, float]]
    n_records: int
    failed: Mapping[int, str]
    flagged: tuple[int, ...]

    @property
    def scores(self) -> dict[str, float]:
        """Metric -> mean, in percent except for the ratio of perplexities."""
        return {name: score.mean for name, score in self.intervals.items()}
