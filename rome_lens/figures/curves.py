"""Quantities by layer as a plotly figure: lines with the bands of their intervals, a panel a group of lines.

All texts are data and pass `literal`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import plotly.graph_objects as go
from plotly.colors import hex_to_rgb

from rome_lens.figures.panel_grid import PanelGrid
from rome_lens.figures.plotly_text import QUIET, line_count, literal, wrapped
from rome_lens.figures.style import RULE, TICKS, axis_title

_GRID = PanelGrid(most=3, width=330, height=250, gap=58, above=34, below=52, left=62, right=24)
# Of the legend, in pixels.
_LINE = 17


@dataclass(frozen=True)
class Line:
    """One quantity by layer.

    Attributes:
        name: of the legend; raw text, as are all texts here.
        mean: [layer].
        low: [layer], where the band begins.
        high: [layer], where it ends.
        n: how many facts, or records, it was taken over.
        colour: as CSS writes it.
    """

    name: str
    mean: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]
    n: int
    colour: str


@dataclass(frozen=True)
class CurvePanel:
    """Lines that share a panel.

    Attributes:
        title: what they show, in words.
        lines: the lines; a name means the same colour in every panel.
        layers: the layer of each number; None counts from 0.
        decimals: of the numbers that a reader is shown.
    """

    title: str
    lines: Sequence[Line]
    layers: Sequence[int] | None = None
    decimals: int = 3


def curve_figure(
    panels: Sequence[CurvePanel],
    *,
    x_title: str,
    y_title: str,
    title: str = "",
    one_scale: bool = True,
) -> go.Figure:
    """A panel a group: layers across, a line a quantity with its band; one legend for all.

    Args:
        panels: the panels.
        x_title: what the layers are, in words.
        y_title: what is shown.
        title: the figure's title; raw text; empty leaves it out.
        one_scale: all panels share their ends; else each has its own.

    Raises:
        ValueError: no line at all.
    """
    if not any(panel.lines for panel in panels):
        raise ValueError("a figure of curves needs a line: got none")
    names = list(dict.fromkeys(line.name for panel in panels for line in panel.lines))
    grid = replace(_GRID, n=len(panels))
    if len(names) > 1:
        legend = "  ".join(f"———{name}" for name in names)
        grid = replace(grid, foot=14 + _LINE * line_count(legend, grid.inner_width, pixels=7.4))
    figure = grid.figure(
        shared_yaxes="all" if one_scale else False,
        subplot_titles=[wrapped(panel.title, grid.width, pixels=7.0) for panel in panels],
    )
    shown: set[str] = set()
    for place, panel in zip(grid.places(figure), panels, strict=True):
        for line in panel.lines:
            for drawn in _traces(panel, line, legend=line.name not in shown):
                place.add(drawn)
            shown.add(line.name)
        place.x_axis(title=axis_title(literal(x_title), standoff=6))
        if y_title and (place.column == 1 or not one_scale):
            place.y_axis(title=axis_title(literal(y_title)))
    quiet = {"gridcolor": RULE, "zerolinecolor": QUIET, "zerolinewidth": 1, "showline": False, "ticks": ""}
    figure.update_xaxes(**quiet, zeroline=False, tickfont=TICKS, nticks=8)
    figure.update_yaxes(**quiet, zeroline=True, tickfont=TICKS, nticks=6, showticklabels=True)
    figure.update_annotations(font={"size": 13})
    return grid.finish(
        figure,
        title,
        room=grid.inner_width,
        showlegend=len(names) > 1,
        legend={
            "orientation": "h",
            "x": 0,
            "xanchor": "left",
            "y": -grid.below / grid.inner_height,
            "yanchor": "top",
            "font": {"size": 12},
        },
    )


def _traces(panel: CurvePanel, line: Line, *, legend: bool) -> list[go.Scatter]:
    """A line's band, as two edges with colour between, and the line itself."""
    x = list(range(len(line.mean)) if panel.layers is None else panel.layers)
    band = {
        "mode": "lines",
        "line": {"width": 0},
        "hoverinfo": "skip",
        "showlegend": False,
        "legendgroup": literal(line.name),
    }
    number = f".{panel.decimals}f"
    thinned = "rgba({},{},{},0.18)".format(*hex_to_rgb(line.colour))
    return [
        go.Scatter(x=x, y=list(line.low), **band),
        go.Scatter(x=x, y=list(line.high), fill="tonexty", fillcolor=thinned, **band),
        go.Scatter(
            x=x,
            y=list(line.mean),
            mode="lines" if len(x) > 1 else "markers",
            name=literal(line.name),
            line={"color": line.colour, "width": 2},
            customdata=list(zip(line.low, line.high, strict=True)),
            hovertemplate=(
                f"<b>{literal(line.name)}</b><br>layer %{{x}}<br>%{{y:{number}}}  "
                f"[%{{customdata[0]:{number}}}, %{{customdata[1]:{number}}}]<br>n = {line.n}<extra></extra>"
            ),
            showlegend=legend,
            legendgroup=literal(line.name),
        ),
    ]
