"""What is measured at checkpoints equals a plain evaluation: edited weights, Hugging Face alone, a prompt at a time."""

from statistics import fmean

import evaluation_oracle as oracle
import pytest
import torch
from architectures import BACKENDS, architecture, byte_tokenizer, hugging_face_model

import rome_lens as rl
from rome_lens.data.records import CounterFactRecord, ZsreRecord

LAYER, MODULE = 1, "transformer.h.1.mlp.c_proj"
AT = (10, 30)
TEXTS = ("hello there, you", "abc", "a longer text than these two")
HOW = {"context_templates": ["{}", "so. {}"], "v_num_grad_steps": 3}
SETTINGS = (
    'context_templates=["{}", "so. {}"]',
    "v_num_grad_steps=3",
    "layer=1",
    "layers=[1]",
    'sequence.found_on="edited"',
    "ft.num_steps=3",
)
EDITORS = {
    "memit": "memit",
    "emmet": "emmet",
    "alphaedit": "alphaedit",
    "stacked": "r-rome",
    "sequence": "r-rome",
    "ft": "ft",
}

WORDS = ("tower", "old hill", "lake", "my house", "sea", "it")
PLACES = ("rome", "paris", "p", "oslo", "one")
REQUESTS = tuple(
    rl.EditRequest("{} is in", f"the {WORDS[n % 6]} {n}", PLACES[n % 5], target_true=PLACES[(n + 2) % 5])
    for n in range(30)
)
RECORDS = tuple(
    CounterFactRecord(n, n, None, request, (f"say: {request.subject} is in",), (f"a road {n} is in", "x is in"), ())
    for n, request in enumerate(REQUESTS)
)
QUESTIONS = tuple(
    ZsreRecord(n, n, request, f"now, {request.subject} is in", "nq question: what is it?", "x")
    for n, request in enumerate(REQUESTS)
)


@pytest.fixture(scope="module")
def moment():
    width = architecture("gpt2", BACKENDS[0]).cfg.d_mlp
    return rl.SecondMoment.from_matrix(torch.diag(torch.linspace(1, 3, width, dtype=torch.float64)), layer=LAYER)


@pytest.fixture(scope="module")
def plain_updates(moment):
    """Editor -> n -> what the weight gains, written down plainly."""
    model, found = architecture("gpt2", BACKENDS[0]), {}
    for name, kind in (("memit", rl.MEMIT), ("emmet", rl.EMMET), ("alphaedit", rl.AlphaEdit)):
        editor = kind(model, layers=LAYER, second_moments=moment, **HOW)
        sets = {n: editor.edit_together(REQUESTS[:n], workers=1, allow_conflicts=True) for n in AT}
        found[name] = {n: facts.update.double() for n, facts in sets.items()}
    editor = rl.MEMIT(model, layers=LAYER, second_moments=moment, keys="mean", **HOW)
    facts = editor.edit_together(REQUESTS, workers=1, allow_conflicts=True)
    found["stacked"] = {n: sum(_rank_one(fact, moment) for fact in facts[:n]) for n in AT}
    found["sequence"] = _in_sequence(
        lambda edited: rl.MEMIT(edited, layers=LAYER, second_moments=moment, keys="mean", **HOW),
        lambda editor, request: _rank_one(editor.edit_together([request], workers=1)[0], moment),
    )
    found["ft"] = _in_sequence(
        lambda edited: rl.FineTuning(edited, layer=LAYER, num_steps=3),
        lambda editor, request: editor.edit(request).delta.double(),
    )
    return found


def _rank_one(fact, moment):
    """r-ROME's own edit of a fact with one key: `C⁻¹k (v* - Wk)ᵀ / kᵀC⁻¹k`."""
    (key,) = fact.keys[0].double()
    direction = torch.linalg.solve(moment.matrix.double(), key)
    return torch.outer(direction, fact.residual.double()) / (direction @ key)


def _in_sequence(make, update):
    """What the weight has gained at the checkpoints, each fact found on the weights with all before it."""
    model = architecture("gpt2", BACKENDS[0])
    weight = dict(model.named_parameters())[_name_of(model)]
    base, found = weight.detach().clone(), {}
    for n, request in enumerate(REQUESTS, start=1):
        more = update(make(model), request)  # what an editor knows of its model is fixed when it is made
        with torch.no_grad():
            weight.copy_(weight.double() + more)
        if n in AT:
            found[n] = weight.detach().double() - base.double()
    with torch.no_grad():
        weight.copy_(base)  # other tests have this model, too
    return found


def _name_of(model):
    shape = (model.cfg.d_mlp, model.cfg.d_model)
    (name,) = [name for name, value in model.named_parameters() if value.shape == shape and f".{LAYER}." in name]
    return name


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_checkpoint_equals_a_plain_evaluation(backend, moment, plain_updates, tmp_path):
    moment.save(tmp_path / "moment.safetensors")
    report = rl.evaluate_counterfact(
        architecture("gpt2", backend),
        EDITORS,
        RECORDS,
        together=AT,
        settings=SETTINGS,
        second_moments=[tmp_path / "moment.safetensors"],
        measures=rl.Measures(n_texts=0, watched=TEXTS),
    )
    assert set(report.editors) == set(plain_updates)
    for name, by_n in plain_updates.items():
        for n, update in by_n.items():
            point = report.checkpoint(name, n)
            scores, perplexity = _plainly(update, RECORDS[:n], oracle.counterfact)
            assert point.n_records == n
            assert {m: point.scores[m] for m in scores} == pytest.approx(scores, abs=1e-4), (name, n)
            assert point.perplexity == pytest.approx(perplexity, rel=1e-6), (name, n)
    before, _ = _plainly(torch.zeros(()), RECORDS, oracle.counterfact)
    unedited = report.checkpoint("memit", 30).unedited
    assert {m: unedited[m].mean for m in before} == pytest.approx(before, abs=1e-4)


def test_zsre_is_asked_at_checkpoints_too(moment, plain_updates, tmp_path):
    moment.save(tmp_path / "moment.safetensors")
    report = rl.evaluate_zsre(
        architecture("gpt2", BACKENDS[0]),
        {"memit": "memit", "sequence": "r-rome"},
        QUESTIONS,
        together=AT,
        settings=[one for one in SETTINGS if not one.startswith("ft")],
        second_moments=[tmp_path / "moment.safetensors"],
    )
    for name in report.editors:
        for n in AT:
            scores, _ = _plainly(plain_updates[name][n], QUESTIONS[:n], oracle.zsre)
            found = report.checkpoint(name, n)
            assert {m: found.scores[m] for m in scores} == pytest.approx(scores, abs=1e-4), (name, n)
            assert found.perplexity is None


def _plainly(update, records, score):
    """Means of the scores on Hugging Face's model with an update in its weight, and the perplexity over the base's."""
    model, tokenizer = hugging_face_model("gpt2"), byte_tokenizer()
    before = oracle.perplexity(model, tokenizer, TEXTS)
    weight = model.get_submodule(MODULE).weight
    kept = weight.detach().clone()
    with torch.no_grad():
        weight.add_(update.to(weight.dtype))
    try:
        several = [score(model, tokenizer, record) for record in records]
        after = oracle.perplexity(model, tokenizer, TEXTS)
    finally:
        with torch.no_grad():
            weight.copy_(kept)
    return {name: fmean(one[name] for one in several) for name in several[0]}, after / before
