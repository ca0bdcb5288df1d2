"""average_causal_effect: facts in, averages by role and layer out, through a folder that survives."""

import json
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from typing import Any, Unpack

from rome_lens.data import builtin_facts
from rome_lens.facts import Fact
from rome_lens.kinds import facts_of
from rome_lens.loading.source import ModelSource
from rome_lens.progress import Progress
from rome_lens.runs import Folder, RunFolder, Shard, check_batches, digest_of, merge, open_folder, run
from rome_lens.tracing.average.result import AverageEffect, average_of
from rome_lens.tracing.average.settings import AverageChanges, AverageSettings
from rome_lens.tracing.average.worker import AverageWork, tasks_of
from rome_lens.version import __version__

AVERAGE = "average"
_BATCH = 16


def average_causal_effect(
    model: Any,
    facts: Sequence[Fact] | None = None,
    *,
    out: str | os.PathLike[str] | None = None,
    batch_size: int = _BATCH,
    executor: Executor | None = None,
    shard: Shard | str | None = None,
    settings: AverageSettings | None = None,
    progress: Progress | None = None,
    **changes: Unpack[AverageChanges],
) -> AverageEffect:
    """Show where a model keeps what it knows: causal traces of many facts, averaged (Meng et al. 2022, section 2).

    A fact counts as known where greedy decoding gives its answer; the others are set aside and counted. Facts of as
    many tokens go through the model together.

    Args:
        model: a HookedTransformer or a TransformerBridge; a name as `load_model` takes it, or a function without
            arguments that makes a model, which workers need.
        facts: what `read_known_facts` gives; None takes the built-in facts.
        out: a folder that keeps every fact as soon as it is traced. A run that was killed goes on there; other settings
            are refused.
        batch_size: facts a task. The numbers depend on it by rounding alone.
        executor: any executor computes the tasks, in processes that load the model themselves.
        shard: `2/4` traces the second of four parts; `merge_averages` joins them.
        settings: all that is named below `progress` in one object; what is given by name counts instead.
        progress: called with (done, total, what), facts (records of the run) as the unit.
        streams: what to restore: `resid`, `mlp` and `attn`.
        severed: `mlp`, `attn`, both or neither: outputs that are held at the corrupted run's while the residual stream
            is restored once more (paper, figure 3). None is all that the model has, where `resid` is among the streams
            and the engine is not `attribution`.
        severed_at: at the `last-subject` token alone, or at `all` tokens, which takes longer.
        window: layers restored together in `mlp` and `attn`; None is 10, or all layers of a smaller model.
        samples: corrupted copies to average over, for each fact; 10 by default.
        noise: as `causal_trace` takes it; what `s`, `m` and `t` measure is measured on all of these facts.
        noise_replaces: assign the noise instead of adding it.
        seed: seed of the noise, the same for every fact as in the released code, and of the intervals.
        prepend_bos: put BOS in front.
        engine: `auto`; `plain` to run whole forwards (slow; the same numbers); or `attribution` for an approximation
            from one backward pass a fact.

    Returns:
        The average: of a shard, of its own facts.

    Raises:
        SettingError: a setting is out of its range, none of the facts is known, or the folder holds another run.
        RunError: a worker was lost; what is finished is kept.
        ModelError: the object is no decoder of TransformerLens, or lacks a stream that was asked for.
    """
    facts = facts_of(builtin_facts() if facts is None else facts)
    batch_size = check_batches(batch_size, len(facts), of="facts")
    settings = AverageSettings.given(settings, changes)
    source = ModelSource.of(model)
    source.check_executor(executor)
    part = Shard.of(shard)
    run_settings = {
        "kind": AVERAGE,
        "model": source.to_dict(),
        **settings.to_dict(),
        "data": {"facts": len(facts), "digest": digest_of([fact.as_dict() for fact in facts])},
        "batch_size": batch_size,
        "shard": None if part is None else str(part),
        "version": __version__,
    }
    run_settings = json.loads(json.dumps(run_settings))
    work = AverageWork(source, settings, facts)
    with open_folder(out, run_settings) as folder:
        tasks = tasks_of(facts, batch=batch_size)
        run(work, tasks, folder, executor=executor, shard=part, progress=progress)
        return _average(folder, run_settings)


def merge_averages(
    folders: Sequence[str | os.PathLike[str]], out: str | os.PathLike[str]
) -> tuple[AverageEffect, list[str]]:
    """Join run folders of the same facts and settings: the shards of one run.

    Args:
        folders: the run folders; they are only read.
        out: the folder to make.

    Returns:
        The average of all, and the names of the facts that no folder has.

    Raises:
        SettingError, RunError, ArtefactError: the folders do not belong together, or cannot be read or written.
    """
    with merge(folders, out, settings=lambda several: {**several[0], "shard": None}, kinds=(AVERAGE,)) as folder:
        return _average(folder, folder.settings), folder.missing()


def read_average(folder: str | os.PathLike[str]) -> AverageEffect:
    """The average of a run folder as it is, finished or not.

    Raises:
        ArtefactError: there is no such folder, or it holds no run.
        SettingError: it holds a run of something else, or no fact that is known.
    """
    found = RunFolder.existing(folder, kinds=(AVERAGE,))
    return _average(found, found.settings, write=False)


def _average(folder: Folder, settings: Mapping[str, Any], *, write: bool = True) -> AverageEffect:
    records = [record for _, record in folder.read_all()]
    average = average_of(records, {**settings, "prepared": folder.prepared() or {}})
    if write:
        folder.write_summary(average.summary())
    return average
