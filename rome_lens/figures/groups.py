"""Two scores of every group of records as a plotly figure: a small cloud an editor, rings for the reference.

All texts are data and pass `literal`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import plotly.graph_objects as go

from rome_lens.figures.panel_grid import PanelGrid
from rome_lens.figures.plotly_text import literal, shortened
from rome_lens.figures.style import NAME_CHARACTERS, PANELS_A_ROW, RULE, TICKS, axis_title, editor_colours

_GRID = PanelGrid(most=PANELS_A_ROW, width=210, height=210, gap=26, above=30, below=30, left=56, right=16, foot=22)
# Of a point, in pixels.
_LARGEST, _SMALLEST = 24.0, 6.0
_RING = "rgba(128,128,128,0.6)"


@dataclass(frozen=True)
class GroupPoint:
    """Two scores of one group of records, such as a relation.

    Attributes:
        name: the group's; raw text.
        x: the score across, in percent.
        y: the score upwards, in percent.
        n: how many records the group has.
    """

    name: str
    x: float
    y: float
    n: int


def group_figure(
    groups: Mapping[str, Sequence[GroupPoint]],
    *,
    x_title: str,
    y_title: str,
    title: str = "",
    reference: str | None = None,
    shown: Sequence[str] | None = None,
) -> go.Figure:
    """A panel an editor, a point a group: one score across, another upwards; the more records, the larger the point.

    Args:
        groups: editor -> its groups; the order gives the colours, as in `score_figure`.
        x_title: what the score across is, in words.
        y_title: what the other is.
        title: the figure's title; raw text; empty leaves it out.
        reference: the editor that the others are held against: grey, and as rings behind the others' points.
        shown: the editors that get a panel; None for all that have a point.

    Raises:
        ValueError: no point at all.
    """
    shown = [editor for editor in (groups if shown is None else shown) if groups[editor]]
    if not shown:
        raise ValueError("a figure of groups needs a point: got none")
    most = max(point.n for points in groups.values() for point in points)
    colours = dict(zip(groups, editor_colours(list(groups), reference), strict=True))
    grid = replace(_GRID, n=len(shown))
    figure = grid.figure()
    for place, editor in zip(grid.places(figure), shown, strict=True):
        if reference is not None and reference in groups and editor != reference:
            place.add(_cloud(groups[reference], most, editor=reference, colour=None, axes=(x_title, y_title)))
        place.add(_cloud(groups[editor], most, editor=editor, colour=colours[editor], axes=(x_title, y_title)))
        axis: dict[str, Any] = {
            "range": [-5, 105],
            "tickvals": [0, 25, 50, 75, 100],
            "gridcolor": RULE,
            "zeroline": False,
            "ticks": "",
            "tickfont": TICKS,
        }
        lowest, first = place.number + grid.columns > len(shown), place.column == 1
        place.x_axis(**axis, title=axis_title(literal(x_title) if lowest else ""))
        place.y_axis(**axis, title=axis_title(literal(y_title) if first else ""), showticklabels=first)
        place.name(f"<b>{literal(shortened(editor, NAME_CHARACTERS))}</b>", colour=colours[editor])
    return grid.finish(figure, title, room=grid.inner_width, showlegend=False)


def _cloud(
    points: Sequence[GroupPoint], most: int, *, editor: str, colour: str | None, axes: tuple[str, str]
) -> go.Scatter:
    """The points of one editor; without a colour as rings that say nothing under the pointer."""
    # Large ones first: a small one must not lie hidden under them.
    drawn = sorted((p for p in points if math.isfinite(p.x + p.y)), key=lambda p: (-p.n, p.name))
    sizes = [max(_SMALLEST, _LARGEST * math.sqrt(p.n / most)) for p in drawn]
    cloud = go.Scatter(
        x=[p.x for p in drawn],
        y=[p.y for p in drawn],
        mode="markers",
        name=literal(editor),
        marker={"color": "rgba(0,0,0,0)", "size": sizes, "line": {"color": _RING, "width": 1}},
        hoverinfo="skip",
        cliponaxis=False,
    )
    if colour is not None:
        across, upwards = map(literal, axes)
        cloud.update(
            marker={"color": colour, "opacity": 0.55, "line": {"color": colour}},
            customdata=[[literal(p.name), f"{p.n} record{'' if p.n == 1 else 's'}"] for p in drawn],
            hoverinfo=None,
            hovertemplate=(
                f"<b>{literal(editor)}</b><br>%{{customdata[0]}}, %{{customdata[1]}}<br>"
                f"{across}: %{{x:.1f}}<br>{upwards}: %{{y:.1f}}<extra></extra>"
            ),
        )
    return cloud
