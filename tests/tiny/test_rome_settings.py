"""Where ROME's settings come from, what it writes down of them, and in which words it refuses."""

import pytest
import torch
from architectures import BACKENDS, BRIDGE, HOOKED, architecture, own
from hosts import EACH_BACKEND, needs_hooked
from refused import refused
from tiny_rome import DEFAULTS, REQUEST, SETTINGS, moment, named, rome

import rome_lens as rl
from rome_lens.backends import as_backend
from rome_lens.editing.closed_form import solve
from rome_lens.editing.keys import Keys, KeysAndValues
from rome_lens.editing.settings import default_layer, settings_for
from rome_lens.loading.tiny import tiny_model

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:transformer_lens")

RELEASED = "the released ROME code's hparams for this model"
EASY_EDIT = "EasyEdit's hparams for models of 7 to 9 billion parameters"
OURS = "measured by this project (docs, Editing, 'How the defaults were found')"


@pytest.mark.parametrize(
    ("name", "layer", "clamp"),
    [
        ("gpt2-medium", 8, 3),
        ("openai-community/gpt2-medium", 8, 3),
        ("gpt2-large", 12, 4),
        ("gpt2-xl", 17, 4),
        ("/models/gpt2-xl/", 17, 4),
        ("EleutherAI/gpt-j-6B", 5, 4),
        ("EleutherAI/gpt-neox-20b", 15, 4),
    ],
)
def test_models_of_the_released_code(name, layer, clamp):
    found = settings_for(named(name))
    assert (found.layer, found.v_num_grad_steps, found.v_lr, found.v_weight_decay) == (layer, 20, 0.5, 0.5)
    assert (found.clamp_norm_factor, found.kl_factor, found.source) == (clamp, 0.0625, RELEASED)


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("meta-llama/Llama-2-7b-hf", EASY_EDIT),
        ("meta-llama/Meta-Llama-3-8B-Instruct", EASY_EDIT),
        ("meta-llama/Llama-3.1-8B", EASY_EDIT),
        ("mistralai/Mistral-7B-v0.1", EASY_EDIT),
        ("Qwen/Qwen2.5-7B-Instruct", EASY_EDIT),
        ("internlm/internlm-7b", EASY_EDIT),
        ("smollm2-135m", OURS),
        ("HuggingFaceTB/SmolLM2-135M-Instruct", OURS),
    ],
)
def test_modern_decoders(name, source):
    found, steps, clamp = settings_for(named(name, 30)), *((20, 2) if source == OURS else (25, 4))
    assert (found.layer, found.v_num_grad_steps, found.v_lr, found.v_weight_decay) == (5, steps, 0.5, 1e-3)
    assert (found.clamp_norm_factor, found.kl_factor, found.source) == (clamp, 0.0625, source)


@pytest.mark.parametrize(
    ("name", "positions", "n_layers", "layer"),
    [
        ("gpt2", "standard", 12, 4),
        ("a-gpt2-of-my-own", "standard", 24, 8),
        ("gpt2-xl", "standard", 12, 4),  # a small model by that name has no layer 17
        ("pythia-1b", "rotary", 16, 3),
        ("llama-of-my-own", "rotary", 32, 5),
        ("two layers", "rotary", 2, 0),
        ("one layer", "standard", 1, 0),
    ],
)
def test_other_models_go_by_a_rule_that_is_named(name, positions, n_layers, layer):
    backend = named(name, n_layers, positions)
    found = settings_for(backend)
    assert found.layer == default_layer(backend) == layer
    assert (found.v_num_grad_steps, found.v_weight_decay, found.clamp_norm_factor) == (25, 1e-3, 4)
    share, kin = ("third", "GPT-2, which learns its positions too"), ("sixth", "GPT-J, Llama and Mistral")
    share = share if positions == "standard" else kin
    assert found.source == (
        f"no settings are published for {name}: the optimiser's are EasyEdit's for modern decoders, and the layer lies "
        f"a {share[0]} of the way up its {n_layers} layers, as in {share[1]}"
    )


def test_settings_are_found_on_real_models(backend):
    assert default_layer(as_backend(architecture("gpt2", backend))) == 1
    assert default_layer(as_backend(architecture("neox", backend))) == 1
    assert settings_for(as_backend(architecture("gpt2", backend))).source.startswith("no settings are published for")


