"""What an evaluation found: scores with intervals, an editor each, and the records that they were taken from."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from rome_lens.errors import SettingError
from rome_lens.intervals import Estimate

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

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


@dataclass(frozen=True, repr=False)
class Report:
    """An evaluation.

    Attributes:
        kind: `counterfact` or `zsre`.
        editors: name -> scores; `none` is the model as it is.
        records: editor -> its records by number, each as its file in a run folder holds it.
        settings: everything that was set, as JSON holds it.
        unevaluated: number of a record -> why it cannot be put to this model (a prompt longer than its context).
    """

    kind: str
    editors: Mapping[str, EditorScores]
    records: Mapping[str, Sequence[Mapping[str, Any]]]
    settings: Mapping[str, Any]
    unevaluated: Mapping[int, str]

    def __repr__(self) -> str:
        parts = ", ".join(
            f"{name}: {' '.join(f'{m} {s.mean:.1f}' for m, s in list(editor.intervals.items())[:4])}"
            for name, editor in self.editors.items()
        )
        return f"Report({self.kind}, {parts})"

    @property
    def scores(self) -> dict[str, float]:
        """Metric -> mean of the editor that was evaluated, the unedited model aside.

        Raises:
            SettingError: several editors were; each has its own in `editors`.
        """
        names = [name for name in self.editors if name != UNEDITED] or list(self.editors)
        if len(names) != 1:
            raise SettingError(f"this report holds {', '.join(names)}; take report.editors[NAME].scores")
        return self.editors[names[0]].scores

    def summary(self) -> dict[str, Any]:
        """Scores, intervals and settings as JSON holds them: what `summary.json` says."""
        return {
            "kind": self.kind,
            "editors": {name: asdict(editor) for name, editor in self.editors.items()},
            "unevaluated": dict(self.unevaluated),
            "settings": dict(self.settings),
        }

    def to_dataframe(self) -> "pd.DataFrame":
        """A row a record and editor: what was asked, every metric, the unedited model's, size and error of the edit."""
        from rome_lens.evaluation.report.tables import to_dataframe

        return to_dataframe(self)

    def figures(self) -> dict[str, "go.Figure"]:
        """Plotly figures: `scores`, every metric with its intervals; `relations`, NS against PS, for CounterFact."""
        from rome_lens.evaluation.report.figures import report_figures

        return report_figures(self)

    def write_html(self, path: str | os.PathLike[str]) -> None:
        """Write scores, figures, the worst records and the settings as one HTML page that works offline.

        Raises:
            ArtefactError: the file cannot be written; nothing is left behind.
        """
        from rome_lens.evaluation.report.page import write_page

        write_page(self, path)
