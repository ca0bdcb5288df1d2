"""The figures of an evaluation: what they draw, and that no text in them is read as anything but text."""

import json
import math

import pytest
from refused import refused
from reports import many, record, report

from rome_lens.figures.files import write_html
from rome_lens.figures.format import format_score
from rome_lens.figures.groups import GroupPoint, group_figure
from rome_lens.figures.scores import MetricPanel, score_figure
from rome_lens.figures.style import GREY, editor_colours
from rome_lens.intervals import Estimate

NASTY = ["<script>alert(1)</script>", "$x$", "%{y}", "a\nb", "שלום", "🗼 <b>bold</b>"]


def _panel(name="ES", **changes):
    fields = {"title": "efficacy", "intervals": {"none": Estimate(20, 10, 30, 5), "ft": Estimate(90, 80, 95, 5)}}
    return MetricPanel(name=name, **{**fields, "bounds": (0.0, 100.0), **changes})


def _texts(figure):
    return [annotation.text for annotation in figure.layout.annotations]


def _titles(figure):
    return [text.split("</b>")[0].removeprefix("<b>") for text in _texts(figure) if text.startswith("<b>")]


def _numbers(axis):
    return list(axis.range)


# --- scores ---------------------------------------------------------------------------------------------------------


def test_a_point_is_the_mean_and_its_bars_reach_to_the_ends_of_the_interval():
    figure = score_figure([_panel()], editors=["none", "ft"], reference="none")
    ft = figure.data[1]
    assert (list(ft.x), list(ft.y)) == ([90], [1])
    assert (list(ft.error_x.array), list(ft.error_x.arrayminus)) == ([5], [10])
    assert ft.hovertemplate == "<b>ft</b><br>ES 90.0  [80.0, 95.0]<br>5 records<extra></extra>"


def test_the_means_stand_beside_the_panel_in_figures():
    figure = score_figure([_panel()], editors=["none", "ft"])
    assert _texts(figure)[:2] == ["20.0", "90.0"]
    assert _texts(figure)[2].startswith("<b>ES</b><br>")


def test_an_editor_has_one_colour_in_every_panel_and_the_reference_is_grey():
    only_ft = _panel("GE", intervals={"ft": Estimate(600, 590, 610, 5)}, bounds=None)
    figure = score_figure([_panel(), only_ft], editors=["none", "ft"], reference="none")
    assert [trace.name for trace in figure.data] == ["none", "ft", "ft"]
    colours = [trace.marker.color for trace in figure.data]
    assert colours[0] == GREY != colours[1] == colours[2]


def test_eight_editors_have_eight_colours():
    assert len(set(editor_colours([str(i) for i in range(8)], None))) == 8


def test_the_reference_draws_a_line_through_each_panel_that_it_is_in():
    figure = score_figure([_panel(), _panel("PS")], editors=["none", "ft"], reference="none")
    assert [(shape.x0, shape.x1, shape.xref) for shape in figure.layout.shapes] == [(20, 20, "x"), (20, 20, "x2")]
    assert not score_figure([_panel()], editors=["none", "ft"]).layout.shapes


def test_axes_have_their_own_ends():
    panels = [
        _panel(),
        _panel("EM", bounds=None, anchor=0.0, intervals={"ft": Estimate(-4, -6, -2, 5)}),
        _panel("GE", bounds=None, intervals={"ft": Estimate(600, 590, 610, 5)}),
        _panel("PPL", bounds=None, anchor=1.0, logarithmic=True, intervals={"ft": Estimate(100, 10, 1000, 5)}),
    ]
    layout = score_figure(panels, editors=["ft"]).layout
    assert _numbers(layout.xaxis) == [-5, 105]
    assert _numbers(layout.xaxis2) == pytest.approx([-6.3, 0.3])
    assert _numbers(layout.xaxis3) == pytest.approx([589, 611])
    assert (layout.xaxis4.type, _numbers(layout.xaxis4)) == ("log", pytest.approx([-0.15, 3.15]))


def test_numbers_that_cannot_be_drawn_are_written():
    intervals = {"a": Estimate(math.nan, math.nan, math.nan, 0), "b": Estimate(math.inf, 1, math.inf, 2)}
    figure = score_figure([_panel("PPL", bounds=None, intervals=intervals)], editors=["a", "b"])
    assert not figure.data
    assert _texts(figure)[:2] == ["–", "∞"]
    assert all(math.isfinite(end) for end in figure.layout.xaxis.range)
    zero = _panel("PPL", bounds=None, logarithmic=True, intervals={"a": Estimate(0, 0, 1, 2)})
    assert not score_figure([zero], editors=["a"]).data


def test_an_interval_without_width_and_a_mean_outside_its_interval_are_drawn():
    figure = score_figure(
        [_panel(intervals={"a": Estimate(50, 50, 50, 1), "b": Estimate(40, 42, 60, 3)})], editors="ab"
    )
    assert [list(trace.error_x.arrayminus) for trace in figure.data] == [[0], [0]]
    assert figure.data[0].hovertemplate.endswith("1 record<extra></extra>")