def test_what_is_given_overrides_and_is_named(gpt2):
    untouched = rl.ROME(gpt2, second_moment=moment(64))
    assert untouched.settings == settings_for(as_backend(gpt2))
    editor = rl.ROME(gpt2, second_moment=moment(64), layer=1, v_lr=0.25, kl_factor=0)
    assert (editor.layer, editor.settings.v_lr, editor.settings.kl_factor) == (1, 0.25, 0)
    assert editor.settings.v_num_grad_steps == 25
    assert editor.settings.source == untouched.settings.source + "; given by the caller: layer, v_lr, kl_factor"
    # However they are written, since runs compare what they were made with.
    assert rl.ROME(gpt2, second_moment=moment(64), kl_factor=0, v_lr=0.25, layer=1).settings == editor.settings
    left_open = dict.fromkeys(("layer", "v_num_grad_steps", "v_lr", "kl_factor"))
    assert rl.ROME(gpt2, second_moment=moment(64), **left_open).settings == untouched.settings


@pytest.mark.parametrize(
    ("variant", "bare_weight", "essence_at"),
    [("r-rome", 0.5, "last"), ("rome", None, "subject"), ("p-rome", None, "last")],
)
def test_what_a_variant_brings_with_it(gpt2, variant, bare_weight, essence_at):
    editor = rome(gpt2, variant=variant)
    assert (editor.bare_weight, editor.essence_at) == (bare_weight, essence_at)
    editor = rome(gpt2, variant=variant, bare_weight=0.2, essence_at="last")
    assert (editor.bare_weight, editor.essence_at) == (0.2, "last")


def test_an_edit_tells_all_that_was_set(gpt2):
    editor = rome(gpt2, seed=5, prepend_bos=True)
    edit = editor.edit(REQUEST)
    expected = SETTINGS | {
        "layer": 1,
        "source": editor.settings.source,
        "bare_weight": 0.5,
        "essence_at": "last",
        "context_templates": ["{}", "up. {}", "a bit. {}"],
        "seed": 5,
        "prepend_bos": True,
        "engine": "blocks",
    }
    assert {name: edit.settings[name] for name in expected} == expected
    assert edit.settings["second_moment"]["layer"] == 1
    assert edit.notes[0] == f"settings: {editor.settings.source}"
    assert (edit.variant, edit.layer, edit.request) == ("r-rome", 1, REQUEST)


@pytest.mark.parametrize("prepend_bos", [False, True])
@pytest.mark.parametrize("backend", EACH_BACKEND)
def test_templates_are_the_models_own_and_the_seeds(backend, prepend_bos):
    model = architecture("gpt2", backend)
    state = torch.get_rng_state()
    written = [rome(model, context_templates=None, seed=s, prepend_bos=prepend_bos) for s in (4, 4, 5)]
    first, again, other = [editor.context_templates for editor in written]
    assert first == again != other
    assert first[0] == "{}"
    assert 15 <= len(first) == len(set(first)) <= 21
    assert all(text.endswith(". {}") and text.count("{}") == 1 and "\n" not in text for text in first[1:])
    assert torch.equal(torch.get_rng_state(), state)
    edit = written[0].edit(REQUEST)
    assert (edit.settings["context_templates"], edit.settings["seed"]) == (list(first), 4)


def test_the_old_answer_is_the_models_own_or_the_one_given(gpt2):
    edit = rome(gpt2).edit(REQUEST)
    tokens = torch.tensor([gpt2.tokenizer(REQUEST.text, add_special_tokens=False)["input_ids"]])
    probability, token = gpt2(tokens)[0, -1].softmax(dim=-1).max(dim=-1)
    assert edit.old_answer == gpt2.tokenizer.decode([int(token)])
    assert edit.before.old == pytest.approx(probability.item(), rel=1e-6)
    given = rome(gpt2).edit(rl.EditRequest(REQUEST.prompt, REQUEST.subject, "xy", target_true="zz"))
    assert given.old_answer == " zz"
    assert torch.equal(given.update, edit.update)


