"""Measures other than the answer's probability: against whole forwards, by every engine, wherever they are shown."""

from dataclasses import replace

import pytest
import torch
from architectures import BACKENDS, BRIDGE, architecture
from consoles import printed
from effort import slow
from oracle import cell_logits, request_of, restored_layers
from refused import refused

import rome_lens as rl
from rome_lens.cli.trace_report import print_neurons, print_trace
from rome_lens.loading.tiny import tiny_model
from rome_lens.tracing.measures import Measure

PROMPT, SUBJECT = "a cd fg", "cd"


def entropy(logits, answer_ids):
    """One's own: it reads no answer."""
    return -(logits[:, 0].softmax(dim=-1) * logits[:, 0].log_softmax(dim=-1)).sum(dim=-1)


def _joint_log_probability(logits, answer_ids):
    return sum(x.log_softmax(dim=-1)[token] for x, token in zip(logits, answer_ids, strict=True))


def _divergence(clean, here):
    before, after = clean[0].log_softmax(dim=-1), here[0].log_softmax(dim=-1)
    return (before.exp() * (before - after)).sum()


# What each gives of a row's logits [read d_vocab], the clean row's and the answer's tokens.
MEASURES = {
    "log_probability": ({}, lambda here, clean, ids: _joint_log_probability(here, ids)),
    "logit_difference": ({"against": "y"}, lambda here, clean, ids: here[0, ids[0]] - here[0, ids[0] + 1]),
    "kl": ({}, lambda here, clean, ids: _divergence(clean, here)),
    "entropy()": ({"measure": entropy}, lambda here, clean, ids: entropy(here[None], ids)[0]),
}


def trace(model, measure="kl", **settings):
    given = {"measure": measure} | MEASURES[measure][0]
    settings = {"noise": 2.0, "samples": 3, "window": 2, "answer": "x", "answer_joined": ""} | given | settings
    return rl.causal_trace(model, PROMPT, subject=SUBJECT, **settings)


def expected(model, traced, measure, **cell):
    """The mean over the copies of what the measure gives in one forward."""
    rows, request = request_of(model, traced)
    ids = request.pop("answer_ids")
    logits = cell_logits(model, rows, **cell, **request)[:, len(traced.tokens) - 1 :]
    return torch.stack([MEASURES[measure][1](row, logits[0], ids) for row in logits])


HOSTED = [("llama", BACKENDS[0]), ("gpt2", BACKENDS[0]), ("gemma2", BRIDGE), ("gptj", BRIDGE)]
HOSTED += [slow(name, backend) for name in ("neox", "mistral", "phi3") for backend in BACKENDS]


@pytest.mark.parametrize(("name", "backend"), HOSTED)
@pytest.mark.parametrize("engine", ["auto", "plain"])
@pytest.mark.parametrize("measure", MEASURES)
def test_every_cell_has_what_its_forward_has(name, backend, engine, measure):
    model = architecture(name, backend)
    long = {} if measure == "logit_difference" else {"answer": "xyz"}
    traced = trace(model, measure, engine=engine, **long)
    assert traced.measure == measure
    of_rows = expected(model, traced, measure)
    assert traced.high == pytest.approx(of_rows[0].item(), rel=1e-6, abs=1e-12)
    assert traced.low == pytest.approx(of_rows[1:].mean().item(), rel=1e-6)
    for stream, layer, pos in (("resid", 1, 3), ("mlp", 0, 3), ("attn", 2, 6), ("resid", 3, 6), ("mlp", 3, 2)):
        layers = restored_layers(stream, layer, traced.window, model.cfg.n_layers)
        of_cell = expected(model, traced, measure, stream=stream, pos=pos, layers=layers)[1:].mean()
        # Transformers takes RMS norms in float32 whatever the model is, and logits are large beside their difference.
        atol = 1e-6 if backend == BRIDGE else 1e-12
        assert traced.scores[stream][layer, pos].item() == pytest.approx(of_cell.item(), rel=1e-6, abs=atol)


@pytest.mark.parametrize("measure", ["log_probability", "logit_difference", "entropy()"])
def test_attribution_of_a_small_difference_is_the_effect(llama, measure):
    exact, near = (trace(llama, measure, engine=e, noise=1e-3, window=1) for e in ("auto", "attribution"))
    assert (near.low, near.high) == (exact.low, exact.high)
    effect, found = (torch.stack([x.effect(s) for s in exact.scores]) for x in (exact, near))
    assert (found - effect).abs().max() < 0.1 * effect.abs().max()


