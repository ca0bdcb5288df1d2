"""What is asked of an average, checked before anything runs."""

from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from rome_lens.checks import flag, keep, whole_number
from rome_lens.errors import SettingError
from rome_lens.tracing.corruption import NoiseRule, parse_noise
from rome_lens.tracing.request import check_numbers, check_severed

SEVERED_AT = ("last-subject", "all")


@dataclass(frozen=True)
class AverageSettings:
    """What is traced of every fact; `average_causal_effect` says what each setting means.

    Raises:
        SettingError: a setting is out of its range.
    """

    streams: tuple[str, ...]
    severed: tuple[str, ...] | None
    severed_at: str
    window: int | None
    samples: int
    noise: float | str | None
    noise_replaces: bool
    seed: int
    prepend_bos: bool
    engine: str

    def __post_init__(self) -> None:
        samples, seed = check_numbers(streams=self.streams, samples=self.samples, seed=self.seed, engine=self.engine)
        window = self.window
        if window is not None:
            window = whole_number("window", window, least=1, expected="a whole number of layers")
        keep(self, samples=samples, seed=seed, window=window)
        keep(self, **{name: flag(name, getattr(self, name)) for name in ("noise_replaces", "prepend_bos")})
        check_severed(self.severed, engine=self.engine)
        if self.severed_at not in SEVERED_AT:
            raise SettingError(f"severed_at is {self.severed_at!r}; choose from {', '.join(SEVERED_AT)}")
        if not isinstance(self.noise, str | None):
            keep(self, noise=self.rule.value)
        _ = self.rule

    @cached_property
    def rule(self) -> NoiseRule:
        """How noise is drawn."""
        return parse_noise(self.noise, replace=self.noise_replaces)

    def to_dict(self) -> dict[str, Any]:
        """As a run's settings hold it."""
        return {**asdict(self), "noise": str(self.rule)}
