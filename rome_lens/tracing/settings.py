"""The settings of a trace: what is restored, how the subject is corrupted, by which engine cells are scored."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal, Self, TypedDict, get_args

from rome_lens.backends import HEADS, STREAMS, Backend
from rome_lens.checks import choice, flag, is_list, keep, seed_number, settings_of, shown, whole_number
from rome_lens.errors import ModelError, SettingError
from rome_lens.tracing.attribution import ATTRIBUTION
from rome_lens.tracing.corruption import NoiseRule, parse_noise
from rome_lens.tracing.measures import MeasureFunction, MeasureName, check_measure

Stream = Literal["resid", "mlp", "attn"]
"""What can be restored at every token: a block's output, its MLP's, or its attention's."""

TracedStream = Stream | Literal["heads"]
"""What can be restored in a trace: these, or single heads of attention at one token."""

HeadsAt = Literal["last", "last-subject"] | int
"""Where heads are restored: at the prompt's last token, at the subject's, or at a position."""

SeveredStream = Literal["mlp", "attn"]
"""What can be severed while the residual stream is restored."""

Engine = Literal["auto", "plain", "attribution"]
"""How cells are scored: the fast way where the model allows it, by whole forwards, or approximately."""

SEVERED: tuple[str, ...] = get_args(SeveredStream)


class SharedChanges(TypedDict, total=False):
    """The fields that the settings of one trace and of an average have in common."""

    severed: Sequence[SeveredStream] | SeveredStream | None
    window: int | None
    samples: int
    noise: float | str | None
    noise_replaces: bool
    seed: int
    prepend_bos: bool
    engine: Engine


class TraceChanges(SharedChanges, total=False):
    """The fields of `TraceSettings`, as `causal_trace` takes them by name."""

    streams: Sequence[TracedStream] | TracedStream
    heads_at: HeadsAt
    heads_window: int
    swap: str | None
    measure: MeasureName | MeasureFunction
    against: str | None