def test_a_divergence_is_not_approximated(llama):
    said = refused(rl.SettingError, trace, llama, engine="attribution")
    assert said.startswith("measure 'kl' is not approximated, since it has no slope where all is restored")


def test_a_token_that_is_never_said_adds_nothing_to_a_divergence():
    logits = torch.tensor([[[1.0, 2.0, -torch.inf]], [[2.0, 1.0, -torch.inf]]], dtype=torch.float64)
    measure = Measure("kl")
    clean = measure.of_clean(logits[:1]).expand(2, -1)
    found = measure.of(logits, torch.zeros(2, 1, dtype=torch.long), clean)
    without = logits[:, :, :2]
    expected = measure.of(without, torch.zeros(2, 1, dtype=torch.long), measure.of_clean(without[:1]).expand(2, -1))
    assert torch.equal(found, expected)
    assert found[0] == 0


def test_a_function_may_change_what_it_is_given(llama):
    def spoiled(logits, answer_ids):
        found = logits[:, 0, answer_ids[0]].clone()
        logits.zero_()
        return found

    settings = {"subject": SUBJECT, "samples": 2, "noise": 2.0, "answer": "x", "answer_joined": ""}
    traced, plain = (rl.causal_trace(llama, PROMPT, **settings, **m) for m in ({"measure": spoiled}, {}))
    assert traced.says("mlp", 1, 3) == plain.says("mlp", 1, 3)


@pytest.mark.parametrize("against", ["y", " y"])
def test_another_answer_with_its_blank_or_without(gpt2_words, against):
    traced = rl.causal_trace(
        gpt2_words,
        "the tower is in",
        subject="the tower",
        noise=1.0,
        samples=2,
        answer=" city",
        measure="logit_difference",
        against=against.replace("y", "tower"),
    )
    assert traced.against == " tower"


@pytest.fixture(scope="module")
def gpt2_words():
    return tiny_model("auto")


def test_fewer_copies_at_a_time_have_the_same_mean(llama, monkeypatch):
    whole = trace(llama)
    monkeypatch.setattr("rome_lens.tracing.memory.Budget.samples", lambda self, n_tokens: 2)
    parts = trace(llama)
    assert parts.low == pytest.approx(whole.low, rel=1e-12)
    torch.testing.assert_close(parts.scores, whole.scores, rtol=1e-6, atol=1e-6)


def test_a_divergence_falls_to_where_all_is_restored(llama, tmp_path):
    traced = trace(llama, streams=("resid", "heads"), severed="mlp")
    assert traced.falls
    assert traced.high == 0
    assert traced.scores["resid"][traced.peak("resid")] == traced.scores["resid"].min() == 0
    share = traced.normalized("resid")
    assert share[traced.peak("resid")] == 1
    assert share[0, 0] == 0
    assert torch.equal(share, traced.effect("resid") / (traced.high - traced.low))
    assert torch.equal(traced.normalized("resid", severed="mlp"), traced.effect("resid", severed="mlp") / -traced.low)
    path = tmp_path / "trace.safetensors"
    traced.save(path)
    assert rl.CausalTrace.load(path) == traced
    assert traced.to_dict()["measure"] == "kl"
    assert "llama, KL(clean || cell), low" in repr(traced)
    resid, heads, _ = traced.heat_maps()
    layer, pos = resid.peak
    assert (layer, pos) == traced.peak("resid")
    assert heads.peak == traced.peak("heads")
    assert (resid.level(0.0), resid.level(traced.low), resid.level(2 * traced.low)) == (1.0, 0.0, 0.0)
    drawn = traced.figure().data
    assert all(panel.reversescale for panel in drawn)
    assert (drawn[0].zmin, drawn[0].zmax) == (0.0, traced.low)
    assert drawn[0].colorbar.title.text == "KL(clean || cell)"
    assert "KL(clean || cell) = %{z:.4f}<br>effect" in drawn[0].hovertemplate
    shown = printed(print_trace, traced)
    assert "KL(clean || cell), falling as more is restored\nhigh 0.0000  clean run" in shown
    assert f"KL(clean || cell)  low {traced.low:.3f}" in shown
    assert f"× peak: layer {layer}, KL(clean || cell) = 0.000, token" in shown


