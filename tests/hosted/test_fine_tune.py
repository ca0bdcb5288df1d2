"""FT and FT+L against the plain oracle, and their edits as objects beside rank-one ones."""

import copy
import json
from functools import cache
from itertools import permutations

import pytest
import torch
from architectures import BACKENDS, BRIDGE, HOOKED, architecture, own
from edits import assert_close, assert_same, changed, logits, random_edit, w_out
from effort import slow
from fine_tune_oracle import plain_fine_tuning
from left_alone import left_alone
from refused import refused
from tiny_rome import REQUEST, named
from tiny_shell import PROMPT, SUBJECT, TARGET, ok, write_tiny_model
from typer.testing import CliRunner

import rome_lens as rl
from rome_lens.backends import as_backend
from rome_lens.cli import app
from rome_lens.editing.exact_sum import sum_on
from rome_lens.editing.export import export_adapter
from rome_lens.editing.settings import choose_tuning
from rome_lens.loading.tiny import tiny_model
from rome_lens.storage import save_tensors

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:transformer_lens")

# Of different lengths, and with targets of one to five tokens beside the space.
REQUESTS = [
    rl.EditRequest("{} is in", subject="cde", target_new="x"),
    REQUEST,
    rl.EditRequest("a {}", subject="b", target_new="vwxyz", target_true="q"),
]
SETTINGS = {"layer": 1, "num_steps": 6, "lr": 1e-2}
HOSTS = [
    *((name, HOOKED) for name in ("gpt2", "llama", "neox", "gptj") if HOOKED in BACKENDS),
    *((name, BRIDGE) for name in ("gpt2", "llama", "gemma2", "neox", "opt", "bloom")),
]


def tuner(model, **settings):
    return rl.FineTuning(model, **SETTINGS | settings)


@cache
def made(backend, **settings):
    """An edit of the tiny GPT-2 that all models of that kind may take."""
    return tuner(architecture("gpt2", backend)).edit(REQUEST)


def assert_equals_oracle(editor, edit, request=REQUEST, *, rtol=1e-9):
    chosen = {name: getattr(editor.settings, name) for name in ("layer", "norm_constraint", "num_steps", "lr")}
    chosen |= {"weight_decay": editor.settings.weight_decay, "stop_loss": editor.settings.stop_loss}
    with as_backend(editor.model).evaluating():
        oracle = plain_fine_tuning(editor.model, request, prepend_bos=editor.prepend_bos, **chosen)
    assert edit.loss_curve == pytest.approx(oracle.losses, rel=rtol)
    assert (edit.delta - oracle.delta).norm() <= rtol * oracle.delta.norm()
    assert oracle.delta.norm() > 0
    return oracle


@pytest.mark.parametrize(("name", "backend"), HOSTS)
def test_every_architecture_equals_the_oracle(name, backend):
    editor = tuner(architecture(name, backend))
    edit = editor.edit(REQUEST)
    assert (edit.settings["engine"], edit.variant, edit.delta.dtype) == ("blocks", "ft", torch.float64)
    oracle = assert_equals_oracle(editor, edit)
    # A curve that does not fall would be equal to much.
    assert oracle.losses[-1] < 0.9 * oracle.losses[0]


@pytest.mark.parametrize(("name", "backend"), [("llama", BACKENDS[0]), ("gpt2", BRIDGE)])
@pytest.mark.parametrize(
    "settings",
    [
        {"layer": 0},
        {"layer": 3},
        {"num_steps": 1},
        {"weight_decay": 0.1},
        {"norm_constraint": 0.02},
        {"norm_constraint": 0.02, "weight_decay": 0.1},
        {"prepend_bos": True},
        {"stop_loss": 4.0, "num_steps": 25},
        {"engine": "plain"},
    ],
    ids=str,
)
def test_every_setting_equals_the_oracle(settings, name, backend):
    editor = tuner(architecture(name, backend), **settings)
    edit = editor.edit(REQUEST)
    assert_equals_oracle(editor, edit)
    assert edit.settings["prepend_bos"] == settings.get("prepend_bos", False)


