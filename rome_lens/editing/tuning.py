"""Fine-tuning one layer's `W_out` for many requests at once, each with a matrix of its own.

What `W_out` gains is no parameter of the model: it is added through hook points, so the weights are never written, and
every row of a batch has its own. Below the layer nothing changes; what enters it is kept from one run.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rome_lens.backends import Backend, check_replayed, fast_products, prefer_blocks
from rome_lens.backends.decoding import record_blocks
from rome_lens.editing.descent import Descended, Descent, Objective, descend
from rome_lens.editing.forward import BlockForward, Forward, way_and_notes
from rome_lens.editing.hooks import Hook, matrix_hooks
from rome_lens.editing.prompts import Rows
from rome_lens.editing.settings import FineTuningSettings
from rome_lens.progress import Progress
from rome_lens.tokens import TokenisedPrompt


class MatrixForward(Forward[Rows]):
    """What is optimised is what each request's `W_out` gains."""

    def hooks(self, found: Float[Tensor, "request d_mlp d_model"]) -> list[tuple[str, Hook]]:
        return matrix_hooks(self.backend, self.layer, found)


class MatrixBlocks(BlockForward[Rows], MatrixForward):
    """The same numbers from the edited layer on, unembedded where they are read."""

    @contextmanager
    def ready(self) -> Iterator[None]:
        with super().ready():
            self._check()
            yield

    def logits(self, found: Float[Tensor, "request d_mlp d_model"]) -> Float[Tensor, "place d_vocab"]:
        with fast_products(device=self.backend.device, dtype=self.backend.dtype):
            return self.replay.unembed(self._state(self.hooks(found))[self.batch.read_at][:, None])[:, 0]

    def keep(self, kept: Int[Tensor, " kept"], batch: Rows) -> None:
        self.entering = self.entering[kept, : batch.tokens.shape[1]]
        self.batch = batch

    def record(self) -> None:
        """All rows, with what enters the layer and what leaves the last one."""
        self.replay, seen = record_blocks(
            self.backend,
            self.batch.tokens,
            entering=f"blocks.{self.layer}.hook_resid_pre",
            final=self.backend.stream_hook("resid", self.backend.n_layers - 1),
        )
        self.entering, self._final = seen["entering"], seen["final"]

    def _state(self, hooks: Sequence[tuple[str, Hook]] = ()) -> Float[Tensor, "request pos d_model"]:
        """What leaves the last block."""
        with self.backend.hooked(hooks):
            state, _ = self.replay.run(self.layer, self.entering, first=0, past=None)
        for layer in self.above:
            state = self.leaving_above(layer, state, first=0, past=None)
        return state

    @torch.no_grad()
    def _check(self) -> None:
        """Hold what leaves the last block against the model's own forward, where it is read."""
        with fast_products(device=self.backend.device, dtype=self.backend.dtype):
            state = self._state()
        read = self.batch.read_at
        check_replayed(state[read], self._final[read], self.entering[read], "alone")


def tune(
    backend: Backend,
    prompts: Sequence[TokenisedPrompt],
    *,
    settings: FineTuningSettings,
    engine: str,
    progress: Progress | None = None,
) -> tuple[Descended, str, tuple[str, ...]]:
    """Fine-tune `W_out` of a layer for each of several prompts, each with its own Adam, clamp and stop.

    Args:
        backend: the model, in evaluation mode.
        prompts: prompts with their targets.
        settings: the layer, and how it is fine-tuned.
        engine: `auto` or `plain`.
        progress: called after every step.

    Returns:
        What each `W_out` gains, [d_mlp, d_model], with the losses; `blocks` or `plain`; why it was not `blocks`.

    Raises:
        EditError: a loss is no number. ModelError: what leaves the layer's MLP is not its key times `W_out`.
    """
    rows = Rows.of(prompts, backend.device)
    backend.check_w_out(settings.layer, rows.tokens)
    descent = Descent(
        settings.num_steps, settings.lr, settings.stop_loss, lr_name="lr", what="fine-tuning", step_after_last=True
    )

    def tuned(forward: Forward[Rows], progress: Progress | None) -> Descended:
        with forward.ready():
            return descend(backend, _TargetLoss(forward, prompts, settings), descent, progress=progress)

    descended, reason = prefer_blocks(
        backend,
        engine=engine,
        blocks=lambda progress: (tuned(MatrixBlocks(backend, settings.layer, rows), progress), None),
        whole=lambda reason: (tuned(MatrixForward(backend, settings.layer, rows), progress), reason),
        progress=progress,
    )
    return descended, *way_and_notes("W_out was fine-tuned", reason)


class _TargetLoss(Objective):
    """Mean negative log-probability of the targets of the requests that are still under way."""

    def __init__(
        self, forward: Forward[Rows], prompts: Sequence[TokenisedPrompt], settings: FineTuningSettings
    ) -> None:
        self.forward, self.prompts, self.settings = forward, prompts, settings
        self.matrix = forward.backend.w_out(forward.layer).matrix
        self.work = torch.promote_types(forward.backend.dtype, torch.float32)
        self.asked = [f"{''.join(prompt.tokens)!r} -> {prompt.answer.strip()!r}" for prompt in prompts]
        self.zero = torch.zeros((), dtype=self.work, device=self.matrix.device).expand(self.matrix.shape)

    def losses(self, found: Float[Tensor, "request d_mlp d_model"]) -> tuple[Float[Tensor, " request"]]:
        logits = self.forward.logits(found)
        log_probs = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(dim=-1)
        return (self.forward.batch.targets.losses(log_probs),)

    def add_gradient(self, parameter: Tensor) -> None:
        """The decay of the weights themselves."""
        if self.settings.weight_decay and parameter.grad is not None:
            parameter.grad.add_(self.matrix.to(self.work) + parameter, alpha=self.settings.weight_decay)

    def constrain(self, place: int, parameter: Tensor) -> None:
        """Bring every weight back to within the bound."""
        bound = self.settings.norm_constraint
        if bound is not None:
            parameter.clamp_(-bound, bound)

    def keep(self, going: list[int]) -> None:
        self.prompts = [self.prompts[place] for place in going]
        device = self.forward.backend.device
        self.forward.keep(torch.tensor(going, device=device), Rows.of(self.prompts, device))
