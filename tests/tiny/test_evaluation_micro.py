"""Evaluation worked out by hand, on the micro-model of `test_micro_model`.

There a layer maps the residual r of a position to r + mean(r of all positions up to it), and logits are residuals. Here
the MLP's hidden units are always 1 (its biases are), so an edit with u = (1, 0) and v = c * e_y adds c to y at every
position in layer 0, and layer 1 adds their mean, c again: the logit of y gains 2c everywhere, and nothing else changes.

Prompt "a x": logits a 1.75, x 2.25 at the end. Behind it "y": with r0 = [a, x, y],
r1 = [2a, .5a + 1.5x, a/3 + x/3 + 4y/3], r2 at the end = r1 + (2.5a + a/3, 1.5x + x/3, 4y/3) / 3
= 23/18 a + 17/18 x + 16/9 y.
"""

from dataclasses import replace
from math import exp, log

import pytest
import torch
from edits import random_edit
from hosts import needs_hooked
from micro import WORDS, micro_model
from reports import measured

import rome_lens as rl
from rome_lens.data.records import CounterFactRecord, ZsreRecord
from rome_lens.evaluation import evaluate_counterfact
from rome_lens.evaluation.measures import Measures

pytestmark = needs_hooked

C = 1.5


def nll(word, **logits):
    """Negative log-probability of a word, where the words that are not named have the logit 0."""
    all_logits = dict.fromkeys(WORDS, 0.0) | logits
    return log(sum(map(exp, all_logits.values()))) - all_logits[word]


@pytest.fixture(scope="module")
def micro():
    return micro_model()


def always_on(micro):
    """Let its hidden units be 1, whatever it reads."""
    with torch.no_grad():
        for block in micro.blocks:
            block.mlp.b_in.fill_(1)
    return micro


@pytest.fixture
def model(micro):
    yield always_on(micro)
    with torch.no_grad():
        for block in micro.blocks:
            block.mlp.b_in.zero_()


@pytest.fixture
def editor(model):
    return by_hand(model)


def by_hand(model):
    """An editor that adds C to the last word."""
    y = torch.zeros(5, dtype=torch.float64)
    y[WORDS.index("y")] = C

    class ByHand:
        layer = 0

        def edit(self, request):
            u = torch.tensor([1, 0], dtype=torch.float64)
            return random_edit(model, 0, u=u, v=y, request=request, variant="by hand")

    return ByHand()


def record(new="y", true="b"):
    return CounterFactRecord(0, 7, "P1", rl.EditRequest("{} x", "a", new, true), ("x", "a a"), ("b x", "x a"), ())


def test_negative_log_probabilities_before_and_after(model, editor):
    (got,) = measured(model, [record(new="y x")], editor, layers=[0]).values()
    answer = got["answers"][0]
    before = (nll("y", a=1.75, x=2.25) + nll("x", a=23 / 18, x=17 / 18, y=16 / 9)) / 2
    after = (nll("y", a=1.75, x=2.25, y=2 * C) + nll("x", a=23 / 18, x=17 / 18, y=16 / 9 + 2 * C)) / 2
    assert answer["before_nll_new"] == pytest.approx(before, abs=1e-12)
    assert answer["nll_new"] == pytest.approx(after, abs=1e-12)
    assert answer["before_nll_true"] == pytest.approx(nll("b", a=1.75, x=2.25), abs=1e-12)
    assert answer["nll_true"] == pytest.approx(nll("b", a=1.75, x=2.25, y=2 * C), abs=1e-12)


