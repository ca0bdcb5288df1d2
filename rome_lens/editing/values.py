"""The value v*: what the edited layer has to say so that the model gives the target (paper, 3.1, equation 4)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from rome_lens.backends import Backend, fast_or_plain
from rome_lens.editing.forward import Forward, Known, ReplayForward
from rome_lens.editing.outcome import Loss
from rome_lens.editing.prompts import Batch, RequestRows, make_batch
from rome_lens.editing.settings import Settings
from rome_lens.errors import EditError
from rome_lens.progress import Progress

# As the released code has it: the target is said with a probability of about 0.95.
_STOP_LOSS = 0.05


@dataclass(frozen=True)
class Values:
    """The values of several requests, and what was read on the way.

    Attributes:
        batch: the rows.
        known: keys and values of the unedited model.
        delta: [request, d_model] what each value gains over that of the bare prompt.
        curves: the loss of each request at every evaluation.
        engine: `blocks` or `plain`.
        notes: why it was not `blocks`.
    """

    batch: Batch
    known: Known
    delta: Float[Tensor, "request d_model"]
    curves: tuple[tuple[Loss, ...], ...]
    engine: str
    notes: tuple[str, ...]


def find_values(
    backend: Backend,
    layer: int,
    requests: Sequence[RequestRows],
    *,
    settings: Settings,
    bare_weight: float | None,
    engine: str,
    progress: Progress | None = None,
) -> Values:
    """Optimise the values of requests together; each has its own Adam, clamp and stop.

    Args:
        backend: the model, in evaluation mode.
        layer: the edited layer.
        requests: the requests in tokens.
        settings: of the optimisation.
        bare_weight: share of the bare prompt among a request's rows.
        engine: `auto` or `plain`.
        progress: called after every step.

    Raises:
        EditError: a loss is no number.
    """
    batch = make_batch(requests, bare_weight=bare_weight, device=backend.device)

    def optimised(forward: Forward, progress: Progress | None, *notes: str) -> Values:
        with forward.ready():
            known = forward.known()
            backend.check_values(layer, known.key, known.value)
            delta, curves = _optimise(
                forward, known, requests, settings=settings, bare_weight=bare_weight, progress=progress
            )
        return Values(batch, known, delta, curves, forward.name, notes)

    return fast_or_plain(
        backend,
        engine=engine,
        fast=lambda told: optimised(ReplayForward(backend, layer, batch), told),
        plain=lambda reason: optimised(
            Forward(backend, layer, batch),
            progress,
            f"values were optimised by whole forwards, which is slower: {reason}",
        ),
        progress=progress,
    )


@dataclass
class _Optimised:
    """One request on its way: its change, its optimiser and its curve."""

    delta: Tensor
    adam: torch.optim.Adam
    most: float
    curve: list[Loss]

    def clamp(self) -> None:
        """Bring the change back into its ball."""
        with torch.no_grad():
            length = self.delta.norm().item()
            if length > self.most:
                self.delta.mul_(self.most / length)


def _optimise(
    forward: Forward,
    known: Known,
    requests: Sequence[RequestRows],
    *,
    settings: Settings,
    bare_weight: float | None,
    progress: Progress | None,
) -> tuple[Float[Tensor, "request d_model"], tuple[tuple[Loss, ...], ...]]:
    batch, device = forward.batch, known.value.device
    work = torch.promote_types(known.value.dtype, torch.float32)
    lengths = known.value[batch.bare_row].to(work).norm(dim=1)
    essence: Tensor | None = None
    all_of_them = [
        _started(torch.zeros(known.value.shape[1], dtype=work, device=device), length, settings)
        for length in lengths.tolist()
    ]
    living = list(range(batch.n_requests))
    parameters = list(forward.backend.model.parameters())
    wanted = [parameter.requires_grad for parameter in parameters]
    try:
        for parameter in parameters:
            parameter.requires_grad_(False)
        with torch.enable_grad():
            for step in range(settings.v_num_grad_steps):
                members = [all_of_them[index] for index in living]
                delta = torch.stack([member.delta for member in members])
                logits = forward.logits(delta)
                if essence is None:
                    # Nothing has been added yet: this is the unedited model.
                    essence = logits[-batch.n_requests :].detach().to(work).log_softmax(dim=-1)
                losses = _losses(logits, delta, forward.batch, essence[living], lengths[living], settings)
                for index, member, *parts in zip(living, members, *(loss.tolist() for loss in losses), strict=True):
                    member.curve.append(Loss(*parts))
                    if not math.isfinite(parts[0]):
                        request = requests[index].request
                        raise EditError(
                            f"the loss of {request.text!r} -> {request.target_new!r} is {parts[0]} at step {step + 1}; "
                            "load the model in float32, or lower v_lr"
                        )
                if progress is not None:
                    progress(step + 1, settings.v_num_grad_steps, "optimising the value")
                if step == settings.v_num_grad_steps - 1:
                    break
                going = [i for i, member in enumerate(members) if member.curve[-1].total >= _STOP_LOSS]
                if not going:
                    break
                if step == 0:
                    reach = _reach(losses[1], members, lengths)
                    for i in going:
                        if reach[i] <= torch.finfo(work).eps * members[i].curve[0].target:
                            raise _no_way_out(forward, requests[living[i]])
                torch.autograd.backward(losses[0][going].sum(), inputs=[members[i].delta for i in going])
                for i in going:
                    members[i].adam.step()
                    members[i].adam.zero_grad()
                    members[i].clamp()
                if len(going) < len(members):
                    kept = torch.tensor(going, device=device)
                    living = [living[i] for i in going]
                    sub = make_batch([requests[i] for i in living], bare_weight=bare_weight, device=device)
                    forward.keep(kept, sub)
    finally:
        for parameter, want in zip(parameters, wanted, strict=True):
            parameter.requires_grad_(want)
    return torch.stack([one.delta.detach() for one in all_of_them]), tuple(tuple(one.curve) for one in all_of_them)


def _reach(
    target: Float[Tensor, " request"], members: Sequence[_Optimised], lengths: Float[Tensor, " request"]
) -> list[float]:
    """How far a change as long as the value itself could move the target's loss if that were linear, for each request.

    The target's own term is looked at: the divergence, which is read in another row, has a gradient of rounding even
    where nothing of the value reaches the end of the prompt, and Adam makes full steps of any gradient.
    """
    gradients = torch.autograd.grad(
        target.sum(), [member.delta for member in members], retain_graph=True, allow_unused=True
    )
    return [
        0.0 if gradient is None else gradient.norm().item() * length
        for gradient, length in zip(gradients, lengths.tolist(), strict=True)
    ]


def _no_way_out(forward: Forward, request: RequestRows) -> EditError:
    advice = "choose a lower layer" if forward.layer else "shorten what stands behind the subject"
    return EditError(
        f"nothing that layer {forward.layer} of {forward.backend.n_layers} says at the subject of "
        f"{request.request.text!r} reaches the end of the prompt; {advice}"
    )


def _started(delta: Tensor, length: float, settings: Settings) -> _Optimised:
    delta.requires_grad_(True)
    adam = torch.optim.Adam([delta], lr=settings.v_lr)
    return _Optimised(delta, adam, settings.clamp_norm_factor * length, [])


def _losses(
    logits: Float[Tensor, "read_and_request d_vocab"],
    delta: Float[Tensor, "request d_model"],
    batch: Batch,
    essence: Float[Tensor, "request d_vocab"],
    lengths: Float[Tensor, " request"],
    settings: Settings,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Total, target, divergence and decay, [request] each (paper, equation 4; the decay is the released code's)."""
    log_probs = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(dim=-1)
    n_read = batch.read_target.shape[0]
    said = log_probs[:n_read].gather(1, batch.read_target[:, None])[:, 0] * batch.read_weight.to(log_probs)
    target = said.new_zeros(batch.n_requests).index_add(0, batch.read_request, -said)
    now = log_probs[n_read:]
    kl = settings.kl_factor * (now.exp() * (now - essence)).sum(dim=-1)
    decay = settings.v_weight_decay * torch.linalg.vector_norm(delta, dim=1) / lengths**2
    return target + kl + decay, target, kl, decay
