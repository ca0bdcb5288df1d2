"""The notebooks in docs/notebooks are the tutorials, and what they point to is there."""

import json
import re
import runpy
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
TUTORIALS = sorted((DOCS / "tutorials").glob("*.py"))
NOTEBOOKS = runpy.run_path(str(DOCS / "notebooks.py"))


def cells(tutorial, kind):
    """The sources of a notebook's cells of a kind."""
    book = json.loads((DOCS / "notebooks" / f"{tutorial.stem}.ipynb").read_text("utf-8"))
    return ["".join(cell["source"]) for cell in book["cells"] if cell["cell_type"] == kind]


def test_every_tutorial_is_a_notebook():
    assert {path.stem for path in (DOCS / "notebooks").iterdir()} == {path.stem for path in TUTORIALS}


@pytest.mark.parametrize("tutorial", TUTORIALS, ids=lambda path: path.stem)
def test_a_notebook_is_its_tutorial(tutorial):
    kept = (DOCS / "notebooks" / f"{tutorial.stem}.ipynb").read_text("utf-8")
    assert kept == NOTEBOOKS["notebook"](tutorial), "run python docs/notebooks.py"


@pytest.mark.parametrize("tutorial", TUTORIALS, ids=lambda path: path.stem)
def test_a_notebook_first_installs_and_then_says_what_the_tutorial_says(tutorial):
    install, *code = cells(tutorial, "code")
    assert "%pip install" in install
    text = tutorial.read_text("utf-8")
    assert all(source in text for source in code)


@pytest.mark.parametrize("tutorial", TUTORIALS, ids=lambda path: path.stem)
def test_what_a_notebook_points_to_is_there(tutorial):
    for source in cells(tutorial, "markdown"):
        for target in re.findall(r"\]\(([^)#]+)", source):
            assert target.startswith("http") or (DOCS / "notebooks" / target).is_file(), target


@pytest.mark.skipif(sys.platform != "linux", reason="processes are forked on Linux alone")
def test_a_notebook_forks_processes_and_goes_on():
    nbclient = pytest.importorskip("nbclient", reason="nbclient, of the group docs, is not installed")
    nbformat = pytest.importorskip("nbformat")
    mapped = "import os\nfrom rome_lens.runs import forked_map, may_fork\nhere = os.getpid()\n"
    mapped += "print(may_fork(), forked_map(lambda n: (n * n, os.getpid() == here), [2, 3], n_workers=2))"
    book = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(source) for source in (mapped, "print(os.getpid() == here)")]
    )
    nbclient.NotebookClient(book, timeout=120).execute()
    said = ["".join(output["text"] for output in cell["outputs"]) for cell in book["cells"]]
    assert said == ["True [(4, False), (9, False)]\n", "True\n"]