NAN, INF = float("nan"), float("inf")
REFUSED = {
    f"{name} {value!r}": ({name: value}, f"{name} is {value!r}; {expected}")
    for name, values, expected in [
        ("v_num_grad_steps", [0, -1, True, 2.0, "20"], "expected a whole number, 1 or more"),
        ("clamp_norm_factor", [0, -1.0, True, NAN, INF, "1"], "expected a number above 0"),
        ("v_lr", [0, -1.0, True, NAN, "1", 1001, 1e300, INF], "expected a number above 0 and at most 1000"),
        ("v_weight_decay", [-1.0, True, NAN, "0"], "expected a number, 0 or more"),
        ("kl_factor", [-1.0, True, NAN, "0"], "expected a number, 0 or more"),
        ("bare_weight", [0, 1.5, True, NAN, "half"], "expected a share above 0 and at most 1, or None"),
        ("layer", [4, -1, True, 1.0], "gpt2 has layers 0 to 3, counted from 0"),
        ("seed", [-1, 2**32, True, 1.0], "expected a whole number from 0 to 4294967295"),
        ("variant", ["R-ROME"], "choose one of r-rome, rome, p-rome"),
        ("essence_at", ["first"], "choose one of last, subject"),
        ("engine", ["fast"], "choose one of auto, plain"),
    ]
    for value in values
} | {
    **{
        f"template {text!r}": (
            {"context_templates": ["{}", text]},
            f"context template is {text!r}; expected a text that ends with {{}}, where the prompt follows, such as "
            "'The weather was good. {}'",
        )
        for text in ("no place", "{} in front", "two {} {}", "", None)
    },
    "second moment": (
        {"second_moment": torch.ones(64, 63)},
        "a second moment is square, symmetric and finite; this matrix has shape (64, 63)",
    ),
    "no second moment": (
        {"second_moment": None},
        "there is no second moment for layer 1 of gpt2, and ROME is wrong without one; collect it once (rome-lens "
        "stats --model gpt2 --layer 1 --out FILE), or with SecondMoment.collect(model, layers=[1], texts='self')[1], "
        "and hand it over as second_moment (in a shell: --second-moment FILE)",
    ),
}


@pytest.mark.parametrize(("settings", "message"), REFUSED.values(), ids=REFUSED)
@pytest.mark.usefixtures("unchecked")
def test_what_is_refused_and_in_which_words(gpt2, settings, message):
    assert refused(rl.SettingError, rl.ROME, gpt2, **{"second_moment": moment(64)} | DEFAULTS | settings) == message


@pytest.mark.parametrize("batch_size", [0, -1, True, 1.5])
def test_batch_sizes_that_are_none(gpt2, batch_size):
    said = refused(rl.SettingError, rome(gpt2).edit_many, [REQUEST], batch_size=batch_size)
    assert said == f"batch_size is {batch_size!r}; expected a whole number of requests, 1 or more"


def test_a_second_moment_of_something_else(gpt2):
    said = refused(rl.ModelMismatchError, rome, gpt2, second_moment=moment(24))
    assert said.startswith("the second moment has 24 rows, but layer 1 of gpt2 has keys of 64")
    other = rl.SecondMoment.from_matrix(moment(64), layer=2)
    said = refused(rl.ModelMismatchError, rome, gpt2, second_moment=other)
    assert said.startswith("the second moment is of layer 2, and layer 1 was asked for")


def test_models_without_one_matrix():
    with pytest.raises(rl.ModelError, match=r"layer 1 of mixtral has no W_out of its own \(a mixture of experts"):
        rl.ROME(architecture("mixtral", BRIDGE), layer=1, second_moment=moment(24))
    with pytest.raises(rl.ModelError, match="expected a HookedTransformer or a TransformerBridge, got str"):
        rl.ROME("gpt2", layer=1, second_moment=moment(24))


@needs_hooked
def test_a_norm_behind_the_mlp_is_refused_where_no_hook_point_lies_in_between():
    model = tiny_model(HOOKED)
    model.cfg.use_normalization_before_and_after = True
    assert refused(rl.ModelError, rome, model, layer=1) == (
        "tiny norms what leaves its MLPs, and HookedTransformer has no hook point in between; rank-one editing needs "
        "one: load the model as a TransformerBridge"
    )


