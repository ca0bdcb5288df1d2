"""Write the tutorials as Jupyter notebooks into docs/notebooks: python docs/notebooks.py.

They are kept in the repository, without outputs, so that they can be opened where they lie; a test holds them against
the tutorials. Their first cell installs rome_lens where it is missing, as on Colab, from a wheel beside them or from an
address.
"""

import re
from pathlib import Path

import jupytext
from nbformat.v4 import new_code_cell

from rome_lens import __version__

DOCS = Path(__file__).parent
NOTEBOOKS = DOCS / "notebooks"
INSTALL = f"""\
# @title Install rome_lens where it is missing, as on Colab
# A wheel that lies beside this notebook (on Colab, among its files), or git+https://…
# In a checkout, `pip wheel --no-deps .` makes the wheel.
SOURCE = "rome_lens-{__version__}-py3-none-any.whl"  # @param {{type:"string"}}

from importlib.util import find_spec

if find_spec("rome_lens") is None:
    %pip install --quiet {{SOURCE}}"""


def main() -> None:
    """Write all."""
    NOTEBOOKS.mkdir(exist_ok=True)
    for tutorial in sorted((DOCS / "tutorials").glob("*.py")):
        (NOTEBOOKS / f"{tutorial.stem}.ipynb").write_text(notebook(tutorial), "utf-8")


def notebook(tutorial: Path) -> str:
    """A tutorial as a notebook that has not been run."""
    book = jupytext.read(tutorial)
    book.cells.insert(1, new_code_cell(INSTALL))  # below the title
    for number, cell in enumerate(book.cells):
        cell["id"] = f"cell-{number}"  # at random otherwise
        cell["metadata"] = {}
        if cell.cell_type == "markdown":
            # Tutorials link to one another's pages, which are not beside the notebooks.
            cell["source"] = re.sub(r"\]\((\w+)\.md", r"](\1.ipynb", cell["source"])
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    book["metadata"] = {"kernelspec": kernel, "language_info": {"name": "python"}}
    return jupytext.writes(book, fmt="ipynb").rstrip("\n") + "\n"


if __name__ == "__main__":
    main()
