"""ROME against the plain oracle: every architecture, every setting, and the identities of SPEC 2."""

from contextlib import nullcontext

import pytest
import torch
from architectures import BACKENDS, BRIDGE, HOOKED, architecture, own
from effort import slow
from hosts import hosted, needs_hooked
from left_alone import left_alone
from rome_oracle import STOP_LOSS, plain_rome
from tiny_rome import REQUEST, SETTINGS, TEMPLATES, moment, rome

import rome_lens as rl
from rome_lens.backends import as_backend
from rome_lens.editing.forward import ValueBlocks
from rome_lens.editing.prompts import make_batch, tokenise_request
from rome_lens.editing.values import _losses
from rome_lens.loading.tiny import tiny_model

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:transformer_lens")


def oracle_of(editor, request):
    """The same edit by whole forwards, with every choice of the editor's spelled out."""
    settings = {name: getattr(editor.settings, name) for name in SETTINGS}
    choices = {name: getattr(editor, name) for name in ("layer", "variant", "bare_weight", "essence_at", "prepend_bos")}
    matrix, templates = editor.second_moment.matrix, editor.context_templates
    return plain_rome(editor.model, request, second_moment=matrix, templates=templates, **settings, **choices)


def assert_equals_oracle(editor, request=REQUEST, *, engine="blocks", rtol=None):
    edit, oracle = editor.edit(request), oracle_of(editor, request)
    assert edit.settings["engine"] == engine
    # Hugging Face takes some norms and softmaxes in float32, which rounds differently for another number of rows.
    rtol = rtol or (1e-10 if edit.backend == HOOKED else 5e-6)
    assert (edit.update - oracle.update).norm() <= rtol * oracle.update.norm()
    curve = torch.tensor([[loss.total, loss.target, loss.kl, loss.decay] for loss in edit.loss_curve])
    torch.testing.assert_close(curve, torch.tensor(oracle.loss_curve), rtol=rtol, atol=rtol * float(curve.max()))
    assert abs(edit.key_dot - (oracle.u @ oracle.key).item()) <= rtol * abs(edit.key_dot)
    return edit, oracle


@pytest.mark.parametrize(("name", "backend"), hosted(without=["mixtral"]))
def test_every_architecture_equals_the_oracle(name, backend):
    _, oracle = assert_equals_oracle(rome(architecture(name, backend)))
    # A curve that does not fall, or a value that hardly changes, would be equal to much.
    assert oracle.loss_curve[-1][0] < oracle.loss_curve[0][0]
    assert oracle.deltas[-1].norm() > 0.1 * oracle.bare_value.norm()


def test_plain_engine_equals_the_oracle(backend):
    edit, _ = assert_equals_oracle(rome(architecture("llama", backend), engine="plain"), engine="plain")
    assert "values were optimised by whole forwards, which is slower: engine='plain' was asked for" in edit.notes


@pytest.mark.parametrize(("name", "backend"), [("gpt2", BACKENDS[0]), ("neox", BRIDGE)])
@pytest.mark.parametrize(
    "settings",
    [
        {"variant": "rome"},
        {"variant": "rome", "essence_at": "last", "bare_weight": 0.2},
        {"variant": "p-rome"},
        {"bare_weight": None},
        {"bare_weight": 1},
        {"essence_at": "subject"},
        {"prepend_bos": True},
        {"prepend_bos": True, "variant": "rome"},
        {"context_templates": []},
        {"context_templates": "only. {}"},
        {"context_templates": None, "seed": 3},
        {"layer": 0},
        {"v_num_grad_steps": 1},
        {"kl_factor": 0, "v_weight_decay": 0},
        {"clamp_norm_factor": 30, "v_lr": 3},
    ],
    ids=str,
)
def test_every_setting_equals_the_oracle(settings, name, backend):
    assert_equals_oracle(rome(architecture(name, backend), **settings))


