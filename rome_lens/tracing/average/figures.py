"""An average as plotly figures. The figures know no facts: here it becomes the plain records that they draw."""

from typing import TYPE_CHECKING

from rome_lens.errors import SettingError
from rome_lens.figures import HeatMap
from rome_lens.figures.curves import CurvePanel, Line, curve_figure
from rome_lens.figures.plotly_figure import heat_map_figure
from rome_lens.figures.style import HUES, STREAM_COLOURS
from rome_lens.tracing.average.result import EARLY, AverageEffect, Curve
from rome_lens.tracing.result import RESTORED
from rome_lens.tracing.roles import ROLES

if TYPE_CHECKING:
    import plotly.graph_objects as go

SEVERED_IN_WORDS = {"mlp": "MLPs severed", "attn": "attention severed"}
_EFFECT = "average indirect effect"
_ROLE_COLOURS: dict[str, str] = dict(zip(ROLES, HUES, strict=False))


def average_figures(average: AverageEffect) -> dict[str, "go.Figure"]:
    """`roles`: a heat map a stream; `layers`: a panel a stream, a line a role; `severed`: figure 3 of the paper."""
    figures = {
        "roles": heat_map_figure(heat_maps(average), title=_title(average), subtitle=_subtitle(average)),
        "layers": layers_figure(average, title=_title(average)),
    }
    cut = severed_figure(average, title=_title(average))
    if cut is not None:
        figures["severed"] = cut
    return figures


def heat_maps(average: AverageEffect) -> list[HeatMap]:
    """The average effects of a stream as a grid of roles and layers."""
    window = average.settings["prepared"]["window"]
    maps = []
    for stream in average.streams:
        roles = average.roles(stream)
        curves = [average.curve(stream, role) for role in roles]
        maps.append(
            HeatMap(
                stream=stream,
                scores=[[curve.mean[layer] for curve in curves] for layer in range(average.n_layers)],
                labels=roles,
                low=0.0,
                high=0.0,
                answer="the answer",
                title=f"Restoring the {RESTORED[stream]}{_how(average)}",
                layer_title="restored layer" if stream == "resid" else f"centre of {window} restored layers",
                measure="AIE",
            )
        )
    return maps


def layers_figure(average: AverageEffect, *, title: str = "") -> "go.Figure":
    """A panel a stream, a line a role, with bands."""
    panels = [
        CurvePanel(
            f"Restoring the {RESTORED[stream]}{_how(average)}",
            [_line(role, average.curve(stream, role), _ROLE_COLOURS[role]) for role in average.roles(stream)],
        )
        for stream in average.streams
    ]
    return curve_figure(panels, x_title="layer", y_title=_EFFECT, title=title, one_scale=False)


def severed_figure(average: AverageEffect, *, title: str = "", role: str = EARLY[1]) -> "go.Figure | None":
    """The effect of restoring the residual at a role's tokens, ordinary and severed, and what severing takes away.

    None where nothing was severed, or no fact has the role.
    """
    try:
        whole = [_line("ordinary", average.curve("resid", role), STREAM_COLOURS["resid"])]
        cut = [
            _line(SEVERED_IN_WORDS[stream], average.curve("resid", role, severed=stream), STREAM_COLOURS[stream])
            for stream in average.severed
        ]
        lost = [
            _line(SEVERED_IN_WORDS[stream], average.lost(stream, role), STREAM_COLOURS[stream])
            for stream in average.severed
        ]
    except SettingError:
        return None
    if not cut:
        return None
    panels = [
        CurvePanel(f"Restoring the residual state, {role}", whole + cut),
        CurvePanel("What severing takes away: each fact against itself", lost),
    ]
    return curve_figure(panels, x_title="restored layer", y_title=_EFFECT, title=title)


def _line(name: str, curve: Curve, colour: str) -> Line:
    return Line(name, curve.mean, curve.low, curve.high, curve.n, colour)


def _how(average: AverageEffect) -> str:
    return " (attribution patching: an approximation)" if average.approximate else ""


def _title(average: AverageEffect) -> str:
    model = average.settings["model"]["name"]
    return f"Average effect of {len(average.facts)} facts · {model}"


def _subtitle(average: AverageEffect) -> str:
    total, high, low = average.total_effect, average.high, average.low
    return (
        f"p(answer): {high.mean:.3f} in the clean run, {low.mean:.3f} with the subject corrupted; "
        f"total effect {total.mean:.3f} [{total.low:.3f}, {total.high:.3f}]"
    )
