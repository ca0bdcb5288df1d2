"""What figures of small panels share: colours, axes, and how they fit a page."""

from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go

from rome_lens.figures.plotly_text import QUIET, layout_of

GREY = "#868686"
"""The colour of the editor that the others are held against."""

RULE = "rgba(128,128,128,0.25)"
"""The colour of grid lines, on any ground."""

STREAM_COLOURS = {"resid": "#7d5fc0", "mlp": "#2a9d58", "attn": "#d1493f", "heads": "#3b7dd8"}
"""The paper's purple, green and red, and a blue, light enough for dark pages and dark enough for white ones."""

TICKS = {"size": 11, "color": QUIET}
"""The font of an axis's numbers."""

PANELS_A_ROW = 4
NAME_CHARACTERS = 18

# Hues after Okabe and Ito, for colour-blind readers: dark enough for white paper and light enough for black.
HUES = ("#0b7bbf", "#d9600f", "#0f9d74", "#c868a0", "#b98a00", "#7a6fd0", "#c23b4a", "#4d8f2f")


def editor_colours(editors: Sequence[str], reference: str | None) -> list[str]:
    """A colour an editor, in their order; grey for the reference. More than eight share colours."""
    others = [editor for editor in editors if editor != reference]
    return [GREY if editor == reference else HUES[others.index(editor) % len(HUES)] for editor in editors]


def axis_title(drawn: str, *, standoff: int = 8) -> dict[str, Any]:
    """The title of an axis, as plotly draws it."""
    return {"text": drawn, "font": {"size": 12}, "standoff": standoff}


def fluid(figure: go.Figure, *, height: float | None = None) -> go.Figure:
    """A figure made as wide as its box on a page, and `height` pixels high where given; returns the same figure."""
    return figure.update_layout(width=None, autosize=True, height=height or layout_of(figure).height)