@pytest.mark.parametrize(("name", "backend"), [("llama", BACKENDS[0]), slow("gpt2", BRIDGE), slow("gemma2", BRIDGE)])
@pytest.mark.parametrize("engine", ["auto", "plain"])
@pytest.mark.parametrize("norm_constraint", [None, 0.02])
def test_many_in_a_batch_are_each_as_if_alone(norm_constraint, engine, name, backend):
    # The one that begins with the smallest loss stops after a step or so, the others later or never.
    settings = {"num_steps": 12, "norm_constraint": norm_constraint, "engine": engine}
    model = architecture(name, backend)
    curves = [tuner(model, **settings, stop_loss=0).edit(request).loss_curve for request in REQUESTS]
    stop_loss = 0.99 * min(curve[0] for curve in curves)
    editor = tuner(model, **settings, stop_loss=stop_loss)
    together = editor.edit_many(REQUESTS)
    assert len({len(edit.loss_curve) for edit in together}) > 1
    for request, edit in zip(REQUESTS, together, strict=True):
        assert edit.request == request
        assert_equals_oracle(editor, edit, request)
        alone = editor.edit(request)
        assert edit.before.target == pytest.approx(alone.before.target, rel=1e-9)
        assert edit.after.old == pytest.approx(alone.after.old, rel=1e-6)
    for batch_size in (1, 2):
        for edit, other in zip(editor.edit_many(REQUESTS, batch_size=batch_size), together, strict=True):
            torch.testing.assert_close(edit.delta, other.delta, rtol=1e-8, atol=1e-12)
    assert editor.edit_many([]) == []


def test_no_weight_leaves_its_ball(backend):
    model = own("gpt2", backend)
    free, bounded = (tuner(model, norm_constraint=bound).edit(REQUEST) for bound in (None, 0.015))
    assert (free.variant, bounded.variant) == ("ft", "ft-l")
    assert free.delta.abs().max() > 0.03
    assert bounded.delta.abs().max() == 0.015
    original = w_out(model).clone()
    with bounded.applied(model):
        assert (w_out(model) - original).abs().max() <= 0.015 * (1 + 1e-12)
    assert free.relative_norm == pytest.approx((free.delta.norm() / original.norm()).item())


def test_it_stops_where_the_target_is_said(llama):
    editor = tuner(llama, lr=0.03, num_steps=100, stop_loss=0.2)
    edit = editor.edit(REQUEST)
    *above, last = edit.loss_curve
    assert last < 0.2 <= min(above)
    assert len(edit.loss_curve) < 100
    # The loss is the mean over three tokens, the probability their product.
    assert edit.after.target == pytest.approx(torch.tensor(-3 * last, dtype=torch.float64).exp().item(), rel=1e-6)
    assert edit.notes == (f"settings: {editor.settings.source}",)


def test_every_token_of_the_target_is_read_after_those_before_it(backend):
    model = architecture("gpt2", backend)
    edit = tuner(model, num_steps=1).edit(REQUEST)
    ids = model.tokenizer("ab cde fgh xy", add_special_tokens=False)["input_ids"]
    log_probs = logits(model, tokens=torch.tensor([ids])).log_softmax(dim=-1)[0]
    said = [log_probs[position - 1, ids[position]].item() for position in (10, 11, 12)]
    assert edit.loss_curve == pytest.approx([-sum(said) / 3])
    # The released code's reading is another number.
    first = [log_probs[9, ids[position]].item() for position in (10, 11, 12)]
    assert abs(sum(first) - sum(said)) > 0.1


def test_the_model_is_left_as_it_was(backend):
    model = own("llama", backend).train()
    model.blocks[0].ln1.eval()
    for index, parameter in enumerate(model.parameters()):
        parameter.requires_grad_(index % 2 == 0)
    with left_alone(model), torch.inference_mode():
        edit = tuner(model).edit(REQUEST)
    assert not edit.delta.is_inference()
    assert not edit.delta.requires_grad


