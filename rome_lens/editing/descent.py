"""Adam for many requests at once, each with its own stop and its own bound."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from rome_lens.backends import Backend
from rome_lens.errors import EditError
from rome_lens.progress import Progress


@dataclass(frozen=True)
class Descent:
    """How the losses are brought down.

    Attributes:
        num_steps: evaluations of the loss, at most.
        lr: Adam's learning rate.
        stop_loss: a request whose loss is below it is done.
        lr_name: what the setting `lr` is called where it comes from, for the error.
        what: what progress is reported as.
        step_after_last: whether the last evaluation is followed by a step, if it is not below `stop_loss`.
    """

    num_steps: int
    lr: float
    stop_loss: float
    lr_name: str
    what: str
    step_after_last: bool


class Objective(ABC):
    """What is minimised: a loss for each request that is still under way, as a function of its own parameters.

    Attributes:
        asked: what each request asks for, for errors; all of them, under way or not.
        zero: where each request's parameters begin: no change.
    """

    asked: Sequence[str]
    zero: Tensor

    @abstractmethod
    def losses(self, found: Float[Tensor, "request ..."]) -> tuple[Float[Tensor, " request"], ...]:
        """Each request's loss, followed by the terms that it is the sum of, if these are to be kept."""

    @abstractmethod
    def keep(self, going: list[int]) -> None:
        """Go on with some of the requests, by their places among those that were under way."""

    @abstractmethod
    def constrain(self, place: int, parameter: Tensor) -> None:
        """Bring a request's parameters back into their bounds after a step."""

    def done(self) -> Sequence[int]:
        """Places of the requests that the last evaluation ends although their loss is not low; none by default."""
        return ()

    def check(self, losses: tuple[Tensor, ...], parameters: Sequence[Tensor], going: list[int]) -> None:
        """Refuse before the first step what no step can bring down; nothing by default."""
        return

    def add_gradient(self, parameter: Tensor) -> None:
        """Add to a request's gradient what the losses do not hold; nothing by default."""
        return


@dataclass(frozen=True)
class Descended:
    """Where the descent ended.

    Attributes:
        found: the parameters of each request.
        curves: what `Objective.losses` gave for each request at every evaluation.
    """

    found: tuple[Tensor, ...]
    curves: tuple[tuple[tuple[float, ...], ...], ...]


def descend(backend: Backend, objective: Objective, descent: Descent, *, progress: Progress | None = None) -> Descended:
    """Minimise the losses of several requests together, as if each were alone.

    Args:
        backend: the model, whose own parameters get no gradient.
        objective: the losses.
        descent: the settings.
        progress: called after every evaluation.

    Raises:
        EditError: a loss is no number, or as `Objective.check` raises.
    """
    parameters = [objective.zero.clone().requires_grad_(True) for _ in objective.asked]
    # Adam works number by number and passes over what has no gradient: one is as good as one a request.
    adam = torch.optim.Adam(parameters, lr=descent.lr)
    curves: list[list[tuple[float, ...]]] = [[] for _ in parameters]
    living = list(range(len(parameters)))
    with _constant_weights(backend), torch.enable_grad():
        for step in range(descent.num_steps):
            members = [parameters[index] for index in living]
            losses = objective.losses(torch.stack(members))
            # One copy a step from wherever the model is.
            for place, terms in enumerate(torch.stack(losses, dim=1).tolist()):
                curves[living[place]].append(tuple(terms))
                if not math.isfinite(terms[0]):
                    raise EditError(
                        f"the loss of {objective.asked[living[place]]} is {terms[0]} at step {step + 1}; load the "
                        f"model in float32, or lower {descent.lr_name}"
                    )
            if progress is not None:
                progress(step + 1, descent.num_steps, descent.what)
            done = objective.done()
            going = [
                place
                for place, index in enumerate(living)
                if curves[index][-1][0] >= descent.stop_loss and place not in done
            ]
            if not going or (step == descent.num_steps - 1 and not descent.step_after_last):
                break
            if step == 0:
                objective.check(losses, members, going)
            torch.autograd.backward(losses[0][going].sum(), inputs=[members[place] for place in going])
            with torch.no_grad():
                for place in going:
                    objective.add_gradient(members[place])
                adam.step()
                adam.zero_grad()
                for place in going:
                    objective.constrain(place, members[place])
            if len(going) < len(living):
                living = [living[place] for place in going]
                objective.keep(going)
    return Descended(tuple(parameter.detach() for parameter in parameters), tuple(map(tuple, curves)))


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
