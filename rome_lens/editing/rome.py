"""ROME: a rank-one edit of one layer's `W_out` that makes a model say something else (Meng et al. 2022, section 3)."""

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor

from rome_lens.backends import as_backend
from rome_lens.checks import as_real, choice, flag, is_list, seed_number, shown, whole_number
from rome_lens.editing.answers import old_answers, read_answers
from rome_lens.editing.closed_form import Keys, RankOne, check_variant, rank_one
from rome_lens.editing.edit import Edit
from rome_lens.editing.history import unedited_matrix
from rome_lens.editing.made import Found, make_edits
from rome_lens.editing.outcome import Loss, Outcome, Probabilities
from rome_lens.editing.prompts import RequestRows, check_templates, split_requests, tokenise_request
from rome_lens.editing.second_moment.moment import SecondMoment, moment_of
from rome_lens.editing.second_moment.shipped import shipped_moment
from rome_lens.editing.settings import Settings, settings_for
from rome_lens.editing.shortfall import answers_mean_key, shortfall
from rome_lens.editing.templates import sample_templates
from rome_lens.editing.values import Values, find_values
from rome_lens.editing.weight_update import LowRank
from rome_lens.errors import SettingError
from rome_lens.facts import EditRequest
from rome_lens.kinds import request_of, requests_of
from rome_lens.progress import Progress
from rome_lens.tokens import TokenisedPrompt