@dataclass(frozen=True)
class TraceSettings:
    """How a fact is traced; `causal_trace` takes each of these by name, too.

    Attributes:
        streams: what to restore: `resid` (the block's output), `mlp` and `attn` (windows of layers), and `heads`: what
            each of attention's heads gives, at one token.
        severed: `mlp`, `attn` or both: restore the residual stream once more while these outputs at the same token are
            held, in all layers, at what the corrupted run gives (paper, section 2.2 and figure 3): what is left of the
            effect does not pass through them.
        window: layers restored together in `mlp` and `attn`; 10 covers l-5 .. l+4, as the released code has it. None
            is 10, or all layers of a smaller model.
        heads_at: the token of `heads`: the prompt's `last`, the subject's (`last-subject`), or a position, -1 the last.
        heads_window: layers in which the heads of one number are restored together; 1 is each head by itself.
        samples: corrupted copies to average over.
        noise: None or `s3` (3 times the standard deviation of the facts' subject embeddings), a number (absolute), `m`
            (Gaussian fitted to text), `tK` (Student-t of K degrees of freedom) or `uX` (uniform +-X).
        noise_replaces: assign the noise instead of adding it.
        swap: corrupt by putting this subject, of as many tokens, in place of the prompt's, instead of by noise.
        seed: seed of the noise; 1 is the released code's.
        prepend_bos: put BOS in front. The released code does not; TransformerLens does by default.
        engine: `auto`; `plain` to run whole forwards (slow; the same numbers); or `attribution` for an approximation
            from one backward pass, which is fast and may be far off.
        measure: what is read in each cell: the answer's `probability`, its `log_probability`, its `logit_difference` to
            `against`, `kl` from the clean run's next-token distribution, or a function of logits [row read d_vocab] at
            the positions that give the answer's tokens, and of these tokens [read], that gives a number a row.
        against: the other answer of `logit_difference`, of one token like the answer.

    Raises:
        SettingError: a setting is out of its range, or two of them exclude each other.
    """

    streams: Sequence[TracedStream] | TracedStream = ("resid", "mlp", "attn")
    severed: Sequence[SeveredStream] | SeveredStream | None = None
    window: int | None = None
    heads_at: HeadsAt = "last"
    heads_window: int = 1
    samples: int = 10
    noise: float | str | None = None
    noise_replaces: bool = False
    swap: str | None = None
    seed: int = 1
    prepend_bos: bool = False
    engine: Engine = "auto"
    measure: MeasureName | MeasureFunction = "probability"
    against: str | None = None

    _known: ClassVar[Sequence[str]] = STREAMS

    def __post_init__(self) -> None:
        streams = _chosen("stream", self.streams, self._known)
        if not streams:
            raise SettingError(f"stream is {shown(self.streams)}; choose from {', '.join(self._known)}")
        samples = whole_number("samples", self.samples, least=1, expected="a whole number of corrupted copies")
        seed = seed_number(self.seed)
        choice("engine", self.engine, get_args(Engine))
        window = self.window
        if window is not None:
            window = whole_number("window", window, least=1, expected="a whole number of layers")
        heads_window = whole_number("heads_window", self.heads_window, least=1, expected="a whole number of layers")
        keep(self, streams=streams, samples=samples, seed=seed, window=window, heads_window=heads_window)
        keep(self, heads_at=_head_position(self.heads_at))
        if HEADS not in streams and (self.heads_at, heads_window) != ("last", 1):
            raise SettingError("heads_at and heads_window are of the stream 'heads'; ask for it, or leave them out")
        keep(self, **{name: flag(name, getattr(self, name)) for name in ("noise_replaces", "prepend_bos")})
        check_measure(self.measure, self.against)
        if self.measure == "kl" and self.engine == ATTRIBUTION:
            raise SettingError(
                "measure 'kl' is not approximated, since it has no slope where all is restored; take another measure, "
                "or leave engine out"
            )
        if self.severed is not None:
            keep(self, severed=_chosen("severed", self.severed, SEVERED))
        if self.severed and self.engine == ATTRIBUTION:
            raise SettingError("severed paths are not approximated; leave severed out, or engine 'attribution'")
        rule = self.rule
        if not isinstance(self.noise, str | None):
            keep(self, noise=rule.value)
        if self.swap is not None and (self.noise is not None or self.noise_replaces):
            raise SettingError(
                f"swap is {self.swap!r} and a noise rule was given too; the subject is broken by one of them"
            )

    @classmethod
    def given(cls, settings: "TraceSettings | None", changes: Mapping[str, Any]) -> Self:
        """A caller's settings, with what the caller gave by name in their place.

        Raises:
            SettingError: a setting is out of its range, or the settings are of another kind.
            TypeError: there is no setting of a name.
        """
        return settings_of(cls, settings, changes, expected=f"{cls.__name__}(...)")

    @cached_property
    def rule(self) -> NoiseRule:
        """How noise is drawn."""
        return parse_noise(self.noise, replace=self.noise_replaces)


def _head_position(given: Any) -> HeadsAt:
    """Where heads are restored.

    Raises:
        SettingError: it is neither a place that has a name nor a position.
    """
    if isinstance(given, str) and given in ("last", "last-subject"):
        return given
    return whole_number("heads_at", given, expected="last, last-subject or a position, a whole number")


def _chosen(name: str, given: object, known: Sequence[str]) -> tuple[str, ...]:
    """Streams as a tuple; one may be given by itself.

    Raises:
        SettingError: one of them is none that is known.
    """
    several: Any = given
    asked: tuple[Any, ...] = tuple(several) if is_list(given) else (given,)
    for stream in asked:
        if not isinstance(stream, str) or stream not in known:
            raise SettingError(f"{name} is {shown(stream)}; choose from {', '.join(known)}")
    return asked


def check_streams(backend: Backend, asked: Sequence[str], *, known: Sequence[str] = STREAMS) -> tuple[str, ...]:
    """The streams in the order of `STREAMS`, each once; `known` are those that could be asked for.

    Raises:
        ModelError: the model has no such stream.
    """
    missing = [stream for stream in asked if stream not in backend.streams()]
    if missing:
        raise ModelError(
            f"{backend.model_name} has no {' and no '.join(missing)} stream in every layer; "
            f"ask for {', '.join(stream for stream in backend.streams() if stream in known) or 'another model'}"
        )
    return tuple(stream for stream in STREAMS if stream in asked)
