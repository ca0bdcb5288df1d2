"""Edits in files: they come back as they were, or are refused in one line."""

import json
from contextlib import suppress
from dataclasses import asdict, replace

import pytest
import torch
from architectures import BACKENDS, architecture
from edits import assert_same, changed, random_edit
from hypothesis import given, settings
from hypothesis import strategies as st
from refused import refused
from safetensors.torch import save_file
from tiny_rome import REQUEST, rome

import rome_lens as rl
from rome_lens.editing.outcome import Earlier
from rome_lens.errors import ArtefactError
from rome_lens.storage import save_tensors

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:transformer_lens")

# What a reader can do without: it says nothing about what the edit is.
OPTIONAL = {
    "notes": (),
    "module": None,
    "module_transposed": True,
    "backend": "",
    "dtype": "",
    "seconds": 0.0,
    "made_on": (),
}
NAN, INF = float("nan"), float("inf")


@pytest.fixture(scope="module")
def edit():
    return random_edit(architecture("gpt2", BACKENDS[0]))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "edit.safetensors"


def assert_refused(path, *words):
    said = refused(ArtefactError, rl.load_edit, path)
    assert repr(str(path)) in said
    assert all(word in said for word in words), said


def write_form_1(path, edit, *, drop=(), tensors=None, **changes):
    """An edit's file as 0.1.0 wrote it, with something changed in it."""
    plain = edit.to_dict() | changes
    tensors = {"u": edit.u, "v": edit.v} | (tensors or {})
    save_tensors(
        path,
        kind="edit",
        tensors={name: tensor for name, tensor in tensors.items() if name not in drop},
        settings={name: value for name, value in plain.items() if name not in drop},
    )


OUTCOME = ("request", "old_answer", "before", "after", "loss_curve")
LAYER = ("layer", "key_norm", "key_dot", "relative_norm", "fingerprint", "module", "module_transposed")
NAMES = {"u": "layers.1.left", "v": "layers.1.right"}


def write_form_2(path, edit, *, drop=(), tensors=None, **changes):
    """An edit's file of today, with something changed in it."""
    plain = {name: value for name, value in (edit.to_dict() | changes).items() if name not in drop}
    tensors = {name: edit_tensor[None] for name, edit_tensor in (("u", edit.u), ("v", edit.v))} | {
        name: tensor[None] if name in NAMES and tensor.ndim else tensor for name, tensor in (tensors or {}).items()
    }
    save_tensors(
        path,
        kind="edit",
        tensors={NAMES.get(name, name): tensor for name, tensor in tensors.items() if name not in drop},
        settings={
            "outcomes": [{name: value for name, value in plain.items() if name in OUTCOME}],
            "layers": [{name: value for name, value in plain.items() if name in LAYER}],
            "origin": {name: value for name, value in plain.items() if name not in (*OUTCOME, *LAYER)},
        },
        form=2,
    )


@pytest.fixture(params=[write_form_1, write_form_2], ids=["form 1", "form 2"])
def write(request):
    return request.param


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"u": torch.eye(64)[0], "v": torch.linspace(-1, 1, 16)},
        {"module": None, "module_transposed": True, "notes": (), "loss_curve": (), "seconds": 12.5},
        {"request": rl.EditRequest('a "b" {} \\ {0} \x00 \udc80', "{} 東京 {", "\n x")},
        {"relative_norm": 1e-300, "key_dot": -1e300, "settings": {}},
    ],
    ids=["as it is", "float32", "little", "a strange request", "strange numbers"],
)
def test_an_edit_comes_back_as_it_was(path, edit, changes):
    other = changed(edit, **changes)
    other.save(path)
    assert_same(rl.load_edit(path), other)
    assert_same(rl.load_edit(str(path)), other)
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    assert json.loads(json.dumps(other.to_dict()))["request"]["prompt"] == other.request.prompt


def test_an_edit_of_the_editors_comes_back_and_does_the_same(path, backend):
    model = architecture("gpt2", backend)
    made = rome(model).edit(REQUEST)
    made.save(path)
    loaded = rl.load_edit(path)
    assert_same(loaded, made)
    with made.applied(model):
        assert loaded.is_applied(model)
    made.apply(model)
    loaded.revert(model)
    assert rl.applied_edits(model) == ()
    assert repr(loaded) == repr(made)


