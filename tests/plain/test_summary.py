"""From records to a report: means and intervals that others compute too, and what counts as a record."""

import json
import random

import numpy as np
import pytest
from reports import record

from rome_lens.evaluation.metrics import consistency
from rome_lens.evaluation.report.record import EvaluatedRecord
from rome_lens.evaluation.report.summary import report_of
from rome_lens.intervals import Estimate

SETTINGS = {"perplexity_bound": 1.2}


def summarised(records, *, kind="counterfact", seed=0, references=None, **descriptions):
    records = records if isinstance(records, dict) else {"r-rome": records}
    records = {name: list(map(EvaluatedRecord.from_dict, several)) for name, several in records.items()}
    return report_of(
        kind, records, references=references or {}, settings=SETTINGS, descriptions=descriptions, seed=seed
    )


def scores_of(records, **settings):
    """The intervals of one editor."""
    (editor,) = summarised(records, **settings).editors.values()
    return editor.intervals


def several(metrics, **changes):
    """Records with these values of each metric, [metric][record]."""
    rows = [dict(zip(metrics, row, strict=True)) for row in zip(*metrics.values(), strict=True)]
    return [record(number, scores=row, **changes) for number, row in enumerate(rows)]


# --- means ----------------------------------------------------------------------------------------------------------


def test_records_count_alike_and_s_is_the_harmonic_mean_of_the_means():
    found = scores_of(several({"ES": [100.0, 0.0], "PS": [100.0, 50.0], "NS": [10.0, 90.0]}))
    assert {name: score.mean for name, score in found.items()} == pytest.approx(
        # Of the means 50, 75 and 50; the mean of the records' own would be (25 + 0) / 2.
        {"S": 3 / (1 / 50 + 1 / 75 + 1 / 50), "ES": 50.0, "PS": 75.0, "NS": 50.0}
    )
    assert {score.n for score in found.values()} == {2}


def test_s_is_zero_where_one_of_its_parts_is():
    found = scores_of(several({"ES": [0.0, 0.0, 0.0], "PS": [100.0, 50.0, 50.0], "NS": [10.0, 90.0, 50.0]}))
    assert found["S"] == Estimate(0.0, 0.0, 0.0, 3)


def test_metrics_that_some_records_lack():
    rows = [{"ES": 10.0, "PS": 20.0, "NS": 30.0}] * 2
    found = scores_of([record(0, scores=rows[0]), record(1, scores={**rows[1], "GE": 600.0, "PPL": 1.5})])
    assert list(found) == ["S", "ES", "PS", "NS", "GE", "PPL"]
    assert (found["ES"].n, found["GE"].n, found["GE"].mean, found["PPL"]) == (2, 1, 600.0, Estimate(1.5, 1.5, 1.5, 1))


def test_a_record_without_neighbours_is_not_part_of_s():
    whole = {"ES": 50.0, "PS": 50.0, "NS": 50.0}
    report = summarised([record(0, scores=whole), record(3, scores={"ES": 100.0, "PS": 100.0})])
    found = report.editors["r-rome"]
    assert (found.n_records, found.intervals["S"], found.intervals["ES"].n) == (2, Estimate(50.0, 50.0, 50.0, 1), 2)
    assert found.by_relation == {"P0": {"n": 1, "ES": 50.0, "PS": 50.0, "NS": 50.0}}


def test_zsre_has_three_scores_and_no_s():
    found = summarised([record(n, kind="zsre") for n in range(3)], kind="zsre").editors["r-rome"]
    assert list(found.intervals) == ["efficacy", "paraphrase", "specificity"]
    assert found.by_relation == {}


# --- intervals ------------------------------------------------------------------------------------------------------


