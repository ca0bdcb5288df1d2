"""FT and FT+L: one layer's `W_out` fine-tuned on the request alone, the baselines of the paper (section 3.3)."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, get_args

import torch

from rome_lens.backends import Backend, as_backend, fast_products
from rome_lens.checks import choice, flag, whole_number
from rome_lens.editing.answers import answered_prompt, old_answers, read_answers
from rome_lens.editing.batches import batch_size_for, check_gradients_fit, in_parts, kept_for_gradients, split_by_length
from rome_lens.editing.edit import Edit
from rome_lens.editing.history import edits_in_weights
from rome_lens.editing.hooks import matrix_hooks
from rome_lens.editing.made import Found, make_edits
from rome_lens.editing.outcome import Outcome, Probabilities
from rome_lens.editing.settings import Engine, FineTuningSettings, choose_tuning
from rome_lens.editing.shortfall import not_reached
from rome_lens.editing.tuning import tune
from rome_lens.editing.weight_update import Dense
from rome_lens.facts import EditRequest
from rome_lens.kinds import request_of, requests_of
from rome_lens.progress import Progress
from rome_lens.tokens import TokenisedPrompt

# A larger batch no longer pays.
_MOST_TOGETHER = {"cpu": 8}
_SMALLER = "shorten the prompt or the target, or free some memory first"
_ADVICE = "choose another layer, more steps or a larger norm_constraint"


def check_choices(given: Mapping[str, Any]) -> None:
    """Refuse what `FineTuning` takes on no model, before there is one.

    Args:
        given: arguments of `FineTuning` by name; others are left alone.

    Raises:
        SettingError: one of them is out of its range.
    """
    FineTuningSettings.check({name: value for name, value in given.items() if value not in (None, "auto")})


class FineTuning:
    """An editor that fine-tunes one layer's `W_out` until the model gives the target after the bare prompt.

    The loss is the mean negative log-probability of the target's tokens, teacher forced: every token is read after
    those before it. Adam takes its steps on `W_out` alone. With `norm_constraint` (FT+L) every weight is brought back,
    after every step, to within so much of where it began.

    The released code's baseline reads all tokens of a target from the prompt's last position, so that a target of
    several tokens is trained to say each of them first. That is a defect, and not repeated here; for targets of one
    token the two are the same.

    Attributes:
        model: the model, which no edit changes until it is applied.
        settings: layer and descent, with their source.
        prepend_bos: whether BOS stands in front of the prompt.
    """

    def __init__(
        self,
        model: Any,
        *,
        layer: int | None = None,
        norm_constraint: float | str | None = None,
        num_steps: int = 25,
        lr: float = 5e-4,
        weight_decay: float = 0.0,
        stop_loss: float = 1e-2,
        prepend_bos: bool = False,
        engine: Engine = "auto",
    ) -> None:
        """Choose how a layer is fine-tuned. What is not given comes from the model's settings, whose source is kept.

        Args:
            model: a HookedTransformer or a TransformerBridge, processed weights or not.
            layer: the layer to fine-tune, counted from 0; None is the model's for FT or for FT+L.
            norm_constraint: None is FT. FT+L is a number, by which no weight changes more, or "auto", the model's.
            num_steps: evaluations of the loss, at most.
            lr: Adam's learning rate.
            weight_decay: factor of the weights themselves in their gradient.
            stop_loss: a loss below it ends the descent.
            prepend_bos: put BOS in front of the prompt.
            engine: `auto`, or `plain` to run whole forwards (slow; the same numbers).

        Raises:
            SettingError: a setting is out of its range.
            ModelError: not a model of TransformerLens, or its layer has no `W_out` of its own.
        """
        self._backend = as_backend(model)
        self.model = model
        published_layer, bound, source = choose_tuning(self._backend, constrained=norm_constraint is not None)
        automatic = isinstance(norm_constraint, str) and norm_constraint == "auto"
        settings = FineTuningSettings(published_layer, bound, num_steps, lr, weight_decay, stop_loss, source)
        self.settings = settings.given(
            {
                "layer": None if layer is None else self._backend.check_layer(layer),
                "norm_constraint": None if automatic else norm_constraint,
            }
        )
        self._backend.w_out(self.layer)
        self._backend.value_hook(self.layer)
        self._engine = choice("engine", engine, get_args(Engine))
        self.prepend_bos = flag("prepend_bos", prepend_bos)

    @property
    def layer(self) -> int:
        """The layer that is fine-tuned."""
        return self.settings.layer

    @property
    def variant(self) -> str:
        """`ft`, or `ft-l` with a bound."""
        return "ft" if self.settings.norm_constraint is None else "ft-l"

    def edit(self, request: EditRequest, *, progress: Progress | None = None) -> Edit:
        """Fine-tune for a request. The model is left as it is.

        Raises:
            PromptError, SubjectError, AnswerError: the request does not fit the model, or it says the target already.
            EditError: the loss is no number.
            ModelError: what leaves the layer's MLP is not its key times `W_out`.
        """
        return self.edit_many([request_of(request)], progress=progress)[0]

    def edit_many(
        self, requests: Sequence[EditRequest], *, batch_size: int | None = None, progress: Progress | None = None
    ) -> list[Edit]:
        """Fine-tune for each of many requests, as if each were the only one, many in one batch.

        Args:
            requests: what to edit.
            batch_size: requests that are fine-tuned together; None takes as many as pay and fit into memory.
            progress: called with (done, total, what) now and then.

        Returns:
            An edit a request, in order, equal to that of `edit` up to rounding.

        Raises:
            SettingError: batch_size is no whole number from 1.
            PromptError, SubjectError, AnswerError, EditError, ModelError: as `edit` raises, for the first that fails.
            OutOfMemoryError: memory does not hold what the gradient needs.
        """
        if batch_size is not None:
            batch_size = whole_number("batch_size", batch_size, least=1, expected="a whole number of requests")
        requests = requests_of(requests)
        # A caller's inference mode would leave nothing to differentiate.
        with torch.inference_mode(False), self._backend.evaluating():
            prompts = [
                answered_prompt(self._backend, request, request.target_new, prepend_bos=self.prepend_bos)
                for request in requests
            ]
            n_bytes = _bytes(self._backend, prompts, layer=self.layer)
            batch_size = batch_size or batch_size_for(self._backend, n_bytes, most=_MOST_TOGETHER)
            n_together = min(batch_size, len(requests))
            check_gradients_fit(self._backend, self.layer, n_bytes, n_together=n_together, instead=_SMALLER)
            return in_parts(
                split_by_length([len(prompt.ids) for prompt in prompts], batch_size=batch_size),
                lambda part, progress: self._edit_together(
                    [requests[i] for i in part], [prompts[i] for i in part], progress
                ),
                what="fine-tuning",
                progress=progress,
            )

    def _edit_together(
        self, requests: Sequence[EditRequest], prompts: Sequence[TokenisedPrompt], progress: Progress | None
    ) -> list[Edit]:
        started = time.perf_counter()
        backend, settings = self._backend, self.settings
        with fast_products(device=backend.device, dtype=backend.dtype):
            old = old_answers(backend, requests, prompts, prepend_bos=self.prepend_bos)
        tuned, way, notes = tune(backend, prompts, settings=settings, engine=self._engine, progress=progress)
        hooks = matrix_hooks(backend, self.layer, torch.stack([*tuned.found, *tuned.found]))
        with fast_products(device=backend.device, dtype=backend.dtype):
            read = (read_answers(backend, [*prompts, *old], hooks=each) for each in ((), hooks))
            n = len(requests)
            before, after = (Probabilities.of_each(answers[:n], answers[n:]) for answers in read)
        found = []
        for i, (request, delta, curve) in enumerate(zip(requests, tuned.found, tuned.curves, strict=True)):
            outcome = Outcome(request, old[i].answer, before[i], after[i], tuple(loss for (loss,) in curve))
            said = () if after[i].reached else (not_reached(request, after[i], _ADVICE),)
            found.append(Found(outcome, Dense(self.layer, delta.cpu()), prompts[i], old[i], said))
        return make_edits(
            backend,
            found,
            variant=self.variant,
            settings={**asdict(settings), "prepend_bos": self.prepend_bos, "engine": way},
            notes=notes,
            made_on=edits_in_weights(backend),
            started=started,
        )


def _bytes(backend: Backend, prompts: Sequence[TokenisedPrompt], *, layer: int) -> int:
    """Roughly what the largest request holds while gradients are taken."""
    d_mlp, d_model = backend.w_out(layer).matrix.shape
    length = max((len(prompt.ids) for prompt in prompts), default=1)
    n_read = max((len(prompt.answer_ids) for prompt in prompts), default=1)
    # The matrix, its gradient, Adam's two moments, and the batch of matrices with its gradient.
    matrices = 6 * d_mlp * d_model
    kept = kept_for_gradients(backend, layer, n_positions=length)
    return (matrices + kept + 4 * n_read * backend.d_vocab) * max(4, backend.dtype.itemsize)
