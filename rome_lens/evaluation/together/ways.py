"""Ways of putting many facts into a model: solved as a set, stacked, or one after the other."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from rome_lens.backends import as_backend
from rome_lens.editing import Edit
from rome_lens.editing.in_weights import in_weights, matrices_of, write
from rome_lens.editing.tensor_text import as_tensor, as_text
from rome_lens.editing.together.editor import TogetherEditor
from rome_lens.editing.together.finding import FactMaker
from rome_lens.editing.together.kernels import Kernel, TextKernel
from rome_lens.editing.together.set_fact import SetFact
from rome_lens.editing.weight_update import LowRank, WeightUpdate
from rome_lens.errors import RomeLensError, SettingError
from rome_lens.evaluation.together.state import State, shortfalls, sizes
from rome_lens.facts import EditRequest
from rome_lens.progress import Progress, silent
from rome_lens.runs import Folder

Facts = tuple[Sequence[SetFact], Mapping[int, str]]
"""Facts that were found, and place of a request -> why it has none."""

# Facts of a sequence that are kept together: a run that is killed finds no more than these again.
_SEGMENT = 20


class Way(ABC):
    """How facts come into a model.

    Attributes:
        layers: those that change.
        found_on: `base`, or `edited`.
    """

    layers: tuple[int, ...]
    found_on = "base"

    def __init__(self, model: Any, layers: Sequence[int], kernels: Mapping[int, TextKernel]) -> None:
        """Take the model as it is: unedited.

        Args:
            model: the model.
            layers: those that will change.
            kernels: of the layers whose second moment is known, for the drift.
        """
        self._backend = as_backend(model)
        self.layers = tuple(layers)
        self._base = matrices_of(self._backend, self.layers)
        self._text = kernels

    @abstractmethod
    def state(self, n: int, progress: Progress) -> State:
        """The model with the first n facts, which is left as it is.

        Args:
            n: facts; no fewer than at the last call.
            progress: called with (done, total, what).
        """

    def _sizes(self, matrices: Mapping[int, Tensor]) -> dict[str, float | None]:
        return sizes(matrices, self._base, self._text)


class FoundWay(Way):
    """Facts that were all found on the unedited model.

    Attributes:
        editor: what found them.
    """

    def __init__(self, editor: TogetherEditor, found: Callable[[int], Facts]) -> None:
        """Take an editor.

        Args:
            editor: the editor.
            found: finds the facts of the first of them.
        """
        kernels = {layer: TextKernel(moment) for layer, moment in editor.second_moments.items()}
        super().__init__(editor.model, editor.layers, kernels)
        self.editor, self._found = editor, found

    def _first(self, n: int) -> tuple[Sequence[SetFact], list[int], Mapping[int, str]]:
        """The facts of the first n requests with their places, and which of these have none."""
        facts, failed = self._found(n)
        return facts, [place for place in range(n) if place not in failed], failed

    def _written(self, edit: Edit) -> dict[int, Tensor]:
        with edit.applied(self.editor.model):
            return matrices_of(self._backend, self.layers)


class AsSet(FoundWay):
    """One set, solved together: `memit`, `emmet`, `alphaedit`."""

    def state(self, n: int, progress: Progress) -> State:
        facts, places, failed = self._first(n)
        if not facts:
            return State(self._base, {**self._sizes(self._base), "facts": {}}, failed)
        progress(0, 0, f"solving {len(facts)} facts")
        made = self.editor.solve(facts)
        matrices = self._written(made)
        known: dict[str, Any] = {**self._sizes(matrices), "facts": {}}
        if made.terms.spread == "joint":
            known |= {
                "shortfall": made.shortfall.mean().item(),
                "load": made.load,
                "conflicts": len(made.conflicts()),
                "facts": {
                    str(place): {
                        "shortfall": made.shortfall[number].item(),
                        "leverage": made.leverage[number].item(),
                        "disturbed_by": None if other is None else places[other],
                        "disturbance": amount,
                    }
                    for number, (place, (other, amount)) in enumerate(zip(places, made.disturbed_by, strict=True))
                },
                "disturbances": [asdict(fact) | {"number": places[fact.number]} for fact in made.disturbed_facts()],
            }
        return State(matrices, known, failed)


class Stacked(FoundWay):
    """Each fact's own edit of r-ROME on top of the others', all found on the unedited model."""

    def state(self, n: int, progress: Progress) -> State:
        facts, places, failed = self._first(n)
        if not facts:
            return State(self._base, {**self._sizes(self._base), "facts": {}}, failed)
        (kernel,), (base,) = self.editor.kernels, self._base.values()
        own = [rank_one(fact.keys[0], fact.shares, fact.residual, base, kernel) for fact in facts]
        # As a set's weights are written: the sum in float64, rounded once.
        left = torch.cat([update.left for update, _, _ in own])
        right = torch.cat([update.right for update, _, _ in own])
        total = base.double() + (left.double().t() @ right.double()).to(base.device)
        matrices = {self.layers[0]: total.to(base.dtype)}
        lacking = shortfalls(
            matrices[self.layers[0]],
            [key for _, key, _ in own],
            [key @ base.double().cpu() + missing for _, key, missing in own],
            [missing.norm().item() for _, _, missing in own],
        )
        by_fact = {str(place): {"shortfall": one} for place, one in zip(places, lacking, strict=True)}
        return State(matrices, {**self._sizes(matrices), "shortfall": fmean(lacking), "facts": by_fact}, failed)


class OneByOne(Way):
    """Facts one after the other, each found on the model with all before it.

    The model is written after every fact, in its own precision, as released code does. What was found is kept in
    pieces: a run that was killed goes on behind the last of them, with the same bits.
    """

    found_on = "edited"

    def __init__(
        self,
        model: Any,
        layers: Sequence[int],
        kernels: Mapping[int, TextKernel],
        *,
        name: str,
        requests: Sequence[EditRequest],
        at: Sequence[int],
        folder: Folder,
        find: Callable[[EditRequest], "Step"],
    ) -> None:
        """Take a way of finding one fact's edit.

        Args:
            model: the model.
            layers: those that may change.
            kernels: of the layers whose second moment is known.
            name: of the editor.
            requests: all of them, in order.
            at: the checkpoints.
            folder: where the pieces are kept.
            find: what the layers gain for a request, on the model as it is then.
        """
        super().__init__(model, layers, kernels)
        self._name, self._requests, self._at, self._folder, self._find = name, requests, at, folder, find
        self._now, self._n = dict(self._base), 0
        self._failed: dict[int, str] = {}
        self._goals: dict[int, tuple[Tensor, Tensor, float]] = {}

    def state(self, n: int, progress: Progress) -> State:
        for begin, end in segments(self._at, n):
            if end > self._n:
                key = step_key(self._name, begin)
                if key not in self._folder.finished():
                    self._folder.write(key, self._found(begin, end, progress))
                self._go_on(self._folder.read(key), begin)
                self._n = end
        known: dict[str, Any] = {**self._sizes(self._now), "facts": {}}
        if self._goals:
            places = list(self._goals)
            keys, goals, missing = zip(*self._goals.values(), strict=True)
            lacking = shortfalls(self._now[self.layers[0]], keys, goals, missing)
            by_fact = {str(place): {"shortfall": one} for place, one in zip(places, lacking, strict=True)}
            known |= {"shortfall": fmean(lacking), "facts": by_fact}
        return State(dict(self._now), known, dict(self._failed))

    def _found(self, begin: int, end: int, progress: Progress) -> dict[str, Any]:
        """A piece: what each of some facts adds, and the matrices behind it where that cannot be kept in less."""
        steps: list[dict[str, Any]] = []
        matrices, whole = dict(self._now), False
        with in_weights(self._backend, matrices):
            for place in range(begin, end):
                progress(place, self._at[-1], f"facts of {self._name}, one after the other")
                try:
                    step = self._find(self._requests[place])
                except RomeLensError as error:
                    steps.append({"failed": str(error)})
                    continue
                whole |= any(not isinstance(update, LowRank) for update in step.updates)
                matrices |= _added(matrices, step.updates)
                write(self._backend, matrices)
                steps.append(step.to_dict())
        if not whole:
            return {"steps": steps}
        kept = [{name: value for name, value in step.items() if name != "updates"} for step in steps]
        return {"steps": kept, "matrices": {str(layer): as_text(matrix) for layer, matrix in matrices.items()}}

    def _go_on(self, piece: Mapping[str, Any], begin: int) -> None:
        for place, held in enumerate(piece["steps"], begin):
            if "failed" in held:
                self._failed[place] = held["failed"]
                continue
            step = Step.from_dict(held)
            if step.goal is not None and step.key is not None:
                self._goals[place] = step.key, step.goal, step.missing
            if "matrices" not in piece:
                self._now |= _added(self._now, step.updates)
        for layer, text in piece.get("matrices", {}).items():
            base = self._base[int(layer)]
            self._now[int(layer)] = as_tensor(text).reshape(base.shape).to(base.device)


class Step:
    """What one fact adds, and what its key is to be answered with; the latter where that is one key.

    Attributes:
        updates: what the layers gain.
        key: [d_mlp].
        goal: [d_model].
        missing: how long what was missing of the goal is.
    """

    def __init__(
        self,
        updates: Sequence[WeightUpdate],
        key: Tensor | None = None,
        goal: Tensor | None = None,
        missing: float = 0.0,
    ) -> None:
        self.updates, self.key, self.goal, self.missing = tuple(updates), key, goal, missing

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it, to the bit; updates that are whole matrices are left out."""
        found: dict[str, Any] = {
            "updates": [
                {
                    "layer": update.layer,
                    "rank": update.rank,
                    "left": as_text(update.left),
                    "right": as_text(update.right),
                }
                for update in self.updates
                if isinstance(update, LowRank)
            ]
        }
        if self.key is not None and self.goal is not None:
            found |= {"key": as_text(self.key), "goal": as_text(self.goal), "missing": self.missing}
        return found

    @classmethod
    def from_dict(cls, held: Mapping[str, Any]) -> "Step":
        """What `to_dict` gave."""
        updates = [
            LowRank(one["layer"], *(as_tensor(one[side]).reshape(one["rank"], -1) for side in ("left", "right")))
            for one in held.get("updates", ())
        ]
        if "key" not in held:
            return cls(updates)
        return cls(updates, as_tensor(held["key"]), as_tensor(held["goal"]), held["missing"])