_ENGINES = ("auto", "plain")
_ESSENCES = ("last", "subject")


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
        layer: int | None = None,
        second_moment: SecondMoment | Tensor | None = None,
        variant: str = "r-rome",
        context_templates: Sequence[str] | None = None,
        bare_weight: float | str | None = "auto",
        essence_at: str | None = None,
        seed: int = 0,
        prepend_bos: bool = False,
        v_num_grad_steps: int | None = None,
        v_lr: float | None = None,
        v_weight_decay: float | None = None,
        clamp_norm_factor: float | None = None,
        kl_factor: float | None = None,
        settings: Settings | None = None,
        engine: str = "auto",
    ) -> None:
        """Choose how facts are edited. Whatever is None comes from the model's settings, whose source is recorded.

        Args:
            model: a HookedTransformer or a TransformerBridge, processed weights or not.
            layer: the layer to edit, counted from 0.
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
            v_num_grad_steps: evaluations of the loss, at most.
            v_lr: Adam's learning rate.
            v_weight_decay: factor of `|delta| / |v0|^2` in the loss.
            clamp_norm_factor: `|delta|` never exceeds so many times `|v0|`.
            kl_factor: factor of the divergence of "{subject} is a".
            settings: settings of your own in place of the model's, such as `Settings.load` reads.
            engine: `auto`, or `plain` to optimise by whole forwards (slow; the same numbers).

        Raises:
            SettingError: a setting is out of its range, or there is no second moment.
            ModelMismatchError: the second moment belongs to another model, layer or width.
            ModelError: not a model of TransformerLens, or its layer has no `W_out` of its own.
        """
        self._backend = as_backend(model)
        self.model = model
        self.variant = check_variant(variant)
        published = settings_for(self._backend) if settings is None else settings
        if not isinstance(published, Settings):
            raise SettingError(f"settings is {shown(published)}; expected Settings, such as Settings.load(path) reads")
        given = {
            "layer": None if layer is None else self._backend.check_layer(layer),
            "v_num_grad_steps": v_num_grad_steps,
            "v_lr": v_lr,
            "v_weight_decay": v_weight_decay,
            "clamp_norm_factor": clamp_norm_factor,
            "kl_factor": kl_factor,
        }
        chosen = {name: value for name, value in given.items() if value is not None}
        source = published.source + (f"; given by the caller: {', '.join(chosen)}" if chosen else "")
        self.settings: Settings = replace(published, **chosen, source=source)
        self._backend.check_layer(self.settings.layer)
        original = unedited_matrix(self._backend, self.settings.layer)
        self._backend.value_hook(self.settings.layer)
        if second_moment is None:
            second_moment = shipped_moment(self._backend, self.settings.layer)
        second_moment = moment_of(second_moment, layer=self.settings.layer)
        second_moment.check(self._backend, self.settings.layer, original)
        self.second_moment = second_moment
        if isinstance(bare_weight, str) and bare_weight == "auto":
            bare_weight = 0.5 if variant == "r-rome" else None
        self.bare_weight = None if bare_weight is None else _share(bare_weight)
        self.essence_at = choice("essence_at", _essence_of(variant) if essence_at is None else essence_at, _ESSENCES)
        self._engine = choice("engine", engine, _ENGINES)
        self.seed = seed_number(seed)
        self.prepend_bos = flag("prepend_bos", prepend_bos)
        self._templates = None if context_templates is None else check_templates(context_templates)

    @property
    def layer(self) -> int:
        """The layer that is edited."""
        return self.settings.layer

    @property
    def context_templates(self) -> tuple[str, ...]:
        """Texts in front of the prompt, the bare one first; written by the model when they are first asked for."""
        if self._templates is None:
            with self._backend.evaluating():
                self._templates = sample_templates(self._backend, seed=self.seed, prepend_bos=self.prepend_bos)
        return self._templates

    def edit(self, request: EditRequest, *, progress: Progress | None = None) -> Edit:
        """Find the edit that answers a request. The model is left as it is.

        Raises:
            PromptError, SubjectError, AnswerError: the request does not fit the model, or it says the target already.
            EditError: the loss is no number, or the update would explode.
            ModelError: what leaves the layer's MLP is not its key times `W_out`.
        """
        return self.edit_many([request_of(request)], progress=progress)[0]

    def edit_many(
        self, requests: Sequence[EditRequest], *, batch_size: int | None = None, progress: Progress | None = None
    ) -> list[Edit]:
        """Find an edit for each of many requests, as if each were the only one, many in one batch.

        Args:
            requests: what to edit.
            batch_size: requests that are optimised together; None takes as many as fit into memory.
            progress: called with (done, total, what) now and then.

        Returns:
            An edit a request, in order, equal to that of `edit` up to rounding.

        Raises:
            SettingError: batch_size is no whole number from 1.
            PromptError, SubjectError, AnswerError, EditError, ModelError: as `edit` raises, for the first that fails.
        """
        (edits,) = self.edit_many_under(requests, [self.second_moment], batch_size=batch_size, progress=progress)
        return edits

    def edit_many_under(
        self,
        requests: Sequence[EditRequest],
        second_moments: Sequence[SecondMoment | Tensor],
        *,
        batch_size: int | None = None,
        progress: Progress | None = None,
    ) -> list[list[Edit]]:
        """Find edits under several second moments: keys and values, which take the time, do not depend on C.

        Args:
            requests: what to edit.
            second_moments: of this editor's layer, instead of its own; bare matrices are [d_mlp, d_mlp].
            batch_size: as in `edit_many`.
            progress: the same.

        Returns:
            For each second moment an edit a request.

        Raises:
            ModelMismatchError: a second moment belongs to another model, layer or width.
            SettingError, PromptError, SubjectError, AnswerError, EditError, ModelError: as `edit_many` raises.
        """
        if batch_size is not None:
            batch_size = whole_number("batch_size", batch_size, least=1, expected="a whole number of requests")
        requests = requests_of(requests)
        if isinstance(second_moments, SecondMoment | Tensor) or not is_list(second_moments):
            raise SettingError(f"second_moments is {shown(second_moments)}; expected a list of second moments")
        editors = [self._under(moment) for moment in second_moments]
        # A caller's inference mode would leave nothing to differentiate.
        with torch.inference_mode(False), self._backend.evaluating():
            rows = [
                tokenise_request(
                    self._backend,
                    request,
                    templates=self.context_templates,
                    prepend_bos=self.prepend_bos,
                    essence_at=self.essence_at,
                )
                for request in requests
            ]
            found: list[dict[int, Edit]] = [{} for _ in editors]
            done = 0
            for part in split_requests(self._backend, rows, layer=self.layer, batch_size=batch_size):
                mine, started = [rows[i] for i in part], time.perf_counter()
                old = old_answers(
                    self._backend,
                    [row.request for row in mine],
                    [row.rewriting[0] for row in mine],
                    prepend_bos=self.prepend_bos,
                )
                values = find_values(
                    self._backend,
                    self.layer,
                    mine,
                    settings=self.settings,
                    bare_weight=self.bare_weight,
                    engine=self._engine,
                    progress=_shifted(progress, done, len(rows)),
                )
                for editor, edits in zip(editors, found, strict=True):
                    edits |= zip(part, editor._edits(mine, old, values, started), strict=True)
                done += len(part)
            return [[edits[index] for index in range(len(rows))] for edits in found]

    def _under(self, second_moment: SecondMoment | Tensor) -> "ROME":
        """The same editor with another C."""
        if second_moment is self.second_moment:
            return self
        second_moment = moment_of(second_moment, layer=self.layer)
        second_moment.check(self._backend, self.layer, unedited_matrix(self._backend, self.layer))
        other = copy.copy(self)
        other.second_moment = second_moment
        return other

    def _edits(
        self, rows: Sequence[RequestRows], old: Sequence[TokenisedPrompt], values: Values, started: float
    ) -> list[Edit]:
        """The closed form for requests whose values are known, and what it does."""
        updates = [self._update(values, index) for index in range(len(rows))]
        answers = [answer for row, other in zip(rows, old, strict=True) for answer in (row.rewriting[0], other)]
        u, v = (torch.stack([getattr(update, x) for update in updates for _ in range(2)]) for x in ("u", "v"))
        before = read_answers(self._backend, answers)
        after = read_answers(self._backend, answers, layer=self.layer, u=u, v=v)
        reached = [Probabilities.of(*after[2 * i : 2 * i + 2]) for i in range(len(rows))]
        found = [
            Found(
                Outcome(
                    row.request,
                    old[i].answer,
                    Probabilities.of(*before[2 * i : 2 * i + 2]),
                    reached[i],
                    values.curves[i],
                ),
                LowRank(self.layer, update.u[None], update.v[None]),
                row.rewriting[0],
                old[i],
                self._shortfall(row, reached[i], values.curves[i]),
                update.key_norm,
                update.key_dot,
            )
            for i, (row, update) in enumerate(zip(rows, updates, strict=True))
        ]
        notes = (
            f"settings: {self.settings.source}",
            *self.second_moment.warnings,
            *self._other_bos(),
            *values.notes,
        )
        return make_edits(
            self._backend,
            found,
            variant=self.variant,
            settings=self._record(values),
            notes=notes,
            second_moment=True,
            started=started,
        )

    def _other_bos(self) -> tuple[str, ...]:
        """Say it where C was collected with other rows in mind."""
        theirs = self.second_moment.prepend_bos
        if theirs is None or theirs == self.prepend_bos:
            return ()
        with_or_without = ("without", "with") if self.prepend_bos else ("with", "without")
        return ("the second moment was collected {} BOS in front, and the edit was made {}".format(*with_or_without),)

    def _shortfall(self, row: RequestRows, after: Probabilities, curve: Sequence[Loss]) -> tuple[str, ...]:
        """Say it where an edit does not do what was asked."""
        n_templates = len(row.rewriting)
        mean_key = answers_mean_key(self.variant, n_templates=n_templates, bare_weight=self.bare_weight)
        cause = shortfall(after, curve, mean_key=mean_key)
        if cause is None:
            return ()
        why = {
            "key": "the value says it, but the bare prompt's key differs from the one that is answered: raise "
            "bare_weight, or take variant='p-rome'",
            "value": "the value itself falls short: choose another layer, more steps or a larger clamp_norm_factor",
            "spill": "the value says it, but the update changes other tokens of the text: choose another layer, or a "
            "second moment of more tokens",
            "token": f"a token of it has {after.target_mean:.2g} on average, but not each is the likeliest at its "
            "place: choose another layer, more steps or a shorter target",
        }[cause]
        return (f"the target {row.request.target_new!r} is not reached, its probability is {after.target:.2g}: {why}",)

    def _update(self, values: Values, index: int) -> RankOne:
        """The closed form for one request, in float64; rounded to the model's precision, float32 at least."""
        batch, known = values.batch, values.known
        weight = torch.where(batch.request == index, batch.row_weight, 0.0)
        key, value = known.key.double(), known.value.double()
        bare = batch.bare_row[index]
        keys = Keys(weight @ key, weight @ value, key[bare], value[bare])
        update = rank_one(
            keys, keys.bare_value + values.delta[index].double(), self.second_moment, variant=self.variant
        )
        dtype = torch.promote_types(self._backend.dtype, torch.float32)
        return replace(update, u=update.u.to("cpu", dtype), v=update.v.to("cpu", dtype))

    def _record(self, values: Values) -> dict[str, Any]:
        return {
            **asdict(self.settings),
            "bare_weight": self.bare_weight,
            "essence_at": self.essence_at,
            "context_templates": list(self.context_templates),
            "seed": self.seed,
            "prepend_bos": self.prepend_bos,
            "engine": values.engine,
            # An edit is handed on, and where things lie on this machine is nobody's business.
            "second_moment": {k: v for k, v in self.second_moment.to_dict().items() if k != "loaded_from"},
        }


