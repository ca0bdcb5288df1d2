"""The page, the table and the files of an evaluation: what they hold, and that data stays data."""

import csv
import io
import math
import re

import pandas as pd
import pytest
from pages import NASTY, SHOWN, PageReader
from plotly.offline import get_plotlyjs
from refused import refused
from reports import many, page_of, record, report

from rome_lens.errors import ArtefactError
from rome_lens.evaluation.report.metric_names import model_name
from rome_lens.evaluation.report.record import EvaluatedRecord
from rome_lens.evaluation.report.report import write_csv
from rome_lens.evaluation.report.worst import worst_records


def _read(a_report):
    return PageReader(page_of(a_report))


# --- the page -------------------------------------------------------------------------------------------------------


def test_the_page_says_what_was_evaluated():
    text = " ".join(_read(many()).text.split())
    assert "CounterFact: 12 records, smollm2-135m CounterFact: 3 editors, 12 records Model: smollm2-135m." in text
    assert "smollm2-135m" in text


def test_the_table_holds_every_mean_with_its_interval():
    scores = {"ES": 50.0, "PPL": 1.024}
    page = _read(report({"ft": [record(0, scores={"ES": 90.0, "PS": 80.0, "NS": 70.0}), record(1, scores=scores)]}))
    table = " ".join(page.text.split("What the columns mean")[0].split())
    assert table.endswith(
        "editor S ES PS NS PPL "
        "ft 79.2 79.2 to 79.2 70.0 50.0 to 90.0 80.0 80.0 to 80.0 70.0 70.0 to 70.0 1.02 1.02 to 1.02"
    )


def test_an_editor_without_a_metric_has_a_dash():
    page = _read(report({"none": [record(scores={"ES": 10.0})], "ft": [record(scores={"ES": 90.0, "GE": 600.0})]}))
    table = " ".join(page.text.split("What the columns mean")[0].split())
    assert table.endswith("none 10.0 10.0 to 10.0 – ft 90.0 90.0 to 90.0 600.0 600.0 to 600.0")


