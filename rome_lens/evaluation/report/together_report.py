"""The report of an evaluation with checkpoints: what is left of facts, by their number and who put them in."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import plotly.graph_objects as go

from rome_lens.errors import SettingError
from rome_lens.evaluation.report.checkpoints import Checkpoint, checkpoint_of, unedited_scores
from rome_lens.evaluation.report.metric_names import shown_metrics
from rome_lens.evaluation.report.record import EvaluatedRecord
from rome_lens.evaluation.report.scores import UNEDITED, Kind
from rome_lens.evaluation.report.together_figures import together_figures
from rome_lens.evaluation.report.together_page import together_page
from rome_lens.intervals import Estimate
from rome_lens.storage import write_table, write_whole

if TYPE_CHECKING:
    import pandas as pd

_SIZES = ("perplexity", "relative_norm", "drift", "shortfall", "load", "conflicts")


@dataclass(frozen=True, repr=False)
class TogetherReport:
    """An evaluation with checkpoints.

    Attributes:
        kind: `counterfact` or `zsre`.
        editors: name -> its checkpoints, in rising order: those that are finished.
        descriptions: name -> its settings, in a line for people; `found on base` or `found on edited` among them.
        records: name -> n -> every record that was asked, as the run folder holds it.
        disturbances: name -> who disturbs whom at the last checkpoint, as `DisturbedFact` has it; of sets alone.
        settings: of the run.
        unevaluated: number of a record -> why it cannot be put to this model.
    """

    kind: Kind
    editors: Mapping[str, tuple[Checkpoint, ...]]
    descriptions: Mapping[str, str]
    records: Mapping[str, Mapping[int, Sequence[Mapping[str, Any]]]]
    disturbances: Mapping[str, Sequence[Mapping[str, Any]]]
    settings: Mapping[str, Any]
    unevaluated: Mapping[int, str]

    def __repr__(self) -> str:
        last = {name: points[-1] for name, points in self.editors.items() if points}
        parts = "; ".join(
            f"{name}: {' '.join(f'{m} {s.mean:.1f}' for m, s in list(point.intervals.items())[:4])} with {point.n}"
            for name, point in last.items()
        )
        return f"{type(self).__name__}({self.kind}, {parts or 'no checkpoint finished'})"

    @property
    def at(self) -> tuple[int, ...]:
        """The numbers of facts of the checkpoints that some editor finished."""
        return tuple(sorted({point.n for points in self.editors.values() for point in points}))

    @property
    def collapse(self) -> dict[str, int | None]:
        """Editor -> the first checkpoint at which its model had collapsed; None where it never did."""
        return {
            name: next((point.n for point in points if point.collapse), None) for name, points in self.editors.items()
        }

    def checkpoint(self, editor: str, n: int) -> Checkpoint:
        """A checkpoint of an editor.

        Raises:
            SettingError: there is none.
        """
        for point in self.editors.get(editor, ()):
            if point.n == n:
                return point
        there = ", ".join(f"{name} at {[p.n for p in points]}" for name, points in self.editors.items())
        raise SettingError(f"there is no checkpoint of {editor!r} with {n!r} facts; the report has {there}")

    def summary(self) -> dict[str, Any]:
        """Scores, intervals, sizes and settings as JSON holds them: what `summary.json` says."""
        return {
            "kind": self.kind,
            "editors": {name: [point.to_dict() for point in points] for name, points in self.editors.items()},
            "descriptions": dict(self.descriptions),
            "collapse": self.collapse,
            "unevaluated": dict(self.unevaluated),
            "settings": dict(self.settings),
        }

    def to_dataframe(self) -> "pd.DataFrame":
        """A row a checkpoint and editor, the unedited model's (`none`) in front of them.

        Columns: editor, n (facts in the model), n_records (facts that were asked); each metric, with `<metric>_low` and
        `<metric>_high`, the ends of its 95 % interval, and `<metric>_unedited`; perplexity (over the unedited model's),
        relative_norm, drift, shortfall, load, conflicts, collapse. What is not known is missing.
        """
        import pandas as pd

        metrics = shown_metrics(self.kind, (m for points in self.editors.values() for p in points for m in p.intervals))
        rows = []
        for name, points in self.with_unedited().items():
            for point in points:
                row: dict[str, Any] = {"editor": name, "n": point.n, "n_records": point.n_records}
                for metric in metrics:
                    score, before = point.intervals.get(metric), point.unedited.get(metric)
                    row[metric] = score and score.mean
                    row |= {f"{metric}_low": score and score.low, f"{metric}_high": score and score.high}
                    row[f"{metric}_unedited"] = before and before.mean
                rows.append(row | {size: getattr(point, size) for size in _SIZES} | {"collapse": point.collapse})
        # The unedited model is not asked for all that editors are.
        never = {f"{m}_unedited" for m in metrics} - {
            k for row in rows for k, value in row.items() if value is not None
        }
        table = pd.DataFrame(rows).drop(columns=sorted(never))
        numbers = [c for c in table.columns if c not in ("editor", "n", "n_records", "conflicts", "collapse")]
        return table.astype({**dict.fromkeys(numbers, "float64"), "conflicts": "Int64"})

    def with_unedited(self) -> dict[str, tuple[Checkpoint, ...]]:
        """The editors' checkpoints, and in front of them those of the unedited model, on the same prompts."""
        found: dict[int, Checkpoint] = {}
        for points in self.editors.values():
            for point in points:
                found.setdefault(point.n, _unedited(point))
        return {UNEDITED: tuple(found[n] for n in sorted(found)), **self.editors}

    def retention(self) -> "pd.DataFrame":
        """A row for the facts of each checkpoint at each later one: how much is left of those that came early.

        Columns: editor, n (facts in the model), first, last (of these facts, counted from 1), n_records, and the main
        metrics, whose S is taken over these facts.
        """
        import pandas as pd

        rows = [
            {"editor": name, "n": point.n, "first": age.first, "last": age.last, "n_records": age.n, **age.scores}
            for name, points in self.editors.items()
            for point in points
            for age in point.ages
        ]
        return pd.DataFrame(rows)

    def records_to_dataframe(self) -> "pd.DataFrame":
        """A row a record, checkpoint and editor: what was asked, every metric, and the unedited model's.

        Columns: editor, n, number, case_id, relation, subject, prompt, target_new, target_true; every metric that some
        record has; the unedited model's as `before_ES` and so on; error.
        """
        import pandas as pd

        found = [(name, n, record) for name, by_n in self.evaluated().items() for n in by_n for record in by_n[n]]
        metrics = shown_metrics(self.kind, (m for _, _, record in found for m in record.scores))
        before = shown_metrics(self.kind, (m for _, _, record in found for m in record.before))
        asked = ("number", "case_id", "relation", "subject", "prompt", "target_new", "target_true")
        rows = [
            {
                "editor": name,
                "n": n,
                **{field: getattr(record, field) for field in asked},
                **{metric: record.scores.get(metric) for metric in metrics},
                **{f"before_{metric}": record.before.get(metric) for metric in before},
                "error": record.error,
            }
            for name, n, record in found
        ]
        numbers = [*metrics, *(f"before_{metric}" for metric in before)]
        return pd.DataFrame(rows).astype(dict.fromkeys(numbers, "float64") if rows else {})

    def figures(self) -> dict[str, go.Figure]:
        """Plotly figures: `curves`, the main scores and perplexity over the number of facts, an editor a line;
        `retention`, what is left of the facts of each checkpoint; and `disturbances-<editor>` of sets.
        """
        return together_figures(self.kind, self.with_unedited(), self.disturbances)

    def write_html(self, path: str | os.PathLike[str]) -> None:
        """Write curves, retention, who disturbs whom, the table, the worst facts and the settings as one HTML page that
        works offline.

        Raises:
            ArtefactError: the file cannot be written; nothing is left behind.
        """
        last = {name: list(by_n.values())[-1] for name, by_n in self.evaluated().items() if by_n}
        page = together_page(
            self.kind,
            self.with_unedited(),
            last,
            descriptions=self.descriptions,
            disturbances=self.disturbances,
            collapse=self.collapse,
            settings=self.settings,
            unevaluated=self.unevaluated,
        )
        write_whole(path, page.encode())

    def write_csv(self, folder: str | os.PathLike[str]) -> list[Path]:
        """Write the tables as CSV files in UTF-8: `checkpoints.csv`, `retention.csv` and `records.csv`.

        Args:
            folder: where the files go; it has to be there.

        Raises:
            ArtefactError: a file cannot be written.
        """
        tables = {
            "checkpoints": self.to_dataframe(),
            "retention": self.retention(),
            "records": self.records_to_dataframe(),
        }
        paths = []
        for name, table in tables.items():
            paths.append(Path(folder) / f"{name}.csv")
            write_table(table, paths[-1])
        return paths

    def evaluated(self) -> dict[str, dict[int, list[EvaluatedRecord]]]:
        """Editor -> n -> the records, as the views take them."""
        return {
            name: {n: list(map(EvaluatedRecord.from_dict, several)) for n, several in by_n.items()}
            for name, by_n in self.records.items()
        }


def together_report_of(
    kind: Kind,
    kept: Mapping[str, Mapping[int, "KeptCheckpoint"]],
    *,
    references: Mapping[str, Sequence[str]],
    settings: Mapping[str, Any],
    descriptions: Mapping[str, str],
    seed: int,
) -> TogetherReport:
    """Summarise what a run kept.

    Args:
        kind: the data set.
        kept: editor -> n -> what is there of a checkpoint.
        references: new object -> texts about it, for RS.
        settings: of the run; `together` says what counts as a collapse.
        descriptions: editor -> a line about it.
        seed: of the intervals.
    """
    # Editors that are asked the same share what the unedited model gave, whose intervals take as long as theirs.
    before: dict[tuple[Any, ...], Mapping[str, Estimate]] = {}
    for one in (one for by_n in kept.values() for one in by_n.values()):
        if (same := _asked(one)) not in before:
            before[same] = unedited_scores(kind, one.records, seed=seed)
    editors = {
        name: tuple(
            checkpoint_of(
                kind,
                n,
                one.records,
                state=one.state,
                texts=one.texts,
                together=settings["together"],
                references=references,
                unedited=before[_asked(one)],
                seed=seed,
            )
            for n, one in by_n.items()
        )
        for name, by_n in kept.items()
    }
    everything = [record for by_n in kept.values() for one in by_n.values() for record in one.records]
    return TogetherReport(
        kind,
        editors=editors,
        descriptions=descriptions,
        records={
            name: {n: [record.to_dict() for record in one.records] for n, one in by_n.items()}
            for name, by_n in kept.items()
        },
        disturbances={
            name: last.state["disturbances"]
            for name, by_n in kept.items()
            if by_n and (last := by_n[max(by_n)]).state.get("disturbances")
        },
        settings=settings,
        unevaluated={record.number: record.unfit for record in everything if record.unfit},
    )


@dataclass(frozen=True)
class KeptCheckpoint:
    """What a run folder holds of one checkpoint of one editor.

    Attributes:
        records: those that were asked.
        state: what is known of the model without asking it.
        texts: perplexity of the watched texts, `before` and `after`; None where none are watched.
    """

    records: Sequence[EvaluatedRecord]
    state: Mapping[str, Any]
    texts: Mapping[str, float] | None


def _asked(kept: KeptCheckpoint) -> tuple[Any, ...]:
    """What two checkpoints share exactly when the unedited model gave the same to what was asked."""
    return tuple((record.number, *record.before.items()) for record in kept.records)


def _unedited(point: Checkpoint) -> Checkpoint:
    """The unedited model, asked the same."""
    perplexity = None if point.perplexity is None else 1.0
    nothing = {"relative_norm": None, "drift": None, "shortfall": None, "load": None, "conflicts": None}
    return Checkpoint(
        point.n,
        point.n_records,
        point.unedited,
        point.unedited,
        perplexity,
        **nothing,
        ages=(),
        failed={},
        collapse=None,
    )
