"""Panels of one size in rows and columns: where they stand, and how large a figure they make, in pixels."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from rome_lens.figures.plotly_text import FONT, INK, layout_of, quietly, wrapped


@dataclass(frozen=True)
class PanelGrid:
    """The sizes of a figure of small panels.

    Attributes:
        most: panels a row, at most.
        width: of a panel.
        height: of a panel.
        gap: between two panels of a row.
        above: what a panel needs above it.
        below: what it needs below it.
        left: what stands left of the first panel of a row.
        right: what stands right of the last one.
        foot: what stands below all panels.
        n: how many panels there are.
    """

    most: int
    width: float
    height: float
    gap: float
    above: float
    below: float
    left: float
    right: float
    foot: float = 0
    n: int = 1

    @property
    def columns(self) -> int:
        return max(1, min(self.most, self.n))

    @property
    def rows(self) -> int:
        return math.ceil(self.n / self.columns)

    @property
    def inner_width(self) -> float:
        """Of all panels with the gaps between them."""
        return self.columns * self.width + (self.columns - 1) * self.gap

    @property
    def inner_height(self) -> float:
        """Of all panels with what stands between them."""
        return self.rows * self.height + (self.rows - 1) * (self.above + self.below)

    def figure(self, **settings: Any) -> go.Figure:
        """A figure of empty panels.

        Args:
            settings: what else plotly's `make_subplots` takes.
        """
        return make_subplots(
            rows=self.rows,
            cols=self.columns,
            horizontal_spacing=self.gap / self.inner_width if self.columns > 1 else 0,
            vertical_spacing=(self.above + self.below) / self.inner_height if self.rows > 1 else 0,
            **settings,
        )

    def places(self, figure: go.Figure) -> Iterator["Place"]:
        """The places of its panels, row by row."""
        for index in range(self.n):
            yield Place(figure, index + 1, index // self.columns + 1, index % self.columns + 1)

    def finish(
        self, figure: go.Figure, title: str, *, room: float, subtitle: str | None = None, **layout: Any
    ) -> go.Figure:
        """Give the figure its size, our letters and colours and its heading; returns the same figure.

        Args:
            figure: with all its panels drawn.
            title: raw text, on as many lines as it needs; empty leaves it out, with what stands below it.
            room: the pixels that a line of the title has.
            subtitle: a line below it, as plotly draws it.
            layout: what else its layout is to hold.
        """
        figure.update_layout(
            template="none",
            font={"family": FONT, "color": INK},
            paper_bgcolor="white",
            plot_bgcolor="white",
            hoverlabel={"bgcolor": "white", "font": {"size": 12, "color": INK}, "align": "left"},
            hovermode="closest",
        )
        top = self.above
        if title:
            drawn, pad = wrapped(title, room, pixels=9.2), 18
            top += 19 + 21 * (drawn.count("<br>") + 1)
            if subtitle is not None:
                drawn, top, pad = f"{drawn}<br>{quietly(subtitle, 12)}", top + 23, 30
            corner = {"x": 0, "xref": "container", "xanchor": "left", "y": 1, "yref": "container", "yanchor": "top"}
            figure.update_layout(title={"text": drawn, "font": {"size": 17}, **corner, "pad": {"l": 16, "t": pad}})
        return figure.update_layout(
            width=round(self.inner_width + self.left + self.right),
            height=round(top + self.inner_height + self.below + self.foot),
            margin={"l": self.left, "r": self.right, "t": top, "b": self.below + self.foot, "pad": 0},
            **layout,
        )


@dataclass(frozen=True)
class Place:
    """The place of one panel in a figure.

    Attributes:
        figure: the figure.
        number: the panel's, from 1, as plotly counts the axes of a grid.
        row: its row, from 1.
        column: its column, from 1.
    """

    figure: go.Figure
    number: int
    row: int
    column: int

    @property
    def axis(self) -> str:
        """What plotly writes behind `x` and `y` for the panel's axes."""
        return "" if self.number == 1 else str(self.number)

    @property
    def domains(self) -> tuple[tuple[float, float], tuple[float, float]]:
        """Where the panel begins and ends, from left to right and from the bottom up, as parts of all."""
        layout = layout_of(self.figure)
        return layout[f"xaxis{self.number}"].domain, layout[f"yaxis{self.number}"].domain

    def add(self, trace: Any) -> None:
        """Draw a trace in the panel."""
        self.figure.add_trace(trace, row=self.row, col=self.column)

    def x_axis(self, **settings: Any) -> None:
        """Set the axis below the panel."""
        self.figure.update_xaxes(**settings, row=self.row, col=self.column)

    def y_axis(self, **settings: Any) -> None:
        """Set the axis left of it."""
        self.figure.update_yaxes(**settings, row=self.row, col=self.column)

    def rows(self, names: Sequence[str], **settings: Any) -> None:
        """Give the panel rows with names, the first at the top: numbers, so that two of a name are two rows.

        Args:
            names: as plotly draws them.
            settings: what else the axis is to have.
        """
        self.y_axis(
            range=[len(names) - 0.5, -0.5],
            tickmode="array",
            tickvals=list(range(len(names))),
            ticktext=list(names),
            **settings,
        )

    def name(self, text: str, *, colour: str | None = None, **settings: Any) -> None:
        """Write a name above the panel, at its left edge.

        Args:
            text: as plotly draws it.
            colour: of the letters; None for the figure's.
            settings: what else the annotation is to have.
        """
        self.figure.add_annotation(
            text=text,
            x=0,
            y=1,
            xref=f"x{self.axis} domain",
            yref=f"y{self.axis} domain",
            xanchor="left",
            yanchor="bottom",
            yshift=3,
            showarrow=False,
            font={"size": 13} | ({} if colour is None else {"color": colour}),
            **settings,
        )
