"""What workers do at a checkpoint: put a model's matrices in place, and ask it about a batch of records."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rome_lens.backends import as_backend
from rome_lens.editing.in_weights import in_weights
from rome_lens.editing.tensor_text import as_tensor, as_text
from rome_lens.evaluation.findings import Record
from rome_lens.evaluation.measurer import RecordMeasurer
from rome_lens.evaluation.measures import Measures
from rome_lens.evaluation.report.record import EvaluatedRecord
from rome_lens.evaluation.report.together_report import KeptCheckpoint
from rome_lens.evaluation.together.state import State
from rome_lens.evaluation.work import reference_records
from rome_lens.loading.source import ModelSource, describe_model
from rome_lens.progress import Progress
from rome_lens.runs import Folder, RecordMaker, Task, Work

TEXTS, STATES = "texts", "states"
"""The parts of a run's records that hold the perplexity of watched texts, and what is known of a state."""


@dataclass(frozen=True)
class TogetherWork(Work):
    """What each worker receives.

    Attributes:
        model: where the model comes from.
        measures: what is measured.
        editors: what the run's editors are, as JSON holds it.
    """

    model: ModelSource
    measures: Measures
    editors: Mapping[str, Any] = field(default_factory=dict)

    def open(self, progress: Progress) -> "TogetherTasks":
        return TogetherTasks(self, progress)


@dataclass(frozen=True)
class Asking:
    """One task: a model as it is at a checkpoint, and records to ask it about.

    Attributes:
        editor: the editor's name.
        n: facts in the model.
        matrices: layer -> its `W_out` as text; what is sent to workers are bytes and no open files.
        shapes: layer -> the shape of that.
        records: which are asked; none where watched texts are read.
        failed: place of a record -> why its fact could not be put in.
    """

    editor: str
    n: int
    matrices: Mapping[int, str]
    shapes: Mapping[int, tuple[int, ...]]
    records: tuple[Record, ...]
    failed: Mapping[int, str]


class TogetherTasks(RecordMaker):
    """A model, and batches of records that it is asked about with many facts in it."""

    def __init__(self, work: TogetherWork, progress: Progress) -> None:
        """Load the model."""
        self._work = work
        self._model = work.model.open(progress)
        self._backend = as_backend(self._model)
        self._measurer = RecordMeasurer(self._model, work.measures)

    def prepare(self) -> dict[str, Any]:
        return {**describe_model(self._model), "editors": dict(self._work.editors)}

    def run(self, task: Task, progress: Progress) -> Iterator[tuple[str, dict[str, Any]]]:
        if not isinstance(task.payload, Asking):
            yield from reference_records(self._measurer, task.payload)
            return
        asking = task.payload
        matrices = {
            layer: as_tensor(text).reshape(asking.shapes[layer]).to(self._backend.device)
            for layer, text in asking.matrices.items()
        }

        def edited() -> Any:
            return in_weights(self._backend, matrices)

        if not asking.records:
            before, after = self._measurer.perplexities(edited)
            yield texts_key(asking.editor, asking.n), {"before": before, "after": after}
            return
        for record in self._measurer.measure_edited(asking.records, asking.editor, edited, failed=asking.failed):
            yield record_key(asking.editor, asking.n, record.number), record.to_dict()

    def close(self) -> None:
        self._measurer.close()


def tasks_at(editor: str, n: int, records: Sequence[Record], state: State, *, batch: int, watched: bool) -> list[Task]:
    """What is asked of one editor's model at a checkpoint.

    Args:
        editor: its name.
        n: facts in the model.
        records: those that are asked.
        state: the model.
        batch: records that are asked together.
        watched: whether there are texts whose perplexity is watched.
    """
    matrices = {layer: as_text(matrix) for layer, matrix in state.matrices.items()}
    shapes = {layer: tuple(matrix.shape) for layer, matrix in state.matrices.items()}
    parts = [tuple(records[start : start + batch]) for start in range(0, len(records), batch)]
    tasks = [
        Task(
            f"{editor} with {n} facts, part {part}",
            tuple(record_key(editor, n, record.number) for record in several),
            Asking(editor, n, matrices, shapes, several, state.failed),
            part,
        )
        for part, several in enumerate(parts)
    ]
    if watched:
        texts = Asking(editor, n, matrices, shapes, (), {})
        tasks.append(Task(f"{editor} with {n} facts, texts", (texts_key(editor, n),), texts, len(parts)))
    return tasks


def record_key(editor: str, n: int, number: int) -> str:
    """The name of a record's file."""
    return f"{at_key(editor, n)}/{number:06d}"


def at_key(editor: str, n: int) -> str:
    """The part of a run's records that holds those of a checkpoint."""
    return f"{editor}@{n}"


def texts_key(editor: str, n: int) -> str:
    """The name of the file with the perplexity of watched texts."""
    return f"{TEXTS}/{at_key(editor, n)}"


def state_key(editor: str, n: int) -> str:
    """The name of the file with what is known of a state."""
    return f"{STATES}/{at_key(editor, n)}"


def kept_checkpoint(folder: Folder, editor: str, n: int) -> KeptCheckpoint | None:
    """What a run folder holds of a checkpoint; None where that is nothing yet.

    Args:
        folder: the run's.
        editor: the editor's name.
        n: facts in the model.
    """
    records = [EvaluatedRecord.from_dict(held) for _, held in folder.read_all(f"{at_key(editor, n)}/")]
    if not records:
        return None
    state, texts = (
        next((held for _, held in folder.read_all(key)), None) for key in (state_key(editor, n), texts_key(editor, n))
    )
    return KeptCheckpoint(records, state or {}, texts)
