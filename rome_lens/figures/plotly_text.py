"""What every plotly figure shares: its letters, its colours, its buttons, and texts that plotly draws as they are.

Labels, answers and titles are data. plotly reads a dialect of HTML, entities, `%{...}` and, where a page has MathJax,
`$...$` in every text it draws, so each text passes `literal` first.
"""

import html
from typing import Any

import plotly.graph_objects as go

from rome_lens.figures.visible import cut, lines_of, visible

INK, QUIET = "#1a1a1a", "#5c5c5c"
FONT = "Helvetica Neue, Helvetica, Arial, Liberation Sans, DejaVu Sans, sans-serif"
SCALE = 3
"""Device pixels a layout pixel in a PNG: about 300 dots an inch across a page."""

LABEL_CHARACTERS = 28
"""Columns of a label, counted as a terminal counts them."""

PAGE_CONFIG = {
    "displaylogo": False,
    "showSendToCloud": False,
    "plotlyServerURL": "",
    "toImageButtonOptions": {"scale": SCALE, "filename": "rome-lens"},
}
"""Settings of plotly for a page, without the button that uploads the chart to a server.

A page that leaves the machine is the user's to send.
"""


def layout_of(figure: go.Figure) -> Any:
    """The figure's layout; plotly declares its attributes in a way that type checkers cannot follow."""
    return figure.layout


def literal(text: str) -> str:
    """Text as plotly draws it unread: control characters made visible, what its dialects know escaped."""
    shown = html.escape(visible(text), quote=False)
    # Entities are decoded after formulas and %{...} were looked for. A space at an end would be dropped by SVG.
    shown = shown.replace("$", "&#36;").replace("%", "&#37;")
    return "\u00a0" + shown[1:] if shown.startswith(" ") else shown


def shortened(text: str, columns: int = LABEL_CHARACTERS) -> str:
    """Text made visible and cut to the room of a label."""
    return cut(visible(text), columns)


def wrapped(text: str, room: float, *, pixels: float) -> str:
    """Literal text on lines of about `room` pixels, for a font whose average character takes `pixels`."""
    return "<br>".join(map(literal, lines_of(visible(text).split(" "), room / pixels)))


def quietly(drawn: str, size: int = 11) -> str:
    """What plotly draws, in small grey letters."""
    return f'<span style="font-size:{size}px;color:{QUIET}">{drawn}</span>'


def line_count(text: str, room: float, *, pixels: float) -> int:
    """How many lines `wrapped` puts the text on."""
    return wrapped(text, room, pixels=pixels).count("<br>") + 1
