"""The page that explores one fact: what it holds, and that nothing in a text is obeyed."""

import json
from pathlib import Path

import pytest
from pages import NASTY, PageReader
from refused import refused

from rome_lens.errors import ArtefactError
from rome_lens.figures.explorer import explorer_page
from rome_lens.figures.heat_map import HeatMap
from rome_lens.figures.visible import visible


def grid(stream="mlp", labels=("a*", "b"), scores=((0.1, 0.2), (0.5, 0.3)), **settings):
    given = {"low": 0.1, "high": 0.4, "answer": " x", "title": "Restoring the MLP outputs", "layer_title": "layer"}
    return HeatMap(stream, scores, labels, **(given | settings))


def page(states=None, **settings):
    given = {"heading": "a b [x]", "lines": ["a model"], "notes": [], "measure": "p(x)", "settings": {"seed": 1}}
    return explorer_page(states or {"": [grid()]}, **(given | settings))


def content(made):
    """What the page's script reads."""
    texts = PageReader(made)
    (data,) = [text for text in texts.scripts if text.startswith("{")]
    return json.loads(data)


def test_the_script_reads_every_number():
    said = (('"a" 0.5', '"b" 0.5'), ('"a" 1.0', '"b" 0.7'))
    (only,) = content(page({"": [grid(said=said, first=3)]}))["grids"]
    assert only["scores"] == [[0.1, 0.2], [0.5, 0.3]]
    assert only["said"] == [list(row) for row in said]
    assert (only["labels"], only["first"], only["peak"]) == (["a*", "b"], 3, [1, 0])
    assert (only["low"], only["high"], only["ends"], only["falls"]) == (0.1, 0.4, [0.1, 0.5], False)
    assert only["name"] == "MLP outputs"


def test_states_stand_one_behind_the_other():
    found = content(page({"before": [grid(), grid("attn")], "after": [grid(), grid("attn")]}))
    assert found["states"] == ["before", "after"]
    stands = [(one["stream"], one["state"]) for one in found["grids"]]
    assert stands == [("mlp", 0), ("attn", 0), ("mlp", 1), ("attn", 1)]


def test_what_is_measured_is_named():
    assert content(page(measure="KL\n"))["measure"] == "KL↵"


def test_a_shade_means_the_same_before_and_after():
    before, after = grid(high=0.2, scores=((0.1, 0.2), (0.1, 0.1))), grid(high=0.9)
    found = content(page({"before": [before], "after": [after]}))["grids"]
    assert [one["ends"] for one in found] == [[0.1, 0.9], [0.1, 0.9]]


def test_where_every_score_is_0_there_is_no_peak():
    (only,) = content(page({"": [grid(low=0.0, high=0.0, scores=((0.0, 0.0),))]}))["grids"]
    assert only["peak"] is None


@pytest.mark.parametrize("nasty", NASTY)
def test_a_text_is_shown_and_not_obeyed(nasty):
    said = ((nasty, nasty), (nasty, nasty))
    texts = {"heading": nasty, "lines": [nasty], "notes": [nasty], "measure": nasty, "settings": {nasty: nasty}}
    made = page({nasty: [grid(labels=(nasty, "b"), said=said, title=nasty, answer=nasty)]}, **texts)
    seen, plain = PageReader(made), PageReader(page(notes=["b"]))
    assert [tag for tag, _ in seen.tags] == [tag for tag, _ in plain.tags]
    found = content(made)
    assert found["grids"][0]["labels"][0] == visible(nasty)
    assert found["grids"][0]["said"][1][1] == visible(nasty)
    assert visible(nasty).strip() in seen.text


def test_it_is_one_small_file_that_asks_for_nothing():
    made = page()
    assert len(made) < 40_000
    assert not [name for _, given in PageReader(made).tags for name in given if name in ("src", "href")]
    assert "default-src 'none'" in made
    assert made == page()


def test_a_trace_writes_its_page(tiny, tmp_path):
    import rome_lens as rl

    traced = rl.causal_trace(tiny, "the tower is in", subject="the tower", noise=1.0, samples=2, window=1)
    traced.write_html(tmp_path / "trace.html")
    made = (tmp_path / "trace.html").read_text("utf-8")
    assert made == traced.to_html()
    assert [one["stream"] for one in content(made)["grids"]] == ["resid", "mlp", "attn"]
    words = PageReader(made).text
    assert f"p({traced.answer.strip()}): {traced.high:.4f} in the clean run, {traced.low:.4f} with the" in words
    assert "noise_rule" in words
    # As a notebook shows it: the same page, in a frame.
    (frame,) = [given for tag, given in PageReader(traced._repr_html_()).tags if tag == "iframe"]
    assert frame["srcdoc"] == made
    assert frame["title"] == traced.prompt
    assert "there is no folder" in refused(ArtefactError, traced.write_html, tmp_path / "nowhere" / "page.html")


def test_the_sites_own_page_is_what_would_be_written_today():
    root = Path(__file__).parents[2]
    kept = (root / "docs" / "results" / "seoul.html").read_text("utf-8")
    script = (root / "rome_lens" / "figures" / "explorer.js").read_text("utf-8")
    streams = " ".join(f"--stream {grid['stream']}" for grid in content(kept)["grids"])
    assert script.strip() in kept, f"write it again: rome-lens trace {streams} --html docs/results/seoul.html"
