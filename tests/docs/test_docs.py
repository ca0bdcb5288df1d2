"""Every snippet and every command on every page runs, in a world where models are small.

A page's blocks run one after the other, as a reader would give them. What its commands print is not compared: the
numbers on the pages are those of real models.
"""

import json
import re
import runpy
import shlex
import subprocess
import sys
import tomllib
from itertools import pairwise
from pathlib import Path

import docs_world
import jupytext
import pytest
from docs_world import PAGES, ROOT
from sybil.document import Document
from sybil.evaluators.python import PythonEvaluator
from sybil.parsers.markdown import CodeBlockParser
from typer.testing import CliRunner

from rome_lens.cli import app
from rome_lens.loading.options import has_hooked_transformer

SNIPPET = re.compile(r'--8<-- "(.+)"')
# What is shown and not given: output, formulas, pictures of the house, a citation.
SHOWN = {"text", "bibtex"}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
TARGETS = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text("utf-8"), re.M)
TESTED_EXAMPLES = (ROOT / "tests" / "docs" / "test_examples.py").read_text("utf-8")


class Python(PythonEvaluator):
    """Runs a block in the page's names."""

    def __call__(self, example):
        if is_tested_file(example):
            return None
        example.namespace["__name__"] = "__main__"
        return super().__call__(example)


def is_tested_file(example):
    """Whether a block includes a file; then it has to be a tested example."""
    included = SNIPPET.fullmatch(str(example.parsed).strip())
    if included:
        path = Path(included[1])
        assert (ROOT / path).is_file()
        assert path.parent.name == "examples"
        assert f'"{path.name}"' in TESTED_EXAMPLES
    return bool(included)


def shell(example):
    """Gives every command of a block."""
    if is_tested_file(example):
        return
    for line in str(example.parsed).replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
            words = words[1:]
        if words:
            COMMANDS[words[0]](words[1:])


def console(example):
    """Gives the commands behind a `$`."""
    for line in str(example.parsed).splitlines():
        if line.startswith("$ "):
            words = shlex.split(line[2:])
            COMMANDS[words[0]](words[1:])


def rome_lens(words):
    words, to_file = (words[:-2], words[-1]) if ">" in words else (words, None)
    # So few facts and records would be a single batch, and leave the other shard nothing.
    if "--shard" in words and words[0] != "stats":
        words = [*words, "--batch", "1"]
    result = CliRunner().invoke(app, [_suggested(word) for word in words], env={"COLUMNS": "80", "TERM": "dumb"})
    assert result.exit_code == 0, (words, result.stderr, result.exception)
    if to_file:
        Path(to_file).write_text(result.stdout, "utf-8")


def _suggested(word):
    """The page names the layer that its own run found; this world's may find another."""
    if not word.startswith("known/layers/second-moments/"):
        return word
    layer = json.loads(Path("known/layers/settings.json").read_text())["layer"]
    return f"known/layers/second-moments/layer-{layer}.safetensors"


def python(words):
    script, arguments = words[0], words[1:]
    benchmark = script.startswith("benchmarks/")
    argv, path = sys.argv, list(sys.path)
    sys.argv = [script, "--help"] if benchmark else words
    sys.path.insert(0, str((ROOT / script).parent))
    try:
        runpy.run_path(str(ROOT / script), run_name="__main__")
    except SystemExit as end:
        if end.code:
            raise
    finally:
        sys.argv, sys.path[:] = argv, path
    if benchmark:
        options = set(re.findall(r'"(--[a-z-]+)"', (ROOT / script).read_text("utf-8")))
        assert {word for word in arguments if word.startswith("--")} <= options


def make(words):
    for word in words:
        name, _, value = word.partition("=")
        assert name in (*TARGETS, "BENCH", "ARGS", "VENV", "CONSTRAINTS", "PYTHON")
        assert name != "BENCH" or (ROOT / "benchmarks" / f"{value}.py").is_file()
        assert name not in ("CONSTRAINTS",) or (ROOT / value).is_file()


def pip(words):
    assert words[0] == "install"
    extras = [extra for word in words[1:] for extra in re.findall(r"\[(.+)\]", word)]
    assert set(extras) <= set(PROJECT["optional-dependencies"])
    assert all((ROOT / name).is_file() for flag, name in pairwise(words) if flag == "-c")


def activate(words):
    assert words == [".venv/bin/activate"]


def dask(words):
    subprocess.run([Path(sys.executable).with_name("dask"), words[0], "--help"], check=True, capture_output=True)


# Once is enough: what differs between the generations of TransformerLens has tests of its own.
pytestmark = pytest.mark.skipif(not has_hooked_transformer(), reason="run on the default set of versions")

COMMANDS = {"rome-lens": rome_lens, "python": python, "make": make, "pip": pip, "dask": dask, ".": activate}
PARSERS = [
    CodeBlockParser("python", Python()),
    CodeBlockParser("sh", shell),
    CodeBlockParser("console", console),
]


def text_of(page):
    """A page's Markdown; a tutorial's is what stands around its code cells, which are run when its page is made."""
    if page.suffix == ".md":
        return page.read_text("utf-8")
    return "\n\n".join(cell.source for cell in jupytext.read(page).cells if cell.cell_type == "markdown")


TEXTS = [*PAGES, *(page for page in sorted((ROOT / "docs" / "tutorials").glob("*.py")) if "```" in text_of(page))]


@pytest.mark.pages
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("page", TEXTS, ids=lambda page: page.name)
def test_every_block_runs(page, monkeypatch, tmp_path):
    docs_world.enter(monkeypatch, tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "page.md").write_text(text_of(page), "utf-8")
    for example in Document.parse(str(tmp_path / "page.md"), *PARSERS).examples():
        try:
            example.evaluate()
        except BaseException as error:
            raise AssertionError(f"{page.name}:{example.line}: {error!r}\n{example.parsed}") from error


@pytest.mark.parametrize("page", TEXTS, ids=lambda page: page.name)
def test_every_block_is_of_a_kind_that_is_run_or_shown(page):
    kinds = {language for language in re.findall(r"^ *```(.*)$", text_of(page), re.M) if language}
    assert kinds <= {parser.language for parser in PARSERS} | SHOWN