def check_choices(given: Mapping[str, Any]) -> None:
    """Refuse what `ROME` takes on no model, before there is one.

    Args:
        given: arguments of `ROME` by name; those that need a model to be looked at are left alone, and None is what
            nobody has chosen.

    Raises:
        SettingError: one of them is out of its range.
    """
    chosen = {name: value for name, value in given.items() if value is not None}
    Settings.check(chosen)
    checks: dict[str, Callable[[Any], Any]] = {
        "variant": check_variant,
        "bare_weight": lambda share: (isinstance(share, str) and share == "auto") or _share(share),
        "essence_at": lambda place: choice("essence_at", place, _ESSENCES),
        "engine": lambda engine: choice("engine", engine, _ENGINES),
        "seed": seed_number,
        "context_templates": check_templates,
    }
    for name in checks.keys() & chosen.keys():
        checks[name](chosen[name])


def _essence_of(variant: str) -> str:
    return "subject" if variant == "rome" else "last"


def _share(bare_weight: float | str) -> float:
    share = as_real(bare_weight)
    if share is None or not 0 < share <= 1:
        raise SettingError(f"bare_weight is {shown(bare_weight)}; expected a share above 0 and at most 1, or None")
    return float(share)


def _shifted(progress: Progress | None, done: int, total: int) -> Progress | None:
    """Progress of one batch, as progress of all."""
    if progress is None or total <= 1:
        return progress

    def shifted(step: int, steps: int, what: str) -> None:
        progress(done, total, "editing")

    return shifted
