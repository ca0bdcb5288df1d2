"""Files that version 0.1.0 wrote: each opens, says what it said then, and goes on where it stopped."""

import json
import shutil

import pytest
import torch
from architectures import BACKENDS, BRIDGE
from earlier_files import (
    FOLDER,
    KINDS,
    PROMPT,
    REQUEST,
    STEPS,
    SUBJECT,
    VARIANTS,
    average,
    collect_moments,
    evaluate,
    evaluate_zsre,
    make_edit,
    make_model,
    no_model,
)
from refused import refused

import rome_lens as rl
from rome_lens.editing import Settings
from rome_lens.errors import EditStateError
from rome_lens.loading.tiny import tiny_model

EXPECTED = json.loads((FOLDER / "expected.json").read_text("utf-8"))
EDITS = [(variant, kind) for kind in KINDS for variant in VARIANTS]


def same(got, expected, rel=1e-4):
    """Numbers that another machine may round otherwise, at any depth."""
    if isinstance(expected, dict):
        assert got.keys() == expected.keys()
        for name in expected:
            same(got[name], expected[name], rel)
    elif isinstance(expected, list):
        assert len(got) == len(expected)
        for one, other in zip(got, expected, strict=True):
            same(one, other, rel)
    elif isinstance(expected, float) or isinstance(got, float):
        assert got == pytest.approx(expected, rel=rel, abs=1e-6)
    else:
        assert got == expected


def copied(name, folder):
    """A run folder that the test may go on with."""
    return shutil.copytree(FOLDER / name, folder / name)


@pytest.mark.parametrize(("variant", "kind"), EDITS)
def test_an_edit_opens(variant, kind):
    name = f"edit-{variant}-{kind}.safetensors"
    edit, expected = rl.load_edit(FOLDER / name), EXPECTED[name]
    assert edit.id == expected["id"]
    assert (edit.request, edit.layer, edit.variant, edit.backend) == (REQUEST, 0, variant, kind)
    assert [edit.before.target, edit.before.old] == expected["before"]
    assert [edit.after.target, edit.after.old] == expected["after"]
    assert edit.update[:2, :2].flatten().tolist() == expected["update"]
    assert [getattr(loss, "total", loss) for loss in edit.loss_curve] == expected["loss"]
    assert list(edit.notes) == expected["notes"]
    assert (edit.module, edit.module_transposed, edit.dtype) == ("transformer.h.0.mlp.c_proj", False, "float32")
    assert edit.old_answer.strip() == "of"
    assert edit.settings


@pytest.mark.parametrize(("variant", "kind"), [pair for pair in EDITS if pair[1] in BACKENDS])
def test_an_edit_goes_into_its_model_and_out_again(variant, kind):
    name = f"edit-{variant}-{kind}.safetensors"
    edit, model = rl.load_edit(FOLDER / name), tiny_model(kind)
    tokens = model.to_tokens(PROMPT, prepend_bos=False)
    with torch.no_grad():
        before = model(tokens).clone()
        with edit.applied(model):
            same(model(tokens)[0, -1].log_softmax(-1).tolist(), EXPECTED[name]["logits"])
        assert torch.equal(model(tokens), before)
        hooked = model.run_with_hooks(tokens, fwd_hooks=edit.hooks(model))
    same(hooked[0, -1].log_softmax(-1).tolist(), EXPECTED[name]["logits"])


@pytest.mark.parametrize("variant", VARIANTS)
def test_an_edit_is_written_again_and_stays_the_same(variant, tmp_path):
    edit = rl.load_edit(FOLDER / f"edit-{variant}-{BRIDGE}.safetensors")
    edit.save(tmp_path / "again.safetensors")
    again = rl.load_edit(tmp_path / "again.safetensors")
    assert again.id == edit.id
    assert again.to_dict() == edit.to_dict()
    assert torch.equal(again.update, edit.update)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_same_edit_is_found_today(variant):
    moment = rl.SecondMoment.load(FOLDER / "moment-0.safetensors")
    found = make_edit(make_model(), variant, moment)
    expected = EXPECTED[f"edit-{variant}-{BRIDGE}.safetensors"]
    same([getattr(loss, "total", loss) for loss in found.loss_curve], expected["loss"])
    same([found.after.target, found.after.old], expected["after"])
    same(found.update[:2, :2].flatten().tolist(), expected["update"], rel=1e-3)


def test_a_second_moment_opens():
    model = make_model()
    for layer in (0, 1):
        moment = rl.SecondMoment.load(FOLDER / f"moment-{layer}.safetensors")
        assert (moment.layer, moment.n_tokens) == (layer, 2400)
        same(moment.matrix.diagonal()[:4].tolist(), EXPECTED["moments"][str(layer)], rel=1e-7)  # kept in float32
        rl.ROME(model, layer=layer, second_moment=moment, context_templates=["{}"])


