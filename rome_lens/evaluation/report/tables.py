"""Records as a table: one row a record and editor, for pandas and for spreadsheets."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rome_lens.evaluation.report.metric_names import shown_metrics
from rome_lens.evaluation.report.record import EvaluatedRecord
from rome_lens.evaluation.report.scores import Kind

if TYPE_CHECKING:
    import pandas as pd

_ASKED = ("number", "case_id", "relation", "subject", "prompt", "target_new", "target_true")


def table_of_records(kind: Kind, records: Mapping[str, Sequence[EvaluatedRecord]]) -> "pd.DataFrame":
    """A row a record and editor, in the order given.

    Columns: editor, number, case_id, relation, subject, prompt, target_new, target_true; every metric that some record
    has; the unedited model's as `before_ES` and so on; layer, relative_norm (of the update, against the weights);
    perplexity_ratio (after the edit / before), flagged; error. What a record lacks is missing, not zero.

    Args:
        kind: the data set.
        records: editor -> its records.
    """
    import pandas as pd

    found = [(editor, record) for editor, several in records.items() for record in several]
    metrics = shown_metrics(kind, (name for _, record in found for name in record.scores))
    before = shown_metrics(kind, (name for _, record in found for name in record.before))
    rows = [
        {
            "editor": editor,
            **{name: getattr(record, name) for name in _ASKED},
            **{name: record.scores.get(name) for name in metrics},
            **{f"before_{name}": record.before.get(name) for name in before},
            **{name: (record.edit or {}).get(name) for name in ("layer", "relative_norm")},
            "perplexity_ratio": record.perplexity_ratio,
            "flagged": record.flagged,
            "error": record.error,
        }
        for editor, record in found
    ]
    numbers = [*metrics, *(f"before_{name}" for name in before), "relative_norm", "perplexity_ratio"]
    columns = [
        *("editor", *_ASKED),
        *metrics,
        *(f"before_{name}" for name in before),
        *("layer", "relative_norm", "perplexity_ratio", "flagged", "error"),
    ]
    table = pd.DataFrame(rows, columns=columns)
    # A column without any value would otherwise be one of objects.
    return table.astype({**dict.fromkeys(numbers, "float64"), "layer": "Int64", "flagged": "boolean"})
