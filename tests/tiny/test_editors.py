"""The editors of an evaluation: how they are named and set, what they are made of, and what they share."""

import json
import sys
from dataclasses import dataclass

import pytest
import torch
from refused import refused
from tiny_shell import PROMPT, SUBJECT, TARGET, TinyHouse

import rome_lens as rl
from rome_lens.backends import as_backend
from rome_lens.editing import FineTuning
from rome_lens.editing.settings import default_layer
from rome_lens.errors import ArtefactError, ModelMismatchError, SettingError
from rome_lens.evaluation.editors import moments as sharing
from rome_lens.evaluation.editors.moments import Moments
from rome_lens.evaluation.editors.named import EDITORS, EditorSpec, describe, make_editor, specs_of
from rome_lens.evaluation.editors.random_layer import RandomLayer
from rome_lens.evaluation.editors.sets import SETS
from rome_lens.evaluation.editors.shared_values import share_values, shared_pairs

REQUESTS = [rl.EditRequest(PROMPT, subject, TARGET) for subject in (SUBJECT, "the museum", "paris", "the old river")]
# Enough to be an edit.
FAST = {"v_num_grad_steps": 2, "context_templates": ["it was old. {}"]}


class Own:
    """Somebody's own editor."""

    def __repr__(self):
        return "Own()"  # as a name of a test, the same in every process

    def edit(self, request):
        return None


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    return TinyHouse(tmp_path_factory.mktemp("house"))


@pytest.fixture(scope="module")
def moments(house):
    """All that the editors of the tiny model need; its own layer is 1."""
    return _moments(house)


def _moments(house):
    return Moments(house.model, [house.places["C0"], house.places["C1"]], folder=house.folder / "moments")


def made(house, moments, kind, *, seed=0, prepend_bos=False, **settings):
    return make_editor(EditorSpec("mine", kind, settings), house.model, moments, seed=seed, prepend_bos=prepend_bos)


def named_with(kind, **settings):
    """Its spec, with settings as the shell gives them: nothing has been loaded yet."""
    return specs_of([kind], [f"{name}={json.dumps(value)}" for name, value in settings.items()])


# --- names ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", EDITORS)
def test_an_editor_is_named_by_what_it_is(kind):
    assert specs_of(kind) == specs_of([kind]) == specs_of({kind: kind}) == (EditorSpec(kind, kind),)
    assert specs_of(kind)[0].to_dict() == {"kind": kind, "settings": {}}


def test_nobody_is_the_unedited_model():
    assert specs_of(None) == (EditorSpec("none", "none"),)
    assert specs_of([None, "ft"]) == (EditorSpec("none", "none"), EditorSpec("ft", "ft"))
    assert specs_of({"as-it-was": None}) == (EditorSpec("as-it-was", "none"),)


def test_several_editors_keep_their_order():
    assert [spec.name for spec in specs_of(("ft", "none", "r-rome"))] == ["ft", "none", "r-rome"]
    named = specs_of({"b": "rome", "a": "rome", 3: "ft"})
    assert [(spec.name, spec.kind) for spec in named] == [("b", "rome"), ("a", "rome"), ("3", "ft")]


def test_an_editor_that_exists(house):
    moment = rl.SecondMoment.load(house.places["C1"])
    rome, own = rl.ROME(house.model, second_moment=moment, variant="p-rome", v_lr=0.25), Own()
    (spec, other) = specs_of([rome, own])
    assert (spec.name, spec.kind, spec.made) == ("p-rome", "ROME", rome)
    assert spec.settings["v_lr"] == 0.25
    assert (other.name, other.kind, other.settings, other.made) == ("Own", "Own", {}, own)
    assert make_editor(other, house.model, Moments(house.model), seed=0, prepend_bos=False) is own
    json.dumps([one.to_dict() for one in (spec, other)])


UNKNOWN = (
    "editor is 'mend'; choose one of none, r-rome, rome, p-rome, identity, random-layer, memit, emmet, alphaedit, ft, "
    "ft-l, or package.module:function for one of your own"
)
NO_FILE = "cannot be a file name; expected letters, digits and any of _+=@.,- (none of .,- first)"
NAMES = "expected one or more, each of another name"
MODULE = "names no module; expected package.module:function"
FUNCTION = "expected one that takes a model and returns an editor"


