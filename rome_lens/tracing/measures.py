"""What is read in a cell: the answer's probability, or another measure of the logits (`measure=`)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor
from torch.nn.functional import kl_div

from rome_lens.backends.likelihood import at_least_float32
from rome_lens.checks import as_text, shown
from rome_lens.errors import SettingError
from rome_lens.tracing.cases import joint_log_probability

MeasureName = Literal["probability", "log_probability", "logit_difference", "kl"]
"""What can be read in a cell by name.

`probability`: of the answer, of several tokens joint. `log_probability`: its natural logarithm. `logit_difference`: the
answer's logit less that of another answer, `against`. `kl`: the divergence from the clean run's next-token distribution
to the cell's, KL(clean || cell) in nats: 0 where all is restored.
"""

MeasureFunction: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""A measure of one's own: from logits [row read d_vocab] at the positions that give the answer's tokens, and the
answer's token ids [read], a number a row, [row]. A row's number may depend on that row alone."""

_PROBABILITY, _LOG_PROBABILITY, _LOGIT_DIFFERENCE, _KL = get_args(MeasureName)


@dataclass(frozen=True)
class Measure:
    """A measure, ready to be taken.

    Attributes:
        name: one of `MeasureName`, or what a function is called, as `name()`.
        function: one's own.
        against: the other answer's token, of `logit_difference`.
    """

    name: str = _PROBABILITY
    function: MeasureFunction | None = None
    against: int | None = None

    def of(
        self,
        logits: Float[Tensor, "row read d_vocab"],
        answers: Int[Tensor, "row read"],
        clean: Float[Tensor, "row d_vocab"] | None,
    ) -> Float64[Tensor, " row"]:
        """What each row has.

        Args:
            logits: the logits that are measured.
            answers: the answer's token ids of each row; one's own function is of one answer.
            clean: of each row, what `of_clean` gave for its clean run.

        Raises:
            SettingError: a function gives no number a row.
        """
        value, factor = self.slope(logits, answers, clean)
        return value if factor is None else factor

    def slope(
        self,
        logits: Float[Tensor, "row read d_vocab"],
        answers: Int[Tensor, "row read"],
        clean: Float[Tensor, "row d_vocab"] | None,
    ) -> tuple[Float64[Tensor, " row"], Float64[Tensor, " row"] | None]:
        """What to differentiate, and by what to multiply its gradient.

        Of the probability that is its logarithm, and itself: dp = p d(log p), since half precision has no numbers for
        the gradient of a small p.
        """
        if self.function is not None:
            return self._by_function(self.function, logits, answers[0]), None
        if self.name == _LOGIT_DIFFERENCE:
            last, answer_ids = logits[:, -1], answers[:, -1:].to(logits.device)
            return last.gather(-1, answer_ids)[:, 0].double() - last[:, self.against].double(), None
        if clean is not None:
            apart = kl_div(_next_token(logits), clean, reduction="none", log_target=True)
            # A token that the model never says, whose logit is -inf, adds nothing.
            return apart.where(clean.isfinite(), 0.0).sum(dim=-1, dtype=torch.float64), None
        logarithm = joint_log_probability(logits, answers)
        return logarithm, logarithm.exp() if self.name == _PROBABILITY else None

    def of_clean(self, logits: Float[Tensor, "row read d_vocab"]) -> Float[Tensor, "row d_vocab"] | None:
        """What has to be kept of clean runs, whose logits these are, to measure others by; None for nothing."""
        return _next_token(logits) if self.name == _KL else None

    def _by_function(self, function: MeasureFunction, logits: Tensor, answer_ids: Tensor) -> Float64[Tensor, " row"]:
        # A copy, which it may change: what a cell says is read of these logits, too.
        found = function(at_least_float32(logits).clone(), answer_ids)
        if not isinstance(found, Tensor) or found.shape != logits.shape[:1] or found.is_complex():
            given = f"a tensor of shape {list(found.shape)}" if isinstance(found, Tensor) else shown(found)
            raise SettingError(
                f"measure {self.name} gave {given} for logits of {list(logits.shape)}; expected a number a row, "
                f"a tensor of [{len(logits)}]"
            )
        return found.to(logits.device, torch.float64)

    @classmethod
    def given(cls, measure: MeasureName | MeasureFunction, against: int | None) -> "Measure":
        """The measure that a caller asks for, which `check_measure` let pass; of an `against` its token."""
        if isinstance(measure, str):
            return cls(measure, against=against)
        return cls(f"{getattr(measure, '__name__', type(measure).__name__)}()", measure)


PROBABILITY = Measure()
"""What a trace reads where nothing else was asked for."""


def falls(name: str, *, low: float, high: float) -> bool:
    """Whether a measure goes down as more is restored; of one's own function the clean and the corrupted run tell."""
    return name == _KL if name in get_args(MeasureName) else high < low


def measure_in_words(name: str, answer: str, against: str | None) -> str:
    """What a measure is called in figures and tables; `against` is the other answer, if there is one."""
    answer, other = (text.strip() or text for text in (answer, against or ""))
    named = {
        _PROBABILITY: f"p({answer})",
        _LOG_PROBABILITY: f"log p({answer})",
        _LOGIT_DIFFERENCE: f"logit({answer}) - logit({other})",
        _KL: "KL(clean || cell)",
    }
    return named.get(name, name)


def _next_token(logits: Float[Tensor, "row read d_vocab"]) -> Float[Tensor, "row d_vocab"]:
    """Log-probabilities of every token behind the prompt, which the first of the read positions gives."""
    return at_least_float32(logits[:, 0]).log_softmax(dim=-1)


def check_measure(measure: object, against: str | None) -> None:
    """Refuse what is no measure, and another answer where none is needed or missing.

    Raises:
        SettingError: so it is.
    """
    known = get_args(MeasureName)
    if not callable(measure) and (not isinstance(measure, str) or measure not in known):
        raise SettingError(
            f"measure is {shown(measure)}; choose from {', '.join(known)}, or give a function of logits and answer_ids"
        )
    if against is not None:
        as_text("against", against)
    if measure == _LOGIT_DIFFERENCE and against is None:
        raise SettingError("measure 'logit_difference' compares two answers; name the other one with against")
    if measure != _LOGIT_DIFFERENCE and against is not None:
        raise SettingError(f"against is {shown(against)}, which only measure 'logit_difference' reads; leave it out")
