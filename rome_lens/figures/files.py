"""Figures as files: a page that works offline, or a PNG, which a browser draws."""

import contextlib
import logging
import os
from collections.abc import Iterator

import plotly.graph_objects as go

from rome_lens.errors import ArtefactError
from rome_lens.figures.plotly_text import PAGE_CONFIG, SCALE, layout_of
from rome_lens.storage import write_whole

_NEEDED = "writing a PNG needs {}; an HTML figure needs neither"


def write_html(figure: go.Figure, path: str | os.PathLike[str]) -> None:
    """Write a figure as one HTML page that works offline: plotly.js is in it.

    Raises:
        ArtefactError: the file cannot be written; nothing is left behind.
    """
    body = figure.to_html(config=PAGE_CONFIG, include_plotlyjs=True, full_html=False, div_id="rome-lens")
    # Entities mean the same in a page's title as in plotly; a tag does not.
    heading = (layout_of(figure).title.text or "rome_lens").split("<br><span", maxsplit=1)[0]
    name = heading.replace("<br>", " ").replace("<", "&lt;")
    page = (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f"<title>{name}</title>\n"
        "<style>body { margin: 0; background: white } body > div { width: max-content; margin: 0 auto }</style>\n"
        f"</head>\n<body>\n{body}\n</body>\n</html>\n"
    )
    write_whole(path, page.encode())


def write_png(figure: go.Figure, path: str | os.PathLike[str]) -> None:
    """Write a figure as a PNG of three pixels a layout pixel. Needs the extra `images` and a Chrome or Chromium.

    Raises:
        ArtefactError: kaleido or the browser is missing or fails, or the file cannot be written. Nothing is left
            behind.
    """
    check_png()
    import kaleido
    from kaleido.errors import ChromeNotFoundError

    layout = layout_of(figure)
    size = {"format": "png", "width": layout.width, "height": layout.height, "scale": SCALE}
    try:
        with _quiet("choreographer", "kaleido"):
            # Not figure.to_image: that makes the browser fetch MathJax from a server, for texts that hold no formula.
            drawn = kaleido.calc_fig_sync(figure.to_dict(), opts=size, kopts={"mathjax": False})
    except ChromeNotFoundError as error:
        browser = "a Chrome or Chromium browser, and none was found: install one, or name it in BROWSER_PATH"
        raise ArtefactError(_NEEDED.format(browser)) from error
    except Exception as error:
        said = "".join(str(part) for part in error.args[:1]) or type(error).__name__
        why = " ".join(said.split())[:200].rstrip(".")
        raise ArtefactError(f"the browser that draws a PNG failed: {why}; try an HTML figure") from error
    write_whole(path, drawn)


def check_png() -> None:
    """Refuse before any work is done what `write_png` would refuse at its end for want of the extra `images`.

    Raises:
        ArtefactError: kaleido is missing.
    """
    try:
        import kaleido.errors  # noqa: F401  # kaleido 0.x, which has no such module, counts as missing
    except ImportError as error:
        extra = "the extra 'images': pip install 'rome-lens[images]', and a Chrome or Chromium browser"
        raise ArtefactError(_NEEDED.format(extra)) from error


@contextlib.contextmanager
def _quiet(*packages: str) -> Iterator[None]:
    """Keep libraries from logging while they work: a browser's goodbye, read too late, is logged with a traceback.

    What matters is raised. Filters are taken off again, and levels are not touched.
    """
    nothing = logging.Filter("the name of no logger, so that no record passes")
    names = [name for name in logging.root.manager.loggerDict if name.split(".")[0] in packages]
    with contextlib.ExitStack() as undo:
        for logger in map(logging.getLogger, names):
            logger.addFilter(nothing)
            undo.callback(logger.removeFilter, nothing)
        yield
