"""How an evaluation is printed: the scores first, within the terminal's width and its letters."""

import re
from functools import cache

import pytest
from consoles import Ascii, printed
from reports import many, record, report
from rich.cells import cell_len

from rome_lens.cli.eval_report import print_report

EDITORS = ("none", "r-rome", "rome", "ft", "ft-l", "identity", "random-layer", "my own editor of a long name")
ALL = ("ES", "EM", "PS", "PM", "NS", "NM", "GE", "RS", "ES_free", "PS_free", "NS_free", "PPL")


def _printed(a_report, **options):
    return printed(print_report, a_report, **options)


@cache
def _full(editors=EDITORS):
    """A report in which every editor has every metric, failures and flags."""
    scores = {name: 100.0 if "_" not in name else 12.3 for name in ALL} | {"GE": 612.3, "PPL": 1.02, "NM": -3.2}
    moved = {"before": 20.0, "after": 90.0, "flagged": True}
    records = {
        editor: [
            record(0, editor=editor, scores=scores),
            record(1, editor=editor, scores={**scores, "ES": 0.0, "EM": -12.3, "PPL": 4.5}, perplexity=moved),
            record(2, editor=editor, scores=scores, error="the subject's tokens are not in the prompt " * 3),
        ]
        for editor in editors
    }
    return report(records, settings={"model": "m" * 90, "perplexity_bound": 2.0}, unevaluated={9: "too long " * 20})


# --- what is printed ------------------------------------------------------------------------------------------------


SCORES = [{"ES": 100.0, "PS": 50.0, "NS": 80.0}, {"ES": 90.0, "PS": 50.0, "NS": 60.0}]
TWO = report({"ft": [record(n, scores=scores) for n, scores in enumerate(SCORES)]})


def test_an_editor_has_a_line_and_the_main_scores_come_first():
    assert _printed(TWO) == (
        "CounterFact, smollm2-135m, 2 records, 1 editor\n"
        "\n"
        "editor     S         ES         PS         NS\n"
        "ft      66.9 ±3.9  95.0 ±5.0  50.0 ±0.0  70.0 ±10.0\n"
        "±: half the width of the 95 % interval, by bootstrap over records\n"
    )


def test_a_wide_terminal_shows_both_ends_of_the_intervals():
    assert _printed(TWO, width=100) == (
        "CounterFact, smollm2-135m, 2 records, 1 editor\n"
        "\n"
        "editor     S                 ES                  PS                 NS\n"
        "ft      66.9 [62.8, 70.6]  95.0 [90.0, 100.0]  50.0 [50.0, 50.0]  70.0 [60.0, 80.0]\n"
        "[ ]: 95 % interval, by bootstrap over records\n"
    )


def test_a_few_columns_hold_the_means_alone():
    assert _printed(TWO, width=40) == (
        "CounterFact, smollm2-135m,…rds, 1 editor\n\neditor     S    ES    PS    NS\nft      66.9  95.0  50.0  70.0\n"
    )


def test_further_metrics_have_tables_of_their_own():
    headers = [line.split() for line in _printed(_full()).splitlines() if line.startswith("editor")]
    assert headers == [
        ["editor", "S", "ES", "PS", "NS"],
        ["editor", "EM", "PM", "NM", "GE", "RS"],
        ["editor", "ES_free", "PS_free", "NS_free", "PPL"],
    ]


def test_zsre_has_its_own_main_scores():
    text = _printed(many(kind="zsre"), width=70)
    assert text.startswith("zsRE, smollm2-135m, 12 records, 3 editors\n\neditor  efficacy")
    assert text.splitlines()[2].split() == ["editor", "efficacy", "paraphrase", "specificity"]


def test_columns_that_nobody_has_are_left_out_and_a_missing_score_is_a_dash():
    built = report({"none": [record(scores={"ES": 10.0})], "ft": [record(scores={"ES": 90.0, "GE": 601.2})]})
    lines = _printed(built).splitlines()
    assert lines[2:5] == ["editor    ES", "none    10.0 [10.0, 10.0]", "ft      90.0 [90.0, 90.0]"]
    assert lines[6:9] == ["editor     GE", "none        –", "ft      601.2 [601.2, 601.2]"]


