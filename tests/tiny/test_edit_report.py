"""What the shell prints of answers that begin alike."""

import pytest
from rich.cells import cell_len

from rome_lens.cli.edit_report import _cut


@pytest.mark.parametrize(
    "words",
    [
        ("Paris", "Rome"),
        ("New York", "New Delhi"),
        ("United States", "United Kingdom"),
        ("New York City", "New Jersey City"),
        ("United States", "United States"),
    ],
)
def test_what_is_cut_still_differs(words):
    cut = _cut(words, 7)
    assert all(cell_len(word) <= 7 for word in cut)
    assert (cut[0] == cut[1]) == (words[0] == words[1])
