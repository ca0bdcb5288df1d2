"""The value v*: what the edited layer has to say so that the model gives the target (paper, 3.1, equation 4)."""

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from rome_lens.backends import Backend, prefer_blocks
from rome_lens.editing.descent import Descended, Descent, Objective, descend
from rome_lens.editing.forward import Known, ValueBlocks, ValueForward, way_and_notes
from rome_lens.editing.keys import KeysAndValues
from rome_lens.editing.outcome import Loss
from rome_lens.editing.prompts import Batch, RequestRows, make_batch
from rome_lens.editing.settings import Choices, Settings
from rome_lens.editing.value_lengths import Shortened, shorten
from rome_lens.editing.value_settings import AS_ROME, ValueSettings
from rome_lens.errors import EditError
from rome_lens.progress import Progress

# As the released code has it: the target is said with a probability of about 0.95.
_STOP_LOSS = 0.05


@dataclass(frozen=True)
class Value:
    """The value of one request, and what was read on the way. No second moment has a part in it.

    Attributes:
        known: keys and values before the edit.
        goal: [1, d_model] v*, what the layer has to say at the bare prompt's subject, in float64.
        curve: the loss at every evaluation; none of what was scaled afterwards.
        engine: `blocks` or `plain`.
        notes: why it was not `blocks`.
        scale: what the least scale made of the change that was found; 1 where none was asked for.
        said: whether the value says the target under every template; None where nothing asked for it.
        keys: [key, d_mlp] the keys that a set answers, by layer, as far as they were asked for.
        shares: of each of these keys.
        resid_bare: [d_model] what leaves the block under the bare prompt, where the change was added to that; with
            `change` it is MEMIT's z.
    """

    known: KeysAndValues
    goal: Float[Tensor, "1 d_model"]
    curve: tuple[Loss, ...]
    engine: str
    notes: tuple[str, ...]
    scale: float = 1.0
    said: bool | None = None
    keys: Mapping[int, Float[Tensor, "key d_mlp"]] = field(default_factory=dict)
    shares: tuple[float, ...] = (1.0,)
    resid_bare: Float[Tensor, " d_model"] | None = None

    @property
    def change(self) -> Float[Tensor, " d_model"]:
        """What the layer has to say beyond what it says now, at the bare prompt's subject."""
        return (self.goal - self.known.bare_value)[0]


def find_values(
    backend: Backend,
    requests: Sequence[RequestRows],
    *,
    settings: Settings,
    choices: Choices,
    value_settings: ValueSettings = AS_ROME,
    key_layers: Sequence[int] = (),
    progress: Progress | None = None,
) -> list[Value]:
    """Optimise the values of requests together; each has its own Adam, clamp and stop.

    Args:
        backend: the model, in evaluation mode.
        requests: the requests in tokens.
        settings: the layer, and how a value is optimised.
        choices: how rows are weighed, and how the model is run.
        value_settings: where values are added, when they are enough, how long they may be, and which keys they answer.
        key_layers: layers of which keys are read.
        progress: called after every step.

    Raises:
        EditError: a loss is no number, or nothing of a value reaches the end of its prompt.
        ModelError: what leaves an MLP is not its key times `W_out`, or not what its block adds to its output.
    """
    bare_weight = choices.bare_weight
    assert not isinstance(bare_weight, str)
    batch = make_batch(requests, bare_weight=bare_weight, device=backend.device)
    read = _other_keys(backend, batch, [layer for layer in key_layers if layer != settings.layer])
    descent = Descent(
        settings.v_num_grad_steps,
        settings.v_lr,
        _STOP_LOSS,
        lr_name="v_lr",
        what="optimising the value",
        step_after_last=False,
    )

    at = value_settings.at

    def optimised(forward: ValueForward, progress: Progress | None) -> tuple[Known, Descended, Shortened | None]:
        with forward.ready():
            known = forward.known()
            backend.check_values(settings.layer, known.key, known.value)
            # The descent goes on without the requests that are done.
            every = copy(forward) if value_settings.looks_again else None
            objective = _ValueLoss(forward, known.base, requests, settings, bare_weight, value_settings.stop_said)
            descended = descend(backend, objective, descent, progress=progress)
            if every is None:
                return known, descended, None
            base = known.base[batch.bare_row].double()
            return known, descended, shorten(every, torch.stack(descended.found), base, value_settings)

    (known, descended, shortened), reason = prefer_blocks(
        backend,
        engine=choices.engine,
        blocks=lambda progress: (optimised(ValueBlocks(backend, settings.layer, batch, at), progress), None),
        whole=lambda reason: (optimised(ValueForward(backend, settings.layer, batch, at), progress), reason),
        progress=progress,
    )
    way, notes = way_and_notes("values were optimised", reason)
    found = []
    read[settings.layer] = known.key.double()
    for index, before in enumerate(_keys_and_values(known, batch)):
        change, more = descended.found[index].double(), {}
        if shortened is not None:
            change, said = shortened.change[index], bool(shortened.said[index])
            more = {"scale": shortened.scale[index].item(), "said": said}
        if at == "block":
            more["resid_bare"] = known.base[batch.bare_row[index]].double()
        groups, shares = batch.keys_of(index, value_settings.keys)
        # A key at a time, so that its bits do not depend on how many there are.
        keys = {layer: torch.stack([group @ read[layer] for group in groups]) for layer in key_layers}
        curve = tuple(Loss(*terms) for terms in descended.curves[index])
        goal = before.bare_value + change
        found.append(Value(before, goal, curve, way, notes, keys=keys, shares=shares, **more))
    return found


