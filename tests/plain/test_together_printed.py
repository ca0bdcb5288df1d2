"""How an evaluation with checkpoints is printed: within the terminal's width and its letters."""

import re

import pytest
from consoles import Ascii, printed
from reports import kept, together
from rich.cells import cell_len

from rome_lens.cli.together_report import print_together

EDITORS = ("memit", "r-rome", "my own editor of a long name", "мой редактор")
WHOLE = {"failed": {0: "the subject's tokens are not in the prompt " * 3, 4: "no subject"}}


def _printed(report, **options):
    return printed(print_together, report, **options)


def _full(kind="counterfact", editors=EDITORS):
    """Everything that can be printed: a collapse, facts that were not put in, a sample, records that were left out."""
    report = together(
        {
            name: {
                1: kept(1, 100.0, kind=kind, ppl=10.0),
                10: kept(10, 81.2, kind=kind, ppl=12.0),
                1000: kept(20, lambda n: 40.0 + n % 3, kind=kind, ppl=4.5e6, **WHOLE),
            }
            for name in editors
        },
        kind=kind,
        settings={"model": "m" * 90},
        sample=20,
    )
    report.unevaluated[9] = "too long " * 20
    return report


TWO = together(
    {
        "memit": {1: kept(1, 100.0, ppl=10.0), 10: kept(10, lambda n: 90.0 - n, ppl=10.5)},
        "r-rome": {
            1: kept(1, 100.0, ppl=10.0),
            10: kept(10, 50.0, ppl=45.0, failed={3: "no subject", 5: "no subject"}),
        },
    }
)


def test_a_row_an_editor_and_number_of_facts_with_the_interval_of_the_first_score():
    assert _printed(TWO) == (
        "CounterFact, smollm2-135m, 10 facts in one model, 2 editors\n"
        "\n"
        "editor  facts      S        interval     ES     PS     NS  NS, none  perplexity\n"
        "memit       1  100.0  [100.0, 100.0]  100.0  100.0  100.0      10.0        1.00\n"
        "memit      10   85.5    [83.7, 87.3]   85.5   85.5   85.5      10.0        1.05\n"
        "r-rome      1  100.0  [100.0, 100.0]  100.0  100.0  100.0      10.0        1.00\n"
        "r-rome     10   50.0    [50.0, 50.0]   50.0   50.0   50.0      10.0        4.50\n"
        "NS, none: the unedited model, on the same prompts\n"
        "\n"
        "collapsed  r-rome: at 10 facts: perplexity 4.5 times that of the unedited model,\n"
        "           S 50.0\n"
        "not put in r-rome: 2 of 10 (records 3, 5): no subject\n"
    )


def test_fifty_columns_hold_the_means_and_explain_no_column_that_is_left_out():
    assert _printed(TWO, width=50).split("\n\n")[1] == (
        "editor  facts      S     ES     PS     NS\n"
        "memit       1  100.0  100.0  100.0  100.0\n"
        "memit      10   85.5   85.5   85.5   85.5\n"
        "r-rome      1  100.0  100.0  100.0  100.0\n"
        "r-rome     10   50.0   50.0   50.0   50.0"
    )


@pytest.mark.parametrize(
    ("width", "headers"),
    [
        (78, "editor facts S ES PS NS NS, none perplexity"),
        (60, "editor facts S ES PS NS NS, none"),
        (40, "editor facts S ES PS"),
        (30, "editor facts S ES"),
    ],
)
def test_narrower_terminals_lose_the_interval_and_then_columns_from_the_last_one_on(width, headers):
    assert " ".join(_printed(TWO, width=width).splitlines()[2].split()) == headers


def test_zsre_has_its_own_scores_and_no_collapse_by_score():
    text = _printed(together({"ft": {20: kept(20, 30.0, kind="zsre")}}, kind="zsre"), width=100)
    assert text == (
        "zsRE, smollm2-135m, 20 facts in one model, 1 editor\n"
        "\n"
        "editor  facts  efficacy      interval  paraphrase  specificity  specificity, none\n"
        "ft         20      30.0  [30.0, 30.0]        30.0         30.0               10.0\n"
        "specificity, none: the unedited model, on the same prompts\n"
    )


def test_the_drift_stands_where_there_is_room():
    drifting = together({"memit": {1: kept(1, 50.0, drift=0.25)}})
    assert "drift" in _printed(drifting, width=80)
    assert "drift" not in _printed(drifting, width=66)
    assert "interval" in _printed(drifting, width=66)


def test_facts_that_were_not_put_in_are_told_by_reason_as_of_the_last_checkpoint():
    text = _printed(_full(editors=("memit",)), width=200)
    assert "not put in memit: 1 of 1000 (record 0): the subject's tokens" in text
    assert "           memit: 1 of 1000 (record 4): no subject\n" in text
    assert "left out   1 record (record 9): too long too long" in text
    assert "asked      20 records with 1000 facts\n" in text
    assert "collapsed  memit: at 1000 facts: perplexity 4.5e+05 times that of the unedited model, S 40.9" in text


def test_an_editor_without_a_checkpoint_is_unfinished():
    text = _printed(together({"ft": {}, "memit": {}}))
    assert text == (
        "CounterFact, smollm2-135m, 0 facts in one model, 2 editors\n"
        "\n"
        "unfinished ft: no checkpoint yet\n"
        "           memit: no checkpoint yet\n"
    )


@pytest.mark.parametrize("kind", ["counterfact", "zsre"])
@pytest.mark.parametrize("width", [50, 60, 80, 120, 200])
@pytest.mark.parametrize("ascii_only", [False, True])
def test_no_line_is_longer_than_the_terminal(kind, width, ascii_only):
    text = _printed(_full(kind), width=width, file=Ascii() if ascii_only else None)
    assert max(map(cell_len, text.splitlines())) <= width


def test_a_terminal_without_unicode():
    text = _printed(_full(), file=Ascii())
    assert text.isascii()
    assert "\\u043c\\u043e\\u0439 \\u0440" in text
    rows = text.split("\n\n")[1].splitlines()[:13]
    assert [len(row) for row in rows] == [len(rows[0])] * 13
    assert {row.split()[-1] for row in rows[1:]} == {"1.00", "1.20", "4.5e+05"}
    lacking = together({"ft": {1: kept(1, 50.0), 2: kept(2, 50.0, ppl=float("inf"))}})
    lines = [line.split() for line in _printed(lacking, file=Ascii()).splitlines()]
    assert [line[-1] for line in lines if line and line[0] == "ft"] == ["-", "inf"]


def test_names_and_reasons_are_shown_and_not_obeyed():
    name, reason = "[red]x\x1b[31m", "a\nb [bold]c[/bold] :smile: \u202e"
    text = _printed(together({name: {20: kept(20, 10.0, failed={1: reason})}}, settings={"model": name}))
    assert text.count("[red]x␛[31m") == 4
    assert "a↵b [bold]c[/bold] :smile: \\u202e" in text
    assert all(c.isprintable() for c in text.replace("\n", ""))


def test_colours_change_no_letter():
    coloured = _printed(TWO, color_system="truecolor", force_terminal=True)
    assert "\x1b[1m" in coloured
    assert re.sub(r"\x1b\[[\d;]*m", "", coloured) == _printed(TWO)
