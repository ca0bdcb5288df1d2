"""A page to explore one fact: its grids, what each cell says, and what is chosen compared over grids and states.

The page is one file, a few hundred kB, and asks for nothing from a network.
"""

import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

from rome_lens.figures.heat_map import HeatMap
from rome_lens.figures.page import render_page
from rome_lens.figures.visible import visible

# Of a score; more than the page shows.
_DIGITS = 7


def explorer_page(
    states: Mapping[str, Sequence[HeatMap]],
    *,
    heading: str,
    lines: Sequence[str],
    notes: Sequence[str],
    settings: Mapping[str, Any],
) -> str:
    """The page of a trace.

    Args:
        states: the grids, by what the model carried: one state, or two with the same grids.
        heading: what was asked, and the answer. All texts are raw: they are shown as they are.
        lines: what stands below it.
        notes: what is worth knowing.
        settings: what the numbers depend on.
    """
    first = next(iter(states.values()))[0]
    grids = [_grid(heat_map, number) for number, maps in enumerate(states.values()) for heat_map in maps]
    content = {
        "grids": grids,
        "states": list(states),
        "measure": visible(first.measure or f"p({first.answer.strip()})"),
    }
    # No text ends the script, whatever it holds.
    data = json.dumps(content, ensure_ascii=False, allow_nan=False).replace("<", "\\u003c").replace("\u2028", "\\u2028")
    room = files("rome_lens.figures")
    return render_page(
        room.joinpath("explorer.html.j2").read_text("utf-8"),
        settings=settings,
        title=heading,
        heading=heading,
        lines=lines,
        notes=notes,
        grids=data,
        script=room.joinpath("explorer.js").read_text("utf-8"),
    )


def _grid(heat_map: HeatMap, state: int) -> dict[str, Any]:
    """One grid as the page's script reads it."""
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
        "top": heat_map.top,
        "peak": heat_map.peak,
        "scores": [[float(f"{score:.{_DIGITS}g}") for score in row] for row in heat_map.scores],
        "said": [[visible(said) for said in row] for row in heat_map.said],
    }