@pytest.mark.parametrize(
    ("editors", "said"),
    [
        ("mend", UNKNOWN),
        (["none", "mend"], UNKNOWN),
        ({"mine": "mend"}, UNKNOWN),
        ({"layer 0": Own()}, f"the editor name 'layer 0' {NO_FILE}"),
        ({"a/b": Own()}, f"the editor name 'a/b' {NO_FILE}"),
        ([], f"editors are none at all; {NAMES}"),
        ({}, f"editors are none at all; {NAMES}"),
        (["ft", "ft"], f"editors are ft, ft; {NAMES}"),
        ([Own(), Own()], f"editors are Own, Own; {NAMES}"),
        (3, "the editor int is a int and has no edit(request)"),
        ({"mine": 3.5}, "the editor mine is a float and has no edit(request)"),
        (":edit", f"the editor ':edit' {MODULE}"),
        ("..up:edit", f"the editor '..up:edit' {MODULE}"),
        ("a b:edit", f"the editor 'a b:edit' {MODULE}"),
        ("json:", f"'json' has no function ''; {FUNCTION}"),
        ("json:no", f"'json' has no function 'no'; {FUNCTION}"),
        ("sys:path", f"'sys' has no function 'path'; {FUNCTION}"),
        ("nowhere.at:all", "the editor 'nowhere.at:all' cannot be imported: No module named 'nowhere'"),
    ],
    ids=str,
)
def test_what_is_no_editor(editors, said):
    assert refused(SettingError, specs_of, editors) == said


# --- settings -------------------------------------------------------------------------------------------------------


def test_a_setting_goes_to_all_editors_that_take_it():
    settings = ["v_lr=0.25", "layer=2", "norm_constraint=1e-3", "seed=3"]
    found = {spec.name: spec.settings for spec in specs_of(["none", "rome", "identity", "ft", "ft-l"], settings)}
    rome = {"v_lr": 0.25, "layer": 2, "seed": 3}
    assert found == {
        "none": {},
        "rome": rome,
        "identity": rome,
        "ft": {"layer": 2},
        "ft-l": {"layer": 2, "norm_constraint": 0.001},
    }


def test_a_setting_of_one_editor_and_the_last_word():
    settings = ["layer=2", "ft.layer=0", "rome.v_lr=1", "rome.v_lr=0.5"]
    found = {spec.name: spec.settings for spec in specs_of(["rome", "ft"], settings)}
    assert found == {"rome": {"layer": 2, "v_lr": 0.5}, "ft": {"layer": 0}}
    named = specs_of({"v0.1": "rome", "v0.2": "rome"}, ["v0.1.layer=1"])
    assert [spec.settings for spec in named] == [{"layer": 1}, {}]


def test_values_are_json():
    settings = ['context_templates=["a. {}", "b = {}"]', "bare_weight=null", 'essence_at="subject"', "kl_factor=1e-2"]
    (spec,) = specs_of("rome", settings)
    assert spec.settings == {
        "context_templates": ["a. {}", "b = {}"],
        "bare_weight": None,
        "essence_at": "subject",
        "kl_factor": 0.01,
    }


FT_TAKES = "layer, lr, num_steps, stop_loss, weight_decay"
NO_JSON = "the value is no JSON; expected a number, true, null or a quoted text"
ROME_TAKES = "bare_weight, clamp_norm_factor, context_templates, essence_at, kl_factor, layer, seed, v_lr, "
ROME_TAKES += "v_num_grad_steps, v_weight_decay"


