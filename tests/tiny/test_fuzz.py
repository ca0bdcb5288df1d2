"""Random inputs end in the right numbers or in a refusal of one line; 10,000 of them in `make test-all`."""

import fuzz
import pytest
from effort import slow

_PARTS = 40
_AT_LANDING = 15

pytestmark = [pytest.mark.usefixtures("unchecked"), pytest.mark.filterwarnings("ignore::UserWarning")]


def _parts():
    for kind, share in fuzz.SHARES.items():
        step = share // _PARTS
        yield kind, range(_AT_LANDING)
        for start in range(0, share, step):
            yield slow(kind, range(start, min(start + step, share)))


@pytest.mark.parametrize(("kind", "numbers"), _parts(), ids=str)
def test_random_inputs(kind, numbers):
    refused = sum(fuzz.run(kind, number).refused is not None for number in numbers)
    assert 0 < refused < len(numbers) or kind in ("files", "artefact", "arguments")
