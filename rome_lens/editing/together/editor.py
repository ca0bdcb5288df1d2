"""What MEMIT, EMMET and AlphaEdit share: requests in, a set of facts out. They differ in how keys are weighed."""

import os
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import asdict, fields, replace
from functools import cached_property
from typing import Any, ClassVar, get_args

import torch

from rome_lens.backends import as_backend
from rome_lens.backends.modules import hugging_face_module
from rome_lens.checks import choice, flag, known_names
from rome_lens.editing.guard import CollapseGuard
from rome_lens.editing.history import edits_in_weights, unedited_fingerprint, unedited_matrix
from rome_lens.editing.outcome import Earlier, Origin, found_on
from rome_lens.editing.prompts import EssenceAt, RequestRows, n_keys_of, split_requests, tokenise_request
from rome_lens.editing.rome import ROME
from rome_lens.editing.second_moment.moment import SecondMoment
from rome_lens.editing.settings import Engine, OptimiserChanges, Settings
from rome_lens.editing.together.edit_set import EditSet
from rome_lens.editing.together.finding import Finding
from rome_lens.editing.together.finding_run import FindingRun, find_facts, left_out
from rome_lens.editing.together.kernels import Kernel, TextKernel
from rome_lens.editing.together.layers import layers_for, moments_for
from rome_lens.editing.together.published import DEFAULT_VALUES, Table, published_for
from rome_lens.editing.together.released import spread_released
from rome_lens.editing.together.set_fact import SetFact, check_requests
from rome_lens.editing.together.system import bytes_to_solve
from rome_lens.editing.together.terms import LayerBase, Spread, Terms
from rome_lens.editing.value_settings import ValueChanges, ValueSettings
from rome_lens.editing.weight_update import WeightUpdate
from rome_lens.errors import (
    AnswerError,
    CollapseError,
    EditStateError,
    PromptError,
    SettingError,
    SubjectError,
)
from rome_lens.facts import EditRequest
from rome_lens.kinds import requests_of
from rome_lens.loading.source import ModelSource
from rome_lens.memory import check_fits
from rome_lens.progress import Progress, silent
from rome_lens.runs import Shard


class TogetherChanges(OptimiserChanges, ValueChanges, total=False):
    """What all editors of many facts take by name: how requests are put to the model, and how values are found."""

    context_templates: Sequence[str] | None
    bare_weight: float | None
    essence_at: EssenceAt | None
    seed: int
    prepend_bos: bool
    engine: Engine
    settings: Settings | None