@pytest.mark.parametrize(
    ("editors", "setting", "said"),
    [
        ("ft", "layer", "'layer' is no setting; expected NAME=VALUE or EDITOR.NAME=VALUE, such as ft.layer=3"),
        ("ft", "=3", "'=3' is no setting; expected NAME=VALUE or EDITOR.NAME=VALUE, such as ft.layer=3"),
        ("ft", "ft.=3", "'ft.=3' is no setting; expected NAME=VALUE or EDITOR.NAME=VALUE, such as ft.layer=3"),
        ("ft", "layer=", f"'layer=': {NO_JSON}"),
        ("ft", "layer=last", f"'layer=last': {NO_JSON}"),
        ("ft", "lr=NaN", f"'lr=NaN': {NO_JSON}"),
        ("ft", "lr=-Infinity", f"'lr=-Infinity': {NO_JSON}"),
        ("ft", "lr=[1]", "'lr=[1]': the value is a list; expected a number, true, null or a quoted text"),
        (["ft", "rome"], "ft-l.lr=1", "'ft-l.lr=1' is for the editor 'ft-l'; the run has ft, rome"),
        ("ft", "v_lr=1", f"no editor takes the setting 'v_lr'; they take {FT_TAKES}"),
        ("ft", "norm_constraint=1", f"no editor takes the setting 'norm_constraint'; they take {FT_TAKES}"),
        ("rome", "variant=1", f"no editor takes the setting 'variant'; they take {ROME_TAKES}"),
        ("rome", "prepend_bos=true", f"no editor takes the setting 'prepend_bos'; they take {ROME_TAKES}"),
        ("rome", "engine=1", f"no editor takes the setting 'engine'; they take {ROME_TAKES}"),
        ("none", "layer=1", "no editor takes the setting 'layer'; they take none"),
        (Own(), "layer=1", "no editor takes the setting 'layer'; they take none"),
        (
            ["rome", "random-layer"],
            "random-layer.layer=1",
            "the editor 'random-layer' does not take the setting 'layer'; it takes "
            + ROME_TAKES.replace("layer", "n_layers"),
        ),
    ],
    ids=str,
)
def test_what_is_no_setting(editors, setting, said):
    assert refused(SettingError, specs_of, editors, [setting]) == said


def test_a_value_that_is_nested_too_deeply():
    assert refused(SettingError, specs_of, "ft", ["lr=" + "[" * 100_000]).endswith(NO_JSON)


TEMPLATES = "expected a list of texts that end with {}"
# Refused before there is a model, too.
EARLY = [
    ("rome", {"v_lr": "fast"}, "v_lr is 'fast'; expected a number above 0 and at most 1000"),
    ("rome", {"context_templates": 5}, f"context_templates is 5; {TEMPLATES}"),
    ("identity", {"context_templates": True}, f"context_templates is True; {TEMPLATES}"),
    ("ft-l", {"norm_constraint": 0}, "norm_constraint is 0; expected a number above 0, None or 'auto'"),
    ("random-layer", {"n_layers": 0}, "n_layers is 0; expected a whole number of layers, 1 or more"),
]
LATE = [
    ("r-rome", {"layer": 3}, "layer is 3; tiny has layers 0 to 2, counted from 0"),
    ("identity", {"layer": "1"}, "layer is '1'; tiny has layers 0 to 2, counted from 0"),
    ("ft", {"layer": -1}, "layer is -1; tiny has layers 0 to 2, counted from 0"),
    ("rome", {"seed": "x"}, "seed is 'x'; expected a whole number from 0 to 4294967295"),
    ("random-layer", {"seed": 0.5}, "seed is 0.5; expected a whole number from 0 to 4294967295"),
    ("random-layer", {"n_layers": True}, "n_layers is True; expected a whole number of layers, 1 or more"),
    ("random-layer", {"n_layers": 1.5}, "n_layers is 1.5; expected a whole number of layers, 1 or more"),
    (
        "identity",
        {"context_templates": ["a."]},
        "context template is 'a.'; expected a text that ends with {}, where the prompt follows, such as 'The weather "
        "was good. {}'",
    ),
]


@pytest.mark.parametrize(("kind", "settings", "said"), [*EARLY, *LATE])
def test_settings_that_no_editor_can_be_made_with(house, moments, kind, settings, said):
    assert refused(SettingError, made, house, moments, kind, **settings) == said


@pytest.mark.parametrize(("kind", "settings", "said"), EARLY)
def test_settings_that_are_refused_before_there_is_a_model(kind, settings, said):
    assert refused(SettingError, named_with, kind, **settings) == said


