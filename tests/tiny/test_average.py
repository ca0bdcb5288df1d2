"""Averages over facts: against single traces averaged by hand, and runs that survive."""

import json
import re

import numpy as np
import pytest
import torch
from architectures import home_made
from hosts import needs_hooked
from known_facts import known_facts, make_model, said_next, unknown_fact
from refused import refused

import rome_lens as rl
from rome_lens.runs import RunFolder, process_pool
from rome_lens.tracing.average.worker import tasks_of
from rome_lens.tracing.blocks import score_cells
from rome_lens.tracing.grid import score_grids
from rome_lens.tracing.roles import FIRST_SUBJECT, LAST, LAST_SUBJECT, ROLES, roles_of

SETTINGS = {"noise": 2.0, "samples": 3, "window": 2}
MODEL = make_model()
FACTS = [*known_facts(MODEL, 9), unknown_fact(MODEL)]

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:transformer_lens")


def average(facts=FACTS, model=MODEL, **settings):
    return rl.average_causal_effect(model, facts, **SETTINGS | settings)


@pytest.fixture(scope="module")
def whole():
    return average()


@pytest.fixture(scope="module")
def traces():
    """Every known fact by itself."""
    return [
        rl.causal_trace(MODEL, fact.text, subject=fact.subject, expect=fact.answer, severed=("mlp", "attn"), **SETTINGS)
        for fact in FACTS[:-1]
    ]


def by_hand(traces, role, effect_of):
    """[fact, layer]: the mean of a role's tokens in each fact that has it."""
    rows = []
    for traced in traces:
        positions = roles_of(traced.subject_span, len(traced.tokens)).get(role)
        if positions is not None:
            rows.append(effect_of(traced)[:, list(positions)].mean(dim=1).numpy())
    return np.array(rows)


def same(got, expected):
    assert np.asarray(got) == pytest.approx(np.asarray(expected), abs=2e-7)


def same_grids(fact, expected):
    for grids in ("scores", "severed"):
        assert fact[grids].keys() == expected[grids].keys()
        for stream in fact[grids]:
            same(fact[grids][stream], expected[grids][stream])


def test_facts_are_the_single_traces(whole, traces):
    assert [fact["number"] for fact in whole.facts] == list(range(9))
    for fact, traced in zip(whole.facts, traces, strict=True):
        assert fact["tokens"] == list(traced.tokens)
        same([fact["low"], fact["high"]], [traced.low, traced.high])
        for stream, scores in traced.scores.items():
            same(fact["scores"][stream], scores)
        for stream, scores in traced.severed.items():
            same(fact["severed"][stream], scores[:, fact["severed_at"]])


def test_averages_by_hand(whole, traces):
    for role in ROLES:
        for stream in ("resid", "mlp", "attn"):
            rows = by_hand(traces, role, lambda traced, s=stream: traced.effect(s))
            curve = whole.curve(stream, role)
            same(curve.mean, rows.mean(axis=0))
            assert curve.n == len(rows)
            assert all(low <= m <= high for low, m, high in zip(curve.low, curve.mean, curve.high, strict=True))
    same(whole.total_effect.mean, np.mean([traced.total_effect for traced in traces]))
    same(whole.high.mean - whole.low.mean, whole.total_effect.mean)


def test_severed_paths_by_hand(whole, traces):
    for severed in ("mlp", "attn"):
        cut = by_hand(traces, LAST_SUBJECT, lambda traced, s=severed: traced.effect("resid", severed=s))
        ordinary = by_hand(traces, LAST_SUBJECT, lambda traced: traced.effect("resid"))
        same(whole.curve("resid", LAST_SUBJECT, severed=severed).mean, cut.mean(axis=0))
        same(whole.lost(severed).mean, (ordinary - cut).mean(axis=0))
        assert whole.roles("resid", severed=severed) == (LAST_SUBJECT,)


def test_severed_at_all_tokens(traces):
    found = average(severed="attn", severed_at="all")
    for role in ROLES:
        rows = by_hand(traces, role, lambda traced: traced.effect("resid", severed="attn"))
        same(found.curve("resid", role, severed="attn").mean, rows.mean(axis=0))


