"""docs/models.md says of every decoder family what comes of it under the installed TransformerLens."""

import re
import runpy
import sys
from pathlib import Path

import pytest
from effort import slow

DOCS = Path(__file__).parents[2] / "docs"
_path = list(sys.path)
FAMILIES = runpy.run_path(str(DOCS / "families.py"))
sys.path[:] = _path
PAGE = (DOCS / "models.md").read_text("utf-8")
COLUMN = FAMILIES["column"]()
TOLD = FAMILIES["read"](PAGE).get(COLUMN, {})
# One that each class hosts, one without blocks that can be called alone, and one that computes something else on 3.9.
AT_LANDING = ("qwen2", "gemma2", "mixtral", "mamba", "cohere")

pytestmark = [
    pytest.mark.skipif(not TOLD, reason="the page has no column for the installed TransformerLens"),
    pytest.mark.filterwarnings("ignore"),
]


def without_rounding(cell):
    """A cell with its difference to an order of magnitude: of what is right, that it is."""
    return re.sub(r"\d(e-\d+)", r"\1", cell)


@pytest.mark.parametrize("family", [f if f in AT_LANDING else slow(f) for f in FAMILIES["families"]()])
def test_a_family_s_cell_is_what_comes_of_it(family):
    cell, why = FAMILIES["tried"](family)
    assert without_rounding(cell) == without_rounding(TOLD.get(family, FAMILIES["NO_MODEL"])), why
    assert "\n" not in why


def test_a_column_is_written_and_the_others_stay():
    page = FAMILIES["written"](PAGE, COLUMN, {"llama": "here"})
    assert FAMILIES["read"](page)[COLUMN] == {
        family: "here" if family == "llama" else "" for family in FAMILIES["read"](page)[COLUMN]
    }
    (other,) = [column for column in FAMILIES["COLUMNS"] if column != COLUMN]
    kept, before = FAMILIES["read"](page)[other], FAMILIES["read"](PAGE)[other]
    assert {family: cell for family, cell in kept.items() if cell} == {
        family: cell for family, cell in before.items() if cell
    }