# --- what they are --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["r-rome", "rome", "p-rome"])
def test_the_variants_of_rome(house, moments, variant):
    editor = made(house, moments, variant, v_lr=0.25, seed=4)
    assert (type(editor), editor.variant, editor.layer, editor.settings.v_lr, editor.seed) == (
        rl.ROME,
        variant,
        default_layer(as_backend(house.model)),
        0.25,
        4,
    )
    assert torch.equal(editor.second_moment.matrix, rl.SecondMoment.load(house.places["C1"]).matrix)
    edit = made(house, moments, variant, **FAST).edit(REQUESTS[0])
    expected = rl.ROME(house.model, variant=variant, second_moment=editor.second_moment, **FAST).edit(REQUESTS[0])
    assert torch.equal(edit.u, expected.u)
    assert torch.equal(edit.v, expected.v)


def test_the_seed_of_the_run_and_bos_are_for_all(house, moments):
    for kind in ("rome", "identity", "random-layer"):
        editor = made(house, moments, kind, seed=7, prepend_bos=True, **FAST)
        several = editor._editors.values() if kind == "random-layer" else [editor]
        assert {(one.seed, one.prepend_bos) for one in several} == {(7, True)}
    assert made(house, moments, "ft", prepend_bos=True).prepend_bos is True


def test_rome_is_made_where_its_one_second_moment_is(house):
    alone = Moments(house.model, [house.places["C0"]])
    assert made(house, alone, "rome").layer == 0
    assert made(house, alone, "identity").layer == 0
    assert made(house, alone, "identity", layer=2).layer == 2
    both = Moments(house.model, [house.places["C0"], house.places["C1"]])
    assert made(house, both, "rome").layer == 1
    assert made(house, both, "rome", layer=0).layer == 0


def test_rome_is_never_made_without_a_second_moment(house):
    said = refused(SettingError, made, house, Moments(house.model), "rome")
    assert said.startswith("there is no second moment for layer 1 of tiny, and ROME is wrong without one; collect it")
    assert made(house, Moments(house.model), "identity").layer == 1


def test_identity_is_rome_with_the_identity_for_a_second_moment(house, moments):
    width = as_backend(house.model).w_out(1).matrix.shape[0]
    plain = rl.ROME(house.model, second_moment=torch.eye(width), **FAST).edit(REQUESTS[0])
    edit = made(house, moments, "identity", **FAST).edit(REQUESTS[0])
    assert (edit.variant, edit.layer) == ("r-rome", 1)
    assert torch.equal(edit.u, plain.u)
    assert torch.equal(edit.v, plain.v)
    # With C = I, u is the key itself.
    keyed = made(house, moments, "r-rome", **FAST).edit(REQUESTS[0])
    assert torch.cosine_similarity(edit.u, keyed.u, dim=0) < 0.999


def test_fine_tuning_without_and_with_a_bound(house, moments):
    ft, bounded = made(house, moments, "ft", num_steps=2), made(house, moments, "ft-l", num_steps=2)
    assert (type(ft), ft.variant, ft.settings.norm_constraint, ft.settings.num_steps) == (FineTuning, "ft", None, 2)
    assert (bounded.variant, bounded.settings.norm_constraint) == ("ft-l", 5e-4)
    assert made(house, moments, "ft-l", norm_constraint=0.01).settings.norm_constraint == 0.01
    assert made(house, moments, "ft", layer=2).layer == 2


def test_nobody_edits_nothing(house, moments):
    assert made(house, moments, "none") is None


# --- the control ----------------------------------------------------------------------------------------------------


def test_the_control_never_draws_the_layer_of_the_model(house, moments):
    control = made(house, moments, "random-layer", **FAST)
    assert isinstance(control, RandomLayer)
    assert control.layers == [0, 2]
    assert {edit.layer for edit in control.edit_many(REQUESTS)} <= {0, 2}


def test_the_layers_and_the_draws_depend_on_the_seed(house, moments):
    some = [made(house, moments, "random-layer", seed=seed, n_layers=1, **FAST).layers for seed in range(6)]
    assert {tuple(layers) for layers in some} == {(0,), (2,)}
    drawn = {tuple(map(made(house, moments, "random-layer", seed=seed, **FAST)._layer, REQUESTS)) for seed in range(8)}
    assert len(drawn) > 3
    assert made(house, moments, "random-layer", seed=5).layers == made(house, moments, "random-layer", seed=5).layers