def test_hooks_of_the_owner_count_and_make_it_plain():
    model = own("gpt2", BACKENDS[0])
    quiet = tuner(model).edit(REQUEST)
    model.hook_dict["blocks.2.hook_resid_post"].add_hook(lambda x, hook: x * 0.5)
    # A bridge of TransformerLens 4 calls the same point by another name.
    (point,) = as_backend(model).foreign_hooks()[:1]
    edit = tuner(model).edit(REQUEST)
    assert edit.settings["engine"] == "plain"
    assert edit.notes[1] == (
        f"W_out was fine-tuned by whole forwards, which is slower: the model carries hooks of its owner's ({point})"
    )
    assert edit.loss_curve[0] != pytest.approx(quiet.loss_curve[0])
    assert_equals_oracle(tuner(model), edit)


@pytest.mark.parametrize(("name", "backend"), HOSTS)
def test_hooks_and_weights_give_the_same(name, backend):
    model = architecture(name, backend)
    edit = tuner(model).edit(REQUEST)
    original, unedited = w_out(model).clone(), logits(model)
    hooked, some = logits(model, edit.hooks(model)), logits(model, edit.hooks(model, rows=[-1]))
    assert torch.equal(w_out(model), original)
    with edit.applied(model):
        assert_close(hooked, logits(model))
        assert torch.equal(w_out(model), sum_on(original, [edit.layers[0].update]))
    assert torch.equal(w_out(model), original)
    assert_close(some[0], unedited[0])
    assert_close(some[1], hooked[1])
    assert (hooked - unedited).abs().max() > 1e-3


def test_edits_of_both_kinds_stack_and_leave_the_very_bits(backend):
    model = own("gpt2", backend)
    original = w_out(model).clone()
    matrix, other = made(backend), changed(made(backend), delta=made(backend).delta.flip(0))
    edits = [random_edit(model, seed=1), matrix, random_edit(model, seed=2), other]
    assert len({edit.id for edit in edits}) == 4
    everything = None
    for order in list(permutations(range(4)))[::5]:
        for i in order:
            edits[i].apply(model)
        assert rl.applied_edits(model) == tuple(edits[i] for i in order)
        everything = w_out(model).clone() if everything is None else everything
        assert torch.equal(w_out(model), everything)
        for i in order[1:]:
            edits[i].revert(model)
        exact = original + edits[order[0]].update
        torch.testing.assert_close(w_out(model), exact)
        edits[order[0]].revert(model)
        assert torch.equal(w_out(model), original)
    assert rl.applied_edits(model) == ()


@pytest.mark.parametrize(("name", "backend"), [("gpt2", BACKENDS[0]), ("llama", BRIDGE)])
def test_rows_carry_edits_of_both_kinds(name, backend):
    model = own(name, backend)
    matrix = tuner(model).edit(REQUEST)
    upper = tuner(model, layer=2).edit(REQUEST)
    one = random_edit(model, seed=1)
    rows = [matrix, None, [one, matrix], one, [upper, matrix, changed(matrix, delta=-2 * matrix.delta)], matrix]
    tokens = torch.arange(30).reshape(6, 5)
    hooked = logits(model, rl.hooks_for_rows(model, rows), tokens)
    for row, entry in enumerate(rows):
        edits = entry if isinstance(entry, list) else [entry] if entry else []
        for edit in edits:
            edit.apply(model)
        assert_close(hooked[row], logits(model, tokens=tokens)[row])
        for edit in edits:
            edit.revert(model)
    twice = logits(model, rl.hooks_for_rows(model, [[matrix, matrix]]), tokens[:1])
    doubled = changed(matrix, delta=2 * matrix.delta)
    assert_close(twice, logits(model, doubled.hooks(model), tokens[:1]))


