"""Which facts of a set disturb which, as a plotly figure: a heat map of pairs, and what each falls short by beside it.

All texts are data and pass `literal`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go
from rich.cells import cell_len

from rome_lens.figures.panel_grid import PanelGrid, Place
from rome_lens.figures.plotly_text import QUIET, line_count, literal, shortened, wrapped
from rome_lens.figures.style import HUES, RULE, TICKS, axis_title

_CHARACTER = 6.7
_GAP, _LINE, _BARS = 26, 16, 120
_BELOW = 48  # the axes' numbers and titles
_SCALE = 74  # the colour bar with its numbers, right of all
_OWN = "#e6e6e6"
_ADDED = "what a fact's part of the update adds at another's key, over what was missing there"
_DISTURBER, _SHORT = "number of the fact that adds it", "shortfall"


@dataclass(frozen=True)
class DisturbedFact:
    """One fact of a set, ready to draw.

    Attributes:
        number: the fact's number in its set.
        name: what it is called on an axis, in a few words; raw text, as are all texts here.
        words: what was asked, in full.
        shortfall: what it will lack, as a share of what was missing.
        added: what each of the facts that are drawn adds to the value at its key, in their order, as such a share; what
            stands for itself is not drawn.
    """

    number: int
    name: str
    words: str
    shortfall: float
    added: Sequence[float]


def disturbance_figure(facts: Sequence[DisturbedFact], *, title: str, subtitle: str) -> go.Figure:
    """Who disturbs whom: a row for each fact, a column for each that adds to the value at its key, and its shortfall.

    Args:
        facts: from the top.
        title: the figure's title; raw text; empty leaves it out, with what stands below it.
        subtitle: a line below it; raw text.

    Raises:
        ValueError: no fact, or one of them with another number of shares than there are facts.
    """
    if not facts:
        raise ValueError("a figure of facts needs one: got none")
    for fact in facts:
        if len(fact.added) != len(facts):
            raise ValueError(f"fact {fact.number} has {len(fact.added)} shares for {len(facts)} facts")
    # The numbers stand in line, next to the rows that they are the numbers of.
    names = [f"{shortened(fact.name, 36)}   {fact.number}" for fact in facts]
    cell = min(24.0, max(14.0, 500 / len(facts)))
    width, height = max(300.0, cell * len(facts)), max(72.0, cell * len(facts))
    grid = PanelGrid(
        n=2,
        most=2,
        width=(width + _BARS) / 2,
        height=height,
        gap=_GAP,
        above=10 + _LINE * line_count(_ADDED, width, pixels=6.4),
        below=_BELOW,
        left=22 + _CHARACTER * max(map(cell_len, names)),
        right=_SCALE,
    )
    figure = grid.figure(column_widths=[width, _BARS])
    pairs, short = grid.places(figure)
    _draw_pairs(pairs, facts, width=width, right=(grid.inner_width + 8) / grid.inner_width)
    _draw_shortfall(short, facts)
    letters = {"size": 12 if cell >= 15 else 10.5}
    labels = [literal(name) for name in names]
    pairs.rows(labels, **_quiet(), tickfont=letters, ticklabelstandoff=5)
    short.rows(labels, **_quiet(), showticklabels=False)
    return grid.finish(
        figure, title, room=grid.inner_width + grid.left, subtitle=literal(subtitle), showlegend=False, bargap=0.25
    )


def which_facts(n_drawn: int, n: int) -> str:
    """Words below such a figure: which facts of a set it draws, and what has no colour.

    Args:
        n_drawn: facts that are drawn.
        n: facts in the set.
    """
    which = f"{n} fact{'' if n == 1 else 's'}"
    if n_drawn != n:
        which = f"{n_drawn} of {n} facts, the most disturbed and what disturbs them"
    return f"{which}; grey is a fact's own part"


def _quiet() -> dict[str, Any]:
    return {"showgrid": False, "zeroline": False, "ticks": "", "showline": False}


def _draw_pairs(place: Place, facts: Sequence[DisturbedFact], *, width: float, right: float) -> None:
    """The heat map of pairs; `right` is where its colour bar begins."""
    numbers = list(range(len(facts)))
    others = [[None if column == row else facts[row].added[column] for column in numbers] for row in numbers]
    largest = max((share for row in others for share in row if share is not None), default=0.0)
    # One that adds more than all that was missing would take the colour from the others.
    top = min(largest, 1.0) or 1.0
    ticks = [top * part / 4 for part in range(5)]
    place.add(
        go.Heatmap(
            x=numbers,
            y=numbers,
            z=others,
            customdata=[[[literal(one.words), literal(other.words)] for other in facts] for one in facts],
            hovertemplate="at the key of “%{customdata[0]}”<br>“%{customdata[1]}” adds %{z:.3f}<extra></extra>",
            hoverongaps=False,
            colorscale="Purples",
            zmin=0,
            zmax=top,
            xgap=0.5,
            ygap=0.5,
            colorbar={
                "thickness": 11,
                "x": right,
                "xanchor": "left",
                "xpad": 0,
                "ypad": 0,
                "outlinewidth": 0,
                "tickvals": ticks,
                "ticktext": [f"{tick:.2g}" for tick in ticks[:-1]] + [f"{'≥ ' * (largest > top)}{top:.2g}"],
                "tickfont": {"size": 10.5, "color": QUIET},
            },
        )
    )
    place.add(
        go.Heatmap(
            x=numbers,
            y=numbers,
            z=[[0 if column == row else None for column in numbers] for row in numbers],
            colorscale=[[0, _OWN], [1, _OWN]],
            showscale=False,
            hoverinfo="skip",
            xgap=0.5,
            ygap=0.5,
        )
    )
    labels = [str(fact.number) for fact in facts]
    crowded = len(facts) > 12 and max(map(len, labels)) > 1
    place.x_axis(
        **_quiet(),
        range=[-0.5, len(facts) - 0.5],
        tickmode="array",
        tickvals=numbers,
        ticktext=labels,
        tickangle=-90 if crowded else 0,
        tickfont=TICKS,
        title=axis_title(_DISTURBER, standoff=6),
    )
    place.name(wrapped(_ADDED, width, pixels=6.4), align="left")


def _draw_shortfall(place: Place, facts: Sequence[DisturbedFact]) -> None:
    """A bar for what each fact will lack."""
    place.add(
        go.Bar(
            x=[fact.shortfall for fact in facts],
            y=list(range(len(facts))),
            orientation="h",
            marker={"color": HUES[0]},
            customdata=[literal(fact.words) for fact in facts],
            hovertemplate="“%{customdata}”<br>falls short by %{x:.3f}<extra></extra>",
        )
    )
    place.x_axis(
        range=[0, max(0.01, 1.05 * max(fact.shortfall for fact in facts))],
        showgrid=True,
        gridcolor=RULE,
        zeroline=True,
        zerolinecolor=QUIET,
        ticks="",
        nticks=3,
        tickfont=TICKS,
    )
    place.name(_SHORT)
