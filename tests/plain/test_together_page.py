"""Figures and the page of an evaluation with checkpoints: what they hold, and that data stays data."""

import json
import math
from dataclasses import replace

import pytest
from pages import NASTY, SHOWN, PageReader
from plotly.offline import get_plotlyjs
from refused import refused
from reports import kept, page_of, record, together

from rome_lens.errors import ArtefactError
from rome_lens.evaluation.report.record import EvaluatedRecord
from rome_lens.evaluation.report.together_report import KeptCheckpoint
from rome_lens.figures.style import GREY

KINDS = ("counterfact", "zsre")
FACT = {"number": 0, "name": "a → b", "words": "where is a", "shortfall": 0.25, "added": [9.0, 0.5]}
OTHER = {"number": 1, "name": "c → d", "words": "where is c", "shortfall": 0.5, "added": [0.125, 9.0]}


def _forgetful(n):
    """The facts of the first ten are forgotten, ten points at a time."""

    def score(number):
        return 90.0 if number >= 10 or n <= 10 else 60.0 - n / 2

    return score


def _report(kind="counterfact", **options):
    """A set that holds out, with all that is known of it, and a sequence that collapses at 20 facts and stops there."""
    sizes = {"relative_norm": 0.0123, "drift": 0.00045, "shortfall": 0.125, "load": 0.25, "conflicts": 3}
    return together(
        {
            "memit": {
                1: kept(1, 90.0, kind=kind, ppl=10.0, **sizes),
                10: kept(10, 80.0, kind=kind, ppl=10.5, **sizes),
                20: kept(20, _forgetful(20), kind=kind, ppl=12.5, **sizes, disturbances=[FACT, OTHER]),
                40: kept(40, _forgetful(40), kind=kind, ppl=15.0, **sizes, disturbances=[FACT, OTHER]),
            },
            "r-rome": {
                1: kept(1, 100.0, kind=kind, editor="r-rome", ppl=10.0),
                10: kept(10, 70.0, kind=kind, editor="r-rome", ppl=15.0, failed={3: "no subject"}),
                20: kept(20, 50.0, kind=kind, editor="r-rome", ppl=45.0, failed={3: "no subject", 12: "too long"}),
            },
        },
        kind=kind,
        **options,
    )


def _read(report):
    return PageReader(page_of(report))


def _flat(text):
    return " ".join(text.split())


def _named(figure, name):
    return [trace for trace in figure.data if trace.name == name]


# --- figures --------------------------------------------------------------------------------------------------------


def test_there_is_a_figure_of_curves_one_of_retention_and_one_of_each_set():
    assert list(_report().figures()) == ["curves", "retention", "disturbances-memit"]
    assert list(together({"ft": {}}).figures()) == []


@pytest.mark.parametrize(
    ("kind", "titles"),
    [
        ("counterfact", ["S: score, ", "ES: efficacy, ", "PS: paraphrases, ", "NS: neighbours, "]),
        ("zsre", ["efficacy: the question, ", "paraphrase: its paraphrase, ", "specificity: another question, "]),
    ],
)
def test_a_panel_a_main_score_and_one_for_perplexity(kind, titles):
    figure = _report(kind).figures()["curves"]
    assert [a.text for a in figure.layout.annotations] == [
        *(title + "&#37;" for title in titles),
        "perplexity, after / before",
    ]
    assert len(_named(figure, "memit")) == len(titles) + 1
    assert [trace.name for trace in figure.data if trace.showlegend] == ["none", "memit", "r-rome"]


def test_an_editor_is_a_line_over_its_own_checkpoints_with_the_band_of_its_interval():
    report = _report()
    figure = report.figures()["curves"]
    score = _named(figure, "r-rome")[0]
    assert list(score.x) == [1, 10, 20]
    assert list(score.y) == pytest.approx([100.0, 70.0, 50.0])
    low, high = (
        trace for trace in figure.data if trace.name is None and trace.legendgroup == "memit" and trace.yaxis == "y"
    )
    found = [point.intervals["S"] for point in report.editors["memit"]]
    assert list(low.y) == [one.low for one in found]
    assert list(high.y) == [one.high for one in found]
    assert "with %{x} facts" in score.hovertemplate


def test_the_unedited_model_is_dotted_grey_and_has_no_band():
    figure = _report().figures()["curves"]
    lines = _named(figure, "none")
    assert {(line.line.dash, line.line.color) for line in lines} == {("dot", GREY)}
    assert [list(line.y) for line in lines] == [pytest.approx([10.0] * 4)] * 4 + [[1.0] * 4]
    assert not [trace for trace in figure.data if trace.legendgroup == "none" and trace.name is None]
    assert {line.line.dash for line in _named(figure, "memit")} == {None}


def test_facts_go_across_in_powers_of_ten_with_a_tick_a_checkpoint():
    figures = _report().figures()
    for figure in (figures["curves"], figures["retention"]):
        axis = figure.layout.xaxis
        assert (axis.type, list(axis.tickvals)) == ("log", [1, 10, 20, 40])
        assert list(axis.ticktext) == ["1", "10", "20", "40"]
        assert axis.range[0] < 0
        assert axis.range[1] > math.log10(40)
        assert figure.layout.yaxis.range == (-4, 104)


