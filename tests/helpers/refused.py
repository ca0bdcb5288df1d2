"""What is said where a call is refused."""

import pytest


def refused(error, call, *args, **settings):
    """The line that a call's error says."""
    with pytest.raises(error) as caught:
        call(*args, **settings)
    said = str(caught.value)
    assert "\n" not in said
    return said