def test_a_request_has_its_layer_whatever_stands_beside_it(house, moments):
    several = [made(house, moments, "random-layer", seed=1, **FAST) for _ in range(2)]
    alone = [several[0].edit(request) for request in REQUESTS]
    assert {edit.layer for edit in alone} == {0, 2}
    for order in ([0, 1, 2, 3], [3, 1], [2, 0, 3]):
        edits = several[1].edit_many([REQUESTS[place] for place in order])
        for place, edit in zip(order, edits, strict=True):
            assert (edit.request, edit.layer) == (REQUESTS[place], alone[place].layer)
            assert torch.allclose(edit.v, alone[place].v, atol=1e-4)


def test_another_target_may_have_another_layer(house, moments):
    control = made(house, moments, "random-layer", **FAST)
    words = ["rome", "paris", "berlin", "museum", "river", "old", "city", "tower"]
    assert len({control._layer(rl.EditRequest(PROMPT, SUBJECT, word)) for word in words}) == 2


def test_a_model_of_one_layer_has_no_control(house, moments, monkeypatch):
    monkeypatch.setattr(house.model.cfg, "n_layers", 1)
    monkeypatch.setattr("rome_lens.evaluation.editors.named.default_layer", lambda backend: 0)
    said = refused(
        SettingError, RandomLayer, house.model, moments, n_layers=5, settings={"seed": 0, "prepend_bos": False}
    )
    assert said == "tiny has one layer alone; random-layer needs another to draw"


# --- somebody's own -------------------------------------------------------------------------------------------------

SOURCE = """
class Mine:
    def __init__(self, model, strength):
        self.model, self.settings = model, {"strength": strength, "model": model}
    def edit(self, request):
        return None

def make(model, *, strength=1.0, names=()):
    return Mine(model, strength)

def empty(model):
    return None
"""


@pytest.fixture
def own_module(tmp_path, monkeypatch):
    (tmp_path / "own_editor_of_a_test.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    yield "own_editor_of_a_test"
    sys.modules.pop("own_editor_of_a_test", None)


def test_an_own_editor_from_the_working_folder(house, moments, own_module):
    before = list(sys.path)
    (spec,) = specs_of(f"{own_module}:make", ["strength=2", "names=[1, 2]"])
    assert spec == EditorSpec("make", f"{own_module}:make", {"strength": 2, "names": [1, 2]})
    editor = make_editor(spec, house.model, moments, seed=0, prepend_bos=False)
    assert type(editor).__name__ == "Mine"
    assert editor.model is house.model
    assert sys.path == before
    assert describe(editor) == {"class": "Mine", "strength": 2}
    named = specs_of({"first": f"{own_module}:make", "second": f"{own_module}:make"}, ["second.strength=3"])
    assert [(one.name, one.settings) for one in named] == [("first", {}), ("second", {"strength": 3})]


def test_an_own_editor_has_its_own_settings(own_module):
    assert refused(SettingError, specs_of, f"{own_module}:make", ["model=1"]) == (
        "no editor takes the setting 'model'; they take names, strength"
    )
    assert refused(SettingError, specs_of, [f"{own_module}:make", "ft"], ["make.lr=1"]) == (
        "the editor 'make' does not take the setting 'lr'; it takes names, strength"
    )


def test_an_own_editor_that_is_none(house, moments, own_module):
    said = refused(SettingError, made, house, moments, f"{own_module}:empty")
    assert said == f"the editor {own_module}:empty is a NoneType and has no edit(request)"


# --- two that share their values ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("editors", "settings", "pairs"),
    [
        (["none", "r-rome", "identity", "ft"], [], [("r-rome", "identity")]),
        (["identity", "r-rome"], ["v_lr=0.25"], [("r-rome", "identity")]),
        (["r-rome", "identity"], ["identity.v_lr=0.25"], []),
        (["rome", "p-rome", "identity"], [], []),
        (["identity"], [], []),
        ({"a": "r-rome", "b": "identity", "c": "identity"}, ["layer=1"], [("a", "b")]),
        ({"a": "r-rome", "b": "r-rome", "c": "identity"}, ["a.layer=1"], [("b", "c")]),
    ],
    ids=str,
)
def test_who_shares_values(editors, settings, pairs):
    assert shared_pairs(specs_of(editors, settings)) == pairs