@pytest.mark.parametrize("text", NASTY)
def test_texts_are_shown_and_not_read(text, tmp_path):
    panel = _panel(text, title=text, intervals={text: Estimate(1, 0, 2, 1)})
    scores = score_figure([panel], editors=[text], title=text, reference=text)
    clouds = group_figure({text: [GroupPoint(text, 1, 2, 3)]}, x_title=text, y_title=text, title=text)
    for figure in (scores, clouds):
        drawn = json.dumps(figure.to_dict(), default=str, ensure_ascii=False)
        assert text not in drawn or text == "שלום"
        assert "<script" not in drawn
        write_html(figure, tmp_path / "figure.html")
        assert "<script>alert" not in (tmp_path / "figure.html").read_text("utf-8")


def test_nothing_to_draw_is_told():
    said = refused(ValueError, score_figure, [], editors=["ft"])
    assert said == "a figure of scores needs both: got 0 metrics and 1 editors"
    said = refused(ValueError, group_figure, {"ft": []}, x_title="x", y_title="y")
    assert said == "a figure of groups needs a point: got none"


# --- relations ------------------------------------------------------------------------------------------------------


def test_a_point_is_a_relation_and_its_area_grows_with_the_records():
    points = [GroupPoint("P1", 10, 20, 4), GroupPoint("P2", 30, 40, 16)]
    figure = group_figure({"ft": points}, x_title="NS", y_title="PS")
    (cloud,) = figure.data
    assert (list(cloud.x), list(cloud.y)) == ([30, 10], [40, 20])
    assert cloud.marker.size[0] == 2 * cloud.marker.size[1]
    assert [list(row) for row in cloud.customdata] == [["P2", "16 records"], ["P1", "4 records"]]
    assert cloud.hovertemplate == (
        "<b>ft</b><br>%{customdata[0]}, %{customdata[1]}<br>NS: %{x:.1f}<br>PS: %{y:.1f}<extra></extra>"
    )


def test_an_editor_has_a_panel_with_the_reference_behind_it_as_rings():
    point = [GroupPoint("P1", 10, 20, 1)]
    figure = group_figure({"none": point, "ft": point}, x_title="x", y_title="y", reference="none")
    assert [(t.name, t.xaxis, t.hoverinfo) for t in figure.data] == [
        ("none", "x", None),
        ("none", "x2", "skip"),
        ("ft", "x2", None),
    ]
    assert [figure.data[i].marker.color for i in (0, 1)] == [GREY, "rgba(0,0,0,0)"]


def test_one_editor_keeps_its_colour_when_it_is_shown_alone():
    point = [GroupPoint("P1", 10, 20, 1)]
    groups = {"none": point, "ft": point, "rome": point}
    all_, alone = (group_figure(groups, x_title="x", y_title="y", shown=shown) for shown in (None, ["rome"]))
    assert [trace.name for trace in alone.data] == ["rome"]
    assert alone.data[0].marker.color == all_.data[2].marker.color


# --- of a report ----------------------------------------------------------------------------------------------------


def test_a_counterfact_report_has_both_figures():
    figures = many().figures()
    assert list(figures) == ["scores", "relations"]
    assert _titles(figures["scores"]) == ["S", "ES", "PS", "NS", "EM", "PM", "NM"]
    assert figures["scores"].layout.title.text == "CounterFact: means over records with 95 &#37; intervals"
    r_rome = [trace for trace in figures["relations"].data if trace.name == "r-rome"]
    assert sorted(row[0] for row in r_rome[0].customdata) == ["P0", "P1", "P2"]
    assert {row[1] for row in r_rome[0].customdata} == {"4 records"}


def test_a_zsre_report_has_no_relations():
    figures = many(kind="zsre").figures()
    assert list(figures) == ["scores"]
    assert _titles(figures["scores"]) == ["efficacy", "paraphrase", "specificity"]


def test_one_record_and_scores_that_are_missing():
    figures = report({"ft": [record(scores={"ES": 100.0, "PPL": 1.5})]}).figures()
    assert list(figures) == ["scores"]
    assert [trace.x[0] for trace in figures["scores"].data] == [100.0, 1.5]
    assert report({"ft": [record(scores={})]}).figures() == {}


def test_a_collapsed_perplexity_gets_a_logarithmic_axis():
    for ratio, kind in ((1.5, "linear"), (900.0, "log")):
        figures = report({"ft": [record(scores={"PPL": ratio})]}).figures()
        assert figures["scores"].layout.xaxis.type == kind


@pytest.mark.parametrize(
    ("value", "decimals", "shown"),
    [(96.04, 1, "96.0"), (1.019, 2, "1.02"), (-0.04, 1, "0.0"), (1234.5, 1, "1234"), (2e7, 1, "2.0e+07")],
)
def test_numbers_for_people(value, decimals, shown):
    assert format_score(value, decimals) == shown


def test_numbers_that_are_none():
    assert [format_score(float(text)) for text in ("nan", "inf", "-inf")] == ["–", "∞", "-∞"]