@pytest.mark.parametrize(("name", "backend"), [("llama", BACKENDS[0]), slow("gpt2", BRIDGE)])
@pytest.mark.parametrize("prepend_bos", [False, True])
@pytest.mark.parametrize(
    ("prompt", "subject", "target"),
    [
        ("{} is in", "cde", "x"),
        ("ab {}", "cde", "xyz"),
        ("ab {} f", "c", "xyzxyz"),
        ("{}", "cd e", "x"),
        ("a é {} f", "ü", "ö"),
    ],
)
def test_every_request_equals_the_oracle(prompt, subject, target, prepend_bos, name, backend):
    editor = rome(architecture(name, backend), prepend_bos=prepend_bos)
    assert_equals_oracle(editor, rl.EditRequest(prompt, subject=subject, target_new=target))


def test_float32_equals_the_oracle(backend):
    edit, _ = assert_equals_oracle(rome(architecture("llama", backend, torch.float32)), rtol=1e-3)
    assert (edit.u.dtype, edit.dtype) == (torch.float32, "float32")


@needs_hooked
def test_processed_hooked_transformer_equals_the_oracle():
    model = own("gpt2", HOOKED)
    model.process_weights_()
    assert_equals_oracle(rome(model))


@pytest.mark.parametrize("no_processing", [True, False])
def test_bridge_in_compatibility_mode_equals_the_oracle(no_processing):
    model = own("gpt2", BRIDGE)
    model.enable_compatibility_mode(disable_warnings=True, no_processing=no_processing)
    assert_equals_oracle(rome(model))


def test_users_hooks_are_seen_and_kept(backend):
    model = architecture("gpt2", backend)
    with model.hooks(fwd_hooks=[("blocks.2.hook_mlp_out", lambda x, hook: x * 0.5)]):
        edit, _ = assert_equals_oracle(rome(model), engine="plain")
        assert any("the model carries hooks of its owner's (blocks.2" in note for note in edit.notes)
        assert {hook[:9] for hook in as_backend(model).foreign_hooks()} == {"blocks.2."}
    assert rome(model).edit(REQUEST).settings["engine"] == "blocks"


def small_words(backend):
    """A vocabulary so small that random weights can be brought to say a word for certain."""
    return tiny_model(backend).to(torch.float64)


WORDS = {
    "layer": 0,
    "v_num_grad_steps": 12,
    "v_lr": 1.0,
    "v_weight_decay": 0.01,
    "clamp_norm_factor": 20.0,
    "kl_factor": 0.01,
}
REQUESTS = [
    rl.EditRequest("in {} of", subject="the tower", target_new="is"),
    rl.EditRequest("the city is {}", subject="the tower", target_new="is"),
    rl.EditRequest("{} is in the", subject="tower", target_new="of in"),
    rl.EditRequest("{}", subject="the city in the city of", target_new="tower"),
]


def test_optimisation_stops_when_the_target_is_said(backend):
    editor = rome(small_words(backend), context_templates=["the city. {}"], **WORDS)
    edit = editor.edit(REQUESTS[1])
    oracle = oracle_of(editor, REQUESTS[1])
    assert 2 < len(edit.loss_curve) < 12
    assert [loss.total < STOP_LOSS for loss in edit.loss_curve] == [False] * (len(edit.loss_curve) - 1) + [True]
    assert len(oracle.loss_curve) == len(edit.loss_curve)
    assert (edit.update - oracle.update).norm() <= 1e-10 * oracle.update.norm()
    assert edit.after.target > 0.9 > edit.before.target


@pytest.mark.parametrize("engine", ["auto", "plain"])
def test_the_last_layer_can_only_change_what_the_subject_ends(backend, engine):
    editor = rome(architecture("gpt2", backend), layer=3, context_templates=[], engine=engine)
    with pytest.raises(
        rl.EditError, match=r"nothing that layer 3 of 4 says at the subject of 'ab cde fgh' reaches the"
    ):
        editor.edit(REQUEST)
    assert editor.edit(rl.EditRequest("ab {}", "cde", "x")).v.norm() > 0


