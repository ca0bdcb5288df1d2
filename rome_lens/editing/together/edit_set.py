"""Many facts as one edit: solved together, any of them taken out again, further ones put in."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Protocol, overload

import torch

from rome_lens.backends import as_backend
from rome_lens.checks import shown
from rome_lens.editing.edit import Edit
from rome_lens.editing.outcome import Earlier, Origin, Probabilities
from rome_lens.editing.patch import EditedLayer, layer_names
from rome_lens.editing.together.kernels import Kernel
from rome_lens.editing.together.known_facts import KnownFacts
from rome_lens.editing.together.measure import probabilities_with
from rome_lens.editing.together.set_fact import SetFact, check_requests, facts_named, in_order, stacked
from rome_lens.editing.together.system import prefers_directions
from rome_lens.editing.together.terms import Terms
from rome_lens.editing.weight_update import WeightUpdate
from rome_lens.errors import SettingError
from rome_lens.facts import EditRequest
from rome_lens.progress import Progress
from rome_lens.storage import save_tensors

KIND = "edit_set"
"""What files of sets call themselves."""


class Finder(Protocol):
    """What a set asks of the editor that made it."""

    @property
    def kernels(self) -> tuple[Kernel, ...]:
        """How the keys of each layer are weighed."""
        ...

    def found(
        self,
        requests: Sequence[EditRequest],
        *,
        made_on: Sequence[Earlier],
        out: str | os.PathLike[str] | None,
        progress: Progress | None,
    ) -> list[SetFact]:
        """Facts of requests, found on weights with these edits in them."""
        ...

    def spread_out(self, facts: Sequence[SetFact], *, made_on: Sequence[Earlier]) -> list[WeightUpdate]:
        """What each layer gains, layer by layer."""
        ...


@dataclass(frozen=True, eq=False, repr=False)
class EditSet(KnownFacts):
    """Many facts that were solved together, as one edit: `apply`, `revert`, `hooks`, `to_hf` and so on as of any other.

    Made by `MEMIT`, `EMMET` and `AlphaEdit`. With the facts' keys kept, what the weights gain is a function of the set
    of facts, in whatever order they came and however often others were put in and taken out between: `without`,
    `plus` and `replace` give the set that would have been found at once, to the bit, and optimise nothing that is
    found already.

    !!! example
        ```python
        facts = rl.MEMIT(model).edit_together(requests)
        len(facts), facts[3].request, facts.to_dataframe()
        fewer = facts.without(facts[3])          # a new set, solved anew in less than a second
        with fewer.applied(model):
            ...
        ```

    Attributes:
        outcomes: each request with what the model said before and what it says with the set, in the facts' order.
        layers: what changes, each layer once, from the lowest.
        origin: what it was made with.
        facts: the facts, in the order in which they came.
        terms: on what terms they are solved.
        kernels: how keys are weighed, a layer each; None for a set from a file that needs none.
        editor: the editor that made it, which finds values of further requests; None for a set from a file.
    """

    editor: Finder | None = field(default=None, kw_only=True)

    @classmethod
    def of(
        cls,
        facts: Sequence[SetFact],
        terms: Terms,
        origin: Origin,
        *,
        kernels: Sequence[Kernel] | None,
        editor: Finder | None,
    ) -> "EditSet":
        """Solve facts together.

        Raises:
            SettingError: there is none; or the kernels or the editor are needed, and not there.
            EditError: nothing is given way to, and keys depend on each other.
        """
        facts = tuple(facts)
        if not facts:
            raise SettingError("the set would be empty; it needs one fact at least")
        if terms.spread == "released":
            if editor is None:
                raise SettingError(
                    "what several layers gain layer by layer (spread='released') depends on the model, and this set "
                    "was read from a file; give editor=, such as MEMIT(model, spread='released')"
                )
            updates = editor.spread_out([facts[n] for n in in_order(facts)], made_on=origin.made_on)
        else:
            widths = [here.width for here in terms.layers]
            n_keys = sum(len(fact.shares) for fact in facts)
            if kernels is None and prefers_directions(n_keys, widths):
                raise SettingError(
                    f"{n_keys} keys are more than the {widths[0]} directions of layer {terms.numbers[0]}, in "
                    "which they are solved, and this set was read from a file of fewer, without its second moment or "
                    "null space; give editor=, set as the one that made it"
                )
            updates = stacked(facts, terms.numbers, terms.penalty, kernels).updates(terms.dtype)
        layers = tuple(
            EditedLayer(update, here.fingerprint, update.norm / here.norm, here.module, here.module_transposed)
            for update, here in zip(updates, terms.layers, strict=True)
        )
        outcomes = tuple(fact.outcome for fact in facts)
        kept = None if kernels is None else tuple(kernels)
        return cls(outcomes, layers, origin, facts, terms=terms, kernels=kept, editor=editor)

    def __len__(self) -> int:
        return len(self.facts)

    def __iter__(self) -> Iterator[SetFact]:
        return iter(self.facts)

    @overload
    def __getitem__(self, number: int) -> SetFact: ...

    @overload
    def __getitem__(self, number: slice) -> tuple[SetFact, ...]: ...

    def __getitem__(self, number: int | slice) -> SetFact | tuple[SetFact, ...]:
        """A fact by its number, or several."""
        return self.facts[number]

    def __contains__(self, fact: object) -> bool:
        """Whether a fact, or a request, is in the set."""
        return any(fact in (one, one.request) for one in self.facts)

    def __repr__(self) -> str:
        n = len(self.facts)
        said = [f"{n} fact{'' if n == 1 else 's'}", f"{layer_names(self)} of {self.fingerprint.model_name}"]
        said += [self.variant, self._came_of_it]
        if self.terms.spread == "joint":
            collide = len(self.conflicts())
            said += [f"{collide} pair{'' if collide == 1 else 's'} in conflict, see conflicts()"] if collide else []
            said += [f"leverage {self.load:.0%} of what the layers hold"] if self.load > 0.5 else []
        return f"{type(self).__name__}({', '.join(said)})"

    @cached_property
    def id(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        """What two sets share exactly when they hold the same facts and change the same, in whatever order."""
        return Edit(tuple(self.outcomes[number] for number in self.order), self.layers, self.origin).id

    def without(self, *facts: SetFact | EditRequest | int | str, editor: Finder | None = None) -> "EditSet":
        """The set without some of its facts, solved anew; the set that would have been found without them.

        What the model says with it is not measured: take `measured`.

        Args:
            facts: facts, their numbers, their ids or their requests.
            editor: of a set from a file whose layers gain layer by layer, which has to be looked at anew.

        Raises:
            SettingError: there is no such fact, or none would be left.
        """
        away = set(facts_named(self.facts, facts))
        left = [fact for number, fact in enumerate(self.facts) if number not in away]
        return self._of(left, editor, self._kernels_of([editor]))

    def plus(
        self,
        *more: "EditRequest | SetFact | EditSet | Sequence[EditRequest | SetFact]",
        editor: Finder | None = None,
        allow_conflicts: bool = False,
        out: str | os.PathLike[str] | None = None,
        progress: Progress | None = None,
    ) -> "EditSet":
        """The set with further facts, solved anew; of requests the values are found first, those of the set stay.

        Args:
            more: requests, whose values the editor finds; facts of another set, or all of one.
            editor: who finds them; None is the one that made this set.
            allow_conflicts: let one subject have several targets.
            out: as in `edit_together`.
            progress: the same.

        Raises:
            SettingError: nothing is given; a fact is in the set already; a subject would have two targets; facts of
                other layers or of another kernel; or there is no editor.
            EditError, PromptError, SubjectError, AnswerError: as `edit_together` raises.
        """
        given = list(_flat(more))
        if not given:
            raise SettingError("nothing is given to put into the set; expected requests, or facts of another set")
        requests = [one.request if isinstance(one, SetFact) else one for one in given]
        check_requests(requests, [fact.request for fact in self.facts], allow_conflicts=allow_conflicts)
        asked = [one for one in given if isinstance(one, EditRequest)]
        found = iter(self._found(asked, editor, out=out, progress=progress) if asked else [])
        kernels = self._kernels_of([editor, *(one for one in more if isinstance(one, EditSet))])
        new = [self._fitting(one if isinstance(one, SetFact) else next(found), kernels) for one in given]
        return self._of([*self.facts, *new], editor, kernels)

    def replace(
        self,
        fact: SetFact | EditRequest | int | str,
        by: SetFact | EditRequest,
        *,
        editor: Finder | None = None,
        progress: Progress | None = None,
    ) -> "EditSet":
        """The set with one fact in place of another, at the same number.

        Args:
            fact: which one, as in `without`.
            by: a request, whose value the editor finds, or a fact of another set.
            editor: as in `plus`.
            progress: the same.

        Raises:
            SettingError, EditError, PromptError, SubjectError, AnswerError: as `without` and `plus` raise.
        """
        (number,) = facts_named(self.facts, [fact])
        others = [one.request for place, one in enumerate(self.facts) if place != number]
        if not isinstance(by, EditRequest | SetFact):
            raise SettingError(f"by is {shown(by)}; expected an EditRequest, or a fact of a set")
        request = by.request if isinstance(by, SetFact) else by
        check_requests([request], others, allow_conflicts=self._has_conflicting_subjects)
        if isinstance(by, EditRequest):
            (by,) = self._found([by], editor, out=None, progress=progress)
        kernels = self._kernels_of([editor])
        new = self._fitting(by, kernels)
        return self._of([*self.facts[:number], new, *self.facts[number + 1 :]], editor, kernels)

    def scaled(self, factor: float) -> Edit:
        """What the layers gain, times a number: an edit, and no set any more.

        Raises:
            SettingError: it is no finite number.
        """
        return Edit(self.outcomes, self.layers, self.origin).scaled(factor)

    def with_outcomes(self, after: Sequence[Probabilities]) -> "EditSet":
        """The same set, with what the model says with it.

        Args:
            after: of each fact, in their order.
        """
        facts = tuple(
            replace(fact, outcome=replace(fact.outcome, after=said))
            for fact, said in zip(self.facts, after, strict=True)
        )
        return replace(self, facts=facts, outcomes=tuple(fact.outcome for fact in facts))

    def measured(self, model: Any) -> "EditSet":
        """The same set, with what a model says with it, whether the set is in its weights or not.

        Args:
            model: the model that it was made for.

        Raises:
            ModelMismatchError: another model; ModelError: not a model of ours.
        """
        backend = as_backend(model)
        hooks = [] if self.is_applied(model) else self.hooks(model)
        with backend.evaluating():
            said = probabilities_with(backend, self.facts, hooks, prepend_bos=bool(self.settings["prepend_bos"]))
        return self.with_outcomes(said)

    def _of(self, facts: Sequence[SetFact], editor: Finder | None, kernels: tuple[Kernel, ...] | None) -> "EditSet":
        """Another set on the same terms. What the model said with this one is no longer so."""
        forgotten = [
            fact if fact.outcome.after is None else replace(fact, outcome=replace(fact.outcome, after=None))
            for fact in facts
        ]
        by = self.editor if editor is None else editor
        return EditSet.of(forgotten, self.terms, self.origin, kernels=kernels, editor=by)

    def _kernels_of(self, others: Sequence[Any]) -> tuple[Kernel, ...] | None:
        """This set's kernels; of a set from a file those of another set or editor that weighs as this one."""
        for one in (self, *others):
            kernels = getattr(one, "kernels", None)
            if kernels is not None and tuple(kernel.id for kernel in kernels) == self.facts[0].kernels:
                return kernels
        return None

    def _found(
        self,
        requests: Sequence[EditRequest],
        editor: Finder | None,
        *,
        out: str | os.PathLike[str] | None,
        progress: Progress | None,
    ) -> list[SetFact]:
        """Facts of requests.

        Raises:
            SettingError: there is no editor.
        """
        by = self.editor if editor is None else editor
        if by is None:
            raise SettingError(
                "this set was read from a file and has no model to find further values on; give editor=, such as "
                "MEMIT(model), or facts of another set"
            )
        return by.found(requests, made_on=self.origin.made_on, out=out, progress=progress)

    def _fitting(self, fact: SetFact, kernels: tuple[Kernel, ...] | None) -> SetFact:
        """A fact of another set, weighed as those of this one.

        Args:
            fact: the fact.
            kernels: this set's, if they are known.

        Raises:
            SettingError: it is of other layers; has another number of keys; or is weighed by another kernel, and this
                set's own are not known.
        """
        mine = tuple(here.fingerprint for here in self.terms.layers)
        apart = [one.difference(other) for one, other in zip(mine, fact.found_on, strict=False)]
        if len(fact.found_on) != len(mine) or any(apart):
            raise SettingError(
                f"the fact {fact.words!r} was found for other layers or another model; find it anew: give its .request"
            )
        n_keys, theirs = len(self.facts[0].shares), len(fact.shares)
        if theirs != n_keys:
            raise SettingError(
                f"the fact {fact.words!r} has {theirs} key{'' if theirs == 1 else 's'}, and those of this set have "
                f"{n_keys}; find it anew as they were found (the editor's keys= and templates): give its .request"
            )
        if fact.kernels == self.facts[0].kernels:
            return fact
        if kernels is None:
            raise SettingError(
                f"the fact {fact.words!r} is weighed by another second moment or null space, and this set, which was "
                "read from a file, does not have its own; find the fact anew: give its .request and editor="
            )
        weighed = tuple(kernel.weigh(keys) for kernel, keys in zip(kernels, fact.keys, strict=True))
        return replace(fact, weighed=weighed, kernels=self.facts[0].kernels)

    @property
    def _has_conflicting_subjects(self) -> bool:
        targets = {(fact.request.subject, fact.request.target_new.strip()) for fact in self.facts}
        return len({subject for subject, _ in targets}) < len(targets)

    def to_dict(self) -> dict[str, Any]:
        """Everything but the tensors, as JSON can hold it."""
        return {**self._held(), **self.origin.to_dict(), "made_on": list(self.made_on)}

    def _held(self) -> dict[str, Any]:
        """What files and `to_dict` hold alike."""
        return {
            "outcomes": [one.to_dict() for one in self.outcomes],
            "facts": [
                {"id": fact.id, "old_ids": list(fact.old_ids), "shares": list(fact.shares), "notes": list(fact.notes)}
                for fact in self.facts
            ],
            "layers": [here.to_dict() for here in self.layers],
            "terms": self.terms.to_dict(),
        }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the set to a file (safetensors), with all that `without` and facts of other sets need.

        Where keys are more than a layer's directions, that includes the second moment or the null space.

        Raises:
            ArtefactError: the file cannot be written.
        """
        tensors = self._update_tensors()
        for place, layer in enumerate(self.terms.numbers):
            tensors[f"facts.{layer}.keys"] = torch.stack([fact.keys[place] for fact in self.facts])
            tensors[f"facts.{layer}.weighed"] = torch.stack([fact.weighed[place] for fact in self.facts])
        tensors["facts.residual"] = torch.stack([fact.residual for fact in self.facts])
        goals = [fact.goal for fact in self.facts if fact.goal is not None]
        if len(goals) == len(self.facts):
            tensors["facts.goal"] = torch.stack(goals)
        settings = self._held() | {
            "origin": self.origin.to_dict(),
            "fact_kernels": [list(fact.kernels) for fact in self.facts],
        }
        if self.kernels is not None and self.terms.spread == "joint" and self.system.by_direction:
            (kernel,) = self.kernels
            settings["kernel"] = {"name": kernel.name, "layer": kernel.layer, "numbers": dict(kernel.numbers)}
            tensors |= {f"kernel.{name}": tensor for name, tensor in kernel.tensors.items()}
        save_tensors(path, kind=KIND, tensors=tensors, settings=settings)


def _flat(given: Sequence[Any]) -> Iterator["EditRequest | SetFact"]:
    """Requests and facts, one by one.

    Raises:
        SettingError: something is neither.
    """
    for one in given:
        if isinstance(one, EditRequest | SetFact):
            yield one
        elif isinstance(one, EditSet):
            yield from one.facts
        elif isinstance(one, Sequence) and not isinstance(one, str):
            yield from _flat(one)
        else:
            raise SettingError(
                f"{shown(one)} is given; expected an EditRequest, a fact of a set, a set, or a list of these"
            )
