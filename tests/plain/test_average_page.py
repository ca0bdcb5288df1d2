"""The figures and the page of an average: what they hold, and that data stays data."""

import math
import re

import pytest
from refused import refused

from rome_lens.figures.curves import CurvePanel, Line, curve_figure
from rome_lens.figures.heat_map import HeatMap
from rome_lens.tracing.average.result import AverageEffect
from rome_lens.tracing.roles import FIRST_SUBJECT, LAST, LAST_SUBJECT

NASTY = '<script>alert(1)</script> $x$ {{ 7 * 7 }} "><img src=x onerror=alert(1)>'


def fact(number, *, n_layers=3, scale=1.0, subject="the tower", span=(0, 2), engine="blocks", severed=True):
    tokens = ["the", " tower", " is", " in"]
    grid = [[0.1 + scale * 0.01 * (layer + 1) * (pos + 1) for pos in range(4)] for layer in range(n_layers)]
    at = [span[1] - 1]
    cut = [[row[pos] - 0.01 for pos in at] for row in grid]
    return {
        "number": number,
        "prompt": "{} is in",
        "subject": subject,
        "answer": "rome",
        "known": True,
        "tokens": tokens,
        "subject_span": list(span),
        "low": 0.1,
        "high": 0.6,
        "scores": dict.fromkeys(("resid", "mlp", "attn"), grid),
        "severed_at": at,
        "severed": {"mlp": cut, "attn": [[row[pos] for pos in at] for row in grid]} if severed else {},
        "engine": engine,
        "notes": [],
    }


def average(*facts, aside=(), model="tiny"):
    settings = {"model": {"name": model}, "window": None, "prepared": {"window": 2}, "noise": "s3"}
    return AverageEffect(tuple(facts or (fact(0), fact(1, scale=2.0))), tuple(aside), settings, 0)


def test_heat_maps_have_roles_down_and_layers_across():
    found = average()
    maps = found.heat_maps()
    assert [m.stream for m in maps] == ["resid", "mlp", "attn"]
    assert maps[0].labels == (FIRST_SUBJECT, LAST_SUBJECT, "first subsequent token", LAST)
    assert maps[1].layer_title == "centre of 2 restored layers"
    # Layer 2, the last token: 0.12 and 0.24 above low.
    assert maps[0].score(2, 3) == pytest.approx(0.18)
    assert (maps[0].measure, maps[0].low) == ("AIE", 0.0)


def test_figures_show_means_and_bands():
    figures = average().figures()
    assert list(figures) == ["roles", "layers", "severed"]
    lines = [trace for trace in figures["layers"].data if trace.name == LAST]
    assert len(lines) == 3
    assert list(lines[0].y) == pytest.approx([0.06, 0.12, 0.18])
    cut = {trace.name: trace for trace in figures["severed"].data if trace.name and trace.showlegend}
    assert list(cut) == ["ordinary", "MLPs severed", "attention severed"]
    assert list(cut["MLPs severed"].y) == pytest.approx([y - 0.01 for y in cut["ordinary"].y])
    lost = [trace for trace in figures["severed"].data if trace.name == "MLPs severed"][-1]
    assert list(lost.y) == pytest.approx([0.01] * 3)


def test_nothing_severed_is_no_figure():
    found = average(fact(0, severed=False))
    assert found.severed_panels() == []
    assert "severed" not in found.figures()
    assert "Severed paths" not in found.to_html()


def test_the_page_holds_effects_facts_and_settings():
    aside = {"number": 5, "prompt": "{} x", "subject": "it", "answer": "y", "known": False, "why": "not known"}
    page = average(aside=[aside]).to_html()
    assert "Where <bdi>tiny</bdi> keeps 2 facts" in page
    assert "1 fact was set aside: the model does not know" in page
    assert "0.500 <span" in page  # the total effect
    assert "not known" in page
    assert "prepared.window" in page
    assert page == average(aside=[aside]).to_html()
    assert not re.search(r"(src|href)=[^#>]*//", re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL))


def test_an_approximation_says_so():
    page = average(fact(0, engine="attribution", severed=False)).to_html()
    assert "Approximated by attribution patching" in page
    assert "Approximated by" not in average().to_html()


def test_data_stays_data():
    page = average(fact(0, subject=NASTY), model=NASTY).to_html()
    assert "<script>alert" not in page
    assert "onerror=alert(1)>" not in page
    assert "{{ 7 * 7 }}" in page


def line(name="a", colour="#102030", **changes):
    fields = {"mean": [1.0, 2.0], "low": [0.5, 1.5], "high": [1.5, 2.5], "n": 3}
    return Line(name, **fields | changes, colour=colour)


def test_a_curve_is_a_line_and_its_band():
    figure = curve_figure([CurvePanel("one", [line(at=[4, 9])])], x_title="layer", y_title="effect")
    low, high, middle = figure.data
    assert (list(low.y), list(high.y), list(middle.y)) == ([0.5, 1.5], [1.5, 2.5], [1.0, 2.0])
    assert list(middle.x) == [4, 9]
    assert high.fill == "tonexty"
    assert high.fillcolor == "rgba(16,32,48,0.18)"
    assert figure.layout.showlegend is False
    assert "n = 3" in middle.hovertemplate


def test_a_name_is_once_in_the_legend_and_panels_share_their_scale_if_asked():
    panels = [CurvePanel(title, [line(), line("b")]) for title in ("one", "two")]
    figure = curve_figure(panels, x_title="layer", y_title="effect")
    assert [trace.name for trace in figure.data if trace.showlegend] == ["a", "b"]
    assert figure.layout.yaxis2.matches == "y"
    apart = curve_figure(panels, x_title="layer", y_title="effect", one_scale=False)
    assert apart.layout.yaxis2.matches is None
    assert apart.layout.yaxis2.title.text == "effect"


def test_names_of_curves_are_text():
    figure = curve_figure([CurvePanel("$x$ <b>", [line("<script>"), line("b")])], x_title="%{x}", y_title="<i>")
    text = str(figure.to_dict())
    assert "<script>" not in text.replace("&lt;script&gt;", "")
    assert "$x$" not in text
    assert figure.layout.xaxis.title.text == "&#37;{x}"


def test_no_curve_is_refused():
    assert "needs a line" in refused(ValueError, curve_figure, [CurvePanel("none", [])], x_title="", y_title="")


def test_a_heat_map_of_another_measure_has_its_own_words_and_scale():
    from rome_lens.figures.plotly_figure import heat_map_figure

    maps = [
        HeatMap("mlp", [[0.0, top]], ["a", "b"], 0.0, 0.0, "x", "t", "layer", measure="AIE", of_effects=True)
        for top in (0.1, 0.4)
    ]
    figure = heat_map_figure(maps, title="")
    assert [trace.zmax for trace in figure.data] == [0.1, 0.4]
    assert figure.data[0].colorbar.title.text == "AIE"
    assert "p(" not in figure.data[0].hovertemplate
    assert figure.layout.title.text is None
    named = heat_map_figure(maps, title="of $x$", subtitle="100 % & more")
    assert "100 &#37; &amp; more" in named.layout.title.text
    assert math.isclose(maps[1].top, 0.4)