def test_ticks_without_room_have_no_label():
    figure = together({"ft": {n: kept(n, 50.0) for n in (1, 38, 39, 40)}}).figures()["curves"]
    assert list(figure.layout.xaxis.ticktext) == ["1", "", "", "40"]


@pytest.mark.parametrize(("ppl", "kind"), [(100.0, None), (210.0, "log"), (math.inf, "log")])
def test_a_perplexity_above_twenty_has_an_axis_in_powers_of_ten(ppl, kind):
    figure = together({"ft": {1: kept(1, 50.0, ppl=10.0), 10: kept(10, 50.0, ppl=ppl)}}).figures()["curves"]
    assert figure.layout.yaxis5.type == kind
    assert figure.layout.yaxis.type is None


def test_no_watched_texts_are_no_panel():
    figure = together({"ft": {1: kept(1, 50.0)}}).figures()["curves"]
    assert len(figure.layout.annotations) == 4
    assert {trace.mode for trace in figure.data if trace.name} == {"markers"}


def test_retention_has_a_panel_an_editor_and_a_line_the_facts_of_each_age():
    figure = _report().figures()["retention"]
    assert [a.text for a in figure.layout.annotations] == ["memit", "r-rome"]
    assert [trace.name for trace in figure.data if trace.showlegend] == [
        "fact 1",
        "facts 2 to 10",
        "facts 11 to 20",
        "facts 21 to 40",
    ]
    early, sequence = _named(figure, "facts 2 to 10")
    assert (list(early.x), list(early.y)) == ([10, 20, 40], pytest.approx([80.0, 50.0, 40.0]))
    assert (list(sequence.x), list(sequence.y)) == ([10, 20], pytest.approx([70.0, 50.0]))
    assert early.line.color == sequence.line.color
    (youngest,) = _named(figure, "facts 21 to 40")
    assert (list(youngest.x), youngest.mode) == ([40], "markers")


def test_a_set_has_the_figure_of_who_disturbs_whom():
    figure = _report().figures()["disturbances-memit"]
    assert [list(row) for row in figure.data[0].z] == [[None, 0.5], [0.125, None]]
    assert "Who disturbs whom · memit" in figure.layout.title.text
    assert "2 of 40 facts, the most disturbed and what disturbs them" in figure.layout.title.text
    built = together({"memit": {2: kept(2, 90.0, disturbances=[FACT], failed={1: "no subject"})}})
    fact = {**FACT, "added": [0.0]}
    alone = replace(built, disturbances={"memit": [fact]}).figures()["disturbances-memit"]
    assert "1 fact; grey" in alone.layout.title.text


# --- the page -------------------------------------------------------------------------------------------------------


def test_the_page_says_what_was_run_and_where_values_were_found():
    text = _flat(_read(_report(descriptions={"memit": "layer 5, found on base", "r-rome": "found on edited"})).text)
    assert "CounterFact: 40 facts in one model, smollm2-135m" in text
    assert "CounterFact: 2 editors, up to 40 facts in one model Model: smollm2-135m." in text
    assert "With 1, 10, 20, 40 facts in the model together all of them were asked again." in text
    assert "memit layer 5, found on base r-rome found on edited Scores" in text


def test_a_sample_is_called_one_and_says_how_many_were_asked():
    built = kept(10, 80.0)
    text = _flat(_read(together({"ft": {20: built}}, sample=10)).text)
    assert "a sample of them was asked again" in text
    assert "ft 20 10 asked 80.0 80.0 to 80.0" in text


def test_the_page_names_the_collapse():
    text = _flat(_read(_report()).text)
    assert "r-rome collapsed at 20 facts: perplexity 4.5 times that of the unedited model, S 50.0" in text
    assert "a perplexity above 2 times that of the unedited model or an S below 60 from 10 facts on" in text
    assert text.count("collapsed") == 1
    assert "No model collapsed." in _read(together({"ft": {1: kept(1, 50.0)}})).text


def test_the_table_holds_scores_sizes_and_what_else_was_measured():
    page = _read(_report())
    table = _flat(page.text.split("Scores by number of facts")[1].split("What the columns mean")[0])
    assert table.startswith(
        "editor facts S ES PS NS NS, none perplexity norm drift shortfall load conflicts EM PM NM memit 1 90.0 "
        "90.0 to 90.0"
    )
    row = "10.0 10.0 to 10.0 1.05 0.0123 0.00045 0.125 0.25 3 80.0 80.0 to 80.0"
    assert f"memit 10 {'80.0 80.0 to 80.0 ' * 4}{row}" in table
    assert "10.0 10.0 to 10.0 1.50 – – – – – 70.0" in table
    classes = [attrs.get("class") for tag, attrs in page.tags if tag == "td"]
    assert classes.count("bad") == 1


