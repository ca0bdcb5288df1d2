"""Fine-tuning one layer's `W_out` for many requests at once, each with a matrix of its own.

What `W_out` gains is no parameter of the model: it is added through hook points, so the weights are never written, and
every row of a batch has its own. Below the layer nothing changes; what enters it is kept from one run.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rome_lens.backends import Backend, ReplayError, check_replayed, fast_or_plain, fast_products
from rome_lens.backends.decoding import make_ready, pad_rows
from rome_lens.editing.hooks import matrix_hooks
from rome_lens.errors import EditError
from rome_lens.progress import Progress
from rome_lens.tokens import TokenisedPrompt


@dataclass(frozen=True)
class TuningBatch:
    """Prompts with their targets, padded on the right, which earlier positions of a causal decoder never see.

    Attributes:
        tokens: [request, pos] token ids; the target's last token is read and never run.
        read_row: [read] rows of the positions from which the target's tokens are read, teacher forced.
        read_column: [read] these positions.
        read_target: [read] the target's tokens.
        read_weight: [read] share of a token in its request's loss.
    """

    tokens: Int[Tensor, "request pos"]
    read_row: Int[Tensor, " read"]
    read_column: Int[Tensor, " read"]
    read_target: Int[Tensor, " read"]
    read_weight: Float[Tensor, " read"]

    @classmethod
    def of(cls, prompts: Sequence[TokenisedPrompt], device: torch.device) -> "TuningBatch":
        """The batch of some prompts with their targets as answers."""
        run = [prompt.ids[:-1] for prompt in prompts]
        reads = [
            (row, prompt.n_prompt - 1 + i, token, 1 / len(prompt.answer_ids))
            for row, prompt in enumerate(prompts)
            for i, token in enumerate(prompt.answer_ids)
        ]
        rows, columns, targets, weights = zip(*reads, strict=True)
        return cls(
            tokens=pad_rows(run, device),
            read_row=torch.tensor(rows, device=device),
            read_column=torch.tensor(columns, device=device),
            read_target=torch.tensor(targets, device=device),
            read_weight=torch.tensor(weights, dtype=torch.float64, device=device),
        )

    def losses(self, logits: Float[Tensor, "read d_vocab"]) -> Float[Tensor, " request"]:
        """Mean negative log-probability of each request's target."""
        log_probs = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(dim=-1)
        said = log_probs.gather(1, self.read_target[:, None])[:, 0] * self.read_weight.to(log_probs)
        return said.new_zeros(self.tokens.shape[0]).index_add(0, self.read_row, -said)


class PlainTuning:
    """Logits where targets are read, as a function of what each request's `W_out` gains: whole forwards.

    The plain way, for models whose blocks cannot be called alone and for models with hooks of their owner's.
    """

    name = "plain"

    def __init__(self, backend: Backend, layer: int, batch: TuningBatch) -> None:
        self.backend, self.layer, self.batch = backend, layer, batch

    @contextmanager
    def ready(self) -> Iterator[None]:
        """Open while the forward is used.

        Raises:
            ReplayError: this way is not open for this model.
        """
        yield

    def logits(self, delta: Float[Tensor, "request d_mlp d_model"]) -> Float[Tensor, "read d_vocab"]:
        """Run the model, each row under its own matrix."""
        with self.backend.hooked(matrix_hooks(self.backend, self.layer, delta)):
            logits = self.backend.run(self.batch.tokens)
        return logits[self.batch.read_row, self.batch.read_column]

    def keep(self, kept: Int[Tensor, " kept"], batch: TuningBatch) -> None:
        """Go on with some of the requests; `batch` holds them alone."""
        self.batch = batch


class BlockTuning(PlainTuning):
    """The same numbers from the edited layer on, unembedded where they are read."""

    name = "blocks"

    @contextmanager
    def ready(self) -> Iterator[None]:
        self._record()
        with ExitStack() as stack:
            make_ready(self.backend, self.replay, stack, first=self.layer)
            self._check()
            yield

    def logits(self, delta: Float[Tensor, "request d_mlp d_model"]) -> Float[Tensor, "read d_vocab"]:
        with fast_products(device=self.backend.device, dtype=self.backend.dtype):
            with self.backend.hooked(matrix_hooks(self.backend, self.layer, delta)):
                state, _ = self.replay.run(self.layer, self.entering, first=0, past=None)
            state = self._above(state)
            return self.replay.unembed(state[self.batch.read_row, self.batch.read_column][:, None])[:, 0]

    def keep(self, kept: Int[Tensor, " kept"], batch: TuningBatch) -> None:
        self.entering = self.entering[kept, : batch.tokens.shape[1]]
        self.batch = batch

    def _above(self, state: Float[Tensor, "request pos d_model"]) -> Float[Tensor, "request pos d_model"]:
        for layer in range(self.layer + 1, self.backend.n_layers):
            state, _ = self.replay.run(layer, state, first=0, past=None)
        return state

    @torch.no_grad()
    def _record(self) -> None:
        """Watch the model run the batch once: how it calls its blocks, what enters the layer, what leaves the last."""
        seen: dict[str, Tensor] = {}
        backend = self.backend
        hooks = [
            (f"blocks.{self.layer}.hook_resid_pre", lambda x: seen.update(entering=x.clone())),
            (backend.stream_hook("resid", backend.n_layers - 1), lambda x: seen.update(final=x.clone())),
        ]
        with backend.recording() as self.replay, backend.hooked(hooks):
            backend.logits(self.batch.tokens, keep=1)
        if set(seen) != {"entering", "final"}:
            raise ReplayError("a block does not show what enters and what leaves it")
        self.entering, self._final = seen["entering"], seen["final"]

    @torch.no_grad()
    def _check(self) -> None:
        """Hold what leaves the last block against the model's own forward, where it is read."""
        with fast_products(device=self.backend.device, dtype=self.backend.dtype):
            state, _ = self.replay.run(self.layer, self.entering, first=0, past=None)
            state = self._above(state)
        read = self.batch.read_row, self.batch.read_column
        check_replayed(state[read], self._final[read], self.entering[read], "alone")