def test_intervals_hold_what_resampled_facts_give(whole, traces):
    rows = by_hand(traces, LAST, lambda traced: traced.effect("attn"))
    draws = np.random.default_rng(0).integers(0, len(rows), (20000, len(rows)))
    means = rows[draws].mean(axis=1)
    curve = whole.curve("attn", LAST)
    spread = means.std(axis=0) + 1e-9
    assert (abs(np.quantile(means, 0.025, axis=0) - curve.low) < 0.15 * spread).all()
    assert (abs(np.quantile(means, 0.975, axis=0) - curve.high) < 0.15 * spread).all()
    peak = whole.peak("attn", LAST)
    assert peak.layer == rows.mean(axis=0).argmax()
    tops = np.quantile(means.argmax(axis=1), [0.025, 0.975])
    assert [peak.first, peak.last] == tops.round().tolist()
    assert peak.effect.mean == curve.mean[peak.layer]


def test_unknown_facts_are_set_aside_and_counted(whole):
    (aside,) = whole.set_aside
    assert aside["number"] == 9
    assert aside["why"].startswith("the model does not know this fact: it continues with ")
    table = whole.facts_to_dataframe()
    assert table.known.tolist() == [True] * 9 + [False]
    assert table.number.tolist() == list(range(10))
    assert whole.summary()["set_aside"] == 1


def test_facts_that_do_not_fit_are_set_aside():
    long = rl.Fact("{}" + " is" * 20, "the tower", "in")
    found = average([*FACTS[:2], long])
    assert found.set_aside[0]["why"].startswith("the prompt with its answer takes 22 positions")


def test_no_fact_that_is_known():
    said = refused(rl.SettingError, average, [FACTS[-1]])
    assert re.fullmatch(r"none of 1 facts can be traced, such as: the model does not know this fact: .*", said)


def test_facts_of_one_shape_go_together(monkeypatch, whole):
    together = []

    def watched(backend, cases, wanted, **how):
        assert len({case.shape for case in cases}) == 1
        together.append(len(cases))
        return score_grids(backend, cases, wanted, **how)

    monkeypatch.setattr("rome_lens.tracing.average.worker.score_grids", watched)
    found = average()
    assert sum(together) == 9
    assert max(together) > 1
    assert found.facts == whole.facts


@pytest.mark.parametrize("sizes", [{"state_positions": 1}, {"run_positions": 60}, {"call_positions": 7}], ids=str)
def test_numbers_do_not_depend_on_memory(sizes, tighten, whole):
    tighten(**sizes)
    for fact, expected in zip(average().facts, whole.facts, strict=True):
        same([fact["low"], fact["high"]], [expected["low"], expected["high"]])
        same_grids(fact, expected)


def test_noise_is_measured_on_these_facts():
    found = average(noise="s3")
    ids = [MODEL.tokenizer(fact.subject, add_special_tokens=False)["input_ids"] for fact in FACTS]
    embeddings = torch.cat([rl.backends.as_backend(MODEL).embeddings(torch.tensor([each]))[0] for each in ids])
    assert found.settings["prepared"]["noise"] == pytest.approx(3 * embeddings.std().item(), rel=1e-5)


def test_engines(whole):
    plain = average(engine="plain")
    for fact, expected in zip(plain.facts, whole.facts, strict=True):
        assert fact["engine"] == "plain"
        same_grids(fact, expected)
    approximate = average(engine="attribution")
    assert approximate.approximate
    assert not whole.approximate
    assert approximate.severed == ()
    assert "approximated" in repr(approximate)
    assert approximate.summary()["approximate"] is True


