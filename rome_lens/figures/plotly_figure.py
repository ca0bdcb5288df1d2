"""The heat maps of a trace as one plotly figure: a panel a stream, side by side, as the ROME paper prints them."""

from collections.abc import Sequence

import plotly.graph_objects as go
from rich.cells import cell_len

from rome_lens.figures.format import format_probability
from rome_lens.figures.heat_map import HeatMap
from rome_lens.figures.panel_grid import PanelGrid, Place
from rome_lens.figures.plotly_text import INK, QUIET, line_count, literal, quietly, shortened, wrapped
from rome_lens.figures.style import axis_title

_COLOURS = {"resid": "Purples", "mlp": "Greens", "attn": "Reds", "heads": "Blues"}
_PANELS_A_ROW = 3
# Pixels. A label's character is as wide as a digit of the label's font; wide characters count twice, as in a terminal.
_CHARACTER = 6.7
_GAP, _LINE, _BAR = 34, 16, 11
_BAR_ROOM = 58  # of a colour bar with its numbers, below the axis
_MODE_BAR = 200  # the buttons at the top right of the page
_OUTSIDE = {"ticks": "outside", "ticklen": 3, "tickcolor": QUIET}


def heat_map_figure(
    maps: Sequence[HeatMap], *, title: str, subtitle: str | None = None, columns: int = _PANELS_A_ROW
) -> go.Figure:
    """One figure of several heat maps: tokens down, the first at the top; layers across; three panels a row at most.

    Panels share one colour scale, from the lowest `low` to the highest that any panel holds, so that a shade means the
    same everywhere; so do those of single heads; of effects each has its own. Each panel has its bar in its own hue.
    The peak is framed.

    Args:
        maps: one heat map a panel.
        title: the figure's title; raw text, shown as it is; empty leaves it out, with what stands below it.
        subtitle: a line below it; raw text; None says what the answer's probability was.
        columns: panels a row.

    Raises:
        ValueError: no map at all.
    """
    if not maps:
        raise ValueError("a figure needs a heat map: got none")
    columns = min(columns, _PANELS_A_ROW, len(maps))
    # The released figures repeat the labels in every panel; panels that agree read faster with one column of them.
    shared = all(list(m.labels) == list(maps[0].labels) for m in maps)
    label_room = 18 + _CHARACTER * max(cell_len(shortened(label)) for m in maps for label in m.labels)
    layers, tokens = max(len(m.scores) for m in maps), max(len(m.labels) for m in maps)
    width = max(300.0, min(430.0, 9.0 * layers)) if columns > 1 else max(460.0, min(640.0, 12.0 * layers))
    axis_room = 32 + _LINE * max(line_count(m.layer_title, width, pixels=6.2) for m in maps)
    grid = PanelGrid(
        n=len(maps),
        most=columns,
        width=width,
        height=tokens * min(24.0, max(13.0, 500 / tokens)),
        gap=_GAP if shared else _GAP + label_room,
        above=34 + _LINE * max(line_count(m.title, width, pixels=7.0) for m in maps),
        below=axis_room + _BAR_ROOM,
        left=label_room,
        right=40,
    )
    figure = grid.figure()
    for place, heat_map in zip(grid.places(figure), maps, strict=True):
        _draw(place, heat_map, grid, heat_map.shared_scale(maps), labelled=place.column == 1 or not shared)
    if subtitle is None:
        high, low = format_probability(maps[0].high), format_probability(maps[0].low)
        clean = f"{high} in the clean run, {low} with the subject corrupted"
        below_title = f"{_measure(maps[0])}: {clean}; * marks the subject"
    else:
        below_title = literal(subtitle)
    return grid.finish(figure, title, room=grid.inner_width + label_room - _MODE_BAR, subtitle=below_title)


