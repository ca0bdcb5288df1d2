"""What was asked of an edit, what came of it, and what it was made with."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

from rome_lens.facts import EditRequest

SAID = 0.5
"""From this probability on, a token counts as said."""

# How many of the edits that were in the weights a note names.
_NAMED = 3


@dataclass(frozen=True)
class AnswerReading:
    """What a model gives to the tokens of an answer, one after the other, teacher forced.

    Attributes:
        log_probs: the log-probability of each token, natural logarithm.
        likeliest: whether each is the most probable one at its place.
    """

    log_probs: tuple[float, ...]
    likeliest: tuple[bool, ...]

    @property
    def probability(self) -> float:
        """Of all tokens, jointly."""
        return math.exp(math.fsum(self.log_probs))

    @property
    def mean(self) -> float:
        """Of a token, on average (the geometric mean): answers of any length can be compared."""
        return math.exp(math.fsum(self.log_probs) / len(self.log_probs))

    @property
    def written(self) -> bool:
        """Whether greedy decoding writes the answer."""
        return all(self.likeliest)


@dataclass(frozen=True)
class Probabilities:
    """What the model gives to the two answers after the bare prompt, teacher forced; of several tokens, jointly.

    Attributes:
        target: the probability of what the edit is to say.
        old: the probability of the old answer.
        target_mean: the probability of a token of the target, on average (the geometric mean): the same as `target`
            where it is one token. None in files of earlier versions.
        target_written: whether greedy decoding writes the target, each of its tokens being the likeliest at its place.
            None in files of earlier versions.
    """

    target: float
    old: float
    target_mean: float | None = None
    target_written: bool | None = None

    @classmethod
    def of_each(cls, targets: Sequence[AnswerReading], old: Sequence[AnswerReading]) -> list[Self]:
        """Of what was read, a request each."""
        return [
            cls(target.probability, other.probability, target.mean, target.written)
            for target, other in zip(targets, old, strict=True)
        ]

    @property
    def reached(self) -> bool:
        """Whether the target is said: whether the model, left to itself, writes it.

        A joint probability says little about that: of 29 tokens with a probability of 0.93 each it is 0.12. It decides
        where nothing else is known, for files of earlier versions.
        """
        return self.target >= SAID if self.target_written is None else self.target_written


@dataclass(frozen=True)
class Loss:
    """One evaluation of the loss whose minimum is the value (paper, equation 4).

    Attributes:
        total: the sum of the three others.
        target: mean negative log-probability of the target's tokens.
        kl: divergence of "{subject} is a" from the unedited model, times its factor.
        decay: the weight decay's share.
    """

    total: float
    target: float
    kl: float
    decay: float


@dataclass(frozen=True)
class Outcome:
    """One request, and what an edit does about it.

    Attributes:
        request: what was asked.
        old_answer: what the model said before: the request's `target_true`, or the model's own answer: its next
            token, or as many as it takes to differ from the target.
        before: probabilities in the unedited model.
        after: probabilities with the edit; None where they were not measured, as of a set that some were taken out of.
        loss_curve: the loss at every evaluation: a `Loss` each of a value, a number each of fine-tuning.
    """

    request: EditRequest
    old_answer: str
    before: Probabilities
    after: Probabilities | None
    loss_curve: tuple[Loss, ...] | tuple[float, ...]

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it."""
        plain = asdict(self)
        return plain | {"loss_curve": list(plain["loss_curve"])}


@dataclass(frozen=True)
class Earlier:
    """An edit that was in the weights while another was found.

    Attributes:
        words: what it is, with its layers and id.
        layers: the layers that it changes; unknown, and empty, in files of earlier versions.
        id: its `Edit.id`; None for an edit that came with the model's folder, of version 0.1.0.
    """

    words: str
    layers: tuple[int, ...] = ()
    id: str | None = None


@dataclass(frozen=True)
class Origin:
    """What an edit was made with.

    Attributes:
        variant: `r-rome`, `rome` or `p-rome`, `ft` or `ft-l`, or another editor's name.
        settings: everything that was set, as JSON holds it: the optimiser's settings with their source, context
            templates, seed, BOS, which second moment.
        notes: what is worth knowing: how the layer was chosen, what fell short.
        backend: `hooked-transformer` or `transformer-bridge`.
        dtype: of the model.
        seconds: how long it took.
        made_on: the edits that were in the weights while it was found; empty for an unedited model.
    """

    variant: str
    settings: Mapping[str, Any]
    notes: tuple[str, ...] = ()
    backend: str = ""
    dtype: str = ""
    seconds: float = 0.0
    made_on: tuple[Earlier, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return {
            **{name: getattr(self, name) for name in ("variant", "backend", "dtype", "seconds")},
            "settings": dict(self.settings),
            "notes": list(self.notes),
            "made_on": [asdict(earlier) | {"layers": list(earlier.layers)} for earlier in self.made_on],
        }


def found_on(others: Sequence[Earlier], layer: int, *, second_moment: bool) -> tuple[str, ...]:
    """What is to be noted of an edit that was found while others were in the weights; nothing where there were none.

    Args:
        others: these.
        layer: the layer that was edited.
        second_moment: whether the edit rests on a second moment.
    """
    if not others:
        return ()
    named = "; ".join(other.words for other in others[:_NAMED]) + ("; …" if len(others) > _NAMED else "")
    notes = [f"found with {named} in the weights: alone it does something else"]
    below = sorted({number for other in others for number in other.layers if number < layer})
    if below and second_moment:
        notes.append(
            f"edits of layer {', '.join(map(str, below))}, below layer {layer}, move its keys: a second moment that "
            "was collected without them fits these keys less well"
        )
    return tuple(notes)