def test_the_interval_of_a_mean_is_that_of_an_independent_bootstrap():
    values = [random.Random(number).choice([0.0, 50.0, 100.0]) for number in range(60)]
    score = scores_of(several({"efficacy": values}, kind="zsre"), kind="zsre")["efficacy"]
    assert score.mean == pytest.approx(np.mean(values))
    draws = np.random.default_rng(7).choice(values, size=(20_000, 60)).mean(axis=1)
    assert (score.low, score.high) == pytest.approx(np.percentile(draws, [2.5, 97.5]), abs=1.0)
    # Known by theory too: 1.96 standard errors on each side.
    reach = 1.96 * np.std(values) / np.sqrt(60)
    assert (score.low, score.high) == pytest.approx((score.mean - reach, score.mean + reach), abs=1.2)


def test_the_interval_of_s_draws_whole_records():
    # NS is 100 - ES in every record: S varies far less than if the columns were drawn apart.
    es = [100.0 if number % 2 else 0.0 for number in range(40)]
    columns = {"ES": es, "PS": [80.0] * 40, "NS": [100.0 - value for value in es]}
    score = scores_of(several(columns))["S"]
    rows = np.random.default_rng(3).integers(40, size=(20_000, 40))
    means = [np.array(column)[rows].mean(axis=1) for column in columns.values()]
    draws = 3 / sum(1 / mean for mean in means)
    low, high = np.percentile(draws, [2.5, 97.5])
    assert (score.low, score.high) == pytest.approx((low, high), abs=0.3)
    apart = np.random.default_rng(4).choice(es, size=(20_000, 40)).mean(axis=1)
    apart = 3 / (1 / means[0] + 1 / 80 + 1 / apart)
    assert np.ptp(np.percentile(apart, [2.5, 97.5])) > 2 * (score.high - score.low)


def test_draws_in_which_a_part_of_s_is_zero():
    score = scores_of(several({"ES": [100.0, 0.0, 0.0], "PS": [50.0] * 3, "NS": [50.0] * 3}))["S"]
    assert score.low == 0.0
    # Three times the first record, in one draw of 27.
    assert score.high == pytest.approx(60.0)


def test_one_record_and_records_that_are_all_alike():
    assert scores_of(several({"ES": [40.0], "PS": [40.0], "NS": [40.0]}))["S"] == Estimate(
        pytest.approx(40.0), pytest.approx(40.0), pytest.approx(40.0), 1
    )
    found = scores_of(several({"ES": [40.0] * 9, "PS": [0.1] * 9, "NS": [100.0] * 9}))
    for name in ("S", "ES", "PS", "NS"):
        mean = found[name].mean
        assert found[name] == Estimate(mean, pytest.approx(mean), pytest.approx(mean), 9)


def test_a_ruined_perplexity_has_an_interval():
    values = [1.0, 1e300, 1.1]
    score = scores_of(several({"PPL": values}))["PPL"]
    assert score.mean == pytest.approx(1e300 / 3)
    assert 1.0 <= score.low < score.mean < score.high <= 1e300


def test_the_seed_alone_decides_the_draws():
    values = [random.Random(number).uniform(0, 100) for number in range(30)]
    records = several({"ES": values, "PS": values[::-1], "NS": values})
    assert scores_of(records, seed=1) == scores_of(records, seed=1)
    first, second = scores_of(records, seed=1), scores_of(records, seed=2)
    assert [score.mean for score in first.values()] == [score.mean for score in second.values()]
    assert all(first[name].low != second[name].low for name in first)
    # No editor's interval depends on which others there are.
    both = summarised({"a": records, "b": several({"ES": [1.0, 2.0]})}, seed=1)
    assert both.editors["a"].intervals == first


def test_the_global_generator_is_left_alone():
    np.random.seed(0)
    before = np.random.get_state()[1].tolist()
    scores_of(several({"ES": [1.0, 2.0, 3.0]}))
    assert np.random.get_state()[1].tolist() == before


# --- what counts ----------------------------------------------------------------------------------------------------


def test_a_record_that_cannot_be_put_to_the_model_counts_nowhere():
    unfit = record(4, scores={}, relation="P9", perplexity=None, edit=None) | {"unfit": "too long", "before": {}}
    report = summarised({"none": [record(1), unfit], "ft": [record(1), unfit]})
    assert report.unevaluated == {4: "too long"}
    for editor in report.editors.values():
        assert (editor.n_records, editor.failed, set(editor.by_relation)) == (1, {}, {"P1"})
        assert editor.intervals["ES"].n == 1
    assert [r["number"] for r in report.records["ft"]] == [1, 4]


