"""The report of an evaluation: scores with intervals, an editor each, and the records that they were taken from."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import plotly.graph_objects as go

from rome_lens.errors import SettingError
from rome_lens.evaluation.report.figures import report_figures
from rome_lens.evaluation.report.metric_names import shown_metrics
from rome_lens.evaluation.report.page import report_page
from rome_lens.evaluation.report.record import EvaluatedRecord
from rome_lens.evaluation.report.scores import UNEDITED, EditorScores, Kind
from rome_lens.storage import write_table, write_whole

if TYPE_CHECKING:
    import pandas as pd


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

    kind: Kind
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
        """A row a record and editor: what was asked, every metric, the unedited model's, size and error of the edit.

        Columns: editor, number, case_id, relation, subject, prompt, target_new, target_true; every metric that some
        record has; the unedited model's as `before_ES` and so on; layer, relative_norm (of the update, against the
        weights); perplexity_ratio (after the edit / before), flagged; error. What a record lacks is missing, not zero.
        """
        import pandas as pd

        found = [(editor, record) for editor, several in self._evaluated().items() for record in several]
        records = [record for _, record in found]
        metrics = shown_metrics(self.kind, (name for record in records for name in record.scores))
        before = shown_metrics(self.kind, (name for record in records for name in record.before))
        asked = ("number", "case_id", "relation", "subject", "prompt", "target_new", "target_true")
        how = ("perplexity_ratio", "flagged", "error")
        columns = {
            "editor": [editor for editor, _ in found],
            **{name: [getattr(record, name) for record in records] for name in asked},
            **{name: [record.scores.get(name) for record in records] for name in metrics},
            **{f"before_{name}": [record.before.get(name) for record in records] for name in before},
            **{name: [(record.edit or {}).get(name) for record in records] for name in ("layer", "relative_norm")},
            **{name: [getattr(record, name) for record in records] for name in how},
        }
        table = pd.DataFrame(list(zip(*columns.values(), strict=True)), columns=list(columns))
        numbers = [*metrics, *(f"before_{name}" for name in before), "relative_norm", "perplexity_ratio"]
        # A column without any value would otherwise be one of objects.
        return table.astype({**dict.fromkeys(numbers, "float64"), "layer": "Int64", "flagged": "boolean"})

    def figures(self) -> dict[str, go.Figure]:
        """Plotly figures: `scores`, every metric with its intervals; `relations`, NS against PS, for CounterFact."""
        return report_figures(self.kind, self.editors)

    def write_html(self, path: str | os.PathLike[str]) -> None:
        """Write scores, figures, the worst records and the settings as one HTML page that works offline.

        Raises:
            ArtefactError: the file cannot be written; nothing is left behind.
        """
        page = report_page(
            self.kind, self.editors, self._evaluated(), settings=self.settings, unevaluated=self.unevaluated
        )
        write_whole(path, page.encode())

    def _evaluated(self) -> dict[str, list[EvaluatedRecord]]:
        """The records as the views take them."""
        return {name: list(map(EvaluatedRecord.from_dict, records)) for name, records in self.records.items()}


def write_csv(report: Report, folder: str | os.PathLike[str]) -> list[Path]:
    """Write the records as one CSV file an editor, `<editor>.csv`, in UTF-8.

    Texts are written as `rome_lens.storage.write_table` writes them. In a file's name, what a file system could take
    for a folder is written as `%2F` and the like.

    Args:
        report: what was evaluated.
        folder: where the files go; it has to be there.

    Returns:
        The files, in the order of the editors.

    Raises:
        ArtefactError: a file cannot be written.
    """
    table = report.to_dataframe()
    paths = []
    for editor in report.records:
        rows = table.loc[table["editor"] == editor]
        path = Path(folder) / f"{quote(editor, safe=' +=@,()', errors='backslashreplace')}.csv"
        write_table(rows, path)
        paths.append(path)
    return paths