def test_sharing_values_changes_no_edit(house, moments):
    specs = [EditorSpec(kind, kind, FAST) for kind in ("r-rome", "identity", "none")]
    alone = {spec.name: make_editor(spec, house.model, moments, seed=0, prepend_bos=False) for spec in specs}
    shared = share_values(specs, alone)
    assert shared["none"] is None
    # First together, then the second for other requests than the first was asked for, and for requests again.
    calls = [("r-rome", [0, 1]), ("identity", [0, 1]), ("r-rome", [2]), ("identity", [2, 3]), ("identity", [2, 0])]
    for name, places in calls:
        requests = [REQUESTS[place] for place in places]
        edits = shared[name].edit_many(requests)
        assert [edit.request for edit in edits] == requests
        for edit, expected in zip(edits, alone[name].edit_many(requests), strict=True):
            assert edit.layer == shared[name].layer == 1
            assert torch.allclose(edit.u, expected.u, atol=1e-5)
            assert torch.allclose(edit.v, expected.v, atol=1e-4)
    assert torch.allclose(shared["identity"].edit(REQUESTS[0]).v, alone["identity"].edit(REQUESTS[0]).v, atol=1e-4)


def test_an_update_that_one_of_two_cannot_make_is_not_the_others_failure(house, moments, monkeypatch):
    specs = [EditorSpec(kind, kind, FAST) for kind in ("r-rome", "identity")]
    shared = share_values(
        specs, {spec.name: make_editor(spec, house.model, moments, seed=0, prepend_bos=False) for spec in specs}
    )
    solve = rl.SecondMoment.solve

    def orthogonal(self, key, *args, **settings):
        found = solve(self, key, *args, **settings)
        if self.source != "a matrix":
            return found
        u = torch.zeros_like(found)
        u[..., 0], u[..., 1] = -key[..., 1], key[..., 0]
        return u

    monkeypatch.setattr(rl.SecondMoment, "solve", orthogonal)
    assert [edit.request for edit in shared["r-rome"].edit_many(REQUESTS[:2])] == REQUESTS[:2]
    with pytest.raises(rl.EditError, match="all but orthogonal"):
        shared["identity"].edit_many(REQUESTS[:2])


# --- what they share ------------------------------------------------------------------------------------------------


@pytest.fixture
def counted(monkeypatch):
    """How often templates are written and second moments are collected."""
    calls = {"templates": [], "moments": []}
    collect = rl.SecondMoment.collect

    def templates(backend, *, seed, prepend_bos):
        calls["templates"].append((seed, prepend_bos))
        return ("{}", f"text {seed}. {{}}")

    def collected(model, *, layers, **settings):
        calls["moments"].append(list(layers))
        return collect(model, layers=layers, **settings, max_tokens=640, text_length=32)

    monkeypatch.setattr(sharing, "sample_templates", templates)
    monkeypatch.setattr(rl.SecondMoment, "collect", collected)
    return calls


def test_templates_are_written_once_for_all_editors_of_a_seed(house, counted):
    moments = _moments(house)
    editors = [made(house, moments, kind) for kind in ("r-rome", "rome", "identity", "random-layer")]
    several = [*editors[:3], *editors[3]._editors.values()]
    assert counted["templates"] == [(0, False)]
    assert {one.context_templates for one in several} == {("{}", "text 0. {}")}
    assert made(house, moments, "rome", seed=1).context_templates == ("{}", "text 1. {}")
    made(house, moments, "rome", prepend_bos=True)
    made(house, moments, "rome", context_templates=["a. {}"])
    assert counted["templates"] == [(0, False), (1, False), (0, True)]
    # null is as if nothing had been set.
    for kind in ("rome", "identity", "random-layer"):
        assert "text 0. {}" in describe(made(house, moments, kind, context_templates=None)).get(
            "context_templates", ["text 0. {}"]
        )