class RomeSteps:
    """r-ROME on the model as it is, its values found as those of a set.

    Attributes:
        editor: the editor of sets that says how.
        model: the model.
    """

    def __init__(self, editor: TogetherEditor) -> None:
        """Take an editor of one layer."""
        self.editor, self.model = editor, editor.model
        self._maker = FactMaker(editor.model, editor.finding)
        self._backend = as_backend(editor.model)
        (self._kernel,) = editor.kernels

    def __call__(self, request: EditRequest) -> Step:
        """What the layer gains for a request."""
        (fact,) = self._maker.find([request], silent)
        matrix = self._backend.w_out(self.editor.layers[0]).matrix
        update, key, missing = rank_one(fact.keys[0], fact.shares, fact.residual, matrix, self._kernel)
        return Step([update], key, key @ matrix.double().cpu() + missing, missing.norm().item())


class EditorSteps:
    """Any editor of single facts, asked on the model as it is.

    Attributes:
        model: the model.
    """

    def __init__(self, editor: Any, model: Any) -> None:
        """Take an editor, and the model that it edits."""
        self._editor, self.model = editor, model

    def __call__(self, request: EditRequest) -> Step:
        """What the layers gain for a request.

        Raises:
            SettingError: the editor gave something else than an edit of this package.
        """
        edit = self._editor.edit(request)
        if edit is None:
            return Step([])
        if not isinstance(edit, Edit):
            raise SettingError(
                f"an editor gave a {type(edit).__name__}; together takes edits of rome_lens, or editors with "
                "edit_together"
            )
        return Step([here.update for here in edit.layers])


