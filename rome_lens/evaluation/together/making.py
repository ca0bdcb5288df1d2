"""Which way each editor goes, and the values that several of them share."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rome_lens.backends import as_backend
from rome_lens.editing.second_moment.shipped import shipped_moment
from rome_lens.editing.settings import default_layer
from rome_lens.editing.together.editor import TogetherEditor
from rome_lens.editing.together.finding import key_of
from rome_lens.editing.together.finding_run import FindingRun
from rome_lens.editing.together.kernels import TextKernel
from rome_lens.errors import EditError, PromptError, SettingError
from rome_lens.evaluation.editors.moments import Moments
from rome_lens.evaluation.editors.named import EditorSpec, describe, make_editor
from rome_lens.evaluation.editors.sets import Alone, make_set_editor
from rome_lens.evaluation.together.ways import (
    AsSet,
    EditorSteps,
    Facts,
    OneByOne,
    RomeSteps,
    Stacked,
    Way,
    segments,
    step_key,
)
from rome_lens.facts import EditRequest
from rome_lens.loading.source import ModelSource
from rome_lens.progress import Progress
from rome_lens.runs import Folder, RunFolder, Shard, digest_of


@dataclass(frozen=True)
class Keeper:
    """Where what is found is kept, and how it is found.

    Attributes:
        requests: all of them, in order.
        at: the checkpoints.
        folder: the run's.
        values: where values are kept.
        source: where other processes load the model from.
        executor: of the caller's.
        shard: the part of the work that is done.
        progress: called with (done, total, what).
    """

    requests: Sequence[EditRequest]
    at: Sequence[int]
    folder: Folder
    values: Path
    source: ModelSource
    executor: Executor | None
    shard: Shard | None
    progress: Progress

    def found(self, editor: TogetherEditor) -> "FoundFacts":
        """The facts of an editor of sets, which are found when they are first asked for."""
        return FoundFacts(editor, self)

    def place_of(self, editor: TogetherEditor) -> Path:
        """The folder of values that are found as this editor finds them."""
        if (self.values / "settings.json").exists():
            return self.values
        return self.values / digest_of(editor.finding.to_dict())[:16]


class FoundFacts:
    """The facts of requests, found once and kept: those of the first checkpoint first."""

    def __init__(self, editor: TogetherEditor, keeper: Keeper) -> None:
        """Find nothing yet."""
        self._editor, self._keeper = editor, keeper

    def __call__(self, n: int) -> Facts:
        """The facts of the first n requests, and the places of those that have none, with the reason."""
        return self._find(n, None)

    def ready(self) -> bool:
        """Whether all are there, after those of this shard were found."""
        shard, n = self._keeper.shard, len(self._keeper.requests)
        if shard is None:
            return True
        if not self._complete():
            self._find(n, shard)
        return self._complete()

    def _complete(self) -> bool:
        place = self._keeper.place_of(self._editor)
        if not (place / "settings.json").exists():
            return False
        there = RunFolder.existing(place).finished()
        fitting, _, _ = self._editor.fitting(self._keeper.requests, skip_failed=True)
        return all(key_of(request) in there for request in fitting)

    def _find(self, n: int, shard: Shard | None) -> Facts:
        keeper = self._keeper
        requests = keeper.requests[:n]
        how = FindingRun(
            out=keeper.place_of(self._editor),
            executor=keeper.executor,
            source=keeper.source,
            shard=shard,
            skip_failed=True,
            progress=keeper.progress,
        )
        try:
            facts, failed = self._editor.facts_of(requests, how)
        except (PromptError, EditError) as error:
            # Not one of them can be edited; others may be.
            return [], dict.fromkeys(range(n), str(error))
        reasons = dict(failed)
        return facts, {place: reasons[one] for place, one in enumerate(requests) if one in reasons}


@dataclass(frozen=True)
class Made:
    """An editor of a run.

    Attributes:
        way: how its facts come into the model.
        described: what it is, as JSON holds it.
        ready: whether all that its states need is there, or can be found by this process.
    """

    way: Way
    described: Mapping[str, Any]
    ready: Callable[[], bool]


def make_way(
    spec: EditorSpec,
    model: Any,
    moments: Moments,
    keeper: Keeper,
    *,
    place: int,
    found_on: str,
    seed: int,
    prepend_bos: bool,
) -> Made:
    """The way that an editor goes.

    Args:
        spec: the editor.
        model: the model.
        moments: the second moments that are there.
        keeper: where what is found is kept.
        place: the editor's number in the run.
        found_on: where `r-rome` finds its values, if its own settings do not say.
        seed: of what an editor draws.
        prepend_bos: BOS stands in front of every prompt.

    Raises:
        SettingError: the editor cannot put many facts into one model.
    """
    if spec.kind == "r-rome" and spec.is_named:
        given = dict(spec.settings)
        where = given.pop("found_on", found_on)
        backend = as_backend(model)
        layer = given.pop("layer", None)
        layer = moments.only_layer(default_layer(backend)) if layer is None else backend.check_layer(layer)
        given["layers"] = [layer]
        editor = make_set_editor("memit", model, moments, given, seed=seed, prepend_bos=prepend_bos)
        if where == "base":
            return _found(Stacked, editor, keeper)
        return _one_by_one(spec.name, editor, RomeSteps(editor), keeper, place, editor.second_moments)
    editor = make_editor(spec, model, moments, seed=seed, prepend_bos=prepend_bos)
    if isinstance(editor, Alone):
        return _found(AsSet, editor.editor, keeper)
    known = _moments_of(model, _layers_of(spec.name, editor), moments)
    return _one_by_one(spec.name, editor, EditorSteps(editor, model), keeper, place, known)


def _found(way: type[Any], editor: TogetherEditor, keeper: Keeper) -> Made:
    facts = keeper.found(editor)
    return Made(way(editor, facts), _described(editor, "base"), facts.ready)


def _one_by_one(
    name: str, editor: Any, find: RomeSteps | EditorSteps, keeper: Keeper, place: int, moments: Mapping[int, Any]
) -> Made:
    way = OneByOne(
        find.model,
        _layers_of(name, editor),
        {layer: TextKernel(moment) for layer, moment in moments.items()},
        name=name,
        requests=keeper.requests,
        at=keeper.at,
        folder=keeper.folder,
        find=find,
    )

    def ready() -> bool:
        # One shard makes the whole sequence, of which no part can be made without what is before it.
        mine = keeper.shard is None or place % keeper.shard.count == keeper.shard.number - 1
        needed = {step_key(name, begin) for begin, _ in segments(keeper.at, keeper.at[-1])}
        return mine or needed <= keeper.folder.finished()

    return Made(way, _described(editor, "edited"), ready)


def _layers_of(name: str, editor: Any) -> list[int]:
    """The layers that an editor edits.

    Raises:
        SettingError: it does not say.
    """
    layers = getattr(editor, "layers", None)
    if layers is None and isinstance(layer := getattr(editor, "layer", None), int):
        layers = [layer]
    if not layers:
        raise SettingError(
            f"the editor {name} does not say what it edits, and together keeps the matrices of these layers; give it "
            "the attribute layer"
        )
    return list(layers)


def _moments_of(model: Any, layers: Sequence[int], moments: Moments) -> dict[int, Any]:
    """Second moments of layers, as far as they are given or shipped: fine-tuning needs none."""
    found = {}
    for layer in layers:
        moment = moments.given(layer)
        try:
            found[layer] = shipped_moment(as_backend(model), layer) if moment is None else moment
        except SettingError:
            continue
    return found


def _described(editor: Any, found_on: str) -> dict[str, Any]:
    return {**describe(editor), "found_on": found_on}
