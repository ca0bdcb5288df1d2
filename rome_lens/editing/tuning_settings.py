"""Settings of fine-tuning, per model, with where they come from."""

import re
from dataclasses import dataclass

from rome_lens.backends import Backend
from rome_lens.checks import keep, not_negative, positive, whole_number

OR_ELSE = "None or 'auto'"
"""What a bound may be beside a number."""


@dataclass(frozen=True)
class FineTuningSettings:
    """Which layer, and how its `W_out` is fine-tuned (paper, section 3.3).

    Attributes:
        layer: the layer whose `W_out` is fine-tuned.
        norm_constraint: no weight gains or loses more than this (FT+L); None is no bound (FT).
        num_steps: evaluations of the loss, at most; each but a last one below `stop_loss` is followed by a step.
        lr: Adam's learning rate.
        weight_decay: factor of the weights themselves in their gradient.
        stop_loss: a loss below it ends the descent.
        source: where these come from, in words.

    Raises:
        SettingError: a setting is out of its range.
    """

    layer: int
    norm_constraint: float | None
    num_steps: int
    lr: float
    weight_decay: float
    stop_loss: float
    source: str

    def __post_init__(self) -> None:
        bound = self.norm_constraint
        keep(
            self,
            layer=whole_number("layer", self.layer, least=0),
            norm_constraint=None if bound is None else positive("norm_constraint", bound, or_else=OR_ELSE),
            num_steps=whole_number("num_steps", self.num_steps, least=1),
            lr=positive("lr", self.lr),
            weight_decay=not_negative("weight_decay", self.weight_decay),
            stop_loss=not_negative("stop_loss", self.stop_loss),
        )


_PAPER = "the paper's appendix; EasyEdit's hparams/FT, which carry on the released ROME code's, say the same"
_CONSTRAINED = "hparams/FT of EasyEdit, which carries on the released ROME code's, for this model"
_MEASURED = "measured by this project on 16 records of CounterFact"

# The last part of a name; layer, norm_constraint, source; of FT, then of FT+L.
_Choice = tuple[int, float | None, str]
_PUBLISHED: tuple[tuple[str, _Choice | None, _Choice], ...] = (
    (r"gpt2-medium", None, (0, 2e-3, _CONSTRAINED)),
    (r"gpt2-large", None, (0, 1e-3, _CONSTRAINED)),
    (r"gpt2-xl", (1, None, _PAPER), (0, 5e-4, _PAPER)),
    (r"gpt-j-6b|gptj", (21, None, _PAPER), (0, 5e-5, _PAPER)),
    (r"smollm2-135m(-instruct)?", (0, None, _MEASURED), (0, 6e-3, _MEASURED)),
)


def choose_tuning(backend: Backend, *, constrained: bool) -> tuple[int, float | None, str]:
    """Layer, bound of each weight's change and their source, for FT or for FT+L.

    A model without published settings takes those of GPT-2 XL: of the paper's two models it is the one whose FT works
    in a low layer, and low layers were measured to be better on the default model, too.
    """
    name = backend.model_name.rstrip("/").rpartition("/")[2].lower()
    for pattern, free, bounded in _PUBLISHED:
        choice = bounded if constrained else free
        if choice is not None and re.fullmatch(pattern, name) and choice[0] < backend.n_layers:
            return choice
    unpublished = f"no settings of fine-tuning are published for {backend.model_name}: "
    if constrained:
        return 0, 5e-4, unpublished + "layer 0 as in the paper, and the bound of GPT-2 XL"
    return min(1, backend.n_layers - 1), None, unpublished + "layer 1 as in the paper for GPT-2 XL"