def test_hooks_of_the_wrong_batch_are_refused(gpt2):
    model, edit = gpt2, made(BACKENDS[0])
    said = refused(rl.SettingError, logits, model, rl.hooks_for_rows(model, [edit, None, None]))
    assert said == "there are edits for 3 rows, and the batch has 2; give as many"
    said = refused(rl.SettingError, logits, model, edit.hooks(model, rows=[2]))
    assert said == "rows are [2], and the batch has rows 0 to 1"


def test_a_matrix_is_refused_where_a_rank_one_edit_is(llama):
    model, edit = own("gpt2", BACKENDS[0]), made(BACKENDS[0])
    edit.apply(model)
    assert edit.is_applied(model)
    said = refused(rl.EditStateError, edit.apply, model)
    name = "the edit 'ab cde fgh' -> 'xy'"
    expected = f"{name} (layer 1) is applied already; revert it first, or leave it as it is"
    assert said == expected
    assert refused(rl.EditStateError, edit.hooks, model) == (
        f"{name} is in this model's weights already, and through hooks it would count twice; revert it first"
    )
    edit.revert(model)
    with pytest.raises(rl.ModelMismatchError, match="the edit was made for layer 1 of"):
        edit.apply(llama)


def test_an_edit_starts_from_the_weights_as_they_are():
    model = own("gpt2", BACKENDS[0])
    first = random_edit(model)
    with first.applied(model):
        editor = tuner(model)
        edit = editor.edit(REQUEST)
        assert_equals_oracle(editor, edit)
        with edit.applied(model):
            assert rl.applied_edits(model) == (first, edit)
    assert edit.fingerprint.difference(as_backend(model).fingerprint(1)) is None


def test_an_edit_shows_itself():
    edit = made(BACKENDS[0])
    assert repr(edit) == (
        f"Edit('ab cde fgh' -> 'xy', layer 1 of {edit.fingerprint.model_name}, ft, p(target) "
        f"{edit.before.target:.3f} -> {edit.after.target:.3f}, p({edit.old_answer.strip()}) {edit.before.old:.3f} -> "
        f"{edit.after.old:.3f}; not reached, see notes)"
    )
    assert "is not reached" in edit.notes[-1]
    assert edit.update is edit.delta
    assert edit.id == copy.deepcopy(edit).id != changed(edit, delta=edit.delta * 2).id


@pytest.mark.parametrize("changes", [{}, {"notes": (), "module": None, "loss_curve": (), "seconds": 2.5}], ids=str)
def test_an_edit_comes_back_as_it_was(tmp_path, changes):
    edit, path = changed(made(BACKENDS[0]), **changes), tmp_path / "edit.safetensors"
    for saved in (edit, changed(edit, delta=edit.delta.float())):
        saved.save(path)
        assert_same(rl.load_edit(path), saved)
    assert json.loads(json.dumps(edit.to_dict()))["loss_curve"] == list(edit.loss_curve)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"delta": torch.ones(64, 15)}, "delta is not 64 x 16 finite numbers"),
        ({"delta": torch.full((64, 16), float("nan"))}, "delta is not 64 x 16 finite numbers"),
        ({"delta": torch.ones(64, 16, dtype=torch.long)}, "delta is not 64 x 16 finite numbers"),
        ({"loss_curve": [1.0, "2"]}, "loss_curve is of type str"),
        ({"loss_curve": [{"total": 1.0}]}, "loss_curve is of type dict"),
        ({"relative_norm": float("inf")}, "relative_norm is inf"),
        ({"layer": 2}, "layer 2 with the fingerprint of layer 1"),
    ],
)
def test_a_damaged_edit_is_refused(tmp_path, changes, reason):
    edit, path = made(BACKENDS[0]), tmp_path / "edit.safetensors"
    delta = changes.pop("delta", edit.delta)
    save_tensors(path, kind="edit", tensors={"delta": delta}, settings={**edit.to_dict(), **changes})
    assert refused(rl.ArtefactError, rl.load_edit, path) == f"cannot use {str(path)!r}: a damaged edit ({reason})"