def test_a_record_without_an_edit_counts_as_the_model_left_as_it_was():
    left = record(7, scores={"ES": 0.0, "PS": 0.0, "NS": 100.0}, error="the target is said already", edit=None)
    found = summarised([record(0, scores={"ES": 100.0, "PS": 100.0, "NS": 50.0}), left]).editors["r-rome"]
    assert found.failed == {7: "the target is said already"}
    assert found.n_records == 2
    assert found.scores == pytest.approx({"S": 3 / (1 / 50 + 1 / 50 + 1 / 75), "ES": 50.0, "PS": 50.0, "NS": 75.0})


def test_flagged_records_are_listed():
    moved = {"before": 20.0, "after": 90.0, "flagged": True}
    records = [record(0), record(5, perplexity=moved), record(6, perplexity=None), record(9, perplexity=moved)]
    assert summarised(records).editors["r-rome"].flagged == (5, 9)


def test_means_by_relation():
    rows = several({"ES": [0.0, 100.0, 50.0, 10.0], "PS": [0.0, 50.0, 50.0, 10.0], "NS": [9.0, 10.0, 50.0, 10.0]})
    for row, relation in zip(rows, ["P9", "P9", "P1", None], strict=True):
        row["relation"] = relation
    found = summarised(rows).editors["r-rome"].by_relation
    assert found == {
        "P1": {"n": 1, "ES": 50.0, "PS": 50.0, "NS": 50.0},
        "P9": {"n": 2, "ES": 50.0, "PS": 25.0, "NS": 9.5},
    }
    assert list(found) == ["P1", "P9"]


def test_consistency_is_taken_with_all_references_of_the_run():
    wrote = [{"prompt": "rome", "text": " is old"}, {"prompt": "cars", "text": " go"}]
    references = {"Rome": ["rome is a city", "old walls"], "Fiat": ["cars go"], "Paris": ["old paris"]}
    records = [
        record(0, scores={"ES": 1.0}, texts=wrote, target_new="Rome"),
        record(1, scores={"ES": 1.0}, texts=[], target_new="Rome"),
        record(2, scores={"ES": 1.0}, texts=wrote, target_new="Honda"),
        record(3, scores={"ES": 1.0}, texts=wrote[:1], target_new="Fiat"),
    ]
    report = summarised({"a": records, "b": records[:1]}, references=references)
    expected = consistency(
        [["rome is old", "cars go"], ["rome is old"]],
        [references["Rome"], references["Fiat"]],
        ["rome is a city", "old walls", "cars go", "old paris"],
    )
    assert [r["scores"].get("RS") for r in report.records["a"]] == [expected[0], None, None, expected[1]]
    # The editors of a run are compared with the same texts.
    assert report.records["b"][0]["scores"]["RS"] == expected[0]
    assert report.editors["a"].intervals["RS"].mean == pytest.approx(sum(expected) / 2)
    assert report.editors["a"].intervals["RS"].n == 2
    # The records that were given are left as they were.
    assert all("RS" not in r["scores"] for r in records)


@pytest.mark.parametrize("kind", ["counterfact", "zsre"])
def test_an_editor_without_records(kind):
    found = summarised({"ft": []}, kind=kind, ft="layer 3").editors["ft"]
    assert (found.intervals, found.by_relation, found.n_records, found.flagged) == ({}, {}, 0, ())
    assert found.description == "layer 3"


def test_a_report_is_json():
    report = summarised([record(n) for n in range(3)], **{"r-rome": "layer 5"})
    summary = json.loads(json.dumps(report.summary(), allow_nan=False))
    ends = dict.fromkeys(("mean", "low", "high"), pytest.approx(90.0))
    assert summary["editors"]["r-rome"]["intervals"]["S"] == ends | {"n": 3}
    assert summary["editors"]["r-rome"]["description"] == "layer 5"
    assert summary["settings"] == SETTINGS
