"""Reports with checkpoints, made by hand: what is left by age, what collapsed, tables, figures, pages, terminals."""

import io

import pytest
from reports import kept, record, together
from rich.console import Console

import rome_lens as rl
from rome_lens.cli.together_report import print_together
from rome_lens.errors import SettingError
from rome_lens.evaluation.report.record import EvaluatedRecord
from rome_lens.evaluation.report.together_report import KeptCheckpoint

HOSTILE = "<b>x</b>"


def fading(number):
    """The first ten facts are half gone, and the others are there."""
    return 40.0 if number < 10 else 80.0


@pytest.fixture
def report():
    disturbances = [
        {"number": n, "name": f"fact {n}", "words": f"asked {n}", "shortfall": 0.1 * n, "added": [0.0, 0.5]}
        for n in range(2)
    ]
    return together(
        {
            "memit": {
                1: kept(1, 90.0, ppl=10.0),
                10: kept(10, 80.0, ppl=12.0, drift=0.01, relative_norm=0.1, shortfall=0.2, load=0.3, conflicts=1),
                30: kept(30, fading, ppl=13.0, drift=0.02, disturbances=disturbances),
            },
            HOSTILE: {1: kept(1, 90.0, ppl=10.5), 10: kept(10, 50.0, ppl=30.0, failed={"3": "no room"})},
        }
    )


def test_what_is_left_is_told_by_the_checkpoint_that_facts_came_with(report):
    ages = report.checkpoint("memit", 30).ages
    assert [(age.first, age.last, age.n) for age in ages] == [(1, 1, 1), (2, 10, 9), (11, 30, 20)]
    assert [round(age.scores["S"], 6) for age in ages] == [40.0, 40.0, 80.0]
    table = report.retention()
    assert list(table.loc[(table.editor == "memit") & (table.n == 30), "S"].round(6)) == [40.0, 40.0, 80.0]
    assert len(table) == 1 + 2 + 3 + 1 + 2


def test_the_unedited_model_stands_beside_and_in_front(report):
    point = report.checkpoint("memit", 30)
    assert point.unedited["NS"].mean == 10.0
    assert point.scores["NS"] == pytest.approx((10 * 40 + 20 * 80) / 30)
    assert point.perplexity == pytest.approx(1.3)
    table = report.to_dataframe()
    assert list(table["editor"]) == ["none"] * 3 + ["memit"] * 3 + [HOSTILE] * 2
    assert list(table.loc[table.editor == "none", "NS"]) == [10.0] * 3
    assert list(table.loc[table.editor == "memit", "NS_unedited"]) == [10.0] * 3
    assert table.loc[(table.editor == "memit") & (table.n == 10), "load"].item() == 0.3
    assert len(report.records_to_dataframe()) == 1 + 10 + 30 + 1 + 10


def test_a_collapse_is_told_by_perplexity_and_by_score_from_ten_facts_on(report):
    assert report.collapse == {"memit": None, HOSTILE: 10}
    said = report.checkpoint(HOSTILE, 10).collapse
    assert said == "perplexity 3 times that of the unedited model, S 50.0"
    few = together({"memit": {5: kept(5, 0.0, ppl=10.0)}})
    assert few.collapse == {"memit": None}


def test_records_that_lack_scores_are_left_out_of_what_needs_them():
    bare = record(1, scores={"ES": 100.0}, before={"ES": 0.0})
    records = [EvaluatedRecord.from_dict(one) for one in (record(0), bare)]
    point = together({"memit": {2: KeptCheckpoint(records, {"numbers": [0, 1]}, None)}}).checkpoint("memit", 2)
    assert (point.intervals["S"].n, point.intervals["ES"].n, point.ages[0].n) == (1, 2, 1)
    assert point.perplexity is None


def test_figures_have_a_line_an_editor(report):
    figures = report.figures()
    assert set(figures) == {"curves", "retention", "disturbances-memit"}
    names = {trace.name for trace in figures["curves"].data if trace.showlegend}
    assert {"none", "memit"} <= names
    (line,) = [t for t in figures["curves"].data if t.name == "memit" and t.showlegend]
    assert list(line.x) == [1, 10, 30]


def test_a_page_holds_all_of_it_and_lets_no_text_out(report, tmp_path):
    report.write_html(tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert HOSTILE not in page
    assert "no room" in page
    assert "perplexity 3 times that of the unedited model, S 50.0" in page
    report.write_html(tmp_path / "again.html")
    assert (tmp_path / "again.html").read_bytes() == (tmp_path / "page.html").read_bytes()


def printed(report, width, *, encoding="utf-8"):
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    print_together(Console(file=file, width=width), report)
    file.flush()
    return file.buffer.getvalue().decode(encoding)


@pytest.mark.parametrize("width", [100, 80, 50, 30])
def test_the_terminal_shows_a_line_a_checkpoint(report, width):
    lines = printed(report, width).splitlines()
    assert max(map(len, lines)) <= width
    assert sum(line.startswith("memit") for line in lines) == 3
    text = " ".join(printed(report, width).split())
    assert "at 10 facts: perplexity 3 times that of the unedited model, S 50.0" in text
    assert "1 of 10 (record 3): no room" in text
    header = next(line for line in lines if line.startswith("editor"))
    assert ("interval" in header) is (width >= 80)
    assert "facts" in header
    assert " S" in header


def test_a_terminal_without_unicode(report):
    assert printed(report, 80, encoding="ascii").isascii()


def test_a_checkpoint_that_is_not_there_is_refused(report):
    with pytest.raises(SettingError, match=r"there is no checkpoint of 'memit' with 5 facts; the report has memit at"):
        report.checkpoint("memit", 5)
    assert isinstance(report, rl.TogetherReport)
    assert repr(report).startswith("TogetherReport(counterfact, memit: S ")