def test_a_model_is_exported_and_an_adapter_refused(tmp_path):
    from transformers import AutoModelForCausalLM

    write_tiny_model(tmp_path / "tiny")
    model = rl.load_model(tmp_path / "tiny", backend=BRIDGE)
    edit = rl.FineTuning(model).edit(rl.EditRequest(PROMPT, SUBJECT, TARGET))
    edit.to_hf(tmp_path / "tiny", tmp_path / "out")
    weight, edited = (
        AutoModelForCausalLM.from_pretrained(tmp_path / name).transformer.h[1].mlp.c_proj.weight
        for name in ("tiny", "out")
    )
    assert edit.layer == 1
    assert torch.equal(edited, (weight.double() + edit.delta.double()).float())
    assert refused(rl.EditError, export_adapter, [edit], tmp_path / "adapter") == (
        "the edit 'where stands the tower' -> 'rome' changes a whole matrix, and an adapter holds edits of low rank; "
        "write a whole model with to_hf"
    )


def test_an_edit_is_shown(tmp_path):
    edit, path = made(BACKENDS[0]), tmp_path / "edit.safetensors"
    edit.save(path)
    shown = ok(CliRunner().invoke(app, ["show", str(path)], env={"COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"}))
    first, last = edit.loss_curve[0], edit.loss_curve[-1]
    assert f"1 of 4 (from 0), ft, |update| / |W| {edit.relative_norm:.3g}\n" in shown
    assert f"{first:.3f} → {last:.3f} in 6 steps  " in shown
    (entry,) = json.loads(ok(CliRunner().invoke(app, ["show", "--json", str(path)])))
    assert (entry["id"], entry["variant"], entry["loss_curve"]) == (edit.id, "ft", list(edit.loss_curve))


@pytest.mark.parametrize(
    ("name", "values", "expected"),
    [
        ("num_steps", [0, True], "expected a whole number, 1 or more"),
        ("lr", [0, float("nan")], "expected a number above 0"),
        ("weight_decay", [-1], "expected a number, 0 or more"),
        ("stop_loss", ["x"], "expected a number, 0 or more"),
        ("norm_constraint", [0, -1.0, False, "some"], "expected a number above 0, None or 'auto'"),
        ("engine", ["blocks"], "choose one of auto, plain"),
        ("layer", [4], "gpt2 has layers 0 to 3, counted from 0"),
    ],
)
def test_settings_out_of_range_are_refused(gpt2, name, values, expected):
    for value in values:
        said = refused(rl.SettingError, tuner, gpt2, **{name: value})
        assert said == f"{name} is {value!r}; {expected}"


def test_requests_that_do_not_fit_are_refused(gpt2):
    editor = tuner(gpt2)
    said = refused(rl.AnswerError, tuner(tiny_model(BACKENDS[0])).edit, rl.EditRequest("in {} of", "the tower", "city"))
    assert said == (
        "the target 'city' is what the model says after 'in the tower of' already; there is nothing to edit"
    )
    said = refused(rl.PromptError, editor.edit, rl.EditRequest("a" * 70 + "{}", subject="c", target_new="x"))
    assert said.startswith("the prompt with its answer takes 72 positions, and ")
    assert said.endswith(" has 64; shorten it")
    said = refused(rl.SettingError, editor.edit_many, [REQUEST], batch_size=0)
    assert said == "batch_size is 0; expected a whole number of requests, 1 or more"


def test_models_that_cannot_be_edited_are_refused():
    assert "has no W_out of its own" in refused(rl.ModelError, tuner, architecture("mixtral", BRIDGE))


def test_a_loss_that_is_no_number_is_refused():
    model = own("gpt2", BACKENDS[0])
    editor = tuner(model, layer=0)
    w_out(model, 3).fill_(float("inf"))
    assert refused(rl.EditError, editor.edit, REQUEST) == (
        "the loss of 'ab cde fgh' -> 'xy' is nan at step 1; load the model in float32, or lower lr"
    )


