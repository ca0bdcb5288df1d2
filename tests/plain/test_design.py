"""docs/design.md draws the house as it is, and every module says in its first line what it holds."""

import runpy
from pathlib import Path

from refused import refused

ROOT = Path(__file__).parents[2]
DRAWING = runpy.run_path(str(ROOT / "docs" / "drawing.py"))
PAGE = (ROOT / "docs" / "design.md").read_text("utf-8")
MODULES = sorted((ROOT / "rome_lens").rglob("*.py"))


def test_the_page_draws_the_house_as_it_is():
    assert DRAWING["written"](PAGE) == PAGE, "run python docs/drawing.py"
    assert "figures/                 " in PAGE
    assert "\ncli\nevaluation\n" in PAGE


def test_a_module_that_says_something_else_is_seen():
    changed = PAGE.replace("Every error that rome_lens raises on purpose.", "Errors.")
    assert changed != PAGE
    assert DRAWING["written"](changed) == PAGE


def test_every_module_says_in_its_first_line_what_it_holds():
    first = {path: DRAWING["first_line"](path) for path in MODULES}
    for path, line in first.items():
        assert line.endswith((".", "?")), f"{path}: the first line of its docstring is a sentence"
        assert len(line.split()) >= 3, path
    said_before = {path for path, line in first.items() if list(first.values()).count(line) > 1}
    assert not said_before, "several modules say that they hold the same"


def test_imports_count_wherever_they_stand(tmp_path):
    (tmp_path / "house" / "room").mkdir(parents=True)
    sources = {
        "__init__.py": "from house.top import a",
        "room/__init__.py": "def f():\n    import house.ground",
        "top.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from house import room",
        "ground.py": "import torch",
    }
    for name, source in sources.items():
        (tmp_path / "house" / name).write_text(source)
    found = DRAWING["imports"](tmp_path / "house")
    assert found == {"top": {"room"}, "room": {"ground"}, "ground": set()}
    assert DRAWING["layers"](found) == "top\nroom\nground"
    assert "circle: ['ground', 'room', 'top']" in refused(ValueError, DRAWING["layers"], found | {"ground": {"top"}})


def test_tests_import_no_tests():
    for path in (ROOT / "tests").rglob("*.py"):
        for line in path.read_text("utf-8").splitlines():
            assert not line.lstrip().startswith(("from test_", "import test_")), f"{path}: {line}"
