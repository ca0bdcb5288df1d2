"""The records of a report as a table: one row a record and editor, for pandas and for spreadsheets."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from rome_lens.evaluation.report.metric_names import shown_metrics
from rome_lens.storage import write_table

if TYPE_CHECKING:
    import pandas as pd

    from rome_lens.evaluation.report.report import Report

_ASKED = ("number", "case_id", "relation", "subject", "prompt", "target_new", "target_true")


def to_dataframe(report: "Report") -> "pd.DataFrame":
    """A row a record and editor, in the report's order.

    Columns: editor, number, case_id, relation, subject, prompt, target_new, target_true; every metric that some record
    has; the unedited model's as `before_ES` and so on; layer, relative_norm (of the update, against the weights);
    perplexity_ratio (after the edit / before), flagged; error. What a record lacks is missing, not zero.
    """
    import pandas as pd

    found = [(editor, record) for editor, records in report.records.items() for record in records]
    metrics = shown_metrics(report.kind, (name for _, record in found for name in record["scores"]))
    before = shown_metrics(report.kind, (name for _, record in found for name in record["before"]))
    rows = [_row(editor, record, metrics, before) for editor, record in found]
    numbers = [*metrics, *(f"before_{name}" for name in before), "relative_norm", "perplexity_ratio"]
    columns = [
        *("editor", *_ASKED),
        *metrics,
        *(f"before_{name}" for name in before),
        *("layer", "relative_norm", "perplexity_ratio", "flagged", "error"),
    ]
    table = pd.DataFrame(rows, columns=columns)
    # A column that nobody has would else be one of objects.
    return table.astype({**dict.fromkeys(numbers, "float64"), "layer": "Int64", "flagged": "boolean"})


def write_csv(report: "Report", folder: str | os.PathLike[str]) -> list[Path]:
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
    table = to_dataframe(report)
    paths = []
    for editor in report.records:
        rows = table.loc[table["editor"] == editor]
        path = Path(folder) / f"{quote(editor, safe=' +=@,()', errors='backslashreplace')}.csv"
        write_table(rows, path)
        paths.append(path)
    return paths


def _row(editor: str, record: Mapping[str, Any], metrics: list[str], before: list[str]) -> dict[str, Any]:
    edit, watched = record["edit"] or {}, record["perplexity"] or {}
    return {
        "editor": editor,
        **{name: record[name] for name in _ASKED},
        **{name: record["scores"].get(name) for name in metrics},
        **{f"before_{name}": record["before"].get(name) for name in before},
        "layer": edit.get("layer"),
        "relative_norm": edit.get("relative_norm"),
        "perplexity_ratio": watched["after"] / watched["before"] if watched.get("before") else None,
        "flagged": watched.get("flagged"),
        "error": record["error"],
    }