def test_second_moments_are_collected_once_and_kept(house, tmp_path, counted):
    folder = tmp_path / "run" / "second-moments"
    told = []

    def progress(done, total, what):
        told.append(what)

    first = Moments(house.model, [house.places["C0"]], folder=folder, seed=3, progress=progress)
    found = first.collected([0, 1, 2])
    assert counted["moments"] == [[1, 2]]
    assert told
    assert sorted(path.name for path in folder.glob("layer-*")) == ["layer-1.safetensors", "layer-2.safetensors"]
    assert {layer: moment.layer for layer, moment in found.items()} == {0: 0, 1: 1, 2: 2}
    assert (found[2].source, found[2].seed, found[2].command) == ("self", 3, "rome-lens eval")
    assert torch.equal(found[0].matrix, rl.SecondMoment.load(house.places["C0"]).matrix)
    again = Moments(house.model, folder=folder).collected([2, 1])
    assert counted["moments"] == [[1, 2]]
    assert all(torch.equal(again[layer].matrix, found[layer].matrix) for layer in (1, 2))
    # What is missing alone is collected.
    Moments(house.model, folder=folder).collected([0, 1])
    assert counted["moments"] == [[1, 2], [0]]


def test_without_a_folder_second_moments_are_kept_in_memory(house, counted, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = Moments(house.model, prepend_bos=True).collected([2])
    assert found[2].prepend_bos is True
    assert counted["moments"] == [[2]]
    assert list(tmp_path.iterdir()) == []


def test_second_moments_that_are_given_are_never_collected(house, counted, tmp_path):
    Moments(house.model, [house.places["C0"], house.places["C1"]], folder=tmp_path / "none").collected([1, 0])
    assert counted["moments"] == []
    assert not (tmp_path / "none").exists()


def test_files_that_hold_no_second_moment(house, tmp_path):
    said = refused(ArtefactError, Moments, house.model, [house.places["EDIT"]])
    assert said.startswith(f"cannot use {house.places['EDIT']!r}: expected a second_moment of")
    said = refused(ArtefactError, Moments, house.model, [tmp_path / "none"])
    assert said.startswith(f"there is no file {str(tmp_path / 'none')!r}")
    said = refused(SettingError, Moments, house.model, [house.places["C1"], house.places["C0"], house.places["C1"]])
    assert said == "two second moments of layer 1 are given; expected one a layer"


def test_a_second_moment_of_another_model(house, tmp_path):
    other = rl.SecondMoment.load(house.places["C1"])
    width = other.matrix.shape[0]
    rl.SecondMoment.from_matrix(torch.eye(width + 1), layer=1).save(tmp_path / "C")
    with pytest.raises(ModelMismatchError):
        made(house, Moments(house.model, [tmp_path / "C"]), "rome")


# --- what they say of themselves ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", EDITORS)
def test_an_editor_is_described_in_json(house, moments, kind):
    told = describe(made(house, moments, kind))
    json.dumps(told, allow_nan=False)
    if kind == "none":
        assert told == {}
    elif kind == "random-layer":
        assert (told["class"], told["layer"], told["layers"]) == ("RandomLayer", None, [0, 2])
    elif kind in SETS:
        assert isinstance(told["source"], str)
        assert (told["layers"], told["class"].lower()) == ([0, 1], kind)
    else:
        assert isinstance(told["source"], str)
        assert told["layer"] in (0, 1)
        assert ("second_moment" in told) is (not kind.startswith("ft"))
        assert told["variant"] == {"identity": "r-rome"}.get(kind, kind)


def test_what_json_cannot_hold_is_left_out():
    @dataclass
    class Settings:
        strength: float = 0.5
        where: object = None
        names: tuple = ("a", 1, None, True)
        odd: object = ({"a": [float("nan")]}, {1: 2})

    class Odd(Own):
        settings = Settings(where=object())
        variant = "odd"

    plain = {"strength": 0.5, "names": ("a", 1, None, True)}
    assert describe(Odd()) == {"class": "Odd", **plain, "variant": "odd"}
    assert specs_of(Odd())[0].settings == plain
    Odd.settings = Settings
    assert describe(Odd()) == {"class": "Odd", "variant": "odd"}
