"""What an average found: effects by role, layer and stream, over facts, with intervals."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rome_lens.backends import STREAMS
from rome_lens.errors import SettingError
from rome_lens.intervals import Estimate, estimate, mean, resample
from rome_lens.storage import write_table
from rome_lens.tracing.attribution import ATTRIBUTION
from rome_lens.tracing.roles import ROLES, roles_of

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

EARLY, LATE = ("mlp", "last subject token"), ("attn", "last token")
"""The two sites that the paper finds: MLPs at the subject's last token, attention at the prompt's."""


@dataclass(frozen=True)
class Curve:
    """An average effect by layer, over the facts that have the role.

    Attributes:
        mean: [layer], the average indirect effect (AIE).
        low: [layer], lower ends of the 95 % intervals, by bootstrap over facts.
        high: [layer], their upper ends.
        n: how many facts have the role.
    """

    mean: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    n: int


@dataclass(frozen=True)
class Peak:
    """Where a curve is highest.

    Attributes:
        layer: the layer; for a window, its centre.
        first: lower end of the 95 % interval of that layer: draws of other facts peak elsewhere.
        last: its upper end.
        effect: the effect there.
    """

    layer: int
    first: int
    last: int
    effect: Estimate


@dataclass(frozen=True, repr=False)
class AverageEffect:
    """Causal traces of many facts, averaged by what each token is to its fact (paper, section 2 and figures 2 and 3).

    Every fact counts once: tokens that share a role in it are averaged first, and its own `low` is what its scores are
    measured against. Intervals are 95 %, by bootstrap over facts.

    Attributes:
        facts: the facts that the model knows, as their records hold them: tokens, `low`, `high`, all scores.
        set_aside: the facts that it does not know, or that do not fit it, each with `why`.
        settings: of the run, with what they turned out to mean for the model.
        seed: of the intervals.
    """

    facts: tuple[Mapping[str, Any], ...]
    set_aside: tuple[Mapping[str, Any], ...]
    settings: Mapping[str, Any]
    seed: int = 0

    def __repr__(self) -> str:
        how = ", approximated" if self.approximate else ""
        peaks = "; ".join(
            f"{stream} {peak.effect.mean:+.3f} at layer {peak.layer}, {role}"
            for stream in self.streams
            for role, peak in [self.best(stream)]
        )
        return f"AverageEffect({len(self.facts)} facts known, {len(self.set_aside)} set aside{how}: {peaks})"

    @property
    def n_layers(self) -> int:
        return len(next(iter(self._first["scores"].values())))

    @property
    def streams(self) -> tuple[str, ...]:
        """The streams that were restored."""
        return tuple(stream for stream in STREAMS if stream in self._first["scores"])

    @property
    def severed(self) -> tuple[str, ...]:
        """The streams that were severed while `resid` was restored."""
        # A fact whose subject ends its prompt has no cell of its own there.
        return tuple(stream for stream in STREAMS if any(stream in fact["severed"] for fact in self.facts))

    @property
    def approximate(self) -> bool:
        """Whether the scores are attribution patching's, and no exact ones."""
        return any(fact["engine"] == ATTRIBUTION for fact in self.facts)

    @property
    def notes(self) -> tuple[str, ...]:
        """What the traces had to say, each once."""
        return tuple(dict.fromkeys(note for fact in self.facts for note in fact["notes"]))

    @cached_property
    def high(self) -> Estimate:
        """The answer's probability in the clean run."""
        return estimate([[fact["high"] for fact in self.facts]], mean, seed=self.seed)

    @cached_property
    def low(self) -> Estimate:
        """The answer's probability with the subject corrupted."""
        return estimate([[fact["low"] for fact in self.facts]], mean, seed=self.seed)

    @cached_property
    def total_effect(self) -> Estimate:
        """The average total effect (ATE): what the corruption costs, `high - low` of each fact."""
        return estimate([[fact["high"] - fact["low"] for fact in self.facts]], mean, seed=self.seed)

    def roles(self, stream: str, *, severed: str | None = None) -> tuple[str, ...]:
        """The roles that some fact has a token of, in the order of a prompt.

        Raises:
            SettingError: that was not traced.
        """
        found = self._effects(stream, severed)
        return tuple(role for role in ROLES if role in found)

    def curve(self, stream: str, role: str, *, severed: str | None = None) -> Curve:
        """The average indirect effect by layer.

        Args:
            stream: `resid`, `mlp` or `attn`.
            role: one of `ROLES`, such as `last subject token`.
            severed: the stream that was severed while `resid` was restored.

        Raises:
            SettingError: that was not traced, or no fact has the role.
        """
        return self._curve_of((stream, role, severed), lambda: self._of_role(stream, role, severed))

    def lost(self, severed: str, role: str = EARLY[1]) -> Curve:
        """What severing takes away from the effect of restoring `resid`, by layer: each fact against itself.

        Raises:
            SettingError: that was not traced, or no fact has the role.
        """

        def difference() -> np.ndarray:
            whole, cut = self._of_role("resid", role, None), self._of_role("resid", role, severed)
            return whole - cut

        return self._curve_of(("lost", role, severed), difference)

    def peak(self, stream: str, role: str, *, severed: str | None = None) -> Peak:
        """Where the average effect is highest, and how sure that layer is.

        Raises:
            SettingError: that was not traced, or no fact has the role.
        """
        if (stream, role, severed) not in self._peaks:
            self._peaks[stream, role, severed] = self._find_peak(stream, role, severed)
        return self._peaks[stream, role, severed]

    def _find_peak(self, stream: str, role: str, severed: str | None) -> Peak:
        effects = self._of_role(stream, role, severed)

        def top(index: np.ndarray, axis: int) -> np.ndarray:
            return effects[:, index].mean(axis=-1).argmax(axis=0).astype(float)

        layer, first, last = resample([np.arange(effects.shape[1])], top, seed=self.seed, width=len(effects))
        curve = self.curve(stream, role, severed=severed)
        at = int(layer)
        effect = Estimate(curve.mean[at], curve.low[at], curve.high[at], curve.n)
        return Peak(at, round(float(first)), round(float(last)), effect)

    def best(self, stream: str) -> tuple[str, Peak]:
        """The role with the highest peak of a stream, the last token's residual aside: that one is the answer itself.

        Raises:
            SettingError: the stream was not traced.
        """
        roles = [role for role in self.roles(stream) if stream != "resid" or role != LATE[1]] or list(
            self.roles(stream)
        )
        return max(((role, self.peak(stream, role)) for role in roles), key=lambda found: found[1].effect.mean)

    def to_dataframe(self) -> "pd.DataFrame":
        """A row a cell: stream, severed, role, layer, effect, low, high (ends of its interval), n (facts)."""
        import pandas as pd

        rows = [
            (stream, severed or "", role, layer, curve.mean[layer], curve.low[layer], curve.high[layer], curve.n)
            for stream, severed in self._traced()
            for role in self.roles(stream, severed=severed)
            for curve in [self.curve(stream, role, severed=severed)]
            for layer in range(self.n_layers)
        ]
        return pd.DataFrame(rows, columns=["stream", "severed", "role", "layer", "effect", "low", "high", "n"])

    def facts_to_dataframe(self) -> "pd.DataFrame":
        """A row a fact: number, prompt, subject, answer, known, why not, low, high."""
        import pandas as pd

        rows = sorted((*self.facts, *self.set_aside), key=lambda fact: fact["number"])
        columns = ["number", "prompt", "subject", "answer", "known", "why", "low", "high"]
        return pd.DataFrame([[fact.get(name) for name in columns] for fact in rows], columns=columns)

    def summary(self) -> dict[str, Any]:
        """Everything but the facts themselves, as JSON holds it: what `summary.json` says."""
        return {
            "facts": len(self.facts),
            "set_aside": len(self.set_aside),
            "approximate": self.approximate,
            "high": asdict(self.high),
            "low": asdict(self.low),
            "total_effect": asdict(self.total_effect),
            "effects": [
                {
                    "stream": stream,
                    "severed": severed,
                    "role": role,
                    "peak": asdict(self.peak(stream, role, severed=severed)),
                    **asdict(self.curve(stream, role, severed=severed)),
                }
                for stream, severed in self._traced()
                for role in self.roles(stream, severed=severed)
            ],
            "notes": list(self.notes),
            "settings": dict(self.settings),
        }

    def figures(self) -> dict[str, "go.Figure"]:
        """Plotly figures: `roles` (heat maps), `layers` (lines with bands), and `severed` where paths were severed."""
        from rome_lens.tracing.average.figures import average_figures

        return average_figures(self)

    def write_html(self, path: str | os.PathLike[str]) -> None:
        """Write effects, figures, peaks, facts and settings as one HTML page that works offline.

        Raises:
            ArtefactError: the file cannot be written; nothing is left behind.
        """
        from rome_lens.tracing.average.page import write_page

        write_page(self, path)

    def write_csv(self, folder: str | os.PathLike[str]) -> None:
        """Write `effects.csv` (`to_dataframe`) and `facts.csv` (`facts_to_dataframe`) into a folder.

        Raises:
            ArtefactError: a file cannot be written.
        """
        write_table(self.to_dataframe(), Path(folder) / "effects.csv")
        write_table(self.facts_to_dataframe(), Path(folder) / "facts.csv")

    @property
    def _first(self) -> Mapping[str, Any]:
        return self.facts[0]

    def _traced(self) -> list[tuple[str, str | None]]:
        return [*((stream, None) for stream in self.streams), *(("resid", stream) for stream in self.severed)]

    @cached_property
    def _peaks(self) -> dict[tuple[str, str, str | None], Peak]:
        return {}

    @cached_property
    def _curves(self) -> dict[tuple[str, str, str | None], Curve]:
        return {}

    def _curve_of(self, key: tuple[str, str, str | None], effects: Any) -> Curve:
        if key not in self._curves:
            found = effects()
            numbers = (tuple(map(float, ends)) for ends in resample([found], mean, seed=self.seed))
            self._curves[key] = Curve(*numbers, n=found.shape[1])
        return self._curves[key]

    @cached_property
    def _by_role(self) -> dict[tuple[str, str | None], dict[str, np.ndarray]]:
        """Effects [layer, fact] by what was traced and by role."""
        found: dict[tuple[str, str | None], dict[str, list[np.ndarray]]] = {}
        for fact in self.facts:
            roles = roles_of(tuple(fact["subject_span"]), len(fact["tokens"]))
            at = {pos: column for column, pos in enumerate(fact["severed_at"])}
            for stream, severed in self._traced():
                if severed is not None and severed not in fact["severed"]:
                    continue
                grid = np.array(fact["scores"][stream] if severed is None else fact["severed"][severed])
                for role, positions in roles.items():
                    columns = [pos if severed is None else at.get(pos, -1) for pos in positions]
                    if -1 not in columns:
                        effect = grid[:, columns].mean(axis=1) - fact["low"]
                        found.setdefault((stream, severed), {}).setdefault(role, []).append(effect)
        return {
            key: {role: np.stack(several, axis=1) for role, several in roles.items()} for key, roles in found.items()
        }

    def _effects(self, stream: str, severed: str | None) -> dict[str, np.ndarray]:
        if (stream, severed) not in self._by_role:
            what = stream if severed is None else f"{stream} with {severed} severed"
            had = ", ".join(s if cut is None else f"{s} with {cut} severed" for s, cut in self._traced())
            raise SettingError(f"{what!r} was not traced; this average has {had}")
        return self._by_role[stream, severed]

    def _of_role(self, stream: str, role: str, severed: str | None) -> np.ndarray:
        found = self._effects(stream, severed)
        if role not in found:
            raise SettingError(f"no fact has a {role!r} here; this average has {', '.join(found)}")
        return found[role]


def average_of(records: Sequence[Mapping[str, Any]], settings: Mapping[str, Any], *, seed: int) -> AverageEffect:
    """The average of a run's records.

    Raises:
        SettingError: there is no fact that the model knows.
    """
    known = tuple(record for record in records if record["known"])
    if not known:
        of = f" of shard {settings['shard']}" if settings.get("shard") else ""
        if not records:
            raise SettingError(f"no fact{of} is traced here yet; there is nothing to average")
        raise SettingError(f"none of {len(records)} facts{of} can be traced, such as: {records[0]['why']}")
    aside = tuple(record for record in records if not record["known"])
    return AverageEffect(known, aside, settings, seed)