@pytest.mark.parametrize("kind", ["counterfact", "zsre"])
def test_the_same_report_gives_the_same_bytes(kind, tmp_path):
    for name in "ab":
        many(kind=kind).write_html(tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize("kind", ["counterfact", "zsre"])
def test_the_page_needs_nothing_but_itself(kind):
    page = page_of(many(kind=kind))
    assert page.count(get_plotlyjs()) == 1
    tags = PageReader(page).tags
    assert not [tag for tag, attrs in tags if tag in ("link", "img", "iframe") or {"src", "href"} & set(attrs)]
    policy = next(attrs["content"] for tag, attrs in tags if attrs.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none';")


def test_a_figure_a_metric_and_a_figure_an_editor():
    ids = [attrs["id"] for tag, attrs in _read(many()).tags if tag == "div" and "id" in attrs]
    assert ids == [f"scores-{i}" for i in range(7)] + [f"relations-{i}" for i in range(3)]
    assert not [a for _, a in _read(many(kind="zsre")).tags if a.get("id", "").startswith("relations")]


@pytest.mark.parametrize("kind", ["counterfact", "zsre"])
def test_data_is_shown_and_never_interpreted(kind):
    page, plain = (_read(_full_of(texts, kind)) for texts in (NASTY, [f"plain {n}" for n in range(len(NASTY))]))
    for text in NASTY:
        # Title and tables, the editor's place in each list, and every field of its record.
        assert page.text.count(SHOWN.get(text, text)) >= 15
    assert [tag for tag, _ in page.tags] == [tag for tag, _ in plain.tags]
    assert [sorted(attrs) for _, attrs in page.tags] == [sorted(attrs) for _, attrs in plain.tags]


def _full_of(texts, kind):
    """A report that holds each of these texts wherever a text can be, as an editor of its own."""
    records = {}
    for text in texts:
        answer = {**record(kind=kind)["answers"][0], "prompt": text, "free": text}
        records[text] = [
            record(
                kind=kind,
                **dict.fromkeys(("case_id", "relation", "prompt", "target_new", "target_true", "error"), text),
                answers=[{**answer, "answer": text} if kind == "zsre" else answer],
                texts=[{"prompt": text, "text": text.replace("\n", "\r")}],
                perplexity={"before": 20.0, "after": 90.0, "flagged": True},
                edit={"layer": 5, "variant": text, "relative_norm": 0.1, "seconds": 1.0, "notes": [text]},
            )
        ]
    settings = {text: [text] for text in texts}
    return report(records, kind=kind, settings=settings, unevaluated=dict(enumerate(texts)))


def test_a_lone_surrogate_can_be_written(tmp_path):
    report({"ft": [record(prompt="\ud800", texts=[{"prompt": "a", "text": "\ud800"}])]}).write_html(
        tmp_path / "page.html"
    )
    assert "\\ud800" in (tmp_path / "page.html").read_text("utf-8")


def test_texts_keep_their_lines():
    page = _read(report({"ft": [record(texts=[{"prompt": "One", "text": " two.\n\n  Three\x07"}] * 5)]}))
    assert "One two.\n\n␣␣Three␇" in page.text
    assert "The first 3 of 5 texts that the model wrote" in page.text
    assert page.text.count("␣␣Three␇") == 3


def test_the_worst_ten_of_each_editor_are_shown_with_what_the_model_wrote():
    records = [record(n, scores={"ES": 100.0, "PS": 50.0, "NS": 10.0 + n}) for n in range(12)]
    text = _read(report({"ft": records[::-1]})).section("The worst records of each editor")
    assert "At most ten each: lowest harmonic mean of a record's ES, PS and NS; among equals lowest PM + NM" in text
    assert re.findall(r"record (\d+) · case", text) == [str(n) for n in range(10)]
    assert "record 0 · case 1000 · P0 Porsche 911, created by Porsche → Honda ES 100.0 PS 50.0 NS 10.0" in text
    assert "layer 5, |update| / |W| 0.05; a note" in text
    assert "edited prompt rewrite prompt of 0 old → new ✓ Honda, rewrite 0" in text
    assert "neighbour neighborhood prompt of 0 old → new ✗ Honda, neighborhood 0" in text
    assert "kind prompt prefers writes" in text


def test_what_follows_and_neighbours_own_answers_are_shown():
    pair = {"nll_new": 3.0, "nll_true": 0.5, "before_nll_new": 0.1, "before_nll_true": 0.5, "free": "a"}
    right = {"answer": "Japan", "nll": 0.5, "right": [True], "before_nll": 3.0, "before_right": [False, False]}
    answers = [
        {"kind": "rewrite", "prompt": "asked", **pair},
        {"kind": "neighborhood", "prompt": "beside", "answer": "red", **pair},
        {"kind": "follows", "prompt": "behind", **right, "free": "b"},
    ]
    scores = {"ES": 0.0, "portability": 100.0, "portability_free": 50.0}
    page = _read(report({"ft": [record(answers=answers, scores=scores)]}))
    text = page.section("The worst records of each editor")
    assert "kind prompt prefers, right tokens writes" in text
    assert "edited prompt asked new → old ✗ a" in text
    assert "neighbour beside red new → its own ✓ a" in text
    assert "follows behind Japan 0 of 2 → 1 of 1 ✓ b" in text
    assert "ES 0.0 portability 100.0 portability_free 50.0" in text
    assert "portability tokens of answers that follow from it that are first choices, in percent" in page.text


def test_zsre_shows_which_tokens_are_right():
    text = _read(report(kind="zsre")).section("The worst records of each editor")
    assert "lowest mean of a record's efficacy, paraphrase and specificity" in text
    assert "Porsche 911, created by Honda efficacy 90.0" in text
    assert "edited prompt rewrite prompt of 0 Honda 0 of 2 → 1 of 2 ✗ Honda, rewrite 0" in text


def test_failed_and_flagged_records_are_listed():
    bad = record(4, error="the subject is empty", edit=None)
    moved = record(7, perplexity={"before": 20.0, "after": 50.0, "flagged": True})
    built = report({"ft": [bad, moved]}, settings={"perplexity_bound": 2.0}, unevaluated={9: "too long"})
    page = _read(built)
    failed = page.section("Records without an edit")
    assert "editor record prompt why ft 4 Porsche 911, created by the subject is empty Flagged" in failed
    assert "The edit moved the perplexity of a text by more than a factor of 2.0." in failed
    assert "before after ratio ft 7 Porsche 911, created by 20.0 50.0 2.50 Records that" in failed
    assert "Records that could not be put to the model record why 9 too long Settings" in failed
    assert "ft, layer 5; 2 records, 1 without an edit, 1 flagged for perplexity" in " ".join(page.text.split())


@pytest.mark.parametrize("editors", [("none", "ft"), ("ft",)])
def test_the_unedited_model_is_named_where_it_is_drawn(editors):
    text = _read(many(editors, records=1)).text
    assert ("the dotted line is the unedited model" in text) == ("none" in editors)
    assert ("Rings are the same relations in the unedited model." in text) == ("none" in editors)


def test_nothing_failed():
    text = _read(many()).section("Records without an edit")
    assert text.startswith("None: every editor made an edit for every record. Flagged for perplexity None. Settings")
    assert "could not be put to the model" not in text


def test_many_failures_are_cut_short():
    text = _read(report({"ft": [record(n, error="no") for n in range(203)]})).section("Records without an edit")
    assert "… and 3 more, which the CSV files hold." in text
    assert "ft 199 Porsche" in text
    assert "ft 200 Porsche" not in text


def test_settings_are_at_the_end_with_their_names_joined():
    settings = {"model": {"name": "tiny", "dtype": "float32"}, "seeds": [1, 2], "limit": None, "none": {}}
    text = _read(report(settings=settings)).section("Settings")
    assert text == "5 settings model.name tiny model.dtype float32 seeds [1, 2] limit null none {}"


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"model": "a"}, "a"),
        ({"model": {"name": "b"}}, "b"),
        ({"model_name": "c"}, "c"),
        ({}, None),
        ({"model": 3}, None),
    ],
)
def test_the_model_is_found_in_the_settings(settings, name):
    assert model_name(settings) == name
    assert ("Model:" in _read(report(settings=settings)).text) == (name is not None)