@dataclass(frozen=True)
class Tuned:
    """What fine-tuning found.

    Attributes:
        deltas: what `W_out` gains, [d_mlp, d_model] a request.
        curves: the loss of each request at every evaluation.
        engine: `blocks` or `plain`.
        notes: why it was not `blocks`.
    """

    deltas: tuple[Float[Tensor, "d_mlp d_model"], ...]
    curves: tuple[tuple[float, ...], ...]
    engine: str
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Descent:
    """How `W_out` is fine-tuned.

    Attributes:
        num_steps: evaluations of the loss, at most.
        lr: Adam's learning rate.
        weight_decay: factor of the weights themselves in the gradient.
        stop_loss: a loss below it ends the descent.
        norm_constraint: no weight gains or loses more; None is no bound.
    """

    num_steps: int
    lr: float
    weight_decay: float
    stop_loss: float
    norm_constraint: float | None


def tune(
    backend: Backend,
    layer: int,
    prompts: Sequence[TokenisedPrompt],
    *,
    descent: Descent,
    engine: str,
    progress: Progress | None = None,
) -> Tuned:
    """Fine-tune `W_out` of a layer for each of several prompts, each with its own Adam, clamp and stop.

    Args:
        backend: the model, in evaluation mode.
        layer: the layer.
        prompts: prompts with their targets.
        descent: settings of the descent.
        engine: `auto` or `plain`.
        progress: called after every step.

    Raises:
        EditError: a loss is no number. ModelError: what leaves the layer's MLP is not its key times `W_out`.
    """
    batch = TuningBatch.of(prompts, backend.device)
    backend.check_w_out(layer, batch.tokens)

    def tuned(forward: PlainTuning, progress: Progress | None, *notes: str) -> Tuned:
        with forward.ready():
            deltas, curves = _descend(forward, prompts, descent=descent, progress=progress)
        return Tuned(deltas, curves, forward.name, notes)

    return fast_or_plain(
        backend,
        engine=engine,
        fast=lambda told: tuned(BlockTuning(backend, layer, batch), told),
        plain=lambda reason: tuned(
            PlainTuning(backend, layer, batch),
            progress,
            f"W_out was fine-tuned by whole forwards, which is slower: {reason}",
        ),
        progress=progress,
    )


def _descend(
    forward: PlainTuning, prompts: Sequence[TokenisedPrompt], *, descent: Descent, progress: Progress | None
) -> tuple[tuple[Tensor, ...], tuple[tuple[float, ...], ...]]:
    backend = forward.backend
    matrix = backend.w_out(forward.layer).matrix
    work = torch.promote_types(backend.dtype, torch.float32)
    deltas = [torch.zeros(matrix.shape, dtype=work, device=matrix.device, requires_grad=True) for _ in prompts]
    # Adam works number by number and passes over what has no gradient: one is as good as one a request.
    adam = torch.optim.Adam(deltas, lr=descent.lr)
    curves: list[list[float]] = [[] for _ in prompts]
    living = list(range(len(prompts)))
    with _constant_weights(backend), torch.enable_grad():
        for step in range(descent.num_steps):
            losses = forward.batch.losses(forward.logits(torch.stack([deltas[i] for i in living])))
            for index, loss in zip(living, losses.tolist(), strict=True):
                curves[index].append(loss)
                if not math.isfinite(loss):
                    raise EditError(
                        f"the loss of {_asked(prompts[index])} is {loss} at step {step + 1}; load the model in "
                        "float32, or lower lr"
                    )
            if progress is not None:
                progress(step + 1, descent.num_steps, "fine-tuning")
            going = [place for place, index in enumerate(living) if curves[index][-1] >= descent.stop_loss]
            if not going:
                break
            torch.autograd.backward(losses[going].sum(), inputs=[deltas[living[place]] for place in going])
            with torch.no_grad():
                for place in going:
                    delta = deltas[living[place]]
                    if descent.weight_decay and delta.grad is not None:
                        delta.grad.add_(matrix.to(work) + delta, alpha=descent.weight_decay)
                adam.step()
                adam.zero_grad()
                if descent.norm_constraint is not None:
                    for place in going:
                        deltas[living[place]].clamp_(-descent.norm_constraint, descent.norm_constraint)
            if len(going) < len(living):
                living = [living[place] for place in going]
                batch = TuningBatch.of([prompts[index] for index in living], backend.device)
                forward.keep(torch.tensor(going, device=backend.device), batch)
    return tuple(delta.detach() for delta in deltas), tuple(tuple(curve) for curve in curves)


def _asked(prompt: TokenisedPrompt) -> str:
    return f"{''.join(prompt.tokens)!r} -> {prompt.answer.strip()!r}"


@contextmanager
def _constant_weights(backend: Backend) -> Iterator[None]:
    """No gradient for the model's own parameters; each gets its own flag back afterwards."""
    parameters = list(backend.model.parameters())
    wanted = [parameter.requires_grad for parameter in parameters]
    try:
        for parameter in parameters:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter, want in zip(parameters, wanted, strict=True):
            parameter.requires_grad_(want)