def _keys_and_values(known: Known, batch: Batch) -> list[KeysAndValues]:
    """Of each request."""
    key, value = known.key.double(), known.value.double()
    found = []
    for index, bare in enumerate(batch.bare_row.tolist()):
        weight = batch.weights(index)
        found.append(KeysAndValues((weight @ key)[None], (weight @ value)[None], key[[bare]], value[[bare]]))
    return found


def _other_keys(backend: Backend, batch: Batch, layers: Sequence[int]) -> dict[int, Float[Tensor, "row d_mlp"]]:
    """The keys of all rows at other layers than the one of the values, from one forward."""
    if not layers:
        return {}
    found = {}
    for layer, (key, value) in backend.keys_and_values_at(layers, batch.tokens, batch.subject_last).items():
        backend.check_values(layer, key, value)
        found[layer] = key.double()
    return found


class _ValueLoss(Objective):
    """Equation 4 for the requests that are still under way."""

    def __init__(
        self,
        forward: ValueForward,
        base: Float[Tensor, "row d_model"],
        requests: Sequence[RequestRows],
        settings: Settings,
        bare_weight: float | None,
        stop_said: int | None,
    ) -> None:
        self.forward, self.requests, self.settings, self.bare_weight = forward, requests, settings, bare_weight
        self.stop_said = stop_said
        self.steps_left: list[int | None] = [None for _ in requests]
        self.work = torch.promote_types(base.dtype, torch.float32)
        self.lengths = base[forward.batch.bare_row].to(self.work).norm(dim=1)
        self.essence: Tensor | None = None
        self.asked = [f"{one.request.text!r} -> {one.request.target_new!r}" for one in requests]
        self.zero = torch.zeros(forward.backend.d_model, dtype=self.work, device=self.lengths.device)

    def losses(self, found: Float[Tensor, "request d_model"]) -> tuple[Float[Tensor, " request"], ...]:
        logits = self.forward.logits(found)
        if self.essence is None:
            # Nothing has been added yet: this is the unedited model.
            self.essence = logits[-len(self.requests) :].detach().to(self.work).log_softmax(dim=-1)
        if self.stop_said is not None:
            self._count(self.stop_said, logits.detach())
        return _losses(logits, found, self.forward.batch, self.essence, self.lengths, self.settings)

    def done(self) -> list[int]:
        return [place for place, left in enumerate(self.steps_left) if left == 0]

    def _count(self, steps: int, logits: Tensor) -> None:
        """Count the steps that are left to each request since its target was first said under every template."""
        targets = self.forward.batch.targets
        said = targets.said(logits[: len(targets.row)]).tolist()
        for place, left in enumerate(self.steps_left):
            if left is not None:
                self.steps_left[place] = left - 1
            elif said[place]:
                self.steps_left[place] = steps

    def check(self, losses: tuple[Tensor, ...], parameters: Sequence[Tensor], going: list[int]) -> None:
        """Refuse a value of which nothing reaches the end of the prompt.

        How far could a change as long as the value itself move the target's loss, if that were linear? The target's own
        term is looked at: the divergence, which is read in another row, has a gradient of rounding even where nothing
        of the value reaches the end of the prompt, and Adam makes full steps of any gradient.
        """
        target = losses[1]
        gradients = torch.autograd.grad(target.sum(), parameters, retain_graph=True, allow_unused=True)
        for place in going:
            gradient, length = gradients[place], self.lengths[place].item()
            reach = 0.0 if gradient is None else gradient.norm().item() * length
            if reach <= torch.finfo(self.work).eps * target[place].item():
                layer, backend = self.forward.layer, self.forward.backend
                raise EditError(
                    f"nothing that layer {layer} of {backend.n_layers} says at the subject of "
                    f"{self.requests[place].request.text!r} reaches the end of the prompt; "
                    f"{'choose a lower layer' if layer else 'shorten what stands behind the subject'}"
                )

    def constrain(self, place: int, parameter: Tensor) -> None:
        """Bring the change back into its ball."""
        length, most = parameter.norm().double(), self.settings.clamp_norm_factor * self.lengths[place].double()
        parameter.mul_(torch.where(length > most, most / length, 1.0))

    def keep(self, going: list[int]) -> None:
        assert self.essence is not None
        self.requests = [self.requests[place] for place in going]
        self.steps_left = [self.steps_left[place] for place in going]
        self.essence, self.lengths = self.essence[going], self.lengths[going]
        device = self.lengths.device
        batch = make_batch(self.requests, bare_weight=self.bare_weight, device=device)
        self.forward.keep(torch.tensor(going, device=device), batch)


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
    n_read = batch.targets.row.shape[0]
    target = batch.targets.losses(log_probs[:n_read])
    now = log_probs[n_read:]
    kl = settings.kl_factor * (now.exp() * (now - essence)).sum(dim=-1)
    decay = settings.v_weight_decay * torch.linalg.vector_norm(delta, dim=1) / lengths**2
    return target + kl + decay, target, kl, decay