def test_the_page_holds_every_figure():
    page = _read(_report())
    ids = [attrs["id"] for tag, attrs in page.tags if tag == "div" and "id" in attrs]
    assert ids == [*(f"curves-{n}" for n in range(5)), "retention-0", "retention-1", "disturbances-0"]
    text = _flat(page.text)
    assert "none memit r-rome" in text.split("Curves")[1].split("What is left")[0]
    assert "fact 1 facts 2 to 10 facts 11 to 20 facts 21 to 40" in text
    assert "memit 2 of 40 facts, the most disturbed and what disturbs them; grey is a fact's own part." in text


def test_the_worst_facts_are_those_of_the_last_checkpoint():
    text = _flat(_read(_report()).text).split("The worst facts at the last checkpoint of each editor")[1]
    assert "At most ten each: lowest harmonic mean of a record's ES, PS and NS" in text
    first = text.split("r-rome")[0]
    assert first.count("ES 40.0 PS 40.0 NS 40.0") == 10
    assert "ES 90.0" not in first


def test_facts_that_could_not_be_put_in_are_listed_with_reasons():
    text = _flat(_read(_report(settings={"limit": 4})).text).split("Facts that could not be put in")[1]
    row = "Porsche 911, created by"
    assert f"editor record prompt why r-rome 3 {row} no subject r-rome 12 {row} too long Settings" in text
    assert "together.at [1, 10, 20, 40]" in text
    assert "None. Settings" in _flat(_read(together({"ft": {1: kept(1, 50.0)}})).text)


def test_records_that_cannot_be_put_to_the_model_are_listed():
    unfit = EvaluatedRecord.from_dict(record(9, scores={}, before={}, unfit="too long"))
    one = kept(2, 50.0)
    built = together({"ft": {2: KeptCheckpoint([*one.records, unfit], one.state, None)}})
    assert built.unevaluated == {9: "too long"}
    assert built.checkpoint("ft", 2).n_records == 2
    assert "Records that could not be put to the model record why 9 too long" in _flat(_read(built).text)


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_report_gives_the_same_bytes_and_needs_nothing_but_itself(kind):
    page = page_of(_report(kind))
    assert page == page_of(_report(kind))
    assert page.count(get_plotlyjs()) == 1
    assert not [tag for tag, attrs in PageReader(page).tags if tag in ("link", "img") or {"src", "href"} & set(attrs)]


def _full_of(texts, kind):
    """A report that holds each of these texts wherever a text can be, as an editor of its own."""
    editors = {}
    for text in texts:
        answer = {**record(kind=kind)["answers"][0], "prompt": text, "free": text}
        hostile = record(
            kind=kind,
            **dict.fromkeys(("case_id", "relation", "prompt", "target_new", "target_true", "error"), text),
            answers=[{**answer, "answer": text} if kind == "zsre" else answer],
            texts=[{"prompt": text, "text": text.replace("\n", "\r")}],
        )
        fact = {**FACT, "name": text, "words": text, "added": [0.0]}
        state = {"numbers": [0], "failed": {0: text}, "disturbances": [fact]}
        editors[text] = {1: KeptCheckpoint([EvaluatedRecord.from_dict(hostile)], state, None)}
    built = together(
        editors, kind=kind, settings={text: [text] for text in texts}, descriptions={text: text for text in texts}
    )
    points = {name: tuple(replace(p, collapse=name) for p in several) for name, several in built.editors.items()}
    return replace(built, editors=points, unevaluated=dict(enumerate(texts)))


@pytest.mark.parametrize("kind", KINDS)
def test_data_is_shown_and_never_interpreted(kind):
    page, plain = (_read(_full_of(texts, kind)) for texts in (NASTY, [f"plain {n}" for n in range(len(NASTY))]))
    for text in NASTY:
        # The collapse, the editor and its line, table, legend, figures' headings, every field of its record, reasons.
        assert page.text.count(SHOWN.get(text, text)) >= 18
    assert [tag for tag, _ in page.tags] == [tag for tag, _ in plain.tags]
    assert [sorted(attrs) for _, attrs in page.tags] == [sorted(attrs) for _, attrs in plain.tags]


@pytest.mark.parametrize("text", ["<script>alert(1)</script>", "$x$", "%{z}", "a\nb", "<img src=x onerror=alert(1)>"])
def test_figures_show_names_and_do_not_read_them(text):
    figures = _full_of([text], "counterfact").figures()
    assert list(figures) == ["curves", "retention", f"disturbances-{text}"]
    for name, figure in figures.items():
        # The figure of who disturbs whom has a place of its own that is called z.
        drawn = json.dumps(figure.to_dict(), default=str, ensure_ascii=False).replace("adds %{z:.3f}", "")
        assert json.dumps(text)[1:-1] not in drawn, name


def test_a_report_without_a_checkpoint_is_a_page():
    text = _flat(_read(together({"ft": {}})).text)
    assert "ft layer 5, found on base, ft; no checkpoint is finished" in text
    assert "Curves" not in text


def test_a_page_that_cannot_be_written(tmp_path):
    assert "there is no folder" in refused(ArtefactError, _report().write_html, tmp_path / "missing" / "page.html")
