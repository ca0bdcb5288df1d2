"""How much is tried: some of it at every landing, all of it by `make test-all`."""

import os
from typing import Any

import pytest

ALL = "ROME_LENS_TEST_ALL" in os.environ
"""Whether pytest was given `--all`."""


def slow(*values: Any) -> Any:
    """A case of a parametrised test that is left out of every landing."""
    return pytest.param(*values, marks=pytest.mark.slow)