@pytest.mark.parametrize("engine", ["auto", "plain"])
@pytest.mark.parametrize("layer", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_layer_whose_windows_end_before_the_prompt_does_is_refused(backend, engine, layer, dtype):
    # Windows of 5: what layer 1 says at a place reaches 8 places on, through two layers, and layer 2's through one.
    # The divergence is read in a row of its own, which is short enough: it has a gradient, of nothing but rounding.
    request = rl.EditRequest("{} is a long way from here, in", "cde", "x")
    editor = rome(architecture("mistral", backend, dtype), layer=layer, engine=engine)
    with pytest.raises(rl.EditError, match=rf"nothing that layer {layer} of 4 says at the subject of 'cde is"):
        editor.edit(request)
    assert editor.edit(rl.EditRequest("{} ab", "cde", "x")).v.norm() > 0


def test_an_edit_that_falls_short_says_why(gpt2):
    short = rome(gpt2, v_num_grad_steps=1).edit(REQUEST)
    assert repr(short).endswith("; not reached, see notes)")
    notes = short.notes
    assert notes[-1].startswith("the target 'xy' is not reached, its probability is ")
    assert notes[-1].endswith(
        "the value itself falls short: choose another layer, more steps or a larger clamp_norm_factor"
    )
    reached = rome(small_words(BACKENDS[0]), context_templates=["the city. {}"], **WORDS).edit(REQUESTS[1])
    assert reached.after.target > 0.5
    assert not any("not reached" in note for note in reached.notes)
    assert "not reached" not in repr(reached)


@pytest.mark.parametrize("engine", ["auto", "plain"])
def test_many_edits_are_those_that_each_would_be(backend, engine):
    editor = rome(small_words(backend), context_templates=["the city. {}"], engine=engine, **WORDS)
    alone = [editor.edit(request) for request in REQUESTS]
    lengths = [len(edit.loss_curve) for edit in alone]
    assert min(lengths) < max(lengths) == 12  # some stop early, the others go on without them
    for batch_size in (None, 1, 2):
        together = editor.edit_many(REQUESTS, batch_size=batch_size)
        assert [edit.request for edit in together] == REQUESTS
        for one, other in zip(alone, together, strict=True):
            assert (one.update - other.update).norm() <= 1e-8 * one.update.norm()
            assert [x.total for x in one.loss_curve] == pytest.approx([x.total for x in other.loss_curve], rel=1e-8)
            assert (one.before.target, one.after.old) == pytest.approx((other.before.target, other.after.old))
    assert editor.edit_many([]) == []


@pytest.mark.parametrize("variant", ["r-rome", "rome", "p-rome"])
def test_the_key_is_answered_with_the_value_and_the_rank_is_one(variant, backend):
    model = architecture("gpt2", backend)
    editor = rome(model, variant=variant)
    edit, oracle = editor.edit(REQUEST), oracle_of(editor, REQUEST)
    before = as_backend(model).w_out(1)
    bias, original = before.bias, before.matrix.clone()
    with edit.applied(model):
        edited = before.matrix.clone()
    torch.testing.assert_close(oracle.key @ edited, oracle.goal - bias, rtol=1e-9, atol=1e-9)
    assert not torch.allclose(oracle.key @ original, oracle.goal - bias, rtol=1e-2)
    assert torch.linalg.matrix_rank(edited - original) == 1
    assert edit.u.norm().item() == pytest.approx(1)
    assert edit.key_norm == pytest.approx(oracle.key.norm().item())
    assert edit.relative_norm == pytest.approx(((edited - original).norm() / original.norm()).item())


def test_without_correlations_the_update_reads_the_key_itself(gpt2):
    editor = rome(gpt2, second_moment=torch.eye(64) * 7)
    edit = editor.edit(REQUEST)
    key = oracle_of(editor, REQUEST).key
    torch.testing.assert_close(edit.u, key / key.norm(), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("variant", ["r-rome", "p-rome"])
def test_one_edit_of_emmet_without_a_ridge_is_the_same(gpt2, variant):
    editor = rome(gpt2, variant=variant)
    oracle = oracle_of(editor, REQUEST)
    keys, residual = oracle.key[:, None], (oracle.goal - oracle.value)[:, None]
    c = moment(64) + editor.second_moment.ridge * moment(64).diagonal().mean() * torch.eye(64)
    spread = torch.linalg.solve(c, keys).t()  # K^T C^-1
    emmet = residual @ torch.linalg.inv(spread @ keys) @ spread  # [d_model, d_mlp]
    update = editor.edit(REQUEST).update
    assert (update - emmet.t()).norm() <= 1e-9 * update.norm()


@pytest.mark.parametrize(("name", "backend"), [*(("gpt2", backend) for backend in BACKENDS), ("neox", BRIDGE)])
def test_the_gradient_is_that_of_finite_differences(name, backend):
    wrapped = as_backend(architecture(name, backend))
    settings = rome(wrapped.model).settings
    options = {"templates": TEMPLATES, "prepend_bos": False, "essence_at": "last"}
    requests = [REQUEST, rl.EditRequest("{} f", subject="longer", target_new="x")]
    rows = [tokenise_request(wrapped, request, **options) for request in requests]
    batch = make_batch(rows, bare_weight=0.5, device=wrapped.device)
    forward = ValueBlocks(wrapped, 1, batch)
    generator = torch.Generator().manual_seed(0)
    delta, direction = (torch.randn(2, wrapped.d_model, generator=generator, dtype=torch.float64) for _ in range(2))
    with forward.ready():
        lengths = forward.known().value[batch.bare_row].norm(dim=1)
        essence = forward.logits(torch.zeros_like(delta))[-2:].detach().log_softmax(dim=-1)

        def loss(delta):
            return _losses(forward.logits(delta), delta, batch, essence, lengths, settings)[0]

        with torch.enable_grad():
            delta.requires_grad_()
            (gradient,) = torch.autograd.grad(loss(delta).sum(), delta)
        with torch.no_grad():
            numeric = (loss(delta + 1e-5 * direction) - loss(delta - 1e-5 * direction)) / 2e-5
    torch.testing.assert_close((gradient * direction).sum(dim=1), numeric, rtol=1e-6, atol=1e-9)
    assert gradient.norm(dim=1).min() > 1e-4


def test_no_step_leaves_the_ball(backend):
    editor = rome(architecture("gpt2", backend), v_num_grad_steps=10, clamp_norm_factor=0.3)
    length = oracle_of(editor, REQUEST).bare_value.norm().item()
    # The decay tells how long delta was at every evaluation.
    deltas = [loss.decay * length**2 / SETTINGS["v_weight_decay"] for loss in editor.edit(REQUEST).loss_curve]
    assert deltas[0] == 0
    assert max(deltas) <= 0.3 * length * (1 + 1e-9)
    assert sum(delta > 0.2999 * length for delta in deltas) > 3


def test_the_only_evaluation_is_followed_by_no_step(gpt2):
    edit = rome(gpt2, variant="p-rome", v_num_grad_steps=1).edit(REQUEST)
    assert len(edit.loss_curve) == 1
    assert not edit.v.any()


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("gradients", [True, False])
def test_the_model_is_left_as_it_was(backend, gradients, fails):
    model = own("llama", backend)
    model.train().blocks[1].eval()
    next(model.parameters()).requires_grad_(False)

    def progress(done, total, what):
        if fails and done == 3:
            raise KeyboardInterrupt

    ended = pytest.raises(KeyboardInterrupt) if fails else nullcontext()
    with torch.set_grad_enabled(gradients), left_alone(model), ended:
        rome(model, context_templates=None).edit(REQUEST, progress=progress)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_gradients_are_taken_whatever_the_callers_mode(mode, backend):
    editor = rome(architecture("gpt2", backend))
    expected = editor.edit(REQUEST)
    with mode():
        edit = editor.edit(REQUEST)
    assert torch.equal(edit.update, expected.update)
    assert not edit.u.is_inference()