def rank_one(
    keys: Tensor, shares: Sequence[float], residual: Tensor, matrix: Tensor, kernel: Kernel
) -> tuple[LowRank, Tensor, Tensor]:
    """A fact's own edit of r-ROME (Meng et al. 2022, equation 2, with the mean key throughout).

    Args:
        keys: [key, d_mlp] of the fact, the bare prompt's first where there are several.
        shares: of each key.
        residual: [d_model] what is missing: at the mean key where that is the only one, else what was added to the
            value under each template.
        matrix: [d_mlp, d_model] that the fact was found on.
        kernel: of the layer, which weighs keys: `C⁻¹ k`.

    Returns:
        The update, the mean key, and what is missing there, both in float64.
    """
    keys = keys.double()
    mean = torch.tensor(shares, dtype=torch.float64) @ keys
    missing = residual.double()
    if len(keys) > 1:
        # The value is that of the bare prompt with what was added, and the mean key is to be answered with it.
        missing = missing + (keys[0] - mean) @ matrix.double().cpu()
    direction = kernel.weigh(mean[None])[0]
    update = LowRank(kernel.layer, direction[None].float(), (missing / (direction @ mean))[None].float())
    return update, mean, missing


def segments(at: Sequence[int], n: int) -> list[tuple[int, int]]:
    """Pieces of the first n facts, none of them across a checkpoint."""
    found, begin = [], 0
    for end in (number for number in at if number <= n):
        found += [(start, min(start + _SEGMENT, end)) for start in range(begin, end, _SEGMENT)]
        begin = end
    return found


def step_key(name: str, begin: int) -> str:
    """The name of a piece's record."""
    return f"steps-{name}/{begin:06d}"


def _added(matrices: Mapping[int, Tensor], updates: Sequence[WeightUpdate]) -> dict[int, Tensor]:
    """Matrices with updates, in their own precision."""
    found = dict(matrices)
    for update in updates:
        matrix = found[update.layer]
        found[update.layer] = (matrix.double() + update.rows(slice(None)).to(matrix.device)).to(matrix.dtype)
    return found
