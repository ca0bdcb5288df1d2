"""Figures of the site: a hook of MkDocs.

A line that shows `NAME.png` becomes the figure itself where plotly's `NAME.json` lies beside the picture: on the site
it can be pointed at and has the page's colours, and who reads the Markdown elsewhere sees the picture. plotly.js and
the colours come from the installed packages, so that no page needs a network.
"""

import re
from html import escape
from importlib.resources import files as resources
from pathlib import Path
from typing import Any

import plotly.io
from mkdocs.structure.files import File
from mkdocs.utils import get_relative_url
from plotly.offline import get_plotlyjs

from rome_lens.figures.page import figure_html

DOCS = Path(__file__).parent
PICTURE = re.compile(r"^!\[(?P<says>[^\]]*)\]\((?P<path>\S+)\.png\)$", re.MULTILINE)
SCRIPT, STYLE = "assets/plotly.min.js", "assets/plotly.css"
# What a figure begins with on a page.
BLOCK = '<div class="figure"'


def on_files(files: Any, *, config: Any) -> Any:
    """Add what figures need to the site."""
    style = resources("rome_lens.figures").joinpath("plotly.css").read_text("utf-8")
    for name, content in ((SCRIPT, get_plotlyjs()), (STYLE, style)):
        files.append(File.generated(config, name, content=content))
    return files


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Draw a page's pictures, before it is read as Markdown, and bring plotly.js where there is a figure."""
    folder = (DOCS / page.file.src_uri).parent

    def drawn(picture: re.Match[str]) -> str:
        kept = folder / f"{picture['path']}.json"
        if not kept.is_file():
            return picture[0]
        figure = plotly.io.from_json(kept.read_text("utf-8"), skip_invalid=True)
        return as_block(figure, kept.stem, says=picture["says"])

    text = PICTURE.sub(drawn, markdown)
    script = f'<script src="{get_relative_url(SCRIPT, page.url)}"></script>\n\n'
    return script + text if BLOCK in text else text


def as_block(figure: Any, name: str, *, says: str = "") -> str:
    """A figure as a block of a page.

    Args:
        figure: of plotly.
        name: its place on the page.
        says: what it shows, for those who hear the page.
    """
    label = f' role="figure" aria-label="{escape(says)}"' if says else ""
    return f"{BLOCK}{label}>{figure_html(figure, name)}</div>"
