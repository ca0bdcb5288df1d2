"""A page to explore one fact: its grids, what each cell says, and what is chosen compared over grids and states.

The page is one file, a few hundred kB, and asks for nothing from a network.
"""

import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

from rome_lens.figures.heat_map import HeatMap
from rome_lens.figures.page import render_page
from rome_lens.figures.style import STREAM_COLOURS
from rome_lens.figures.visible import visible

# Of a score; more than the page shows.
_DIGITS = 7


def explorer_page(
    states: Mapping[str, Sequence[HeatMap]],
    *,
    heading: str,
    lines: Sequence[str],
    notes: Sequence[str],
    measure: str,
    settings: Mapping[str, Any],
) -> str:
    """The page of a trace.

    Args:
        states: the grids, by what the model carried: one state, or two with the same grids.
        heading: what was asked, and the answer. All texts are raw: they are shown as they are.
        lines: what stands below it.
        notes: what is worth knowing.
        measure: what the numbers are.
        settings: what the numbers depend on.
    """
    every = [(number, heat_map) for number, maps in enumerate(states.values()) for heat_map in maps]
    drawn = [heat_map for _, heat_map in every]
    grids = [_grid(heat_map, number, heat_map.shared_scale(drawn)) for number, heat_map in every]
    content = {"grids": grids, "states": list(states), "measure": visible(measure)}
    # No text ends the script, whatever it holds.
    data = json.dumps(content, ensure_ascii=False, allow_nan=False).replace("<", "\\u003c")
    room = files("rome_lens.figures")
    return render_page(
        room.joinpath("explorer.html.j2").read_text("utf-8"),
        settings=settings,
        title=heading,
        heading=heading,
        colours=STREAM_COLOURS,
        lines=lines,
        notes=notes,
        grids=data,
        script=room.joinpath("explorer.js").read_text("utf-8"),
    )


def _grid(heat_map: HeatMap, state: int, ends: tuple[float, float]) -> dict[str, Any]:
    """One grid as the page's script reads it; `ends` are those of its colours."""
    return {
        "stream": heat_map.stream,
        "state": state,
        "title": visible(heat_map.title),
        "name": visible(heat_map.title.removeprefix("Restoring the ")),
        "axis": heat_map.layer_title,
        "labels": [visible(label) for label in heat_map.labels],
        "first": heat_map.first,
        "heads": heat_map.of_heads,
        "falls": heat_map.falls,
        "low": heat_map.low,
        "high": heat_map.high,
        "ends": ends,
        "peak": None if heat_map.blank else heat_map.peak,
        "scores": [[float(f"{score:.{_DIGITS}g}") for score in row] for row in heat_map.scores],
        "said": [[visible(said) for said in row] for row in heat_map.said],
    }
