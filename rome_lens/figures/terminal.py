"""The heat map of a trace in a terminal: tokens down, layers across, one or two columns a cell.

With colours a cell is a background colour, from near-white to deep, so that it reads the same on dark and on light
terminals. Without them (`NO_COLOR`, a pipe, a terminal of 16 colours) it is a shade character.
"""

import math
import unicodedata
from dataclasses import dataclass

from rich.cells import cell_len
from rich.color import Color
from rich.console import Console, ConsoleOptions, RenderResult
from rich.style import Style
from rich.text import Text

from rome_lens.figures.format import format_probability
from rome_lens.figures.heat_map import HeatMap
from rome_lens.figures.terminal_colours import colour_ramp
from rome_lens.figures.visible import cut, lines_of, visible

_SHADES, _ASCII_SHADES = " ░▒▓█", " .:*#"
_NOTHING = 0.05
_SCALE_CELLS = 20
_ROOMY_LABEL = 8


@dataclass(frozen=True)
class _Paper:
    """What the terminal can show: a ramp of colours, or shades; Unicode, or ASCII."""

    width: int
    ramp: tuple[Color, ...] | None
    ascii_only: bool

    def text(self, raw: str, width: int) -> str:
        """Raw text, made visible and cut to a number of terminal columns."""
        # A variation selector picks a glyph's emoji form: terminals disagree about the columns it then takes.
        shown = "".join(c for c in visible(raw) if not "\ufe00" <= c <= "\ufe0f")
        ellipsis = "…"
        if self.ascii_only:
            shown, ellipsis = shown.encode("ascii", "backslashreplace").decode("ascii"), "~"
        fitted = cut(shown, width, ellipsis)
        # A left-to-right mark on both sides keeps a terminal that reorders text from moving the cells.
        return f"\u200e{fitted}\u200e" if any(unicodedata.bidirectional(c) in ("R", "AL") for c in fitted) else fitted

    def cell(self, level: float, width: int, *, mark: bool = False) -> tuple[str, Style]:
        """A cell's characters and style; `mark` puts a cross on it."""
        cross = "x" if self.ascii_only else "×"
        if self.ramp is None:
            shades = _ASCII_SHADES if self.ascii_only else _SHADES
            # Blank is for what did next to nothing; the other shades share the scale in equal parts.
            shade = shades[0 if level < _NOTHING else min(len(shades) - 1, 1 + int(level * (len(shades) - 1)))]
            return (cross + shade * (width - 1) if mark else shade * width), Style()
        background = self.ramp[round(level * (len(self.ramp) - 1))]
        foreground = self.ramp[0] if level > 0.5 else self.ramp[-1]
        characters = cross + " " * (width - 1) if mark else " " * width
        return characters, Style(color=foreground, bgcolor=background)


@dataclass(frozen=True)
class _Grid:
    """How the columns of the terminal are shared: labels, then cells, each of one layer or of several."""

    label_width: int
    cell_width: int
    cells: list[range]


@dataclass(frozen=True)
class _Rendering:
    """The picture for whichever console prints it: only the console knows its colours and its encoding."""

    heat_map: HeatMap
    width: int

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        ramp = None if console.no_color else colour_ramp(self.heat_map.stream, console.color_system)
        paper = _Paper(max(1, min(self.width, options.max_width)), ramp, options.ascii_only)
        yield from _lines(self.heat_map, paper)


def render_heat_map(heat_map: HeatMap, /, *, width: int) -> _Rendering:
    """A heat map that a rich console can print.

    When the layers do not fit, a cell becomes one column wide, then one cell shows the highest of several neighbouring
    layers, and a line below the axis says so.

    Args:
        heat_map: the grid, its labels and titles; all its text is shown as it is, never read as markup.
        width: terminal columns to keep within; the console's own width is kept as well.

    Returns:
        A rich renderable: a title, one line a token, the layer axis, the colour scale and the peak.
    """
    return _Rendering(heat_map, width)


