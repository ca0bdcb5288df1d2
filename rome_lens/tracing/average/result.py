"""What an average found: effects by role, layer and stream, over facts, with intervals."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import plotly.graph_objects as go

from rome_lens.backends import STREAMS
from rome_lens.errors import SettingError
from rome_lens.figures import HeatMap
from rome_lens.figures.curves import CurvePanel, Line, curve_figure
from rome_lens.figures.page import figure_html, render_page
from rome_lens.figures.plotly_figure import heat_map_figure
from rome_lens.figures.style import HUES, STREAM_COLOURS
from rome_lens.intervals import Estimate, estimate, mean
from rome_lens.storage import write_table, write_whole
from rome_lens.tracing.attribution import ATTRIBUTION
from rome_lens.tracing.average.effects import Curve, Effects, Peak, effects_by_role
from rome_lens.tracing.labels import RESTORED, SEVERED_IN_WORDS, layer_title_of, title_of
from rome_lens.tracing.roles import EARLY, LATE, ROLES

if TYPE_CHECKING:
    import pandas as pd

_EFFECT = "average indirect effect"
_ROLE_COLOURS: dict[str, str] = dict(zip(ROLES, HUES, strict=False))
_MOST_ROWS = 500


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
        return len(next(iter(self.facts[0]["scores"].values())))

    @property
    def streams(self) -> tuple[str, ...]:
        """The streams that were restored."""
        return tuple(stream for stream in STREAMS if stream in self.facts[0]["scores"])

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
        return self._of_role(stream, role, severed).curve

    def lost(self, severed: str, role: str = EARLY[1]) -> Curve:
        """What severing takes away from the effect of restoring `resid`, by layer: each fact against itself.

        Raises:
            SettingError: that was not traced, or no fact has the role.
        """
        if (severed, role) not in self._lost:
            whole, cut = self._of_role("resid", role, None), self._of_role("resid", role, severed)
            self._lost[severed, role] = Effects(whole.values - cut.values, self.seed)
        return self._lost[severed, role].curve

    def peak(self, stream: str, role: str, *, severed: str | None = None) -> Peak:
        """Where the average effect is highest, and how sure that layer is.

        Raises:
            SettingError: that was not traced, or no fact has the role.
        """
        return self._of_role(stream, role, severed).peak

    def best(self, stream: str) -> tuple[str, Peak]:
        """The role with the highest peak of a stream, the last token's residual aside: that one is the answer itself.

        Raises:
            SettingError: the stream was not traced.
        """
        roles = self.roles(stream)
        telling = [role for role in roles if stream != "resid" or role != LATE[1]] or roles
        return max(((role, self.peak(stream, role)) for role in telling), key=lambda found: found[1].effect.mean)

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

    def heat_maps(self) -> list[HeatMap]:
        """The average effects of each stream as a grid of roles and layers, ready to draw."""
        maps = []
        for stream in self.streams:
            roles = self.roles(stream)
            curves = [self.curve(stream, role) for role in roles]
            maps.append(
                HeatMap(
                    stream=stream,
                    scores=[[curve.mean[layer] for curve in curves] for layer in range(self.n_layers)],
                    labels=roles,
                    low=0.0,
                    high=0.0,
                    answer="the answer",
                    title=title_of(stream, approximate=self.approximate),
                    layer_title=layer_title_of(stream, self.settings["prepared"]["window"]),
                    measure="AIE",
                    of_effects=True,
                )
            )
        return maps

    def curve_panels(self) -> list[CurvePanel]:
        """The average effects by layer, ready to draw: a panel a stream, a line a role."""
        return [
            CurvePanel(
                title_of(stream, approximate=self.approximate),
                [_line(role, self.curve(stream, role), _ROLE_COLOURS[role]) for role in self.roles(stream)],
            )
            for stream in self.streams
        ]

    def severed_panels(self, role: str = EARLY[1]) -> list[CurvePanel]:
        """Figure 3 of the paper, ready to draw: the effect of restoring the residual at a role's tokens, ordinary and
        severed, and what severing takes away. Empty where nothing was severed, or no fact has the role.
        """
        if not self.severed:
            return []
        try:
            lines = [_line("ordinary", self.curve("resid", role), STREAM_COLOURS["resid"])]
            lost = []
            for stream in self.severed:
                name, colour = SEVERED_IN_WORDS[stream], STREAM_COLOURS[stream]
                lines.append(_line(name, self.curve("resid", role, severed=stream), colour))
                lost.append(_line(name, self.lost(stream, role), colour))
        except SettingError:
            return []
        return [
            CurvePanel(f"{title_of('resid')}, {role}", lines),
            CurvePanel("What severing takes away: each fact against itself", lost),
        ]

    def figures(self) -> dict[str, go.Figure]:
        """Plotly figures: `roles` (heat maps), `layers` (lines with bands), and `severed` where paths were severed."""
        return self._drawn(f"Average effect of {len(self.facts)} facts · {self.settings['model']['name']}")

    def _drawn(self, title: str) -> dict[str, go.Figure]:
        total = self.total_effect
        subtitle = (
            f"p(answer): {self.high.mean:.3f} in the clean run, {self.low.mean:.3f} with the subject corrupted; "
            f"total effect {total.mean:.3f} [{total.low:.3f}, {total.high:.3f}]"
        )
        layers, severed = self.curve_panels(), self.severed_panels()
        figures = {
            "roles": heat_map_figure(self.heat_maps(), title=title, subtitle=subtitle),
            "layers": curve_figure(layers, x_title="layer", y_title=_EFFECT, title=title, one_scale=False),
        }
        if severed:
            figures["severed"] = curve_figure(severed, x_title="restored layer", y_title=_EFFECT, title=title)
        return figures

    def to_html(self) -> str:
        """Effects, figures, peaks, facts and settings as one HTML page that works offline.

        It tells no time: the same average gives the same page.
        """
        peaks = {
            role: [self.peak(stream, role) if role in self.roles(stream) else None for stream in self.streams]
            for role in ROLES
        }
        return render_page(
            files("rome_lens.tracing.average").joinpath("page.html.j2").read_text("utf-8"),
            settings=self.settings,
            model=self.settings["model"]["name"],
            average=self,
            restored=[RESTORED[stream] for stream in self.streams],
            peaks=[(role, of_role) for role, of_role in peaks.items() if any(of_role)],
            figures={name: figure_html(figure, name) for name, figure in self._drawn("").items()},
            most_rows=_MOST_ROWS,
        )

    def write_html(self, path: str | os.PathLike[str]) -> None:
        """Write what `to_html` gives.

        Raises:
            ArtefactError: the file cannot be written; nothing is left behind.
        """
        write_whole(path, self.to_html().encode())

    def write_csv(self, folder: str | os.PathLike[str]) -> None:
        """Write `effects.csv` (`to_dataframe`) and `facts.csv` (`facts_to_dataframe`) into a folder.

        Raises:
            ArtefactError: a file cannot be written.
        """
        write_table(self.to_dataframe(), Path(folder) / "effects.csv")
        write_table(self.facts_to_dataframe(), Path(folder) / "facts.csv")

    def _traced(self) -> list[tuple[str, str | None]]:
        return [*((stream, None) for stream in self.streams), *(("resid", stream) for stream in self.severed)]

    @cached_property
    def _lost(self) -> dict[tuple[str, str], Effects]:
        """What severing a stream took away at a role's tokens, where that was asked for."""
        return {}

    @cached_property
    def _by_role(self) -> dict[tuple[str, str | None], dict[str, Effects]]:
        """Effects by what was traced and by role."""
        found = {key: effects_by_role(self.facts, *key, seed=self.seed) for key in self._traced()}
        return {key: roles for key, roles in found.items() if roles}

    def _effects(self, stream: str, severed: str | None) -> dict[str, Effects]:
        if (stream, severed) not in self._by_role:
            what = stream if severed is None else f"{stream} with {severed} severed"
            had = ", ".join(s if cut is None else f"{s} with {cut} severed" for s, cut in self._traced())
            raise SettingError(f"{what!r} was not traced; this average has {had}")
        return self._by_role[stream, severed]

    def _of_role(self, stream: str, role: str, severed: str | None) -> Effects:
        found = self._effects(stream, severed)
        if role not in found:
            raise SettingError(f"no fact has a {role!r} here; this average has {', '.join(found)}")
        return found[role]


def _line(name: str, curve: Curve, colour: str) -> Line:
    return Line(name, curve.mean, curve.low, curve.high, curve.n, colour)


def average_of(records: Sequence[Mapping[str, Any]], settings: Mapping[str, Any]) -> AverageEffect:
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
    return AverageEffect(known, aside, settings, settings["seed"])