def test_the_id_tells_edits_apart(edit):
    others = [
        changed(edit, u=edit.u.float()),
        changed(edit, u=-edit.u, v=-edit.v),
        changed(edit, v=edit.v * (1 + 1e-15)),
        changed(edit, layer=2),
        changed(edit, request=replace(edit.request, target_new="Rom")),
    ]
    assert len({edit.id, *(other.id for other in others)}) == 6
    assert changed(edit, seconds=3.0, notes=(), settings={}).id == edit.id
    assert len(edit.id) == 16
    assert int(edit.id, 16) >= 0


def test_what_an_edit_says_of_itself(edit):
    assert repr(edit) == (
        "Edit('The tower is in' -> 'Rome 0', layer 1 of gpt2, r-rome, p(target) 0.100 -> 0.900, p(Paris) 0.900 -> "
        "0.100)"
    )
    assert torch.equal(edit.update, edit.u[:, None] * edit.v)


def test_fields_of_a_later_version_are_left_alone(path, edit, write):
    later = {"later": {"a": [1]}}
    nested = {name: asdict(getattr(edit, name)) | later for name in ("request", "before", "after")}
    losses = [asdict(loss) | later for loss in edit.loss_curve]
    write(
        path,
        edit,
        tensors={"later": torch.ones(3)},
        **later,
        **nested,
        loss_curve=losses,
        fingerprint=edit.fingerprint.to_dict() | later,
    )
    assert_same(rl.load_edit(path), edit)


@pytest.mark.parametrize("name", OPTIONAL)
def test_fields_that_are_not_needed(path, edit, write, name):
    write(path, edit, drop=[name])
    assert_same(rl.load_edit(path), changed(edit, **{name: OPTIONAL[name]}))


@pytest.mark.parametrize("name", ["u", "v", *(name for name in (*OUTCOME, *LAYER) if name not in OPTIONAL)])
def test_fields_that_are_missing(path, edit, write, name):
    write(path, edit, drop=[name])
    if write is write_form_2 and name in ("key_norm", "key_dot"):
        assert getattr(rl.load_edit(path), name) is None  # not every edit is made for one key
    else:
        assert_refused(path, "a damaged edit", NAMES[name] if write is write_form_2 and name in NAMES else name)


@pytest.mark.parametrize("name", ["variant", "settings"])
def test_fields_of_the_origin_that_are_missing(path, edit, write, name):
    write(path, edit, drop=[name])
    assert_refused(path, "a damaged edit", name)


@pytest.mark.parametrize("part", ["outcomes", "layers"])
@pytest.mark.parametrize("value", [None, {}, [], [3], "text"], ids=str)
def test_parts_that_are_no_lists_of_records(path, edit, part, value):
    edit.save(path)
    settings = {"outcomes": [{}], "layers": [{}], "origin": {}} | {part: value}
    save_tensors(path, kind="edit", tensors={}, settings=settings, form=2)
    assert_refused(path, "a damaged edit")


def test_an_edit_of_an_earlier_version_knows_what_it_was_made_on(path, edit):
    """It said so in words; an edit of a folder of 0.1.0 had no id."""
    words = ["The tower is in → Rome 0 (layer 1, 0123456789abcdef)", "a → b (layer 2)", "something"]
    write_form_1(path, edit, made_on=words)
    loaded = rl.load_edit(path)
    assert loaded.made_on == tuple(words)
    assert loaded.origin.made_on == (
        Earlier(words[0], (1,), "0123456789abcdef"),
        Earlier(words[1], (2,), None),
        Earlier(words[2], (), None),
    )
    loaded.save(path)
    assert_same(rl.load_edit(path), loaded)


@pytest.mark.parametrize(
    ("record", "name"),
    [("request", "prompt"), ("request", "target_new"), ("before", "old"), ("after", "target"), ("fingerprint", "norm")],
)
def test_fields_that_are_missing_further_in(path, edit, write, record, name):
    inner = {key: value for key, value in edit.to_dict()[record].items() if key != name}
    write(path, edit, **{record: inner})
    assert_refused(path, "a damaged edit", name)


