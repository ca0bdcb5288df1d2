"""The closed form: which rank-one matrix makes the edited layer answer a key with a value (paper, equation 2)."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from rome_lens.checks import choice
from rome_lens.editing.second_moment.moment import SecondMoment
from rome_lens.errors import EditError

VARIANTS = ("r-rome", "rome", "p-rome")

# cos(u, k) below this: the update is a thousand times longer than it has to be, and shifts whatever else u meets.
_LEAST_COSINE = 1e-3


@dataclass(frozen=True)
class Keys:
    """Keys and values of one request at the edited layer.

    Attributes:
        mean_key: [d_mlp] over the context templates (paper, equation 3).
        mean_value: [d_model] what the layer says to it now, bias included.
        bare_key: [d_mlp] of the bare prompt.
        bare_value: [d_model] of the bare prompt: v0.
    """

    mean_key: Float[Tensor, " d_mlp"]
    mean_value: Float[Tensor, " d_model"]
    bare_key: Float[Tensor, " d_mlp"]
    bare_value: Float[Tensor, " d_model"]


@dataclass(frozen=True)
class RankOne:
    """`W_out` gains `outer(u, v)`.

    Attributes:
        u: [d_mlp], of length 1.
        v: [d_model].
        key_norm: length of the key that is answered.
        key_dot: its product with `u`.
    """

    u: Float[Tensor, " d_mlp"]
    v: Float[Tensor, " d_model"]
    key_norm: float
    key_dot: float


def check_variant(variant: str) -> str:
    """Refuse a variant that nobody knows.

    Raises:
        SettingError: it is none of `r-rome`, `rome`, `p-rome`.
    """
    return choice("variant", variant, VARIANTS)


def rank_one(keys: Keys, goal: Float[Tensor, " d_model"], moment: SecondMoment, *, variant: str) -> RankOne:
    """The update after which a key is answered with `goal`.

    `u = C^-1 k` and `v = (goal - W k) / (u . k)`. Which k that is tells the variants apart: `r-rome` takes the mean key
    in both places (2403.07175), `p-rome` the bare prompt's, and `rome` the mean key in the first and the bare prompt's
    in the second, as the released code does.

    Args:
        keys: of the request, in float64.
        goal: v*, the value to be said, bias included.
        moment: C.
        variant: one of `VARIANTS`.

    Raises:
        EditError: `u . k` is so near zero that the update would explode.
    """
    reading = keys.bare_key if variant == "p-rome" else keys.mean_key
    answered, value = (keys.mean_key, keys.mean_value) if variant == "r-rome" else (keys.bare_key, keys.bare_value)
    u = moment.solve(reading).to(reading.device)
    u = u / u.norm()
    dot, length = (u @ answered).item(), answered.norm().item()
    if not abs(dot) > _LEAST_COSINE * length:
        raise EditError(
            f"the key and C^-1 k* are all but orthogonal (cosine {dot / length:.1e}), so the update would explode; "
            + (
                "take variant='r-rome', which uses one key throughout"
                if variant == "rome"
                else "collect the second moment from more tokens"
            )
        )
    return RankOne(u, (goal - value) / dot, length, dot)