def test_an_answer_is_shown_and_not_obeyed(llama):
    traced = replace(trace(llama, "log_probability"), answer=" \x1b[31mx\u202e")
    assert not {"\x1b", "\u202e"} & set(printed(print_trace, traced))


def test_a_table_has_the_columns_of_transformer_lens(llama):
    traced = trace(llama, "logit_difference", streams=("resid", "mlp"))
    table = traced.to_dataframe()
    assert set(table["metric"]) == {"logit_difference"}
    assert table["value"].tolist() == table["score"].tolist()
    assert table["normalized"].tolist() == pytest.approx(
        torch.cat([traced.normalized(stream).flatten() for stream in traced.scores]).tolist()
    )
    assert traced.against == "y"
    assert traced.heat_maps()[0].measure == "logit(x) - logit(y)"


@pytest.mark.parametrize("measure", ["log_probability", "logit_difference", "kl"])
def test_neurons_carry_what_the_trace_measures(llama, measure):
    traced = trace(llama, measure)
    found = rl.trace_neurons(llama, traced, layer=1, pos=3, n_best=48)
    assert (found.low, found.high) == (traced.low, traced.high)
    assert found.measure == traced.measure_words
    assert found.cell == pytest.approx(traced.scores["mlp"][1, 3].item(), rel=1e-6)
    assert found.scores.tolist() == sorted(found.scores.tolist(), reverse=not traced.falls)
    effects = (found.scores[0] - found.low).item()
    assert (effects < 0) is (measure == "kl")
    assert f"\n{traced.measure_words}: low " in printed(print_neurons, found)


def test_neurons_of_a_function_are_refused(llama):
    said = refused(rl.SettingError, rl.trace_neurons, llama, trace(llama, "entropy()"))
    assert said.startswith("the trace was measured by a function, entropy(), which it does not hold; trace with one of")


def test_a_trace_without_an_effect_says_so(llama):
    nothing = "corrupting the subject takes nothing away, so there is nothing to bring back"
    (note,) = trace(llama, noise=0.0).notes
    assert note == f"{nothing}: both runs have the same distribution"
    (note,) = trace(llama, "log_probability", noise=0.0).notes
    assert note == f"{nothing}: log_probability is no higher in the clean run"


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda logits, ids: logits.mean(), "gave a tensor of shape [] for logits of [4, 1, 258]; expected a number a"),
        (lambda logits, ids: 3, "gave 3 for logits of [4, 1, 258]; expected a number a row, a tensor of [4]"),
        (lambda logits, ids: logits[:, 0, 0] * torch.nan, "gave a number that is not finite"),
    ],
)
def test_what_no_measure_is(llama, function, message):
    settings = {"subject": SUBJECT, "samples": 3, "noise": 2.0, "measure": function}
    said = refused(rl.SettingError, rl.causal_trace, llama, PROMPT, **settings)
    assert said.startswith("measure <lambda>() ")
    assert message in said


def test_a_function_without_a_gradient_is_not_approximated(llama):
    def rank(logits, answer_ids):
        return (logits[:, 0] > logits[:, 0, answer_ids[0], None]).sum(dim=-1)

    settings = {"subject": SUBJECT, "samples": 3, "noise": 2.0, "measure": rank}
    assert rl.causal_trace(llama, PROMPT, **settings).high == 0
    said = refused(rl.SettingError, rl.causal_trace, llama, PROMPT, engine="attribution", **settings)
    assert said == (
        "measure rank() passes no gradient back to the logits, which engine 'attribution' needs; leave engine out"
    )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"answer": "xy"}, "the answer 'xy' has 2 tokens, and a logit difference is of two that have one each"),
        ({"against": "xy"}, "the answer 'xy' has 2 tokens, and a logit difference is of two that have one each"),
        ({"against": "x"}, "against is 'x', which is the answer itself; name another one"),
        ({"against": " "}, "the answer ' ' is empty; expected a word or a name"),
    ],
)
def test_answers_that_cannot_be_compared(llama, given, message):
    assert message in refused(rl.AnswerError, trace, llama, "logit_difference", **given)
