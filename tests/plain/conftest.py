"""A diary for the tests of runs."""

import pytest


@pytest.fixture
def diary(tmp_path):
    """A folder for what toy work does."""
    folder = tmp_path / "diary"
    folder.mkdir()
    return folder
