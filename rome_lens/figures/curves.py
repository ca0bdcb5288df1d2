"""Quantities by layer, or by number of facts, as a plotly figure: lines with the bands of their intervals.

All texts are data and pass `literal`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import plotly.graph_objects as go
from plotly.colors import hex_to_rgb

from rome_lens.figures.panel_grid import PanelGrid
from rome_lens.figures.plotly_text import QUIET, line_count, literal, shortened, wrapped
from rome_lens.figures.style import RULE, TICKS, axis_title

_GRID = PanelGrid(most=3, width=330, height=250, gap=58, above=34, below=52, left=62, right=24)
# Pixels: a line of the legend, a digit below an axis.
_LINE, _DIGIT = 17, 6.5
# Columns of a name in the legend.
_NAME = 40
# Of a logarithmic axis across, free at both ends.
_ROOM = 0.04


@dataclass(frozen=True)
class Across:
    """What the lines run over.

    Attributes:
        words: a place of it in words, `{}` for its number.
        ticks: the places that the axis names, in rising order; None lets the numbers choose.
        logarithmic: the axis counts in powers of ten; it ends at the ticks.
    """

    words: str = "layer {}"
    ticks: Sequence[float] | None = None
    logarithmic: bool = False


@dataclass(frozen=True)
class Line:
    """One quantity at several places: layers, or numbers of facts.

    Attributes:
        name: of the legend; raw text, as are all texts here.
        mean: [place].
        low: [place], where the band begins; None for a line without a band.
        high: [place], where it ends.
        n: how many facts, or records, it was taken over; None where that differs from place to place.
        colour: as CSS writes it; of a line with a band as `#rrggbb`.
        at: the number of each place; None counts from 0.
        dotted: drawn with dots, as what the others are held against.
    """

    name: str
    mean: Sequence[float]
    low: Sequence[float] | None
    high: Sequence[float] | None
    n: int | None
    colour: str
    at: Sequence[float] | None = None
    dotted: bool = False


@dataclass(frozen=True)
class CurvePanel:
    """Lines that share a panel.

    Attributes:
        title: what they show, in words.
        lines: the lines; a name means the same colour in every panel.
        decimals: of the numbers that a reader is shown.
        bounds: the ends of the axis upwards, such as 0 and 100, which gets some room; None lets the numbers choose.
        logarithmic: that axis counts in powers of ten.
    """

    title: str
    lines: Sequence[Line]
    decimals: int = 3
    bounds: tuple[float, float] | None = None
    logarithmic: bool = False


_LAYERS = Across()


def curve_figure(
    panels: Sequence[CurvePanel],
    *,
    x_title: str,
    y_title: str,
    title: str = "",
    one_scale: bool = True,
    across: Across = _LAYERS,
    legend: bool = True,
) -> go.Figure:
    """A panel a group: layers across, a line a quantity with its band; one legend for all.

    Args:
        panels: the panels.
        x_title: what the layers are, in words, or what else the lines run over.
        y_title: what is shown.
        title: the figure's title; raw text; empty leaves it out.
        one_scale: all panels share their ends; else each has its own.
        across: what the lines run over.
        legend: say which line is which, where there are several.

    Raises:
        ValueError: no line at all.
    """
    if not any(panel.lines for panel in panels):
        raise ValueError("a figure of curves needs a line: got none")
    names = list(dict.fromkeys(line.name for panel in panels for line in panel.lines))
    grid = replace(_GRID, n=len(panels))
    legend = legend and len(names) > 1
    if legend:
        entries = "  ".join(f"———{shortened(name, _NAME)}" for name in names)
        grid = replace(grid, foot=14 + _LINE * line_count(entries, grid.inner_width, pixels=7.4))
    figure = grid.figure(
        shared_yaxes="all" if one_scale else False,
        subplot_titles=[wrapped(panel.title, grid.width, pixels=7.0) for panel in panels],
    )
    shown: set[str] = set()
    for place, panel in zip(grid.places(figure), panels, strict=True):
        for line in panel.lines:
            for drawn in _traces(panel, line, across, legend=line.name not in shown):
                place.add(drawn)
            shown.add(line.name)
        place.x_axis(title=axis_title(literal(x_title), standoff=6))
        if y_title and (place.column == 1 or not one_scale):
            place.y_axis(title=axis_title(literal(y_title)))
        if panel.bounds is not None:
            low, high = panel.bounds
            place.y_axis(range=[low - _ROOM * (high - low), high + _ROOM * (high - low)])
        if panel.logarithmic:
            place.y_axis(type="log", dtick=1)
    quiet = {"gridcolor": RULE, "zerolinecolor": QUIET, "zerolinewidth": 1, "showline": False, "ticks": ""}
    figure.update_xaxes(**quiet, zeroline=False, tickfont=TICKS, nticks=8, **_ends_across(across, grid.width))
    figure.update_yaxes(**quiet, zeroline=True, tickfont=TICKS, nticks=6, showticklabels=True)
    figure.update_annotations(font={"size": 13})
    return grid.finish(
        figure,
        title,
        room=grid.inner_width,
        showlegend=legend,
        legend={
            "orientation": "h",
            "x": 0,
            "xanchor": "left",
            "y": -grid.below / grid.inner_height,
            "yanchor": "top",
            "font": {"size": 12},
        },
    )


def _ends_across(across: Across, width: float) -> dict[str, Any]:
    """What the axis across shows: what is given of its ticks, a label wherever one fits behind the one before."""
    if across.ticks is None:
        return {"type": "log"} if across.logarithmic else {}
    ticks = list(across.ticks)
    places = [math.log10(tick) for tick in ticks] if across.logarithmic else ticks
    room = _ROOM * (places[-1] - places[0]) or 0.5
    first, last = places[0] - room, places[-1] + room
    labels: list[str] = []
    free = math.inf
    # The last one is what everything led to: from there to the left.
    for tick, place in zip(reversed(ticks), reversed(places), strict=True):
        half = _DIGIT * len(f"{tick:g} ") / 2
        middle = width * (place - first) / (last - first)
        fits = middle + half <= free
        labels.insert(0, f"{tick:g}" if fits else "")
        free = middle - half if fits else free
    shown = {"tickmode": "array", "tickvals": ticks, "ticktext": labels, "range": [first, last]}
    return {**shown, "type": "log" if across.logarithmic else "linear"}


def _traces(panel: CurvePanel, line: Line, across: Across, *, legend: bool) -> list[go.Scatter]:
    """A line's band, as two edges with colour between, and the line itself."""
    x = list(range(len(line.mean)) if line.at is None else line.at)
    number = f".{panel.decimals}f"
    said = [f"<b>{literal(line.name)}</b>", literal(across.words).format("%{x}"), f"%{{y:{number}}}"]
    drawn: list[go.Scatter] = []
    ends = None
    if line.low is not None and line.high is not None:
        edge = {
            "mode": "lines",
            "line": {"width": 0},
            "hoverinfo": "skip",
            "showlegend": False,
            "legendgroup": literal(line.name),
        }
        thinned = "rgba({},{},{},0.18)".format(*hex_to_rgb(line.colour))
        drawn.append(go.Scatter(x=x, y=list(line.low), **edge))
        drawn.append(go.Scatter(x=x, y=list(line.high), fill="tonexty", fillcolor=thinned, **edge))
        ends = list(zip(line.low, line.high, strict=True))
        said[-1] += f"  [%{{customdata[0]:{number}}}, %{{customdata[1]:{number}}}]"
    if line.n is not None:
        said.append(f"n = {line.n}")
    style = {"color": line.colour, "width": 2} | ({"dash": "dot"} if line.dotted else {})
    drawn.append(
        go.Scatter(
            x=x,
            y=list(line.mean),
            mode="lines" if len(x) > 1 else "markers",
            name=literal(shortened(line.name, _NAME)),
            line=style,
            customdata=ends,
            hovertemplate="<br>".join(said) + "<extra></extra>",
            showlegend=legend,
            legendgroup=literal(line.name),
        )
    )
    return drawn
