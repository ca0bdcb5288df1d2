"""Pictures of grids, curves and scores: plotly figures and pages, and a heat map for the terminal.

plotly takes a while to import, so what needs it is imported from the modules that draw with it.
"""

from rome_lens.figures.format import format_probability as format_probability
from rome_lens.figures.heat_map import HeatMap as HeatMap
from rome_lens.figures.terminal import render_heat_map as render_heat_map
from rome_lens.figures.visible import visible as visible