def _lines(heat_map: HeatMap, paper: _Paper) -> list[Text]:
    grid = _layout(heat_map, paper)
    peak_layer, peak_pos = heat_map.peak
    lines = _wrapped(paper, heat_map.title, "bold")
    # Blank shades need a line to begin at, colours do not.
    edge = " " if paper.ramp is not None else "|" if paper.ascii_only else "│"
    for pos, label in enumerate(heat_map.labels):
        line = _line()
        shown = paper.text(label, grid.label_width)
        line.append(" " * (grid.label_width - cell_len(shown)) + shown + edge)
        marked = pos == peak_pos and not heat_map.blank
        for layers in grid.cells:
            level = max(heat_map.level(heat_map.score(layer, pos)) for layer in layers)
            line.append(*paper.cell(level, grid.cell_width, mark=marked and peak_layer in layers))
        lines.append(line)
    lines.append(_axis(grid))
    indent = grid.label_width + 1
    lines += _wrapped(paper, heat_map.layer_title, "dim", indent=indent)
    if len(grid.cells[0]) > 1:
        lines += _wrapped(paper, f"one column: the highest of {len(grid.cells[0])} layers", "dim", indent=indent)
    lines.append(_scale(heat_map, paper))
    cross = "x" if paper.ascii_only else "×"
    if heat_map.blank:
        lines += _wrapped(paper, "no peak: every score is 0", "")
    else:
        shown = format_probability(heat_map.score(peak_layer, peak_pos))
        token = "" if heat_map.of_effects or heat_map.of_heads else "token "
        words = f"{cross} peak: layer {peak_layer}, {_measure(heat_map, paper) or 'p'} = {shown}, {token}"
        room = max(4, paper.width - cell_len(words) - 2)
        lines += _wrapped(paper, words + f'"{paper.text(heat_map.labels[peak_pos], room)}"', "", shown=True)
    for line in lines:
        if line.cell_len > paper.width:  # a terminal of a few columns
            line.truncate(paper.width, overflow="crop")
    return lines


def _layout(heat_map: HeatMap, paper: _Paper) -> _Grid:
    layers = len(heat_map.scores)
    natural = max(cell_len(paper.text(label, paper.width)) for label in heat_map.labels)
    label_width = max(1, min(natural, paper.width // 3))
    if layers > paper.width - label_width - 1 >= layers - label_width + _ROOMY_LABEL:
        label_width = paper.width - layers - 1  # a shorter label is a smaller loss than layers drawn together
    room = max(1, paper.width - label_width - 1)
    together = math.ceil(layers / room)
    cells = [range(layers)[first : first + together] for first in range(0, layers, together)]
    return _Grid(label_width, 2 if 2 * len(cells) <= room else 1, cells)


def _axis(grid: _Grid) -> Text:
    """Layer numbers under their cells' left edges, as many as leave two spaces between neighbours."""
    layers, together = grid.cells[-1].stop, len(grid.cells[0])
    steps = (step for power in range(9) for step in (10**power, 2 * 10**power, 5 * 10**power))
    step = next(s for s in steps if s / together * grid.cell_width >= len(str(layers - 1)) + 2 or s >= layers)
    axis = ""
    for layer in range(0, layers, step):
        axis = axis.ljust(layer // together * grid.cell_width) + str(layer)
    return _line(" " * (grid.label_width + 1) + axis, "dim")


def _scale(heat_map: HeatMap, paper: _Paper) -> Text:
    answer = paper.text(heat_map.answer.strip() or heat_map.answer, max(4, paper.width // 3))
    at_high = heat_map.top == heat_map.high and not heat_map.of_heads
    beaten = "" if at_high else f" peak (high {format_probability(heat_map.high)})"
    ends = f"{format_probability(heat_map.low)} ", f" {format_probability(heat_map.top)}"
    measure = _measure(heat_map, paper) or f"p({answer})"
    said = ((f"{measure}  low ", beaten or " high"), (f"{measure} ", beaten), (f"{measure} ", ""), ("", ""))
    if heat_map.of_effects:
        said = said[2:]
    room = paper.width - len("".join(ends)) - 8  # a ramp of fewer cells says little
    before, after = next((pair for pair in said if sum(map(cell_len, pair)) <= room), said[-1])
    line, end = _line(before + ends[0]), ends[1] + after
    cells = min(_SCALE_CELLS, paper.width - line.cell_len - len(end))
    for cell in range(cells):
        line.append(*paper.cell(cell / max(1, cells - 1), 1))
    return line.append(end)


def _measure(heat_map: HeatMap, paper: _Paper) -> str:
    """What is measured, where it is no probability."""
    return paper.text(heat_map.measure, max(4, paper.width // 2)) if heat_map.measure else ""


def _wrapped(paper: _Paper, raw: str, style: str, *, indent: int = 0, shown: bool = False) -> list[Text]:
    """Words on as many lines as they need; a word that is longer than a line is cut."""
    room = paper.width - indent
    if room < 12:
        indent, room = 0, paper.width
    words = (raw if shown else paper.text(raw, 10 * paper.width)).split(" ")
    fitted = [cut(word, room, "~" if paper.ascii_only else "…") for word in words]
    return [_line(" " * indent + line, style) for line in lines_of(fitted, room)]


def _line(text: str = "", style: str = "") -> Text:
    return Text(text, style=style, no_wrap=True, overflow="crop", end="\n")