def test_a_collection_goes_on(tmp_path):
    left = shutil.copy(FOLDER / "checkpoint.safetensors", tmp_path)
    counted = []
    moments = collect_moments(left, progress=lambda done, total, what: counted.append((what, done)))
    assert min(done for what, done in counted if what == "collecting keys") > 1200
    for layer, moment in moments.items():
        same(moment.matrix.diagonal()[:4].tolist(), EXPECTED["moments"][str(layer)])


def test_settings_open():
    settings = Settings.load(FOLDER / "settings.json")
    moment = rl.SecondMoment.load(FOLDER / "moment-0.safetensors")
    editor = rl.ROME(make_model(), second_moment=moment, settings=settings, context_templates=["{}"])
    assert (editor.layer, editor.settings.v_num_grad_steps) == (0, STEPS["v_num_grad_steps"])


@pytest.mark.parametrize("name", ["trace", "trace-edited"])
def test_a_trace_opens(name):
    trace, expected = rl.CausalTrace.load(FOLDER / f"{name}.json"), EXPECTED[name]
    assert (trace.high, trace.low, trace.answer) == (expected["high"], expected["low"], expected["answer"])
    assert trace.scores["resid"].tolist() == expected["resid"]
    assert trace.severed["mlp"].tolist() == expected["mlp severed"]
    assert (trace.prompt, trace.subject) == (PROMPT, SUBJECT)
    assert (trace.unedited is not None) == (name == "trace-edited")
    trace.figure()
    trace.to_dataframe()


def test_an_exported_model_holds_its_edit():
    name = f"edit-r-rome-{BRIDGE}.safetensors"
    model = rl.load_model(FOLDER / "exported", backend=BRIDGE, device="cpu")
    with torch.no_grad():
        logits = model(model.to_tokens(PROMPT, prepend_bos=False))[0, -1]
    same(logits.log_softmax(-1).tolist(), EXPECTED[name]["logits"])
    assert "is in these weights already" in refused(EditStateError, rl.load_edit(FOLDER / name).apply, model)


def test_an_adapter_is_the_one_that_is_written_today(tmp_path):
    rl.load_edit(FOLDER / f"edit-r-rome-{BRIDGE}.safetensors").to_peft(tmp_path / "adapter")
    for file in ("adapter_model.safetensors", "adapter_config.json"):
        assert (tmp_path / "adapter" / file).read_bytes() == (FOLDER / "adapter" / file).read_bytes()


def test_an_evaluation_that_is_over_is_read_and_asks_for_no_model(tmp_path):
    expected = {name: EXPECTED["counterfact"]["editors"][name] for name in ("none", "r-rome")}
    run = copied("counterfact", tmp_path)
    for report in (rl.read_run(run), evaluate(run, model=no_model)):
        found = json.loads(json.dumps(report.summary()))
        same(found["editors"], expected)
        report.write_html(tmp_path / "report.html")


def test_an_evaluation_goes_on_and_is_joined_with_another(tmp_path):
    run = copied("counterfact-ft-stopped", tmp_path)
    assert {name: editor.n_records for name, editor in rl.read_run(run).editors.items()} == {"ft": 3}
    evaluate(run, editors=("ft",))
    report, missing = rl.merge_runs([FOLDER / "counterfact", run], tmp_path / "joined")
    assert not missing
    same(json.loads(json.dumps(report.summary())), EXPECTED["counterfact"])


def test_shards_of_zsre_go_on_and_are_joined(tmp_path):
    evaluate_zsre(copied("zsre-1", tmp_path), model=no_model, shard="1/2")
    evaluate_zsre(copied("zsre-2-stopped", tmp_path), shard="2/2")
    report, missing = rl.merge_runs([tmp_path / "zsre-1", tmp_path / "zsre-2-stopped"], tmp_path / "joined")
    assert not missing
    same(json.loads(json.dumps(report.summary())), EXPECTED["zsre"])


def test_shards_of_an_average_go_on_and_are_joined(tmp_path):
    assert rl.read_average(FOLDER / "average-1").facts
    average(copied("average-1", tmp_path), model=no_model, shard="1/2")
    average(copied("average-2-stopped", tmp_path), shard="2/2")
    whole, missing = rl.merge_averages([tmp_path / "average-1", tmp_path / "average-2-stopped"], tmp_path / "joined")
    assert not missing
    assert len(whole.facts) == EXPECTED["average"]["known"]
    same(list(map(float, whole.curve("mlp", "last subject token").mean)), EXPECTED["average"]["mlp"])
