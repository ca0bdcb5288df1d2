"""Pages of several figures and tables: one HTML file that works offline, the same bytes for the same content.

Names, prompts and what a model wrote are data: the template escapes them, and what a reader could not see in them, or
a browser would obey, is made visible.
"""

import json
from collections.abc import Iterator, Mapping
from importlib.resources import files
from typing import Any

import jinja2
import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from rome_lens.figures.format import format_score
from rome_lens.figures.plotly_text import PAGE_CONFIG
from rome_lens.figures.visible import visible

# What a page extends, and what it may import.
_SHARED = ("page.html.j2", "plotly.css", "words.html.j2")


def render_page(
    template: str, *, settings: Mapping[str, Any], parts: Mapping[str, str] | None = None, **values: Any
) -> str:
    """A page from a template that extends `page.html.j2`, which brings the style, plotly.js and a table of settings.

    Args:
        template: its text; `shown`, `lines` and `number` are filters for data.
        settings: what the run was asked for; nested names are joined by dots.
        parts: name -> text of further templates that it imports, beside `words.html.j2`.
        values: what the template's names stand for.
    """
    shared = {name: files("rome_lens.figures").joinpath(name).read_text("utf-8") for name in _SHARED}
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        loader=jinja2.DictLoader({**shared, **(parts or {})}),
    )
    environment.filters.update(shown=lambda text: visible(str(text)), lines=_lines, number=format_score)
    page = environment.from_string(template)
    return page.render(**values, settings=list(_flat(settings)), plotly_js=get_plotlyjs)


def figure_html(figure: go.Figure, name: str) -> str:
    """A figure as a part of a page."""
    config = {**PAGE_CONFIG, "responsive": True, "modeBarButtons": [["toImage"]]}
    # plotly writes <, > and / in its JSON as escapes, so that no text ends the script.
    return figure.to_html(config=config, include_plotlyjs=False, full_html=False, div_id=name)


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Nested settings as names with dots and values as JSON writes them; a text stands without its quotes."""
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _flat(inner, f"{name}.{key}" if name else str(key))
    else:
        yield name, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _lines(text: str) -> str:
    """Several lines, each made visible; the line ends stay."""
    return "\n".join(visible(line) if line else "" for line in text.split("\n"))