def test_a_target_that_is_not_reached_is_said(gpt2):
    edit = tuner(gpt2, num_steps=1).edit(REQUEST)
    assert edit.notes[-1] == (
        f"the target 'xy' is not reached, its probability is {edit.after.target:.2g}: choose another layer, more steps "
        "or a larger norm_constraint"
    )


def test_progress_is_told(gpt2):
    calls = []
    editor = tuner(gpt2, num_steps=2)
    editor.edit(REQUEST, progress=lambda *call: calls.append(call))
    assert calls == [(1, 2, "fine-tuning"), (2, 2, "fine-tuning")]
    calls.clear()
    editor.edit_many(REQUESTS, batch_size=2, progress=lambda *call: calls.append(call))
    assert calls == [(0, 3, "fine-tuning")] * 2 + [(2, 3, "fine-tuning")] * 2


PAPER = "the paper's appendix; EasyEdit's hparams/FT, which carry on the released ROME code's, say the same"


@pytest.mark.parametrize(
    ("name", "free", "bounded"),
    [("gpt2-xl", (1, None), (0, 5e-4)), ("EleutherAI/gpt-j-6B", (21, None), (0, 5e-5))],
)
def test_models_of_the_paper(name, free, bounded):
    assert choose_tuning(named(name), constrained=False) == (*free, PAPER)
    assert choose_tuning(named(name), constrained=True) == (*bounded, PAPER)


@pytest.mark.parametrize(("name", "bound"), [("gpt2-medium", 2e-3), ("gpt2-large", 1e-3)])
def test_models_whose_bound_alone_is_published(name, bound):
    layer, found, source = choose_tuning(named(name), constrained=True)
    assert (layer, found) == (0, bound)
    assert source == "hparams/FT of EasyEdit, which carries on the released ROME code's, for this model"
    assert choose_tuning(named(name), constrained=False)[2].startswith("no settings of fine-tuning are published for")


@pytest.mark.parametrize(("name", "n_layers", "layer"), [("mine", 30, 1), ("mine", 1, 0), ("gpt-j-6b", 12, 1)])
def test_other_models_go_by_a_rule_that_is_named(name, n_layers, layer):
    start = f"no settings of fine-tuning are published for {name}: "
    free = (layer, None, start + "layer 1 as in the paper for GPT-2 XL")
    assert choose_tuning(named(name, n_layers), constrained=False) == free
    bounded = (0, 5e-4, start + "layer 0 as in the paper, and the bound of GPT-2 XL")
    assert choose_tuning(named("mine", n_layers), constrained=True) == (*bounded[:2], bounded[2].replace(name, "mine"))


def test_what_is_given_is_named_in_the_source(gpt2):
    published = rl.FineTuning(gpt2).settings
    assert (published.num_steps, published.lr, published.weight_decay, published.stop_loss) == (25, 5e-4, 0, 1e-2)
    source = published.source
    assert tuner(gpt2, norm_constraint=0.1).settings.source.endswith("; given by the caller: layer, norm_constraint")
    assert rl.FineTuning(gpt2, layer=2).settings.source == f"{source}; given by the caller: layer"
    automatic = rl.FineTuning(gpt2, norm_constraint="auto")
    assert (automatic.layer, automatic.settings.norm_constraint, automatic.variant) == (0, 5e-4, "ft-l")


@pytest.mark.parametrize("name", ["smollm2-135m", "HuggingFaceTB/SmolLM2-135M-Instruct"])
def test_the_default_model_has_settings_of_its_own(name):
    source = "measured by this project on 16 records of CounterFact"
    assert choose_tuning(named(name, 30), constrained=False) == (0, None, source)
    assert choose_tuning(named(name, 30), constrained=True) == (0, 6e-3, source)