def test_scores(model, editor):
    report = evaluate_counterfact(model, {"by-hand": editor}, [record()], measures=Measures(watched=("a x",)))
    # "x" alone: r = x, 2x, 4x. "a a": 4a. "b x" is as "a x". "x a": 1.75x + 2.25a.
    ends = {"rewrite": {"a": 1.75, "x": 2.25}, "x": {"x": 4.0}, "a a": {"a": 4.0}}
    neighbours = [{"b": 1.75, "x": 2.25}, {"x": 1.75, "a": 2.25}]

    def p(word, logits, y=0.0):
        return exp(-nll(word, **logits, y=y))

    y = 2 * C
    expected = {
        # y has the logit 3 and b has 0 after the prompt and both paraphrases.
        "ES": 100.0,
        "PS": 100.0,
        # At "b x" the true object b has 1.75 against 3, at "x a" 0 against 3.
        "NS": 0.0,
        "EM": 100 * (p("y", ends["rewrite"], y) - p("b", ends["rewrite"], y)),
        "PM": 50 * sum(p("y", ends[k], y) - p("b", ends[k], y) for k in ("x", "a a")),
        "NM": 50 * sum(p("b", logits, y) - p("y", logits, y) for logits in neighbours),
        # y is the likeliest word after the prompt alone: behind "x" and "a a" it is x and a.
        "ES_free": 100.0,
        "PS_free": 0.0,
        "NS_free": 0.0,
        # The watched text predicts x after "a": logits a 4, or with the edit y 3 beside it.
        "PPL": exp(nll("x", a=4.0, y=y) - nll("x", a=4.0)),
    }
    assert report.scores == pytest.approx({"S": 0.0} | expected, abs=1e-9)
    before = report.records["by-hand"][0]["before"]
    assert before == pytest.approx(
        {
            # Before the edit y and b are equally unlikely at the prompt: ties are no success.
            "ES": 0.0,
            "PS": 0.0,
            "NS": 50.0,
            "EM": 0.0,
            "PM": 0.0,
            "NM": 50 * (p("b", neighbours[0]) - p("y", neighbours[0])),
        },
        abs=1e-9,
    )


def test_what_follows_and_neighbours_own_answers(model, editor):
    follows = tuple(
        rl.FollowUp(prompt, answers, "Reasoning")
        for prompt, answers in [("a x", ("b", "y")), ("a x", ("y x",)), ("x", ("y",))]
    )
    asked = replace(record(), neighbour_answers=("x", "a"), follows=follows)
    (got,) = measured(model, [asked], editor, layers=[0]).values()
    # "a x": y (3) wins, and so the second answer is right; behind "a x y" it wins again. "x": x (4) wins.
    assert got["scores"]["portability"] == 50.0
    assert got["before"]["portability"] == 0.0
    assert [answer["answer"] for answer in got["answers"][-3:]] == ["y", "y x", "y"]
    assert [answer["right"] for answer in got["answers"][-3:]] == [[True], [True, False], [False]]
    # Left to itself the model writes "y y" behind "a x".
    assert got["scores"]["portability_free"] == pytest.approx(100 / 3)
    # At "b x" its own answer x has 2.25 against the 3 of y, at "x a" it is a that has.
    neighbours = [("x", {"b": 1.75, "x": 2.25}), ("a", {"x": 1.75, "a": 2.25})]
    margins = [exp(-nll(word, **logits, y=2 * C)) - exp(-nll("y", **logits, y=2 * C)) for word, logits in neighbours]
    assert (got["before"]["NS"], got["scores"]["NS"]) == (100.0, 0.0)
    assert got["scores"]["NM"] == pytest.approx(50 * sum(margins), abs=1e-9)


def test_free_answers_without_spaces_between_words():
    model = always_on(micro_model(words=["<s>", "法", "国", "的", "月"], spaced=False))
    asked = CounterFactRecord(0, 7, "P1", rl.EditRequest("{}的", "法", "月", "国"), ("的",), ("国的",), ())
    report = evaluate_counterfact(model, {"by-hand": by_hand(model)}, [asked], measures=Measures(watched=()))
    # As above: 月 has the logit 3 and 的 has 2.25 behind "法的"; what has been written makes it likelier still.
    (record,) = report.records["by-hand"]
    assert record["answers"][0]["free"] == "月月"
    assert report.scores["ES_free"] == 100.0
    assert report.scores["PS_free"] == 0.0


def test_zsre(model, editor):
    question = ZsreRecord(0, 0, rl.EditRequest("{} x", "a", "y y"), "x", "b x", "y a")
    (got,) = measured(model, [question], editor, layers=[0]).values()
    # "a x": y (3) wins, and behind "a x y" too. "x": x (4) wins; behind "x y", y has 2.25 + 3 and x 1.75.
    # "b x": y wins; behind it a is not the first choice.
    assert got["scores"]["efficacy"] == 100.0
    assert got["scores"]["paraphrase"] == 50.0
    assert got["scores"]["specificity"] == 50.0
    assert got["before"] == {"efficacy": 50.0, "paraphrase": 50.0, "specificity": 0.0}
    assert (got["scores"]["efficacy_free"], got["scores"]["paraphrase_free"]) == (100.0, 0.0)
