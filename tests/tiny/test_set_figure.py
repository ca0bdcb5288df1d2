"""`EditSet.figure`: its numbers are those that the update itself gives, and of many facts it draws the worst."""

import pytest
import torch
from refused import refused
from tiny_rome import moment

import rome_lens as rl
from rome_lens.editing.together import known_facts

WORDS = ("cde", "ij", "hh", "kl m", "xy", "o p", "qr", "stu")


@pytest.fixture(scope="module")
def found(request):
    """A set of eight facts that get in each other's way, over two layers."""
    from architectures import BACKENDS, architecture

    model = architecture("gpt2", BACKENDS[0])
    moments = {layer: moment(model.cfg.d_mlp) for layer in (0, 1)}
    editor = rl.MEMIT(
        model, layers=[0, 1], second_moments=moments, context_templates=["{}"], v_num_grad_steps=2, preserve=0.5
    )
    return editor.edit_together([rl.EditRequest("ab {} fgh", subject=word, target_new="vw") for word in WORDS])


def _by_hand(facts):
    """|G_ij c_j| / |r_i| of all facts, from the layers' own updates."""
    shares = torch.zeros(len(facts), len(facts), dtype=torch.float64)
    order = facts.order
    for i, disturbed in enumerate(facts):
        for j, disturber in enumerate(facts):
            pairs = zip(disturbed.keys, disturber.weighed, strict=True)
            alike = sum(key[0].double() @ weighed[0].double() for key, weighed in pairs)
            added = alike * facts.system.coefficients[order.index(j)]
            shares[i, j] = added.norm() / disturbed.residual.double().norm()
    return shares


def _drawn(figure):
    return [int(text.rpartition(" ")[2]) for text in figure.layout.yaxis.ticktext]


def test_cells_and_bars(found):
    figure, shares = found.figure(), _by_hand(found)
    pairs, _, short = figure.data
    drawn = _drawn(figure)
    assert sorted(drawn) == list(range(len(WORDS)))
    for row, i in enumerate(drawn):
        for column, j in enumerate(drawn):
            if i != j:
                assert pairs.z[row][column] == pytest.approx(shares[i, j].item(), rel=1e-8)
    assert list(short.x) == pytest.approx([found.shortfall[i].item() for i in drawn])
    assert figure.layout.title.text.startswith("Who disturbs whom · gpt2, memit, layers 0, 1<br>")
    assert "8 facts; grey is a fact's own part" in figure.layout.title.text
    assert figure.layout.yaxis.ticktext[0].startswith(f"{WORDS[drawn[0]]} → vw")


def test_of_many_facts_the_most_disturbed_are_drawn_with_what_disturbs_them(found, monkeypatch):
    monkeypatch.setattr(known_facts, "_DRAWN", 3)
    amounts = [amount for _, amount in found.disturbed_by]
    worst = max(range(len(WORDS)), key=lambda number: amounts[number])
    figure = found.figure()
    assert _drawn(figure)[:2] == [worst, found.disturbed_by[worst][0]]
    assert len(figure.data[0].z) == len(figure.data[0].z[0]) == 3
    assert figure.data[0].z[0][1] == pytest.approx(amounts[worst])
    assert "3 of 8 facts, the most disturbed and what disturbs them" in figure.layout.title.text


def test_one_fact_is_disturbed_by_none(found):
    pairs, _, short = found.without(*range(1, 8)).figure().data
    assert [list(row) for row in pairs.z] == [[None]]
    assert len(short.x) == 1


def test_layers_that_gain_one_after_the_other_have_no_figure(found):
    released = rl.MEMIT(
        found.editor.model,
        layers=[0, 1],
        second_moments=found.editor.second_moments,
        context_templates=["{}"],
        v_num_grad_steps=1,
        spread="released",
        at="block",
    )
    made = released.edit_together([rl.EditRequest("ab {} fgh", subject="cde", target_new="vw")])
    assert "(spread='released')" in refused(rl.SettingError, made.figure)