def test_failures_are_told_by_reason():
    records = [record(n, error="no subject" if n % 2 else "too long") for n in range(20)]
    lines = _printed(report({"ft": records}), width=100).splitlines()
    assert lines[-2:] == [
        "no edit    ft: 10 of 20 (records 0, 2, 4, 6, 8, 10, 12, 14, …): too long",
        "           ft: 10 of 20 (records 1, 3, 5, 7, 9, 11, 13, 15, …): no subject",
    ]


def test_of_many_reasons_a_few_are_told():
    seven = _printed(report({"ft": [record(n, error=f"reason {n}") for n in range(7)]})).splitlines()
    assert [line.split("): ")[1] for line in seven[-6:]] == [*(f"reason {n}" for n in range(5)), "other reasons"]
    assert seven[-1] == "           ft: 2 of 7 (records 5, 6): other reasons"
    six = _printed(report({"ft": [record(n, error=f"reason {n}") for n in range(6)]}))
    assert six.endswith("ft: 1 of 6 (record 5): reason 5\n")


@pytest.mark.parametrize(("settings", "said"), [({"perplexity_bound": 2.0}, "a factor of 2.0"), ({}, "the bound")])
def test_flagged_and_unevaluated_records_are_told(settings, said):
    moved = record(7, perplexity={"before": 20.0, "after": 90.0, "flagged": True})
    built = report({"ft": [record(), moved]}, settings=settings, unevaluated={3: "too long", 5: "too long"})
    lines = _printed(built).splitlines()
    assert lines[-2:] == [
        f"perplexity ft: 1 of 2 beyond {said} (record 7)",
        "left out   2 records (records 3, 5): too long",
    ]


def test_nothing_is_told_where_nothing_went_wrong():
    assert not re.search("no edit|perplexity|left out|records  ", _printed(many()))


def test_editors_with_other_numbers_of_records_say_so():
    text = _printed(report({"ft": [record(0), record(1)], "rome": [record(0)]}))
    assert "CounterFact, smollm2-135m, 2 records, 2 editors\n" in text
    assert text.endswith("records    ft 2, rome 1\n")


@pytest.mark.parametrize("records", [{"ft": []}, {"ft": [record(scores={})]}, {}])
def test_a_report_without_scores_is_printed(records):
    assert "CounterFact, smollm2-135m" in _printed(report(records))


def test_the_same_report_is_printed_the_same():
    assert _printed(_full()) == _printed(_full())


# --- where it is printed --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [40, 60, 80, 120, 200])
@pytest.mark.parametrize("ascii_only", [False, True])
def test_no_line_is_longer_than_the_terminal(width, ascii_only):
    text = _printed(_full(), width=width, file=Ascii() if ascii_only else None)
    assert max(map(cell_len, text.splitlines())) <= width


def test_a_terminal_without_unicode():
    text = _printed(_full((*EDITORS, "мой")), file=Ascii())
    assert text.isascii()
    assert "+-: half the width of the 95 % interval" in text
    assert "\\u043c\\u043e\\u0439" in text
    lost = report({"none": [record(scores={"ES": 1.0})], "ft": [record(scores={"ES": float("inf"), "GE": 1.0})]})
    lines = [line.split() for line in _printed(lost, file=Ascii()).splitlines()]
    assert {line[1] for line in lines if line and line[0] in ("none", "ft")} == {"1.0", "inf", "-"}


def test_colours_change_no_letter():
    coloured = _printed(_full(), color_system="truecolor", force_terminal=True)
    assert "\x1b[1m" in coloured
    assert re.sub(r"\x1b\[[\d;]*m", "", coloured) == _printed(_full())


def test_names_and_reasons_are_shown_and_not_obeyed():
    name, reason = "[red]x\x1b[31m", "a\nb [bold]c[/bold] :smile: \u202e"
    built = report({name: [record(error=reason)]}, settings={"model": name}, unevaluated={1: reason})
    text = _printed(built)
    assert "CounterFact, [red]x␛[31m, 1 record" in text
    assert text.count("[red]x␛[31m") == 4
    assert text.count("a↵b [bold]c[/bold] :smile: \\u202e") == 2
    assert all(c.isprintable() for c in text.replace("\n", ""))
