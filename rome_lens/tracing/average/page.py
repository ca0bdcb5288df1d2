"""An average as one HTML page that works offline: plotly.js is in it, and the same average gives the same bytes."""

import os
from importlib.resources import files

from rome_lens.figures.page import figure_html, render_page
from rome_lens.figures.plotly_figure import heat_map_figure
from rome_lens.storage import write_whole
from rome_lens.tracing.average.figures import heat_maps, layers_figure, severed_figure
from rome_lens.tracing.average.result import AverageEffect, Peak
from rome_lens.tracing.result import RESTORED
from rome_lens.tracing.roles import ROLES

_MOST_ROWS = 500


def write_page(average: AverageEffect, path: str | os.PathLike[str]) -> None:
    """Write an average as one HTML page.

    Raises:
        ArtefactError: the file cannot be written; nothing is left behind.
    """
    write_whole(path, average_page(average).encode())


def average_page(average: AverageEffect) -> str:
    """An average as one HTML page: effects, peaks, figures, facts and settings, without a clock or a network."""
    drawn = {
        "roles": heat_map_figure(heat_maps(average), title=""),
        "layers": layers_figure(average),
        "severed": severed_figure(average),
    }
    return render_page(
        files("rome_lens.tracing.average").joinpath("page.html.j2").read_text("utf-8"),
        settings=average.settings,
        model=average.settings["model"]["name"],
        average=average,
        restored=[RESTORED[stream] for stream in average.streams],
        peaks=[
            (role, peaks)
            for role in ROLES
            if any(peaks := [_peak(average, stream, role) for stream in average.streams])
        ],
        figures={name: figure_html(figure, name) if figure else "" for name, figure in drawn.items()},
        most_rows=_MOST_ROWS,
    )


def _peak(average: AverageEffect, stream: str, role: str) -> Peak | None:
    return average.peak(stream, role) if role in average.roles(stream) else None