def test_an_empty_report_is_a_page():
    text = " ".join(_read(report({"ft": []})).text.split())
    assert "CounterFact: 1 editor, 0 records" in text
    assert "ft No records." in text


def test_a_page_that_cannot_be_written(tmp_path):
    assert "there is no folder" in refused(ArtefactError, report().write_html, tmp_path / "missing" / "page.html")


# --- the worst ------------------------------------------------------------------------------------------------------


def _order(scores, kind="counterfact", **options):
    records = [EvaluatedRecord.from_dict(record(n, scores=s)) for n, s in enumerate(scores)]
    return [r.number for r in worst_records(records, kind=kind, **options)]


def test_the_worst_have_the_lowest_harmonic_mean():
    rows = ((100, 100, 40), (100, 100, 0), (60, 60, 60))
    assert _order([dict(zip(("ES", "PS", "NS"), row, strict=True)) for row in rows]) == [1, 2, 0]


def test_ties_go_by_the_margins_and_then_by_number():
    zero = {"ES": 0.0, "PS": 50.0, "NS": 50.0}
    assert _order([zero, {**zero, "PM": -5.0, "NM": 1.0}, {**zero, "PM": -5.0, "NM": -9.0}, zero]) == [2, 1, 0, 3]
    assert _order([zero] * 12) == list(range(10))
    assert _order([zero] * 12, most=2) == [0, 1]


def test_zsre_goes_by_the_mean():
    names = ("efficacy", "paraphrase", "specificity")
    scores = [dict(zip(names, values, strict=True)) for values in ((0, 100, 100), (50, 50, 50), (100, 100, 100))]
    assert _order(scores, "zsre") == [1, 0, 2]


