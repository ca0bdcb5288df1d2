"""An evaluation as work for the runner: what each worker receives, and how it evaluates a batch of records."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rome_lens.data.records import CounterFactRecord, RecordSet
from rome_lens.evaluation.editors.moments import Moments
from rome_lens.evaluation.editors.named import EditorSpec, describe, make_editor
from rome_lens.evaluation.editors.shared_values import SharingEditor, share_values, shared_pairs
from rome_lens.evaluation.findings import Record
from rome_lens.evaluation.measurer import RecordMeasurer
from rome_lens.evaluation.measures import Measures
from rome_lens.loading.source import ModelSource, describe_model
from rome_lens.progress import Progress
from rome_lens.runs import RecordMaker, Task, Work

REFERENCES = "references"
"""The part of a run's records that holds texts about new objects; no editor can have this name."""

# New objects that the model writes about together.
_OBJECTS = 16


@dataclass(frozen=True)
class EvaluationWork(Work):
    """What each worker receives.

    Attributes:
        model: where the model comes from.
        editors: who edits.
        measures: what is measured.
        moments: files of second moments.
        moments_folder: where those that have to be collected are kept.
    """

    model: ModelSource
    editors: tuple[EditorSpec, ...]
    measures: Measures
    moments: tuple[str, ...] = ()
    moments_folder: Path | None = None

    def open(self, progress: Progress) -> "EvaluationTasks":
        return EvaluationTasks(self, progress)


class EvaluationTasks(RecordMaker):
    """A model with its editors, and records by the batch."""

    def __init__(self, work: EvaluationWork, progress: Progress) -> None:
        """Load the model and make the editors."""
        measures = work.measures
        self._model = work.model.open(progress)
        moments = Moments(
            self._model,
            work.moments,
            folder=work.moments_folder,
            seed=measures.seed,
            prepend_bos=measures.prepend_bos,
            progress=progress,
        )
        progress(0, 0, "making the editors")
        made = {
            spec.name: make_editor(spec, self._model, moments, seed=measures.seed, prepend_bos=measures.prepend_bos)
            for spec in work.editors
        }
        self._editors = share_values(work.editors, made)
        self._measurer = RecordMeasurer(self._model, measures, layers=sorted(_layers(self._editors.values())))

    def prepare(self) -> dict[str, Any]:
        return {
            **describe_model(self._model),
            "editors": {
                name: describe(editor.editor if isinstance(editor, SharingEditor) else editor)
                for name, editor in self._editors.items()
            },
        }

    def run(self, task: Task, progress: Progress) -> Iterator[tuple[str, dict[str, Any]]]:
        names, records = task.payload
        if names == (REFERENCES,):
            yield from reference_records(self._measurer, records)
            return
        for name in names:
            # An editor whose records are all there is not asked again; numbers do not depend on it.
            if any(key_of(name, record.number) in task.keys for record in records):
                for record in self._measurer.measure(records, name, self._editors[name], progress=progress):
                    yield key_of(name, record.number), record.to_dict()

    def close(self) -> None:
        self._measurer.close()


def tasks_of(
    records: "RecordSet[Any] | Sequence[Record]", editors: Sequence[EditorSpec], measures: Measures, *, batch: int
) -> list[Task]:
    """A task a batch and editor: those of one batch follow each other, and share what the unedited model gave.

    The texts that RS compares with have tasks of their own: they belong to objects, and to no editor.

    Args:
        records: the records.
        editors: who edits.
        measures: what is measured.
        batch: records that are evaluated together.
    """
    records = list(records)
    groups = _groups(editors)
    tasks = []
    for part, start in enumerate(range(0, len(records), batch)):
        several = tuple(records[start : start + batch])
        for group in groups:
            keys = tuple(key_of(name, record.number) for name in group for record in several)
            tasks.append(Task(f"{'+'.join(group)}/{part}", keys, (group, several), part))
    named = reference_tasks(records, measures)
    return [*tasks, *(replace(task, payload=((REFERENCES,), task.payload)) for task in named)]


def reference_tasks(records: Sequence[Record], measures: Measures) -> list[Task]:
    """A task for the texts about some new objects each; none where no texts are written.

    Args:
        records: the records.
        measures: what is measured.
    """
    objects = sorted({r.request.target_new for r in records if isinstance(r, CounterFactRecord) and measures.n_texts})
    tasks = []
    for part, start in enumerate(range(0, len(objects), _OBJECTS)):
        several = objects[start : start + _OBJECTS]
        named = tuple((key_of(REFERENCES, number), name) for number, name in enumerate(several, start))
        tasks.append(Task(f"{REFERENCES}/{part}", tuple(key for key, _ in named), named, part))
    return tasks


def reference_records(
    measurer: RecordMeasurer, named: Sequence[tuple[str, str]]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """The records of such a task.

    Args:
        measurer: what asks the model.
        named: keys, each with its new object.
    """
    found = measurer.references([name for _, name in named])
    for (key, name), texts in zip(named, found, strict=True):
        yield key, {"object": name, "texts": texts}


def _groups(editors: Sequence[EditorSpec]) -> list[tuple[str, ...]]:
    """Names of editors that do their batches together: those that share values, and every other one by itself."""
    pairs = dict(shared_pairs(editors))
    seconds = set(pairs.values())
    return [
        (spec.name, pairs[spec.name]) if spec.name in pairs else (spec.name,)
        for spec in editors
        if spec.name not in seconds
    ]


def key_of(editor: str, number: int) -> str:
    """The name of a record's file in a run folder."""
    return f"{editor}/{number:06d}"


def _layers(editors: Any) -> set[int]:
    """Layers that the editors are known to edit."""
    several = [layer for editor in editors for layer in getattr(editor, "layers", ())]
    one = [layer for editor in editors if isinstance(layer := getattr(editor, "layer", None), int)]
    return {*several, *one}
