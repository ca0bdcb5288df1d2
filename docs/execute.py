"""Execute the tutorials and write their pages: python docs/execute.py [NAME …].

A tutorial is a Python file in docs/tutorials, in cells (`# %%`). Every page holds what running it printed and drew, so
nothing on it can differ from what the code does. The pages are not kept in the repository.
"""

import argparse
import os
import re
import sys
from pathlib import Path

import jupytext
import plotly.graph_objects as go
from figures import as_block
from nbclient import NotebookClient
from nbconvert import MarkdownExporter

DOCS = Path(__file__).parent
TUTORIALS = DOCS / "tutorials"
FIGURE = "application/vnd.plotly.v1+json"


def main() -> None:
    """Execute the tutorials that are named, or all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("names", nargs="*", help="such as trace_a_fact; all by default")
    options = parser.parse_args()
    for name in options.names or sorted(path.stem for path in TUTORIALS.glob("*.py")):
        print(f"executing {name}", file=sys.stderr, flush=True)
        (TUTORIALS / f"{name}.md").write_text(page(TUTORIALS / f"{name}.py"), "utf-8")


def page(tutorial: Path) -> str:
    """Run a tutorial, and return its page as Markdown."""
    notebook = jupytext.read(tutorial)
    title, _, rest = notebook.cells[0].source.partition("\n")
    itself = f'[As a notebook](../notebooks/{tutorial.stem}.ipynb){{ download="{tutorial.stem}.ipynb" }}'
    notebook.cells[0].source = f"{title}\n\n{itself}\n{rest}"
    os.environ["PLOTLY_RENDERER"] = "plotly_mimetype"  # the kernel inherits it
    where = {"metadata": {"path": DOCS.parent}}
    NotebookClient(notebook, timeout=1200, kernel_name="python3", resources=where, coalesce_streams=True).execute()
    figures = 0
    for cell in notebook.cells:
        outputs = cell.get("outputs", [])
        # Progress and warnings are for the person who runs it.
        cell["outputs"] = [output for output in outputs if output.get("name") != "stderr"]
        for output in cell["outputs"]:
            if FIGURE in output.get("data", {}):
                figures += 1
                figure = go.Figure(output["data"][FIGURE], skip_invalid=True)
                output["data"] = {"text/html": as_block(figure, f"{tutorial.stem}-{figures}")}
            elif "<table" in output.get("data", {}).get("text/html", ""):
                output["data"] = {"text/html": plain_table(output["data"]["text/html"])}
    text, _ = MarkdownExporter().from_notebook_node(notebook)
    return text


def plain_table(html: str) -> str:
    """A data frame's table without pandas's looks, so that it takes the page's."""
    return re.sub(r"<style.*?</style>\s*|^<div>|</div>$| border=\"1\"| class=\"dataframe\"", "", html, flags=re.S)


if __name__ == "__main__":
    main()