def test_a_run_goes_on_where_it_was(tmp_path):
    found = average(out=tmp_path / "run", batch_size=2)
    files = sorted((tmp_path / "run" / "records").glob("*.json"))
    assert len(files) == 10
    summary = (tmp_path / "run" / "summary.json").read_bytes()
    kept = {path: path.stat().st_mtime_ns for path in files[3:]}
    for path in files[:3]:
        path.unlink()
    again = average(out=tmp_path / "run", batch_size=2)
    assert again.facts == found.facts
    assert {path: path.stat().st_mtime_ns for path in files[3:]} == kept
    assert (tmp_path / "run" / "summary.json").read_bytes() == summary
    assert json.loads(summary)["facts"] == 9
    assert rl.read_average(tmp_path / "run").facts == found.facts
    with pytest.raises(rl.SettingError, match=r"holds a run with samples=3, and this one has samples=4"):
        average(out=tmp_path / "run", batch_size=2, samples=4)


def test_shards_give_the_same(tmp_path):
    alone = average(model=make_model, batch_size=3)
    for number in (1, 2):
        average(model=make_model, batch_size=3, shard=f"{number}/2", out=tmp_path / f"part-{number}")
    merged, missing = rl.merge_averages([tmp_path / "part-1", tmp_path / "part-2"], tmp_path / "whole")
    assert missing == []
    assert merged.facts == alone.facts
    _, missing = rl.merge_averages([tmp_path / "part-1"], tmp_path / "half")
    assert len(missing) == len(merged.facts) + len(merged.set_aside) - len(list((tmp_path / "part-1").rglob("0*.json")))


@pytest.mark.slow  # the shell's test of a worker is run at every landing
def test_workers_give_the_same():
    alone = average(model=make_model, batch_size=3)
    with process_pool(2) as pool:
        pooled = average(model=make_model, batch_size=3, executor=pool)
    for fact, expected in zip(pooled.facts, alone.facts, strict=True):
        same([fact["low"], fact["high"]], [expected["low"], expected["high"]])


def test_a_model_object_in_other_processes_is_refused():
    with process_pool(1) as pool, pytest.raises(rl.SettingError, match=r"the model is an object"):
        average(executor=pool)


def test_tasks_hold_every_fact_once_and_like_ones_together():
    tasks = tasks_of(FACTS, batch=4)
    keys = [key for task in tasks for key in task.keys]
    assert sorted(keys) == [f"{number:06d}" for number in range(10)]
    words = [len(fact.text.split()) for task in tasks for _, fact in task.payload]
    assert words == sorted(words)


def test_what_was_not_traced(whole):
    only = average(FACTS[:2], streams="mlp", severed=())
    assert (only.streams, only.severed) == (("mlp",), ())
    for ask, message in (
        (lambda: only.curve("attn", LAST), "'attn' was not traced; this average has mlp"),
        (lambda: only.lost("mlp"), "'resid' was not traced; this average has mlp"),
        (
            lambda: whole.curve("resid", LAST, severed="mlp"),
            "no fact has a 'last token' here; this average has last subject token",
        ),
    ):
        assert refused(rl.SettingError, ask) == message


def test_a_role_that_no_fact_has():
    alone = average([next(fact for fact in FACTS if len(fact.subject.split()) == 1)])
    assert FIRST_SUBJECT not in alone.roles("mlp")
    curve = alone.curve("mlp", LAST_SUBJECT)
    assert (curve.low, curve.high, curve.n) == (curve.mean, curve.mean, 1)


def test_tables(whole, tmp_path):
    table = whole.to_dataframe()
    assert table.columns.tolist() == ["stream", "severed", "role", "layer", "effect", "low", "high", "n"]
    row = table[(table.stream == "resid") & (table.severed == "attn") & (table.layer == 1)]
    assert row.effect.tolist() == [whole.curve("resid", LAST_SUBJECT, severed="attn").mean[1]]
    whole.write_csv(tmp_path)
    assert (tmp_path / "effects.csv").read_text().startswith('"stream","severed","role","layer"')
    assert len((tmp_path / "facts.csv").read_text().splitlines()) == 11


def test_severed_by_default_is_what_the_model_and_the_streams_have():
    assert average(FACTS[:2], streams=("mlp", "attn")).severed == ()
    assert average(FACTS[:2]).severed == ("mlp", "attn")


@needs_hooked
def test_a_model_without_mlps():
    model = home_made(MODEL.tokenizer, d_vocab=MODEL.cfg.d_vocab, attn_only=True, dtype=torch.float32)
    found = average(known_facts(model, 3), model=model, streams=("resid", "attn"))
    assert (found.streams, found.severed) == (("resid", "attn"), ("attn",))
    assert len(found.facts) == 3


