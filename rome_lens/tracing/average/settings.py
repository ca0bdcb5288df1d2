"""The settings of an average: those of a trace, and where paths are severed."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, get_args

from rome_lens.checks import choice
from rome_lens.tracing.settings import SharedChanges, Stream, TraceSettings

SeveredAt = Literal["last-subject", "all"]
"""Where paths are severed: at the subject's last token alone, or at every token."""


class AverageChanges(SharedChanges, total=False):
    """The fields of `AverageSettings`, as `average_causal_effect` takes them by name."""

    streams: Sequence[Stream] | Stream
    severed_at: SeveredAt


@dataclass(frozen=True)
class AverageSettings(TraceSettings):
    """How each of many facts is traced; `average_causal_effect` takes each of these by name, too.

    Attributes:
        streams: what to restore: `resid`, `mlp` and `attn`; no heads, whose grids have no roles of tokens.
        severed: as in `TraceSettings`; None is all that the model has, where `resid` is among the streams and the
            engine is not `attribution`.
        severed_at: at the `last-subject` token alone, or at `all` tokens, which takes longer.
        swap: nothing: no subject has as many tokens as each of many.
        measure: the answer's probability, as the paper's averages have it.

    Raises:
        SettingError: a setting is out of its range, or two of them exclude each other.
    """

    severed_at: SeveredAt = "last-subject"
    heads_at: Literal["last"] = field(default="last", init=False)
    heads_window: Literal[1] = field(default=1, init=False)
    swap: None = field(default=None, init=False)
    measure: Literal["probability"] = field(default="probability", init=False)
    against: None = field(default=None, init=False)
    _known: ClassVar[Sequence[str]] = get_args(Stream)

    def __post_init__(self) -> None:
        super().__post_init__()
        choice("severed_at", self.severed_at, get_args(SeveredAt))

    def to_dict(self) -> dict[str, Any]:
        """As the settings of a run folder hold it."""
        # In the order of the pages.
        names = dict.fromkeys(("streams", "severed", "severed_at", *AverageChanges.__annotations__))
        return {name: getattr(self, name) for name in names} | {"noise": str(self.rule)}