def _draw(place: Place, heat_map: HeatMap, grid: PanelGrid, ends: tuple[float, float], *, labelled: bool) -> None:
    """Draw one heat map in its place; `ends` are those of the colour scale."""
    layers, tokens = range(len(heat_map.scores)), range(len(heat_map.labels))
    ((left, right), (low_edge, high_edge)), (bottom, top) = place.domains, ends
    names = [literal(label) for label in heat_map.labels]
    measure = _measure(heat_map)
    place.add(
        go.Heatmap(
            x=list(layers),
            y=list(tokens),  # numbers, not labels: two equal tokens are two rows
            z=[[heat_map.score(layer, pos) for layer in layers] for pos in tokens],
            customdata=[[[names[row], *_beside(heat_map, layer, row)] for layer in layers] for row in tokens],
            hovertemplate=_hover(heat_map, measure),
            colorscale=_COLOURS.get(heat_map.stream, "Greys"),
            reversescale=heat_map.falls,
            zmin=bottom,
            zmax=top if top > bottom else bottom + 1e-6,
            xgap=0.5,
            ygap=0.5,
            colorbar={
                "title": {"text": measure, "side": "top", "font": {"size": 12}},
                "orientation": "h",
                "thickness": _BAR,
                "len": 0.6 * (right - left),
                "x": (left + right) / 2,
                "xanchor": "center",
                "y": low_edge - (grid.below - _BAR_ROOM) / grid.inner_height,
                "yanchor": "top",
                "ypad": 0,
                "tickfont": {"size": 10.5, "color": QUIET},
                # The ends of the scale are what the reader looks for; three values between them.
                "tickvals": [bottom + (top - bottom) * part / 4 for part in range(5)] if top > bottom else [bottom],
                "tickformat": ".2f" if top - bottom > 0.05 else ".2~g",
                "outlinewidth": 0,
                **_OUTSIDE,
            },
        )
    )
    frame = {"showline": True, "linecolor": QUIET, "linewidth": 1, "mirror": True, "zeroline": False}
    frame |= {"showgrid": False, **_OUTSIDE}
    place.x_axis(
        **frame,
        range=[-0.5, len(layers) - 0.5],
        # At most about a dozen numbers.
        dtick=next((step for step in (1, 2, 5, 10, 20, 50) if len(layers) / step <= 13), 100),
        tick0=0,
        tickfont={"size": 11},
        title=axis_title(wrapped(heat_map.layer_title, grid.width, pixels=6.2), standoff=6),
    )
    place.rows(
        [literal(shortened(label)) for label in heat_map.labels],
        **frame,
        tickfont={"size": 12 if grid.height / len(tokens) >= 15 else 10},
        showticklabels=labelled,
    )
    peak = "no peak: every score is 0"
    if not heat_map.blank:
        layer, pos = heat_map.peak
        edges = {"x0": layer - 0.5, "x1": layer + 0.5, "y0": pos - 0.5, "y1": pos + 0.5}
        line = {"color": INK, "width": 1.6}
        place.figure.add_shape(type="rect", **edges, line=line, row=place.row, col=place.column)
        shown = format_probability(heat_map.score(layer, pos))
        peak = f"peak {shown}: layer {layer}, “{literal(shortened(heat_map.labels[pos]))}”"
    place.figure.add_annotation(
        text=f"{wrapped(heat_map.title, grid.width, pixels=7.0)}<br>{quietly(peak)}",
        x=(left + right) / 2,
        y=high_edge,
        xref="paper",
        yref="paper",
        xanchor="center",
        yanchor="bottom",
        yshift=5,
        showarrow=False,
        font={"size": 13},
    )


def _hover(heat_map: HeatMap, measure: str) -> str:
    if heat_map.of_effects:
        return f"%{{customdata[0]}}<br>layer %{{x}}<br>{measure} = %{{z:+.4f}}<extra></extra>"
    # Of an answer so unlikely that four decimals show nothing, three digits.
    digits = ".4f" if heat_map.measure or heat_map.blank or heat_map.top >= 5e-4 else ".2e"
    row = "%{customdata[0]}" if heat_map.of_heads else "token “%{customdata[0]}”, position %{customdata[1]}"
    return (
        f"{row}<br>layer %{{x}}<br>{measure} = %{{z:{digits}}}<br>effect = %{{customdata[2]:+{digits}}}"
        f"{'<br>says %{customdata[3]}' if heat_map.said else ''}<extra></extra>"
    )


def _beside(heat_map: HeatMap, layer: int, row: int) -> list[int | float | str]:
    """What is told of a cell beside its score and its label: position, effect, and what the model says."""
    said = [literal(heat_map.said[layer][row])] if heat_map.said else []
    return [heat_map.first + row, heat_map.score(layer, row) - heat_map.low, *said]


def _measure(heat_map: HeatMap) -> str:
    if heat_map.measure:
        return literal(shortened(heat_map.measure))
    return f"p({literal(shortened(heat_map.answer.strip() or heat_map.answer))})"
