"""evaluate_counterfact and evaluate_zsre: records and editors in, a report out, through a folder that survives."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, overload

from rome_lens.checks import as_path, shown
from rome_lens.data.records import CounterFactRecord, RecordSet, ZsreRecord, builtin_counterfact
from rome_lens.editing import merge_facts
from rome_lens.errors import ArtefactError, SettingError
from rome_lens.evaluation.editors.named import specs_of
from rome_lens.evaluation.measures import Measures
from rome_lens.evaluation.report.record import EvaluatedRecord
from rome_lens.evaluation.report.report import Report
from rome_lens.evaluation.report.scores import UNEDITED, Kind
from rome_lens.evaluation.report.summary import report_of
from rome_lens.evaluation.report.together_report import KeptCheckpoint, TogetherReport, together_report_of
from rome_lens.evaluation.together.checkpoints import Together
from rome_lens.evaluation.together.run import VALUES, TogetherRun
from rome_lens.evaluation.together.work import kept_checkpoint
from rome_lens.evaluation.work import REFERENCES, EvaluationWork, tasks_of
from rome_lens.loading.source import ModelSource
from rome_lens.progress import Progress
from rome_lens.runs import Folder, RunFolder, Shard, check_batches, digest_of, merge, open_folder, run
from rome_lens.version import __version__

COUNTERFACT: Kind = "counterfact"
ZSRE: Kind = "zsre"
MOMENTS = "second-moments"
"""The part of a run folder where second moments are kept that had to be collected."""

_BATCH = 8
# Settings in which run folders that are joined may differ: the rest decides what is compared.
_DIFFERING = ("shard", "editors", "second_moments")


@overload
def evaluate_counterfact(
    model: Any,
    editor: Any = ...,
    records: "RecordSet[CounterFactRecord] | Sequence[CounterFactRecord] | None" = ...,
    *,
    together: None = ...,
    measures: Measures | None = ...,
    settings: Sequence[str] = ...,
    second_moments: Sequence[str | os.PathLike[str]] = ...,
    out: str | os.PathLike[str] | None = ...,
    batch_size: int = ...,
    executor: Executor | None = ...,
    shard: Shard | str | None = ...,
    progress: Progress | None = ...,
) -> Report: ...


@overload
def evaluate_counterfact(
    model: Any,
    editor: Any = ...,
    records: "RecordSet[CounterFactRecord] | Sequence[CounterFactRecord] | None" = ...,
    *,
    together: Together | Sequence[int] | int,
    measures: Measures | None = ...,
    settings: Sequence[str] = ...,
    second_moments: Sequence[str | os.PathLike[str]] = ...,
    out: str | os.PathLike[str] | None = ...,
    batch_size: int = ...,
    executor: Executor | None = ...,
    shard: Shard | str | None = ...,
    progress: Progress | None = ...,
) -> TogetherReport: ...


def evaluate_counterfact(
    model: Any,
    editor: Any = "r-rome",
    records: "RecordSet[CounterFactRecord] | Sequence[CounterFactRecord] | None" = None,
    *,
    together: Together | Sequence[int] | int | None = None,
    measures: Measures | None = None,
    settings: Sequence[str] = (),
    second_moments: Sequence[str | os.PathLike[str]] = (),
    out: str | os.PathLike[str] | None = None,
    batch_size: int = _BATCH,
    executor: Executor | None = None,
    shard: Shard | str | None = None,
    progress: Progress | None = None,
) -> Report | TogetherReport:
    """Measure edits on CounterFact (Meng et al. 2022, section 3.4; metrics as in its table 4).

    Every record is edited by itself. Edits of this package go through hooks, a batch of records at once; what the
    unedited model gives is computed once. The weights are left as they are.

    Args:
        model: a HookedTransformer or a TransformerBridge; a name as `load_model` takes it, or a function without
            arguments that makes a model, which workers need.
        editor: anything with `edit(request)`, such as `ROME(model)`; a name (`none`, `r-rome`, `rome`, `p-rome`,
            `identity`, `random-layer`, `memit`, `emmet`, `alphaedit`, `ft`, `ft-l`, `package.module:function`); several
            names; or a mapping from names to any of these. With `together`: `r-rome`, `memit`, `emmet`,
            `alphaedit`, `ft`, `ft-l`, or one of your own.
        records: what `read_counterfact` gives; None takes the built-in ones.
        together: numbers of facts, such as (1, 10, 100), or `Together`: at each of them the first so many records are
            in the model together, and all of them are asked again. None edits every record by itself.
        measures: what is measured; by default everything but perplexity, which needs texts.
        settings: for editors that are named: `NAME=JSON`, or `EDITOR.NAME=JSON` for one of several.
        second_moments: files of `SecondMoment.save`, a layer each.
        out: a folder that keeps every record as soon as it is finished. A run that was killed goes on there; other
            settings are refused.
        batch_size: records that are evaluated together. The numbers depend on it by rounding alone.
        executor: any executor computes the batches, in processes that load the model themselves.
        shard: `2/4` evaluates the second of four parts; `merge_runs` joins them.
        progress: called with (done, total, what), records as the unit.

    Returns:
        The report: of a shard, of its own records. With `together` one of checkpoints.

    Raises:
        SettingError: a setting is out of its range, or the folder holds a run with other settings.
        RunError: a worker was lost; what is finished is kept.
        ModelError, ArtefactError: the model or a file cannot be used.
    """
    records = builtin_counterfact() if records is None else records
    how = (together, measures, settings, second_moments, out, batch_size, executor, shard, progress)
    return _evaluate(_Asked(COUNTERFACT, model, editor, records, *how))


@overload
def evaluate_zsre(
    model: Any,
    editor: Any,
    records: "RecordSet[ZsreRecord] | Sequence[ZsreRecord]",
    *,
    together: None = ...,
    measures: Measures | None = ...,
    settings: Sequence[str] = ...,
    second_moments: Sequence[str | os.PathLike[str]] = ...,
    out: str | os.PathLike[str] | None = ...,
    batch_size: int = ...,
    executor: Executor | None = ...,
    shard: Shard | str | None = ...,
    progress: Progress | None = ...,
) -> Report: ...


@overload
def evaluate_zsre(
    model: Any,
    editor: Any,
    records: "RecordSet[ZsreRecord] | Sequence[ZsreRecord]",
    *,
    together: Together | Sequence[int] | int,
    measures: Measures | None = ...,
    settings: Sequence[str] = ...,
    second_moments: Sequence[str | os.PathLike[str]] = ...,
    out: str | os.PathLike[str] | None = ...,
    batch_size: int = ...,
    executor: Executor | None = ...,
    shard: Shard | str | None = ...,
    progress: Progress | None = ...,
) -> TogetherReport: ...


def evaluate_zsre(
    model: Any,
    editor: Any,
    records: "RecordSet[ZsreRecord] | Sequence[ZsreRecord]",
    *,
    together: Together | Sequence[int] | int | None = None,
    measures: Measures | None = None,
    settings: Sequence[str] = (),
    second_moments: Sequence[str | os.PathLike[str]] = (),
    out: str | os.PathLike[str] | None = None,
    batch_size: int = _BATCH,
    executor: Executor | None = None,
    shard: Shard | str | None = None,
    progress: Progress | None = None,
) -> Report | TogetherReport:
    """Measure edits on zsRE (Meng et al. 2022, section 3.3): the share of an answer's tokens that are most probable.

    The arguments are those of `evaluate_counterfact`; `records` is what `read_zsre` gives.

    Raises:
        SettingError, RunError, ModelError, ArtefactError: as `evaluate_counterfact` does.
    """
    how = (together, measures, settings, second_moments, out, batch_size, executor, shard, progress)
    return _evaluate(_Asked(ZSRE, model, editor, records, *how))


def merge_runs(
    folders: Sequence[str | os.PathLike[str]], out: str | os.PathLike[str]
) -> tuple[Report | TogetherReport, list[str]]:
    """Join run folders of the same records and measures: shards of one run, or runs of other editors.

    Args:
        folders: the run folders; they are only read.
        out: the folder to make.

    Returns:
        The report of all, and the names of the records that no folder has.

    Raises:
        SettingError, RunError, ArtefactError: the folders do not belong together, or cannot be read or written.
    """
    with merge(folders, out, settings=_joined_settings, differing=_DIFFERING, kinds=(COUNTERFACT, ZSRE)) as folder:
        _merge_values([Path(each) / VALUES for each in folders], Path(out) / VALUES)
        return _report(folder, folder.settings), folder.missing()


def _merge_values(folders: Sequence[Path], out: Path) -> None:
    """Join what shards of a run with checkpoints found, so that the run goes on where they are together."""
    names = sorted(
        {place.name for folder in folders if folder.is_dir() for place in folder.iterdir() if place.is_dir()}
    )
    for name in names:
        merge_facts([folder / name for folder in folders if (folder / name).is_dir()], out / name)


def read_run(folder: str | os.PathLike[str]) -> Report | TogetherReport:
    """The report of a run folder as it is, finished or not.

    Raises:
        ArtefactError: there is no such folder, or it holds no run.
        SettingError: it holds a run of something else.
    """
    found = RunFolder.existing(folder, kinds=(COUNTERFACT, ZSRE))
    return _report(found, found.settings, write=False)


@dataclass(frozen=True)
class _Asked:
    """What a caller asked for: the arguments of `evaluate_counterfact` by their names, and the data set."""

    kind: Kind
    model: Any
    editor: Any
    records: "RecordSet[Any] | Sequence[Any]"
    together: Any
    measures: Measures | None
    settings: Sequence[str]
    second_moments: Sequence[str | os.PathLike[str]]
    out: str | os.PathLike[str] | None
    batch_size: int
    executor: Executor | None
    shard: Shard | str | None
    progress: Progress | None


def _evaluate(asked: _Asked) -> Report | TogetherReport:
    """The run that was asked for, and its report.

    Raises:
        SettingError: one of the arguments is not what it has to be.
    """
    records, together = asked.records, None if asked.together is None else Together.of(asked.together)
    # Texts are written about every fact at every checkpoint where they are asked for.
    measures = (Measures() if together is None else Measures(n_texts=0)) if asked.measures is None else asked.measures
    _check_records(asked.kind, records)
    batch_size = check_batches(asked.batch_size, len(records), of="records")
    if not isinstance(measures, Measures):
        raise SettingError(f"measures is {shown(measures)}; expected Measures, such as Measures(n_texts=0)")
    source = ModelSource.of(asked.model)
    source.check_executor(asked.executor)
    specs = specs_of(asked.editor, asked.settings, together=together is not None)
    source.check_layers(spec.settings.get("layer") for spec in specs if spec.is_named)
    shard = Shard.of(asked.shard)
    data = records if isinstance(records, RecordSet) else RecordSet(tuple(records), (), "given")
    if together is not None:
        together.check_enough(len(data))
        data = data[: together.at[-1]]
    references, watched = measures.references, measures.watched
    # All that decides the numbers of a run, texts and records by their digests.
    settings = {
        "kind": asked.kind,
        "model": source.to_dict(),
        "editors": [{"name": spec.name, **spec.to_dict()} for spec in specs],
        "data": {"records": len(data), "digest": data.digest},
        **({} if together is None else {"together": together.to_dict()}),
        "measures": {
            **asdict(measures),
            "references": None if references is None else digest_of(references),
            "watched": {"texts": len(watched), "digest": digest_of(list(watched))},
        },
        "second_moments": {Path(path).name: _file_digest(path) for path in asked.second_moments},
        "batch_size": batch_size,
        "shard": None if shard is None else str(shard),
        "version": __version__,
    }
    moments = tuple(os.fspath(path) for path in asked.second_moments)
    out = None if asked.out is None else Path(as_path("out", asked.out)).resolve()
    if together is not None:
        facts = TogetherRun(
            kind=asked.kind,
            source=source,
            specs=specs,
            records=tuple(data),
            measures=measures,
            together=together,
            moments=moments,
            batch_size=batch_size,
            out=out,
            executor=asked.executor,
            shard=shard,
            progress=asked.progress,
        )
        facts.check()
        with open_folder(asked.out, settings) as folder:
            facts.go(folder)
            return _report(folder, settings)
    work = EvaluationWork(
        model=source,
        editors=specs,
        measures=measures,
        moments=moments,
        moments_folder=None if out is None else out / MOMENTS,
    )
    tasks = tasks_of(records, specs, measures, batch=batch_size)
    with open_folder(asked.out, settings) as folder:
        run(work, tasks, folder, executor=asked.executor, shard=shard, progress=asked.progress)
        return _report(folder, settings)


def _check_records(kind: Kind, records: object) -> None:
    """Refuse what are no records of this data set.

    Raises:
        SettingError: they are no list, or one of them is of another kind.
    """
    wanted, reader = (CounterFactRecord, "read_counterfact") if kind == COUNTERFACT else (ZsreRecord, "read_zsre")
    if not isinstance(records, Sequence) or isinstance(records, str | bytes):
        raise SettingError(f"records is {shown(records)}; expected a list of {wanted.__name__}, as {reader} gives it")
    for index, record in enumerate(records):
        if not isinstance(record, wanted):
            raise SettingError(
                f"record {index} is {shown(record)}; expected a {wanted.__name__}, as {reader} reads it from a file"
            )


def _joined_settings(several: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    editors: dict[str, Any] = {}
    for settings in several:
        for spec in settings["editors"]:
            if editors.setdefault(spec["name"], spec) != spec:
                raise SettingError(
                    f"the editor {spec['name']!r} has other settings in one of the folders than in another"
                )
    moments = {name: digest for settings in several for name, digest in settings["second_moments"].items()}
    return {**several[0], "editors": list(editors.values()), "second_moments": moments, "shard": None}


def _report(folder: Folder, settings: Mapping[str, Any], *, write: bool = True) -> Report | TogetherReport:
    names = [spec["name"] for spec in settings["editors"]]
    prepared = folder.prepared() or {}
    references = {held["object"]: held["texts"] for _, held in folder.read_all(f"{REFERENCES}/")}
    descriptions = {name: _described(prepared.get("editors", {}).get(name, {})) for name in names}
    seed = settings["measures"]["seed"]
    if "together" in settings:
        names = [spec["name"] for spec in settings["editors"] if spec["kind"] != UNEDITED]
        report = together_report_of(
            settings["kind"],
            {name: _kept(folder, name, settings) for name in names},
            references=references,
            settings={**settings, "prepared": prepared},
            descriptions=descriptions,
            seed=seed,
        )
    else:
        report = report_of(
            settings["kind"],
            {name: [EvaluatedRecord.from_dict(held) for _, held in folder.read_all(f"{name}/")] for name in names},
            references=references,
            settings={**settings, "perplexity_bound": settings["measures"]["perplexity_bound"], "prepared": prepared},
            descriptions=descriptions,
            seed=seed,
        )
    if write:
        folder.write_summary(report.summary())
    return report


def _kept(folder: Folder, name: str, settings: Mapping[str, Any]) -> dict[int, KeptCheckpoint]:
    """The checkpoints of an editor of which anything is there."""
    found = {n: kept_checkpoint(folder, name, n) for n in settings["together"]["at"]}
    return {n: kept for n, kept in found.items() if kept is not None}


def _described(editor: Mapping[str, Any]) -> str:
    """An editor's settings in a line."""
    left_out = {"source", "context_templates", "second_moment", "second_moments", "class"}
    return ", ".join(f"{name} {value}" for name, value in editor.items() if name not in left_out and value is not None)


def _file_digest(path: str | os.PathLike[str]) -> str:
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16]
    except OSError as error:
        raise ArtefactError(f"cannot read the second moment {os.fspath(path)!r}: {error.strerror}") from error
