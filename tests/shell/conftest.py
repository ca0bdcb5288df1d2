"""The shell of a house with a tiny model."""

from pathlib import Path

import pytest
from tiny_shell import TinyHouse

import rome_lens as rl
from rome_lens.figures import files


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    return TinyHouse(tmp_path_factory.mktemp("house"))


@pytest.fixture
def shell(house, monkeypatch):
    return house.shell(monkeypatch)


@pytest.fixture(scope="module")
def many(house):
    """The house with files of requests, and a set of facts."""
    return house.add_set()


@pytest.fixture
def page():
    """Let the pages of runs be drawn for real."""


@pytest.fixture
def quick_pages(monkeypatch, request):
    """Draw none where `page` does not ask for it: they take most of a tiny run's time."""
    if "page" not in request.fixturenames:
        for result in (rl.Report, rl.AverageEffect):
            monkeypatch.setattr(result, "write_html", lambda self, path: Path(path).write_text("a page"))


@pytest.fixture
def pngs(monkeypatch):
    """A PNG holds the number of its figure's parts, and its title."""

    def write_png(figure, path):
        path.write_text(f"{len(figure.data)} {figure.layout.title.text}")

    monkeypatch.setattr(files, "check_png", lambda: None)
    monkeypatch.setattr(files, "write_png", write_png)
