"""The shell of a house with a tiny model, for the files that need nothing else."""

import pytest
from tiny_shell import TinyHouse


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    return TinyHouse(tmp_path_factory.mktemp("house"))


@pytest.fixture
def shell(house, monkeypatch):
    return house.shell(monkeypatch)
