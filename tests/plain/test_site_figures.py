"""The pictures on the documentation's pages: on the site each is a figure (docs/figures.py), from what lies beside."""

import re
from pathlib import Path

import plotly.io
import pytest

DOCS = Path(__file__).parents[2] / "docs"
PICTURES = [
    (page.parent / name).resolve()
    for page in sorted(DOCS.rglob("*.md"))
    for name in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", page.read_text("utf-8"))
]


def test_there_are_pictures():
    assert PICTURES


@pytest.mark.parametrize("picture", PICTURES, ids=lambda path: path.name)
def test_a_picture_has_its_figure_beside_it(picture):
    assert picture.is_file()
    figure = plotly.io.from_json(picture.with_suffix(".json").read_text("utf-8"), skip_invalid=True)
    assert figure.data
    # The room that the site has for text, in pixels.
    assert figure.layout.width <= 690