class TogetherEditor(ABC):
    """An editor that solves many facts together.

    Attributes:
        model: the model, which no edit changes until it is applied.
        layers: the layers that are edited, from the lowest; values are found at the last.
        penalty: what moving costs against the facts, in the kernel's units.
        spread: how several layers share what is missing.
        values: where values are added, when they are enough, how long they may be, and which keys they answer.
        second_moments: C of each layer.
    """

    variant: ClassVar[str]
    """What its sets are called."""
    table: ClassVar[Table] = ()
    """What is published of the method."""
    penalty: float

    def __init__(
        self,
        model: Any,
        layers: Sequence[int] | int | None,
        second_moments: Any,
        spread: Spread,
        changes: TogetherChanges,
    ) -> None:
        """Take what the editors have in common; the arguments are theirs.

        Args:
            model: theirs.
            layers: theirs.
            second_moments: theirs.
            spread: theirs.
            changes: theirs, by name.
        """
        known_names(f"{type(self).__name__}.__init__", changes, TogetherChanges.__annotations__)
        self._source = ModelSource.of(model)
        self.model = self._source.open(silent)
        self._backend = as_backend(self.model)
        # What is published of a method goes with its layers.
        self._published = published = published_for(self.table, self._backend) if layers is None else None
        self.spread: Spread = choice("spread", spread, get_args(Spread))
        given: dict[str, Any] = dict(changes)
        of_values = {each.name: given.pop(each.name) for each in fields(ValueSettings) if each.name in given}
        if self.spread == "released":
            of_values.setdefault("keys", "mean")
        self.values = replace(DEFAULT_VALUES if published is None else published.values, **of_values)
        if self.spread == "released":
            _check_released(self.values)
        self.layers = layers_for(self._backend, layers, second_moments, published)
        self.second_moments = moments_for(self._backend, self.layers, second_moments)
        top, own = self.layers[-1], given.pop("settings", None)
        if own is None and published is not None:
            own = published.settings
        given.setdefault("bare_weight", "auto")
        self._rome = ROME(self.model, layer=top, second_moment=self.second_moments[top], settings=own, **given)

    @property
    def _d_mlp(self) -> int:
        return self.second_moments[self.layers[-1]].d_mlp

    @property
    def settings(self) -> Settings:
        """How values are optimised, at the last of the layers."""
        return self._rome.settings

    @abstractmethod
    def _kernel(self, moment: SecondMoment) -> Kernel:
        """How the keys of a layer are weighed."""

    @abstractmethod
    def _said(self) -> dict[str, Any]:
        """What the method was set to, by its own names, as JSON holds it."""

    def _notes(self) -> tuple[str, ...]:
        """What is worth knowing of the method as it is set; nothing by default."""
        return ()

    @property
    def kernels(self) -> tuple[Kernel, ...]:
        """How the keys of each layer are weighed."""
        return self._kernels

    @cached_property
    def _kernels(self) -> tuple[Kernel, ...]:
        return tuple(self._kernel(self.second_moments[layer]) for layer in self.layers)

    @property
    def finding(self) -> Finding:
        """All that decides what is found of a request, but for the model."""
        return Finding(self.settings, self._rome.choices, self.values, self.layers)

    def edit_together(
        self,
        requests: Sequence[EditRequest],
        *,
        out: str | os.PathLike[str] | None = None,
        workers: int | None = None,
        executor: Executor | None = None,
        shard: Shard | str | None = None,
        allow_conflicts: bool = False,
        skip_failed: bool = False,
        guard: CollapseGuard | None = None,
        progress: Progress | None = None,
    ) -> EditSet:
        """Find the values of many requests, and solve them together. The model is left as it is.

        On a CPU each value is found in a batch of its own by one thread, so that its bits depend on its request alone,
        and as many side by side as there are threads (`torch.get_num_threads()`). On a GPU as many go into one batch as
        memory holds.

        Args:
            requests: what to edit.
            out: a folder that keeps every value as soon as it is found, under its request and all else that decides it.
                A call that was killed goes on there, with the same requests or others; another model, other layers or
                other settings of values are refused. What they are weighed by is no part of it: the same folder serves
                MEMIT, EMMET and AlphaEdit.
            workers: processes that find values side by side on this machine; None is as many as pay, 1 is none.
            executor: any executor finds them, in processes that load the model themselves: give the editor its name.
            shard: `2/4` finds the second of four parts; `merge_facts` joins the folders.
            allow_conflicts: let one subject have several targets.
            skip_failed: leave out requests that cannot be edited, and say so in the notes.
            guard: looks at the model with the set in its weights, and refuses a set with which it has collapsed.
            progress: called with (done, total, what), facts as the unit.

        Returns:
            The set: of a shard, of its own facts.

        Raises:
            SettingError: there is no request; one is there twice; a subject has two targets; or the folder holds facts
                found in another way.
            PromptError, SubjectError, AnswerError: a request does not fit the model, before any is worked on.
            EditError: requests cannot be edited, which are named; what was found of the others is kept in `out`. Or
                nothing is given way to, and keys depend on each other.
            CollapseError: the guard refused the set, which the error holds as `edit`.
            OutOfMemoryError: so many facts are more than memory holds.
            RunError: a worker was lost; what is finished is kept.
        """
        started = time.perf_counter()
        requests = requests_of(requests)
        if not requests:
            raise SettingError("there are no requests; expected one or more")
        check_requests(requests, allow_conflicts=flag("allow_conflicts", allow_conflicts))
        self._check_memory(len(requests))
        how = FindingRun(out, workers, executor, None, Shard.of(shard), flag("skip_failed", skip_failed), progress)
        facts, failed = self.facts_of(requests, how)
        notes = [left_out(request, reason) for request, reason in failed]
        made = self.solve(facts, notes)
        if guard is not None:
            with made.applied(self.model):
                told = guard.told(self.model)
            if told is not None:
                raise CollapseError(
                    f"the model would collapse with {len(made)} facts together: {told}; take fewer, or a larger "
                    "penalty for what moves (preserve, l2)",
                    made,
                )
        made = made.measured(self.model)
        return replace(made, origin=replace(made.origin, seconds=time.perf_counter() - started))

    def solve(self, facts: Sequence[SetFact], notes: Sequence[str] = ()) -> EditSet:
        """Facts that `facts_of` found, solved together. What the model says with them is not measured.

        Args:
            facts: the facts.
            notes: what else is worth knowing of the set.

        Raises:
            EditError: nothing is given way to, and keys depend on each other.
        """
        made_on = edits_in_weights(self._backend)
        others = found_on(made_on, self.layers[-1], second_moment=True)
        warned = [note for moment in self.second_moments.values() for note in moment.warnings]
        origin = Origin(
            variant=self.variant,
            settings=self.record(),
            notes=(f"settings: {self.settings.source}", *self._notes(), *dict.fromkeys(warned), *others, *notes),
            backend=self._backend.name,
            dtype=str(self._backend.dtype).removeprefix("torch."),
            made_on=made_on,
        )
        return EditSet.of(facts, self.terms, origin, kernels=self.kernels, editor=self)

    def found(
        self,
        requests: Sequence[EditRequest],
        *,
        made_on: Sequence[Earlier],
        out: str | os.PathLike[str] | None,
        progress: Progress | None,
    ) -> list[SetFact]:
        """Facts of requests, for a set that gets further ones.

        Args:
            requests: what is asked for.
            made_on: the edits that were in the weights when the set was made.
            out: as in `edit_together`.
            progress: the same.

        Raises:
            EditStateError: the edits in the weights are others now, such as the set itself. And as `edit_together`
                raises.
        """
        self._check_edits(made_on)
        return self.facts_of(requests, FindingRun(out, progress=progress))[0]

    def _check_edits(self, made_on: Sequence[Earlier]) -> None:
        """Refuse to go on with facts on other weights than those that they were begun on."""
        if tuple(edits_in_weights(self._backend)) != tuple(made_on):
            raise EditStateError(
                "the edits in the model's weights are others than when this set was made, and what is found now would "
                "not fit it; put them back as they were: revert the set itself, if it is applied"
            )

    def spread_out(self, facts: Sequence[SetFact], *, made_on: Sequence[Earlier]) -> list[WeightUpdate]:
        """What each layer gains, layer by layer, each taking its share of what is still missing.

        Args:
            facts: with their goals, in an order of their own.
            made_on: as in `found`.

        Raises:
            EditStateError: the same.
            SettingError: a fact has no goal, since its value was found at `W_out`.
        """
        self._check_edits(made_on)
        if any(fact.goal is None for fact in facts):
            raise SettingError(
                "a fact whose value was found at W_out has no goal at a block's output to share out; find it anew with "
                "at='block'"
            )
        with torch.inference_mode(False), self._backend.evaluating():
            rows = self._tokenised([fact.request for fact in facts])
            return spread_released(
                self._backend, facts, rows, finding=self.finding, kernels=self.kernels, penalty=self.penalty
            )

    def facts_of(
        self, requests: Sequence[EditRequest], how: FindingRun
    ) -> tuple[list[SetFact], list[tuple[EditRequest, str]]]:
        """Facts of requests, in their order, and those that were left out, each with the reason.

        Args:
            requests: each once.
            how: how the work is done.

        Raises:
            PromptError, SubjectError, AnswerError, EditError, SettingError, RunError: as `edit_together` raises.
        """
        kernels = self.kernels  # what may fail in them fails before the work
        requests, rows, unfit = self.fitting(requests, skip_failed=how.skip_failed)
        batch_size = 1
        if self._backend.device.type != "cpu":
            parts = split_requests(self._backend, rows, layer=self.layers[-1], batch_size=None)
            batch_size = max(map(len, parts))
        found, failed = find_facts(self._source, self.model, self.finding, requests, how, batch_size=batch_size)
        n_keys = [len(fact.shares) for fact in found]
        weighed = [
            kernel.weigh(torch.cat([fact.keys[place] for fact in found])).split(n_keys)
            for place, kernel in enumerate(kernels)
        ]
        ids, found_on = tuple(kernel.id for kernel in kernels), tuple(here.fingerprint for here in self.terms.layers)
        return [
            SetFact(
                fact.outcome,
                fact.keys,
                tuple(rows[number] for rows in weighed),
                fact.shares,
                fact.residual,
                fact.goal,
                fact.old_ids,
                ids,
                fact.notes,
                found_on,
            )
            for number, fact in enumerate(found)
        ], [*unfit, *failed]

    def fitting(
        self, requests: Sequence[EditRequest], *, skip_failed: bool
    ) -> tuple[list[EditRequest], list[RequestRows], list[tuple[EditRequest, str]]]:
        """The requests that fit the model, in tokens, and the others, each with the reason.

        Raises:
            PromptError, SubjectError, AnswerError: one does not, which is named; or none does.
        """
        fit: list[tuple[EditRequest, RequestRows]] = []
        unfit: list[tuple[EditRequest, str]] = []
        for number, request in enumerate(requests):
            try:
                (rows,) = self._tokenised([request])
            except (PromptError, SubjectError, AnswerError) as error:
                if not skip_failed or (number == len(requests) - 1 and not fit):
                    raise type(error)(f"request {number}, {request.words!r}: {error}") from error
                unfit.append((request, str(error)))
            else:
                fit.append((request, rows))
        return [request for request, _ in fit], [rows for _, rows in fit], unfit

    def _tokenised(self, requests: Sequence[EditRequest]) -> list[RequestRows]:
        choices = self.finding.choices
        assert choices.context_templates is not None
        assert choices.essence_at is not None
        return [
            tokenise_request(
                self._backend,
                request,
                templates=choices.context_templates,
                prepend_bos=choices.prepend_bos,
                essence_at=choices.essence_at,
            )
            for request in requests
        ]

    def _check_memory(self, n_facts: int) -> None:
        """Refuse what cannot be solved before hours of work on it.

        Raises:
            OutOfMemoryError: so many facts are more than memory holds.
        """
        d_mlp = [moment.d_mlp for moment in self.second_moments.values()]
        choices = self.finding.choices
        assert choices.context_templates is not None
        assert not isinstance(choices.bare_weight, str)
        n_templates, bare_weight = len(choices.context_templates), choices.bare_weight
        n_keys = n_keys_of(n_templates, bare_weight=bare_weight, which=self.values.keys)
        needed = bytes_to_solve(n_facts * n_keys, widths=d_mlp, d_mlp=d_mlp, d_model=self._backend.d_model)
        needed += sum(moment.bytes_to_solve for moment in self.second_moments.values())
        several = len(d_mlp) > 1
        check_fits(
            f"to solve {n_facts} facts" + (f" in {len(d_mlp)} layers" if several else ""),
            needed,
            torch.device("cpu"),
            instead="edit one layer, or fewer facts together" if several else "edit fewer facts together",
        )

    @cached_property
    def terms(self) -> Terms:
        """On what terms facts are solved."""
        dtype = torch.promote_types(self._backend.dtype, torch.float32)
        return Terms(self.penalty, self.spread, dtype, tuple(map(self._base, self.kernels)))

    def _base(self, kernel: Kernel) -> LayerBase:
        layer = kernel.layer
        backend, moment = self._backend, self.second_moments[layer]
        matrix = unedited_matrix(backend, layer)
        module, transposed = hugging_face_module(backend, layer) or (None, True)
        return LayerBase(
            fingerprint=unedited_fingerprint(backend, layer),
            norm=matrix.double().norm().item(),
            text_energy=TextKernel(moment).text_energy(matrix),
            width=kernel.width,
            module=module,
            module_transposed=transposed,
        )

    def record(self) -> dict[str, Any]:
        """Everything that was set, as JSON holds it."""
        return {
            **asdict(self.settings),
            "layers": list(self.layers),
            "spread": self.spread,
            **self._said(),
            **asdict(self.values),
            **self._rome.choices.of_rows(),
            "second_moments": [self.second_moments[layer].handed_on() for layer in self.layers],
        }


def _check_released(values: ValueSettings) -> None:
    """Refuse values that cannot be spread out layer by layer.

    Raises:
        SettingError: they are not found at the block, or answer other keys than the mean.
    """
    if values.at != "block":
        raise SettingError(
            "spread='released' shares out what the last block's output lacks, layer by layer, and values are found "
            f"at {values.at!r}; give at='block' with it"
        )
    if values.keys != "mean":
        raise SettingError(
            "spread='released' reads the mean keys of each layer again, as the released code does, and keys is "
            f"{values.keys!r}; give keys='mean' with it, or spread='joint'"
        )
