"""What is said where a call is refused."""

import pytest


def refused(error, call, *args, **settings):
    """The line that a call's error says, which is of this very class."""
    with pytest.raises(error) as caught:
        call(*args, **settings)
    assert caught.type is error
    said = str(caught.value)
    assert "\n" not in said
    return said
