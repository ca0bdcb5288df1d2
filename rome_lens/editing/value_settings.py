"""Settings of values beside ROME's: where a change is added, when it is enough, how long it may be, what it answers."""

from dataclasses import dataclass
from typing import Literal, TypedDict, get_args

from rome_lens.checks import as_real, choice, keep, positive, shown, whole_number
from rome_lens.editing.keys import KeysOfFact
from rome_lens.errors import SettingError

At = Literal["w_out", "block"]
"""Where a value's change is added: to what leaves `W_out`, or to what leaves the block."""


class ValueChanges(TypedDict, total=False):
    """The fields of `ValueSettings`, as a caller may choose them one by one."""

    at: At
    stop_said: int | None
    least_scale: float | None
    longest: float | None
    keys: KeysOfFact


@dataclass(frozen=True)
class ValueSettings:
    """How a value is found, beside the numbers of `Settings`. By default as ROME finds it.

    All of it looks at one request alone, so that a value depends on no other request.

    Attributes:
        at: where the change is added at the subject's last token: `w_out`, to what leaves the layer's `W_out` (ROME,
            paper 3.1), or `block`, to what leaves the block (`compute_z` of MEMIT's released code, 2210.07229). Clamp
            and decay go by the length of what it is added to, under the bare prompt. Both are the same place in a
            model in which the block adds what leaves `W_out` to its output; another model is refused at `block`.
        stop_said: stop so many steps after the target is first said under every template, the bare prompt included:
            each of its tokens is the likeliest at its place (MPES of ENCORE, 2502.01636, whose released code leaves
            the bare prompt out and counts tokens as rows). 0 stops at once; None goes on until the loss is low.
        least_scale: scale the change down to so many times the least scale at which it still says the target under
            every template, 1 at most; such as 1.2. None leaves it as it is.
        longest: a value that is longer than this is scaled back to this length (the norm anchor of NAS, 2602.02543):
            what leaves `W_out`, or at `block` the block, with the change. In the model's own units; it comes last.
        keys: which keys of a fact a set answers. `mean` is one key, the mean over the context templates, as ROME and
            MEMIT have it; what is missing there is `v* - W k` at `w_out`, as of `r-rome`. `split` are two, the bare
            prompt's and the mean of the others, each by its weight; `each` is every template's own. Of these the change
            itself is missing, which is what was optimised under each template. Where many facts press on one another, a
            mean that is answered leaves its parts short: the bare prompt's first of all.

    Raises:
        SettingError: one of them is out of its range.
    """

    at: At = "w_out"
    stop_said: int | None = None
    least_scale: float | None = None
    longest: float | None = None
    keys: KeysOfFact = "mean"

    def __post_init__(self) -> None:
        keep(
            self,
            at=choice("at", self.at, get_args(At)),
            stop_said=None if self.stop_said is None else _steps(self.stop_said),
            least_scale=None if self.least_scale is None else _margin(self.least_scale),
            longest=None if self.longest is None else positive("longest", self.longest, or_else="None"),
            keys=choice("keys", self.keys, get_args(KeysOfFact)),
        )

    @property
    def looks_again(self) -> bool:
        """Whether a change is looked at once more when its optimisation has ended."""
        return any(setting is not None for setting in (self.stop_said, self.least_scale, self.longest))


AS_ROME = ValueSettings()
"""As ROME finds a value."""


def _steps(stop_said: object) -> int:
    return whole_number("stop_said", stop_said, least=0, expected="None or a whole number of steps")


def _margin(least_scale: object) -> float:
    margin = as_real(least_scale)
    if margin is None or margin < 1:
        raise SettingError(f"least_scale is {shown(least_scale)}; expected a number, 1 or more, or None")
    return float(margin)
