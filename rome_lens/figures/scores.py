"""Scores as a plotly figure: a small panel a metric, a line an editor.

Metrics differ in unit and size, so that each has a panel and an axis of its own: no two of them are compared by length.
All texts are data and pass `literal`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import plotly.graph_objects as go
from rich.cells import cell_len

from rome_lens.figures.format import format_score
from rome_lens.figures.panel_grid import PanelGrid, Place
from rome_lens.figures.plotly_text import literal, quietly, shortened
from rome_lens.figures.style import GREY, NAME_CHARACTERS, PANELS_A_ROW, RULE, TICKS, editor_colours
from rome_lens.intervals import Estimate

# Pixels: of a row, of the numbers right of a panel, of a character of a label.
_ROW, _VALUE, _CHARACTER = 24, 46, 6.9
_GRID = PanelGrid(
    most=PANELS_A_ROW, width=190, height=_ROW, gap=_VALUE + 22, above=46, below=34, left=16, right=_VALUE + 8
)


@dataclass(frozen=True)
class MetricPanel:
    """One metric of several editors, ready to draw.

    Attributes:
        name: the metric's, such as `ES`; raw text, as are all texts here.
        title: what it measures, in a few words.
        intervals: editor -> what it reached; an editor without the metric is missing, its line stays empty.
        bounds: the axis's ends where the metric has them, such as 0 and 100; None lets the numbers choose.
        anchor: a value that the axis always shows, such as 0 for a difference.
        logarithmic: the axis counts in powers of ten.
        decimals: of the numbers that are written out.
    """

    name: str
    title: str
    intervals: Mapping[str, Estimate]
    bounds: tuple[float, float] | None = None
    anchor: float | None = None
    logarithmic: bool = False
    decimals: int = 1


def score_figure(
    panels: Sequence[MetricPanel],
    *,
    editors: Sequence[str],
    title: str = "",
    reference: str | None = None,
) -> go.Figure:
    """A panel a metric: a line an editor, a point for the mean and a bar for the interval, the mean in figures beside.

    Args:
        panels: one metric each.
        editors: their names from the top; the order also gives each its colour, the same in every figure.
        title: the figure's title; raw text; empty leaves it out.
        reference: the editor that the others are held against: grey, with a dotted line through the panel.

    Raises:
        ValueError: no panel, or no editor.
    """
    if not panels or not editors:
        raise ValueError(f"a figure of scores needs both: got {len(panels)} metrics and {len(editors)} editors")
    names = [shortened(editor, NAME_CHARACTERS) for editor in editors]
    label_room = _GRID.left + _CHARACTER * max(map(cell_len, names))
    grid = replace(_GRID, n=len(panels), height=_ROW * len(editors), left=label_room)
    figure = grid.figure()
    for place, panel in zip(grid.places(figure), panels, strict=True):
        _draw(place, panel, editors=editors, names=names, reference=reference)
    return grid.finish(figure, title, room=grid.inner_width + grid.left, showlegend=False)


def _draw(
    place: Place, panel: MetricPanel, *, editors: Sequence[str], names: Sequence[str], reference: str | None
) -> None:
    """Draw one metric in its place."""
    for line, (editor, colour) in enumerate(zip(editors, editor_colours(editors, reference), strict=True)):
        interval = panel.intervals.get(editor)
        if interval is None:
            continue
        # The mean in figures, right of the panel.
        place.figure.add_annotation(
            text=format_score(interval.mean, panel.decimals),
            x=1,
            y=line,
            xref=f"x{place.axis} domain",
            yref=f"y{place.axis}",
            xanchor="right",
            xshift=_VALUE,
            showarrow=False,
            font={"size": 12},
        )
        if _drawable(interval.mean, panel.logarithmic):
            place.add(_interval(panel, interval, line, editor=editor, colour=colour))
    if reference is not None and reference in panel.intervals:
        mean = panel.intervals[reference].mean
        if _drawable(mean, panel.logarithmic):
            style = {"color": GREY, "width": 1, "dash": "dot"}
            place.figure.add_vline(mean, line=style, layer="below", row=place.row, col=place.column)  # pyright: ignore
    quiet = {"showline": False, "zeroline": False, "ticks": "", "fixedrange": True}
    place.x_axis(
        **quiet,
        range=_range(panel),
        type="log" if panel.logarithmic else "linear",
        showgrid=True,
        gridcolor=RULE,
        nticks=5,
        dtick=1 if panel.logarithmic else None,
        tickfont=TICKS,
    )
    place.rows(
        [literal(name) for name in names],
        **quiet,
        tickfont={"size": 12},
        showgrid=False,
        showticklabels=place.column == 1,
        ticklabelstandoff=6,
    )
    place.name(f"<b>{literal(panel.name)}</b><br>{quietly(literal(shortened(panel.title, 40)))}", align="left")


def _interval(panel: MetricPanel, interval: Estimate, line: int, *, editor: str, colour: str) -> go.Scatter:
    """A point for the mean, and a bar for the interval."""
    reach = [interval.high - interval.mean], [interval.mean - interval.low]
    above, below = ([max(0.0, r) if math.isfinite(r) else 0.0 for r in side] for side in reach)
    mean, low, high = (format_score(end, panel.decimals) for end in (interval.mean, interval.low, interval.high))
    bar = {"type": "data", "symmetric": False, "array": above, "arrayminus": below}
    return go.Scatter(
        x=[interval.mean],
        y=[line],
        mode="markers",
        name=literal(editor),
        marker={"color": colour, "size": 9},
        error_x=bar | {"color": colour, "thickness": 2, "width": 4},
        hovertemplate=(
            f"<b>{literal(editor)}</b><br>{literal(panel.name)} {mean}  [{low}, {high}]<br>"
            f"{interval.n} record{'' if interval.n == 1 else 's'}<extra></extra>"
        ),
        cliponaxis=False,
    )


def _drawable(value: float, logarithmic: bool) -> bool:
    return math.isfinite(value) and (value > 0 or not logarithmic)


def _range(panel: MetricPanel) -> list[float]:
    """The ends of a panel's axis, with room for whole points at both; of a logarithmic one their logarithms."""
    if panel.bounds is not None:
        low, high = panel.bounds
    else:
        ends = [end for i in panel.intervals.values() for end in (i.mean, i.low, i.high)]
        if panel.anchor is not None:
            ends.append(panel.anchor)
        ends = [end for end in ends if _drawable(end, panel.logarithmic)] or [1.0]
        low, high = min(ends), max(ends)
    if panel.logarithmic:
        low, high = math.log10(low), math.log10(high)
    room = 0.05 * (high - low) or 0.5
    return [low - room, high + room]