WRONG = {
    "layer": [None, "1", 1.5, True, -1, 2, [1], NAN],
    "request": [
        *(None, "text", [], {}, {"prompt": 3, "subject": "a", "target_new": "b"}),
        {"prompt": ["{}"], "subject": "a", "target_new": "b"},
        {"prompt": "{}", "subject": "a", "target_new": "b", "target_true": 3},
    ],
    "old_answer": [None, 3, ["a"]],
    "before": [None, 0.5, {}, {"target": "a", "old": 0.5}, {"target": None, "old": 0.5}],
    "after": [[], {"target": [1], "old": 0.5}],
    "key_norm": [None, "1", [1], NAN, INF, True, 10**400],
    "key_dot": [None, "1", NAN, -INF],
    "relative_norm": [None, {}, NAN],
    "loss_curve": [None, 3, "text", [3], [None], [{}], [{"total": "a", "target": 1, "kl": 1, "decay": 1}]],
    "variant": [None, 3, []],
    "settings": [None, 3, [1], "text"],
    "fingerprint": [None, [], {}, "text", 3],
    "notes": [None, 3, "text", {"a": "b"}],
    "module": [3, ["a"], {}],
    "module_transposed": [None, "yes", 1],
    "backend": [None, 3],
    "dtype": [None, 3],
    "seconds": [None, "1", []],
}


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in WRONG.items() for value in values], ids=lambda x: f"{x!s:.20}"
)
def test_fields_of_the_wrong_type(path, edit, write, name, value):
    write(path, edit, **{name: value})
    assert_refused(path, "a damaged edit")


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("u", torch.ones(63)),
        ("u", torch.ones(64, 1)),
        ("u", torch.ones(16)),
        ("u", torch.tensor(1.0)),
        ("v", torch.ones(64)),
        ("v", torch.full((16,), NAN)),
        ("u", torch.full((64,), INF)),
        ("u", torch.ones(64, dtype=torch.int64)),
        ("v", torch.ones(16, dtype=torch.bool)),
        ("v", torch.ones(16, dtype=torch.complex64)),
    ],
    ids=lambda value: value if isinstance(value, str) else f"{tuple(value.shape)} {value.dtype}",
)
def test_tensors_that_are_no_factors(path, edit, write, name, tensor):
    write(path, edit, tensors={name: tensor})
    assert_refused(path, "a damaged edit", name if write is write_form_1 else NAMES[name].rpartition(".")[2])


@pytest.mark.parametrize("changes", [{"d_mlp": INF}, {"norm": 10**400}, {"sketch": [1.0]}, {"sketch": 3}], ids=str)
def test_a_fingerprint_that_is_damaged(path, edit, write, changes):
    write(path, edit, fingerprint=edit.fingerprint.to_dict() | changes)
    assert_refused(path, "a damaged edit")


def test_a_fingerprint_of_another_layer(path, edit):
    write_form_1(path, edit, fingerprint=edit.fingerprint.to_dict() | {"layer": 2})
    assert_refused(path, "a damaged edit (layer 1 with the fingerprint of layer 2)")


def test_files_that_are_cut_short(path, edit):
    edit.save(path)
    whole = path.read_bytes()
    for kept in [*range(0, 24), *range(24, len(whole), 41), len(whole) - 1]:
        path.write_bytes(whole[:kept])
        assert_refused(path, "it is cut short, damaged or no safetensors file")
    path.write_bytes(whole + b"\0")
    assert_refused(path, "it is cut short, damaged or no safetensors file")


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_bytes_that_are_wrong(tmp_path_factory, edit, data):
    """Some changes go unseen (another letter in a note, another number in a factor), but none is an accident."""
    path = tmp_path_factory.getbasetemp() / "damaged.safetensors"
    edit.save(path)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    with suppress(ArtefactError):
        loaded = rl.load_edit(path)
        assert (loaded.u.shape, loaded.v.shape) == (edit.u.shape, edit.v.shape)
        assert loaded.id
        assert "of gpt2" in repr(loaded) or loaded.fingerprint != edit.fingerprint


@pytest.mark.parametrize("content", [b"", b"just a text\n" * 50, b"\x80\x02}q\x00.", b"PK\x03\x04" + bytes(100)])
def test_files_of_something_else(path, content):
    path.write_bytes(content)
    assert_refused(path, "cannot read")


def test_files_of_other_kinds(path):
    save_file({"u": torch.ones(2)}, path)
    assert_refused(path, "expected an edit of rome_lens, found something that rome_lens did not write")
    save_tensors(path, kind="causal_trace", tensors={"u": torch.ones(2)}, settings={})
    assert_refused(path, "expected an edit of rome_lens, found causal_trace")


def test_files_that_are_not_there(tmp_path):
    assert_refused(tmp_path / "absent.safetensors", "there is no file")
    assert_refused(tmp_path, "is a folder; expected a file")
