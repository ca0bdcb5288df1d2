"""Models that several test files share. Each is made once: a test that changes one makes its own."""

import pytest


@pytest.fixture(scope="session")
def tiny():
    """Two layers of random weights, in the class that `load_model` would take."""
    from rome_lens.loading.tiny import tiny_model

    return tiny_model("auto")
