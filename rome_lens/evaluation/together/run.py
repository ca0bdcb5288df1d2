"""An evaluation with checkpoints: values once, and at each checkpoint the model with the first n facts asked again."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rome_lens.editing.history import applied_edits
from rome_lens.editing.together.set_fact import check_requests
from rome_lens.errors import EditStateError, SettingError
from rome_lens.evaluation.editors.moments import Moments
from rome_lens.evaluation.editors.named import EditorSpec
from rome_lens.evaluation.findings import Record
from rome_lens.evaluation.measures import Measures
from rome_lens.evaluation.report.checkpoints import collapse_at
from rome_lens.evaluation.report.record import EvaluatedRecord
from rome_lens.evaluation.report.scores import UNEDITED, Kind
from rome_lens.evaluation.together.checkpoints import Together
from rome_lens.evaluation.together.making import Keeper, Made, make_way
from rome_lens.evaluation.together.state import State
from rome_lens.evaluation.together.ways import Way
from rome_lens.evaluation.together.work import (
    TogetherWork,
    at_key,
    record_key,
    state_key,
    tasks_at,
    texts_key,
)
from rome_lens.evaluation.work import reference_tasks
from rome_lens.loading.source import ModelSource
from rome_lens.progress import Progress, silent
from rome_lens.runs import Folder, Shard, run

VALUES = "values"
"""The folder, in that of a run, where values of facts are kept."""


@dataclass(frozen=True)
class TogetherRun:
    """What a run with checkpoints is, and how its work is done.

    Attributes:
        kind: the data set.
        source: where the model comes from.
        specs: who edits.
        records: those that come into the model, in order.
        measures: what is measured.
        together: the checkpoints.
        moments: files of second moments.
        batch_size: records that are asked together.
        out: the run's folder; None keeps nothing.
        executor: of the caller's.
        shard: the part of the work that is done.
        progress: called with (done, total, what).
    """

    kind: Kind
    source: ModelSource
    specs: tuple[EditorSpec, ...]
    records: tuple[Record, ...]
    measures: Measures
    together: Together
    moments: tuple[str, ...]
    batch_size: int
    out: Path | None
    executor: Any
    shard: Shard | None
    progress: Progress | None

    def check(self) -> None:
        """Refuse what cannot be done, before a model is loaded.

        Raises:
            SettingError: no editor that edits, two facts that are one, or a shard that is to stop at a collapse.
        """
        if all(spec.kind == UNEDITED for spec in self.specs):
            raise SettingError("together compares ways of editing, and the run has none; give an editor, such as memit")
        check_requests([record.request for record in self.records], allow_conflicts=True)
        if self.shard is not None and self.together.at_collapse == "stop":
            raise SettingError(
                "a shard does not see the other records, by which a collapse is told; give at_collapse='go_on' with it"
            )

    @property
    def editors(self) -> tuple[EditorSpec, ...]:
        """Who edits; the unedited model is in every run of this kind."""
        return tuple(spec for spec in self.specs if spec.kind != UNEDITED)

    def asked(self, n: int) -> tuple[Record, ...]:
        """The records that are asked at a checkpoint."""
        return tuple(self.records[place] for place in self.together.asked(n, seed=self.measures.seed))

    def keys(self, editor: str, n: int) -> list[str]:
        """The records of a checkpoint."""
        texts = [texts_key(editor, n)] if self.measures.watched else []
        return [*(record_key(editor, n, record.number) for record in self.asked(n)), *texts, state_key(editor, n)]

    def go(self, folder: Folder) -> None:
        """Do what is missing in the folder, as far as it can be done here.

        Raises:
            EditStateError: the model carries edits. And as the editors and `run` raise.
        """
        references = reference_tasks(self.records, self.measures)
        plan = {key for task in references for key in task.keys}
        wanted = {spec.name: list(self.together.at) for spec in self.editors}
        plan |= {key for name, at in wanted.items() for n in at for key in self.keys(name, n)}
        for n in self.together.at:
            self._stop(folder, n, wanted, plan)
        if plan <= folder.finished():
            return
        with self._opened(folder) as (ways, work):
            self._run(work, references, folder, plan)
            for n in self.together.at:
                tasks = []
                for name in wanted:
                    keys = self.keys(name, n)
                    if n not in wanted[name] or folder.finished().issuperset(keys) or not ways[name].ready():
                        continue
                    state = ways[name].way.state(n, self.progress or silent)
                    self._note(folder, name, n, state, ways[name].way)
                    failed = {self.records[place].number: reason for place, reason in state.failed.items()}
                    tasks += tasks_at(
                        name,
                        n,
                        self.asked(n),
                        replace(state, failed=failed),
                        batch=self.batch_size,
                        watched=bool(self.measures.watched),
                    )
                self._run(work, tasks, folder, plan)
                self._stop(folder, n, wanted, plan)
            folder.note_plan(plan)

    @contextmanager
    def _opened(self, folder: Folder) -> Iterator[tuple[dict[str, Made], TogetherWork]]:
        """The model, the ways of editing it, and the work for whoever asks it."""
        progress = self.progress or silent
        source = self.source.opened(progress)
        model = source.made
        if applied_edits(model):
            raise EditStateError(
                "the model carries edits, and what is found on it would be measured against them; revert them first"
            )
        moments = Moments(
            model,
            self.moments,
            folder=None,
            seed=self.measures.seed,
            prepend_bos=self.measures.prepend_bos,
            progress=progress,
        )
        with _values_at(self.together.values, self.out) as values:
            progress(0, 0, "making the editors")
            keeper = Keeper(
                requests=[record.request for record in self.records],
                at=self.together.at,
                folder=folder,
                values=values,
                source=self.source,
                executor=self.executor,
                shard=self.shard,
                progress=progress,
            )
            made = {
                spec.name: make_way(
                    spec,
                    model,
                    moments,
                    keeper,
                    place=place,
                    found_on=self.together.found_on,
                    seed=self.measures.seed,
                    prepend_bos=self.measures.prepend_bos,
                )
                for place, spec in enumerate(self.editors)
            }
            described = {name: one.described for name, one in made.items()}
            # Other processes load the model by what the caller gave.
            shared = source if self.executor is None else self.source
            yield made, TogetherWork(shared, self.measures, described)

    def _run(self, work: TogetherWork, tasks: Sequence[Any], folder: Folder, plan: set[str]) -> None:
        run(work, tasks, folder, executor=self.executor, shard=self.shard, plan=plan, progress=self.progress)

    def _note(self, folder: Folder, name: str, n: int, state: State, way: Way) -> None:
        """Keep what is known of a state, facts by the numbers of their records."""
        key = state_key(name, n)
        if key in folder.finished():
            return
        numbers = [record.number for record in self.records[:n]]
        known = dict(state.known)
        known["facts"] = {
            str(numbers[int(place)]): _numbered(fact, numbers) for place, fact in known.get("facts", {}).items()
        }
        if "disturbances" in known:
            known["disturbances"] = [one | {"number": numbers[one["number"]]} for one in known["disturbances"]]
        failed = {str(numbers[place]): reason for place, reason in state.failed.items()}
        content = {**known, "n": n, "found_on": way.found_on, "layers": list(way.layers), "numbers": numbers}
        folder.write(key, {**content, "failed": failed})

    def _stop(self, folder: Folder, n: int, wanted: dict[str, list[int]], plan: set[str]) -> None:
        """Want no more of editors whose model had collapsed at a checkpoint, where they are to stop there.

        Args:
            folder: where the records are.
            n: the checkpoint.
            wanted: editor -> its checkpoints.
            plan: the names of all records that will be made.
        """
        if self.together.at_collapse != "stop":
            return
        for name, at in wanted.items():
            if n in at and folder.finished().issuperset(self.keys(name, n)) and self._collapsed(folder, name, n):
                plan -= {key for number in at if number > n for key in self.keys(name, number)}
                wanted[name] = [number for number in at if number <= n]

    def _collapsed(self, folder: Folder, name: str, n: int) -> bool:
        records = [EvaluatedRecord.from_dict(held) for _, held in folder.read_all(f"{at_key(name, n)}/")]
        texts = folder.read(texts_key(name, n)) if self.measures.watched else None
        return collapse_at(self.kind, records, texts, self.together.to_dict()) is not None


def _numbered(fact: Mapping[str, Any], numbers: Sequence[int]) -> dict[str, Any]:
    other = fact.get("disturbed_by")
    return {**fact, "disturbed_by": numbers[other]} if other is not None else dict(fact)


@contextmanager
def _values_at(given: Any, out: Path | None) -> Iterator[Path]:
    """Where values are kept: a caller's folder, one in that of the run, or one for as long as the block lasts."""
    if given is not None:
        yield Path(given)
    elif out is not None:
        yield out / VALUES
    else:
        with TemporaryDirectory(prefix="rome-lens-") as folder:
            yield Path(folder)
