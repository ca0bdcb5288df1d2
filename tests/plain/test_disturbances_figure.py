"""The figure of who disturbs whom: what it draws, how large it is, and that no text in it is read as more than text."""

import pytest

from rome_lens.figures.disturbances import DisturbedFact, disturbance_figure
from rome_lens.figures.files import write_html

NASTY = ["<script>alert(1)</script>", "$x$", "%{y}", "a\nb", "東京", "🗼 <b>bold</b>"]


def _facts(n, share=0.5, name="the tower → rome"):
    return [DisturbedFact(7 * k, name, f"words {k}", 0.1 * k, [share] * n) for k in range(n)]


def _figure(facts, title="a title"):
    return disturbance_figure(facts, title=title, subtitle="a line below")


def test_a_cell_is_what_one_fact_adds_at_the_key_of_another():
    first = DisturbedFact(3, "the tower → rome", "where is it", 0.25, [9.0, 0.5])
    other = DisturbedFact(8, "paris → berlin", "what is it", 0.75, [0.125, 9.0])
    pairs, own, short = _figure([first, other]).data
    assert [list(row) for row in pairs.z] == [[None, 0.5], [0.125, None]]
    assert [list(row) for row in own.z] == [[0, None], [None, 0]]
    assert (list(short.x), list(short.y)) == ([0.25, 0.75], [0, 1])
    assert pairs.customdata[0][1] == ["where is it", "what is it"]
    assert (pairs.zmin, pairs.zmax) == (0, 0.5)


def test_rows_and_columns_bear_the_facts_numbers():
    layout = _figure(_facts(3)).layout
    assert list(layout.yaxis.ticktext) == [f"the tower → rome   {number}" for number in (0, 7, 14)]
    assert list(layout.xaxis.ticktext) == ["0", "7", "14"]
    assert layout.yaxis.range == layout.yaxis2.range == (2.5, -0.5)
    assert layout.title.text.startswith("a title<br>")
    assert "a line below" in layout.title.text


@pytest.mark.parametrize(
    ("largest", "top", "last"), [(0.5, 0.5, "0.5"), (1.0, 1.0, "1"), (40.0, 1.0, "≥ 1"), (0, 1, "1")]
)
def test_one_that_adds_all_that_was_missing_has_the_darkest_colour(largest, top, last):
    pairs = _figure(_facts(2, largest)).data[0]
    assert pairs.zmax == top
    assert pairs.colorbar.ticktext[-1] == last
    assert pairs.colorbar.tickvals[-1] == top


def test_forty_facts_are_no_taller_than_a_page_and_one_is_no_sliver():
    many, one = _figure(_facts(40)).layout, _figure(_facts(1)).layout
    assert 500 <= many.height <= 800
    assert one.height >= 150
    assert one.width >= 450
    assert many.xaxis.tickangle == -90
    assert one.xaxis.tickangle == 0


def test_texts_are_data(tmp_path):
    facts = [DisturbedFact(k, text, text, 0.0, [0.0] * len(NASTY)) for k, text in enumerate(NASTY)]
    figure = _figure(facts, title=NASTY[0])
    write_html(figure, tmp_path / "figure.html")
    assert "<script>alert" not in (tmp_path / "figure.html").read_text("utf-8")
    drawn = [*figure.layout.yaxis.ticktext, *figure.data[2].customdata, figure.layout.title.text]
    assert not [text for text in drawn if "<script" in text or "<b>bold" in text or "$" in text or "%{" in text]


def test_what_makes_no_figure():
    with pytest.raises(ValueError, match="a figure of facts needs one"):
        _figure([])
    with pytest.raises(ValueError, match="fact 0 has 1 shares for 2 facts"):
        _figure([DisturbedFact(0, "a", "a", 0, [0.0]), DisturbedFact(1, "b", "b", 0, [0.0, 0.0])])