def test_a_request_that_is_too_long(gpt2):
    text = "cde is" + " so" * 20
    request = rl.EditRequest(text.replace("cde", "{}"), subject="cde", target_new="x")
    said = refused(rl.PromptError, rome(gpt2).edit, request)
    assert said == (
        f"the prompt {text!r} with its longest context template and target takes 74 positions, and gpt2 has 64; "
        "shorten it, or give shorter context templates"
    )


@pytest.mark.parametrize("target_true", [None, "city"])
def test_a_target_that_is_said_already(target_true):
    model = tiny_model(BACKENDS[0])
    request = rl.EditRequest("in {} of", "the tower", "city")
    if target_true is not None:
        request = rl.EditRequest("in {} of", "the tower", "city", target_true=" is")
        # What the request says that the model says counts, whatever the model says.
        assert rome(model, layer=0).edit(request).old_answer == " is"
        return
    assert refused(rl.AnswerError, rome(model).edit, request) == (
        "the target 'city' is what the model says after 'in the tower of' already; there is nothing to edit"
    )


def test_a_loss_that_is_no_number():
    model = tiny_model(BACKENDS[0])
    with torch.no_grad():
        as_backend(model).w_out(1).parameter[0, 0] = float("nan")
    said = refused(
        rl.EditError, rome(model, layer=0).edit, rl.EditRequest("in {} of", subject="the tower", target_new="is")
    )
    assert said == ("the loss of 'in the tower of' -> 'is' is nan at step 1; load the model in float32, or lower v_lr")


def test_an_update_that_would_explode():
    one, other = torch.eye(10, dtype=torch.float64)[:2, None]
    mixed = KeysAndValues(mean_key=one, mean_value=one, bare_key=other, bare_value=one)
    plain = rl.SecondMoment.from_matrix(torch.eye(10), layer=0)
    assert refused(rl.EditError, solve, 0, mixed.of("rome")[0], 0 * one, plain.solve) == (
        "the key and C^-1 k* are all but orthogonal (cosine 0.0e+00), so the update would explode; take "
        "variant='r-rome', which uses one key throughout"
    )
    for variant in ("r-rome", "p-rome"):
        keys, value = mixed.of(variant)
        assert solve(0, keys, 3 * one - value, plain.solve).right[0, 0] == pytest.approx(2)
    tilted = one + 3e-4 * other
    steep = rl.SecondMoment.from_matrix(torch.diag(1e8 * one[0] + 1e-3), layer=0)
    with pytest.raises(rl.EditError, match=r"\(cosine [1-9]\.\de-04\).*; collect the second moment from more tokens$"):
        solve(0, Keys(tilted, tilted), 0 * one, steep.solve)


def test_requests_are_solved_once_for_any_second_moment(gpt2):
    editor, identity = rome(gpt2), rome(gpt2, second_moment=torch.eye(64))
    solved = editor.solve([REQUEST, rl.EditRequest("{} is", "cde", "x")])
    for found, expected in (
        (editor.edits(solved), editor),
        (identity.edits(solved), identity),
        (editor.edits(solved, second_moment=torch.eye(64)), identity),
    ):
        alone = expected.edit_many([one.rows.request for one in solved.requests])
        assert [edit.id for edit in found] == [edit.id for edit in alone]
        assert [edit.settings for edit in found] == [edit.settings for edit in alone]


def test_what_was_solved_on_other_weights_is_refused():
    model = own("gpt2", BACKENDS[0])
    editor = rome(model)
    solved = editor.solve([REQUEST])
    (edit,) = editor.edits(solved)
    with edit.applied(model), pytest.raises(rl.EditStateError) as caught:
        editor.edits(solved)
    assert str(caught.value) == (
        "the edits in the model's weights are others than when these requests were solved; solve them again"
    )
    assert editor.edits(solved) == [edit]
    said = refused(rl.SettingError, rome(model, layer=0).edits, solved)
    assert said == "these requests were solved at layer 1; this editor edits 0"


def test_an_unknown_setting_is_refused_as_python_does(gpt2):
    with pytest.raises(TypeError) as caught:
        rome(gpt2, v_rate=0.1)
    assert str(caught.value) == "ROME.__init__() got an unexpected keyword argument 'v_rate'"