def test_scores_that_a_record_lacks_do_not_count():
    assert _order([{}, {"ES": 100.0, "PS": None, "NS": math.nan}, {"ES": 50.0}]) == [2, 1, 0]


# --- the table and the files ----------------------------------------------------------------------------------------


def test_a_row_holds_all_of_a_record():
    table = report({"ft": [record(3, perplexity={"before": 20.0, "after": 50.0, "flagged": True})]}).to_dataframe()
    assert table.iloc[0].to_dict() == {
        "editor": "ft",
        "number": 3,
        "case_id": 1003,
        "relation": "P0",
        "subject": "Porsche 911",
        "prompt": "Porsche 911, created by",
        "target_new": "Honda",
        "target_true": "Porsche",
        **dict.fromkeys(("ES", "PS", "NS", "EM", "PM", "NM"), 90.0),
        **dict.fromkeys([f"before_{name}" for name in ("ES", "PS", "NS", "EM", "PM", "NM")], 10.0),
        "layer": 5,
        "relative_norm": 0.05,
        "perplexity_ratio": 2.5,
        "flagged": True,
        "error": None,
    }


def test_what_a_record_lacks_is_missing_and_the_columns_keep_their_kinds():
    bare = record(scores={"ES": 100.0}, before={}, edit=None, perplexity=None, error="no edit")
    table = report({"none": [bare], "ft": [record(scores={"ES": 50.0, "GE": 600.0})]}).to_dataframe()
    assert list(table["ES"]) == [100.0, 50.0]
    assert pd.isna(table["GE"][0])
    assert table.loc[0, ["layer", "relative_norm", "perplexity_ratio", "flagged", "before_ES"]].isna().all()
    kinds = {name: str(table[name].dtype) for name in ("GE", "before_ES", "layer", "flagged", "relative_norm")}
    numbers = dict.fromkeys(("GE", "before_ES", "relative_norm"), "float64")
    assert kinds == numbers | {"layer": "Int64", "flagged": "boolean"}


def test_zsre_has_no_relations_and_no_old_targets():
    table = many(kind="zsre").to_dataframe()
    assert len(table) == 36
    assert table["relation"].isna().all()
    assert {"efficacy", "before_efficacy"} <= set(table.columns)


def test_one_csv_an_editor(tmp_path):
    paths = write_csv(many(), tmp_path)
    assert (
        [path.name for path in paths] == ["none.csv", "r-rome.csv", "ft.csv"] == [p.name for p in paths if p.is_file()]
    )
    found = pd.read_csv(tmp_path / "ft.csv")
    expected = many().to_dataframe()
    pd.testing.assert_series_equal(found["ES"], expected[expected["editor"] == "ft"]["ES"].reset_index(drop=True))


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "＝1"])
def test_a_spreadsheet_finds_no_formula(text, tmp_path):
    nasty = record(case_id=text, prompt=text, target_new=text, error=text, scores={"EM": -4.0})
    (path,) = write_csv(report({text: [nasty]}), tmp_path)
    rows = list(csv.DictReader(io.StringIO(path.read_bytes().decode(), newline="")))
    assert [rows[0][name] for name in ("editor", "case_id", "prompt", "target_new", "error")] == [f"'{text}"] * 5
    assert rows[0]["EM"] == "-4.0"


def test_other_texts_go_through_a_csv_unchanged(tmp_path):
    for text in NASTY:
        (path,) = write_csv(report({"ft": [record(prompt=text)]}), tmp_path)
        (row,) = csv.DictReader(io.StringIO(path.read_bytes().decode(), newline=""))
        assert row["prompt"] == text


def test_an_editors_name_stays_in_the_folder(tmp_path):
    paths = write_csv(report({"../evil\\a:b": [record()], "..": [record()]}), tmp_path)
    assert [path.name for path in paths] == ["..%2Fevil%5Ca%3Ab.csv", "...csv"]
    assert sorted(tmp_path.iterdir()) == sorted(paths)


def test_a_folder_that_is_not_there(tmp_path):
    assert "there is no folder" in refused(ArtefactError, write_csv, report(), tmp_path / "missing")