def test_answers_of_several_tokens_and_bos():
    (fact,) = known_facts(MODEL, 1, seed=5)
    more = said_next(MODEL, f"{fact.text} {fact.answer}")
    long = rl.Fact(fact.prompt, fact.subject, f"{fact.answer} {more}")
    found = average([long])
    traced = rl.causal_trace(MODEL, long.text, subject=long.subject, expect=long.answer, **SETTINGS)
    assert len(traced.answer_ids) == 2
    same(found.facts[0]["scores"]["mlp"], traced.scores["mlp"])
    with_bos = average(FACTS[:3], prepend_bos=True)
    known = [*with_bos.facts, *with_bos.set_aside]
    assert len(known) == 3
    assert all(fact["tokens"][0] == "<|end|>" for fact in with_bos.facts)


def test_memory_that_runs_out_is_answered_with_fewer_facts(monkeypatch, tighten, whole):
    seen = []

    def once(backend, runs, lanes, **how):
        seen.append(len(runs.cases))
        if len(seen) == 1:
            raise torch.OutOfMemoryError("no memory left")
        return score_cells(backend, runs, lanes, **how)

    monkeypatch.setattr("rome_lens.tracing.grid.score_cells", once)
    tighten(state_positions=3000)
    fact = FACTS[0]
    found = average([fact] * 4)
    assert seen[0] > 1
    assert max(seen[1:]) < seen[0]
    for again in found.facts:
        same_grids(again, whole.facts[0])


def test_users_hooks_are_seen():
    with MODEL.hooks(fwd_hooks=[("blocks.0.hook_mlp_out", lambda x, hook: x * 0.5)]):
        facts = known_facts(MODEL, 2, seed=3)
        found = average(facts)
        assert {fact["engine"] for fact in found.facts} == {"plain"}
        assert len(found.notes) == 1


def test_a_shard_without_facts_says_so(tmp_path):
    said = refused(rl.SettingError, average, FACTS[:2], shard="2/2", out=tmp_path)
    assert said == "no fact of shard 2/2 is traced here yet; there is nothing to average"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"facts": []}, "there are no facts; expected one or more"),
        ({"batch_size": 0}, "batch_size is 0; expected a whole number of facts, 1 or more"),
        ({"samples": 0}, "samples is 0; expected a whole number of corrupted copies, 1 or more"),
        ({"streams": ("neuron",)}, "stream is 'neuron'; choose from resid, mlp, attn"),
        ({"severed": ("resid",)}, "severed is 'resid'; choose from mlp, attn"),
        ({"severed_at": "first"}, "severed_at is 'first'; choose one of last-subject, all"),
        ({"window": 9}, "window is 9; expected a whole number of layers from 1 to 2, the layers of this model"),
        ({"engine": "fast"}, "engine is 'fast'; choose one of auto, plain, attribution"),
        ({"seed": -1}, "seed is -1; expected a whole number from 0 to 4294967295"),
        (
            {"engine": "attribution", "severed": ("mlp",)},
            "severed paths are not approximated; leave severed out, or engine 'attribution'",
        ),
    ],
    ids=str,
)
def test_what_is_refused(settings, message):
    assert refused(rl.SettingError, average, **settings) == message


def test_folders_of_something_else(tmp_path):
    for kind in ("zsre", "average"):
        with RunFolder.open(tmp_path / kind, {"kind": kind}):
            pass
    for folder, expected, *asks in (
        ("zsre", "average", rl.read_average, lambda folder: rl.merge_averages([folder], tmp_path / "out")),
        ("average", "counterfact or zsre", rl.read_run, lambda folder: rl.merge_runs([folder], tmp_path / "out")),
    ):
        for ask in asks:
            said = refused(rl.SettingError, ask, tmp_path / folder)
            holds = f"{str(tmp_path / folder)!r} holds a run of {folder!r}"
            assert said == f"{holds}; expected a run of {expected}"
