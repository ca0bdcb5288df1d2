"""ROME: a rank-one edit of one layer's `W_out` that makes a model say something else (Meng et al. 2022, section 3)."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, replace
from functools import cached_property
from typing import Any, Unpack

import torch
from torch import Tensor

from rome_lens.backends import as_backend
from rome_lens.checks import is_list, known_names, shown, whole_number
from rome_lens.editing.batches import in_parts
from rome_lens.editing.closed_form import solve
from rome_lens.editing.edit import Edit
from rome_lens.editing.history import edits_in_weights, unedited_matrix
from rome_lens.editing.hooks import RowUpdates
from rome_lens.editing.keys import Variant
from rome_lens.editing.made import Found, make_edits
from rome_lens.editing.outcome import Earlier, Outcome
from rome_lens.editing.prompts import EssenceAt
from rome_lens.editing.second_moment.moment import SecondMoment, moment_of
from rome_lens.editing.second_moment.shipped import shipped_moment
from rome_lens.editing.settings import Choices, Engine, Settings, SettingsChanges, settings_for
from rome_lens.editing.shortfall import advice
from rome_lens.editing.solved import Solved, SolvedRequest, both_probabilities, solve_requests
from rome_lens.editing.templates import sample_templates
from rome_lens.editing.weight_update import LowRank
from rome_lens.errors import EditStateError, SettingError
from rome_lens.facts import EditRequest
from rome_lens.kinds import request_of, requests_of
from rome_lens.memory import check_fits
from rome_lens.progress import Progress


class ROME:
    """An editor of one model's facts; what its edits share is computed once and kept here.

    Attributes:
        model: the model, which no edit changes until it is applied.
        settings: layer and optimiser's settings, with their source.
        second_moment: C of that layer.
        variant: `r-rome`, `rome` or `p-rome`.
        bare_weight: share of the bare prompt in the mean key and in the loss; None is the same share as any other.
        essence_at: where the divergence is read in "{subject} is a": `last`, or `subject` as the released code does.
        seed: seed of the templates.
        prepend_bos: whether BOS stands in front of every row.
    """

    def __init__(
        self,
        model: Any,
        *,
        second_moment: SecondMoment | Tensor | None = None,
        variant: Variant = "r-rome",
        context_templates: Sequence[str] | None = None,
        bare_weight: float | str | None = "auto",
        essence_at: EssenceAt | None = None,
        seed: int = 0,
        prepend_bos: bool = False,
        settings: Settings | None = None,
        engine: Engine = "auto",
        **changes: Unpack[SettingsChanges],
    ) -> None:
        """Choose how facts are edited. Whatever is None comes from the model's settings, whose source is recorded.

        Args:
            model: a HookedTransformer or a TransformerBridge, processed weights or not.
            second_moment: C of that layer, [d_mlp, d_mlp]; None takes the one that the package ships for this model,
                and is an error where there is none: it is never left out.
            variant: `r-rome` uses the mean key throughout; `rome` is the released code's mixture of two keys; `p-rome`
                uses the bare prompt's key.
            context_templates: texts that end with `{}`; None lets the model write 20 of them, by `seed`.
            bare_weight: share of the bare prompt among the templates, above 0 and at most 1; None is an equal share.
                "auto" is a half for `r-rome`, as in MEMIT, and an equal share for the other variants.
            essence_at: `last` or `subject`; None is `subject` for the variant `rome` and `last` for the others.
            seed: seed of the context templates.
            prepend_bos: put BOS in front of every row. The released code does not.
            settings: settings of your own in place of the model's, such as `Settings.load` reads.
            engine: `auto`, or `plain` to optimise by whole forwards (slow; the same numbers).
            layer: the layer to edit, counted from 0.
            v_num_grad_steps: evaluations of the loss, at most.
            v_lr: Adam's learning rate.
            v_weight_decay: factor of `|delta| / |v0|^2` in the loss.
            clamp_norm_factor: the largest `|delta|`, in units of `|v0|`.
            kl_factor: factor of the divergence of "{subject} is a".

        Raises:
            SettingError: a setting is out of its range, or there is no second moment.
            ModelMismatchError: the second moment belongs to another model, layer or width.
            ModelError: not a model of TransformerLens, or its layer has no `W_out` of its own.
        """
        known_names("ROME.__init__", changes, SettingsChanges.__annotations__)
        self._backend = as_backend(model)
        self.model = model
        choices = Choices(variant, bare_weight, essence_at, context_templates, seed, prepend_bos, engine)
        self.variant: Variant = choices.variant
        self._choices, self.essence_at = choices, choices.essence_at
        self.bare_weight, self.seed, self.prepend_bos = choices.bare_weight, choices.seed, choices.prepend_bos
        published = settings_for(self._backend) if settings is None else settings
        if not isinstance(published, Settings):
            raise SettingError(f"settings is {shown(published)}; expected Settings, such as Settings.load(path) reads")
        layer = changes.get("layer")
        if layer is not None:
            changes["layer"] = self._backend.check_layer(layer)
        self.settings: Settings = published.given(changes)
        self._backend.check_layer(self.settings.layer)
        # A layer without a `W_out` of its own, or without a hook point behind it, is refused here.
        self._backend.w_out(self.settings.layer)
        self._backend.value_hook(self.settings.layer)
        if second_moment is None:
            second_moment = shipped_moment(self._backend, self.settings.layer)
        self.second_moment = self._checked(second_moment)

    @property
    def layer(self) -> int:
        """The layer that is edited."""
        return self.settings.layer

    @cached_property
    def context_templates(self) -> tuple[str, ...]:
        """Texts in front of the prompt, the bare one first; written by the model when they are first asked for."""
        if self._choices.context_templates is not None:
            return tuple(self._choices.context_templates)
        with self._backend.evaluating():
            return sample_templates(self._backend, seed=self.seed, prepend_bos=self.prepend_bos)

    @property
    def choices(self) -> Choices:
        """How requests are put to the model; the templates are known."""
        return replace(self._choices, context_templates=self.context_templates)

    def edit(self, request: EditRequest, *, progress: Progress | None = None) -> Edit:
        """Find the edit that answers a request. The model is left as it is.

        Raises:
            PromptError, SubjectError, AnswerError: the request does not fit the model, or it says the target already.
            EditError: the loss is no number, or the update would explode.
            ModelError: what leaves the layer's MLP is not its key times `W_out`.
            OutOfMemoryError: memory does not hold what the gradient needs, or C's factor.
        """
        return self.edit_many([request_of(request)], progress=progress)[0]

    def edit_many(
        self, requests: Sequence[EditRequest], *, batch_size: int | None = None, progress: Progress | None = None
    ) -> list[Edit]:
        """Find an edit for each of many requests, as if each were the only one, many in one batch.

        On the CPU, batches are worked on side by side where that is faster: in forked processes that share the model's
        weights, one thread each, as many as PyTorch has threads here (`torch.set_num_threads`). So it is on Linux, in a
        process that is no worker itself and has no threads of Python's but those of a notebook's kernel. Only
        `progress` says it: edits do not depend on it, up to rounding.

        Args:
            requests: what to edit.
            batch_size: requests that are optimised together; None takes as many as fit into memory and pay.
            progress: called with (done, total, what) now and then.

        Returns:
            An edit a request, in order, equal to that of `edit` up to rounding.

        Raises:
            SettingError: batch_size is no whole number from 1.
            PromptError, SubjectError, AnswerError, EditError, ModelError: as `edit` raises, for the first that fails.
            OutOfMemoryError: the same.
            RunError: one of the processes was lost: killed, or out of memory.
        """
        self._check_memory([self.second_moment])
        return self.edits(self.solve(requests, batch_size=batch_size, progress=progress))

    def edit_many_under(
        self,
        requests: Sequence[EditRequest],
        second_moments: Sequence[SecondMoment | Tensor],
        *,
        batch_size: int | None = None,
        progress: Progress | None = None,
    ) -> list[list[Edit]]:
        """Find edits under several second moments: `solve` once, and `edits` for each of them.

        Args:
            requests: what to edit.
            second_moments: of this editor's layer, instead of its own; bare matrices are [d_mlp, d_mlp].
            batch_size: as in `edit_many`.
            progress: the same.

        Returns:
            For each second moment an edit a request.

        Raises:
            ModelMismatchError: a second moment belongs to another model, layer or width.
            SettingError, PromptError, SubjectError, AnswerError, EditError, ModelError, RunError: as `edit_many`
                raises.
        """
        if isinstance(second_moments, SecondMoment | Tensor) or not is_list(second_moments):
            raise SettingError(f"second_moments is {shown(second_moments)}; expected a list of second moments")
        moments = [self._checked(moment) for moment in second_moments]
        self._check_memory(moments)
        solved = self.solve(requests, batch_size=batch_size, progress=progress)
        return [self.edits(solved, second_moment=moment) for moment in moments]

    def solve(
        self, requests: Sequence[EditRequest], *, batch_size: int | None = None, progress: Progress | None = None
    ) -> Solved:
        """Find keys and values of requests, which takes the time and depends on no second moment.

        Args:
            requests: what to edit.
            batch_size: as in `edit_many`.
            progress: the same.

        Returns:
            What `edits` makes edits of, as often as you like and with any second moment.

        Raises:
            SettingError, PromptError, SubjectError, AnswerError, EditError, ModelError, RunError: as `edit_many`
                raises.
        """
        if batch_size is not None:
            batch_size = whole_number("batch_size", batch_size, least=1, expected="a whole number of requests")
        requests = requests_of(requests)
        # A caller's inference mode would leave nothing to differentiate.
        with torch.inference_mode(False), self._backend.evaluating():
            return solve_requests(
                self._backend,
                requests,
                settings=self.settings,
                choices=self.choices,
                batch_size=batch_size,
                progress=progress,
            )

    def edits(self, solved: Solved, *, second_moment: SecondMoment | Tensor | None = None) -> list[Edit]:
        """The edits of requests whose keys and values are found.

        Args:
            solved: of this model and layer; what `solve` gave here, or for an editor that differs in its second moment
                alone.
            second_moment: C of this layer; None is the editor's own.

        Returns:
            An edit a request, in order.

        Raises:
            SettingError: they were solved at another layer.
            EditStateError: the edits in the model's weights are others than when these requests were solved.
            EditError: an update would explode.
            ModelMismatchError: the second moment belongs to another model, layer or width.
        """
        moment = self.second_moment if second_moment is None else self._checked(second_moment)
        if solved.layer != self.layer:
            raise SettingError(f"these requests were solved at layer {solved.layer}; this editor edits {self.layer}")
        if edits_in_weights(self._backend) != solved.made_on:
            raise EditStateError(
                "the edits in the model's weights are others than when these requests were solved; solve them again"
            )
        with torch.inference_mode(False), self._backend.evaluating():
            return in_parts(
                solved.parts,
                lambda part, _: self._edits([solved.requests[i] for i in part], moment, solved.made_on),
                what="editing",
                progress=None,
            )

    def _checked(self, second_moment: SecondMoment | Tensor) -> SecondMoment:
        """A second moment that fits the layer."""
        moment = moment_of(second_moment, layer=self.layer)
        moment.check(self._backend, self.layer, unedited_matrix(self._backend, self.layer))
        return moment

    def _edits(
        self, requests: Sequence[SolvedRequest], moment: SecondMoment, made_on: tuple[Earlier, ...]
    ) -> list[Edit]:
        """The closed form for each request of a batch, and what it does."""
        started = time.perf_counter() - sum(one.seconds for one in requests)
        backend = self._backend
        found = [self._update(one, moment) for one in requests]
        updates = RowUpdates(backend, [[update] for update, _, _ in found for _ in ("target", "old answer")])
        hooks = updates.all_hooks(torch.arange(updates.n_owners))
        targets, old = [one.rows.rewriting[0] for one in requests], [one.old for one in requests]
        settings = self._record(requests[0], moment)
        edits = []
        after = both_probabilities(backend, targets, old, hooks=hooks)
        for one, target, reached, (update, key_norm, key_dot) in zip(requests, targets, after, found, strict=True):
            request, curve = one.rows.request, one.value.curve
            outcome = Outcome(request, one.old.answer, one.before, reached, curve)
            said = advice(request, reached, curve, variant=self.variant, settings=settings)
            edits.append(Found(outcome, update, target, one.old, (said,) if said else (), key_norm, key_dot))
        return make_edits(
            backend,
            edits,
            variant=self.variant,
            settings=settings,
            notes=(*moment.warnings, *self._other_bos(moment), *requests[0].value.notes),
            made_on=made_on,
            started=started,
        )

    def _check_memory(self, moments: Sequence[SecondMoment]) -> None:
        """Refuse, before values are found, what memory cannot solve.

        Raises:
            OutOfMemoryError: a Cholesky factor does not fit.
        """
        for moment in moments:
            check_fits(
                f"to solve with the second moment of layer {moment.layer}",
                moment.bytes_to_solve,
                moment.matrix.device,
                instead="free some memory first",
            )

    def _update(self, one: SolvedRequest, moment: SecondMoment) -> tuple[LowRank, float, float]:
        """The update, rounded to the model's precision, float32 at least; length of the answered key, and `u . key`."""
        keys, value = one.value.known.of(self.variant)
        update = solve(self.layer, keys, one.value.goal - value, moment.solve)
        key, dtype = keys.answered[0], torch.promote_types(self._backend.dtype, torch.float32)
        return update.to(torch.device("cpu"), dtype), key.norm().item(), (update.left[0] @ key).item()

    def _other_bos(self, moment: SecondMoment) -> tuple[str, ...]:
        """Say it where C was collected with other rows in mind."""
        if moment.prepend_bos is None or moment.prepend_bos == self.prepend_bos:
            return ()
        with_or_without = ("without", "with") if self.prepend_bos else ("with", "without")
        return ("the second moment was collected {} BOS in front, and the edit was made {}".format(*with_or_without),)

    def _record(self, one: SolvedRequest, moment: SecondMoment) -> dict[str, Any]:
        return {
            **asdict(self.settings),
            **self.choices.of_rows(),
            "engine": one.value.engine,
            "second_moment": moment.handed_on(),
        }


def check_choices(given: Mapping[str, Any]) -> None:
    """Refuse what `ROME` takes on no model, before there is one.

    Args:
        given: arguments of `ROME` by name; those that need a model to be looked at are left alone, and None is what
            was not chosen.

    Raises:
        SettingError: one of them is out of its range.
    """
    chosen = {name: value for name, value in given.items() if value is not None}
    Settings.check(chosen)
    Choices(**{field.name: chosen[field.name] for field in fields(Choices) if field.name in chosen})
