"""Folders that hold edits, loaded and edited again; advice that names what was really loaded."""

import json
import shlex

import pytest
import torch
from architectures import BRIDGE, save
from edits import logits, random_edit, w_out
from refused import refused
from tiny_rome import REQUEST, rome

import rome_lens as rl
from rome_lens.errors import EditStateError, ModelMismatchError


def load(folder, backend=BRIDGE):
    return rl.load_model(folder, backend=backend, device="cpu")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """An unedited folder, with white space in its path."""
    folder = tmp_path_factory.mktemp("the models") / "gpt2-xl"
    save("llama", folder)
    return folder


@pytest.mark.parametrize("size", [1.0, 3e-3])
def test_an_edit_is_refused_by_the_folder_that_holds_it(source, tmp_path, backend, size):
    """F13: also one below the 1 % within which two models pass for one, and beside others."""
    model = load(source)
    first, second, third = (random_edit(model, seed=seed, size=size) for seed in range(3))
    first.to_hf(source, tmp_path / "one")
    second.to_hf(tmp_path / "one", tmp_path / "both")
    for folder, held in ((tmp_path / "one", [first]), (tmp_path / "both", [first, second])):
        edited = load(folder, backend)
        before = w_out(edited).clone()
        for edit in held:
            assert not edit.is_applied(edited)
            for step in (edit.apply, edit.hooks, lambda m, edit=edit: rl.hooks_for_rows(m, [edit])):
                assert "is in these weights already" in refused(EditStateError, step, edited)
            assert "give the unedited model" in refused(EditStateError, edit.to_hf, folder, tmp_path / "twice")
            with edit.applied(edited, force=True):
                assert not torch.equal(w_out(edited), before)
        with third.applied(edited):
            assert third.is_applied(edited)
        assert torch.equal(w_out(edited), before)
    in_memory = load(source)
    first.apply(in_memory)
    second.apply(in_memory)
    torch.testing.assert_close(logits(load(tmp_path / "both")), logits(in_memory), rtol=1e-4, atol=1e-5)
    note = json.loads((tmp_path / "both" / "rome_lens.json").read_text())
    assert [edit["id"] for edit in note["edits"]] == note["layers"][0]["edits"] == [first.id, second.id]


def test_a_folder_is_known_by_its_weights_where_it_has_no_note(source, tmp_path, backend):
    model = load(source)
    edit, other = random_edit(model, size=3e-3), random_edit(model, size=3e-3, seed=1)
    edit.to_hf(source, tmp_path / "out")
    (tmp_path / "out" / "rome_lens.json").unlink()
    edited = load(tmp_path / "out", backend)
    assert "is in these weights already" in refused(EditStateError, edit.apply, edited)
    with other.applied(edited):
        pass


def test_a_note_that_the_weights_belie_counts_for_nothing(source, tmp_path, backend):
    model = load(source, backend)
    edit = random_edit(model)
    edit.to_hf(source, tmp_path / "out")
    edited = load(tmp_path / "out", backend)
    edited.load_state_dict(model.state_dict())
    with edit.applied(edited):
        assert edit.is_applied(edited)


@pytest.mark.parametrize("damage", ["{", "[]", "{}", '{"kind": "edited_model", "edits": [3], "layers": 1}'])
def test_a_note_that_cannot_be_read_is_left_alone(source, tmp_path, damage):
    edit = random_edit(load(source))
    edit.to_hf(source, tmp_path / "out")
    (tmp_path / "out" / "rome_lens.json").write_text(damage)
    assert "is in these weights already" in refused(EditStateError, edit.apply, load(tmp_path / "out"))


@pytest.mark.parametrize("earlier", [False, True])
def test_the_second_moment_of_the_unedited_layer_serves_the_exported_folder(source, tmp_path, backend, earlier):
    """F13: as it serves a second edit in memory. The keys of the edited layer are what they were."""
    model = load(source, backend)
    moments = rl.SecondMoment.collect(model, layers=[1, 2], texts=["abc def ghi"] * 40)
    edit = random_edit(model, size=0.3)
    edit.to_hf(source, tmp_path / "out")
    if earlier:  # a note as earlier versions wrote it
        path = tmp_path / "out" / "rome_lens.json"
        note = json.loads(path.read_text())
        del note["layers"], note["edits"][0]["id"], note["edits"][0]["made_on"]
        path.write_text(json.dumps(note))
    edited = load(tmp_path / "out", backend)
    with edit.applied(model):
        expected = rome(model, second_moment=moments[1], v_num_grad_steps=2).edit(REQUEST)
    found = rome(edited, second_moment=moments[1], v_num_grad_steps=2).edit(REQUEST)
    torch.testing.assert_close(found.v, expected.v, rtol=1e-3, atol=1e-4)
    above = rome(edited, layer=2, second_moment=moments[2], v_num_grad_steps=2).edit(REQUEST)
    assert any("edits of layer 1, below layer 2, move its keys" in note for note in above.notes)
    w_out(edited).mul_(1.5)
    assert "is another model" in refused(ModelMismatchError, rl.ROME, edited, layer=1, second_moment=moments[1])


@pytest.mark.parametrize("tuned", [False, True])
def test_an_edit_says_what_was_in_the_weights_when_it_was_found(source, tmp_path, backend, tuned):
    """F13: alone it does something else than beside the other."""
    model = load(source, backend)
    editor = rl.FineTuning(model, layer=1, num_steps=2) if tuned else rome(model, v_num_grad_steps=2)
    alone, other = editor.edit(REQUEST), random_edit(model, seed=1)
    assert alone.made_on == ()
    assert not any("found with" in note for note in alone.notes)
    other.apply(model)
    found = editor.edit(REQUEST)
    other.revert(model)
    assert found.made_on == (f"The tower is in → Rome 1 (layer 1, {other.id})",)
    said = f"found with The tower is in → Rome 1 (layer 1, {other.id}) in the weights: alone it does something else"
    assert said in found.notes
    assert "found with 1 others in the weights" in repr(found)
    found.save(tmp_path / "edit.safetensors")
    assert rl.load_edit(tmp_path / "edit.safetensors").made_on == found.made_on
    other.to_hf(source, tmp_path / "out")
    edited = load(tmp_path / "out", backend)
    again = rl.FineTuning(edited, layer=2, num_steps=2).edit(REQUEST)
    assert again.made_on == found.made_on


def test_commands_that_are_advised_name_what_was_loaded(source, tmp_path, backend):
    """F13: the whole path, as a shell takes it, and not its last part, which is another model's name."""
    model, quoted = load(source, backend), shlex.quote(str(source.resolve()))
    moments = rl.SecondMoment.collect(model, layers=[1], texts=["abc def"] * 9)
    moments[1].save(tmp_path / "c.safetensors")
    steps = [
        (rl.SettingError, lambda: rl.ROME(model, layer=1)),
        (rl.ModelMismatchError, lambda: rl.ROME(model, layer=2, second_moment=moments[1])),
        (rl.ModelMismatchError, lambda: rl.SecondMoment.load(tmp_path / "c.safetensors", layer=2)),
        (rl.ModelMismatchError, lambda: rl.ROME(model, layer=1, second_moment=torch.eye(3))),
    ]
    for error, step in steps:
        assert f"rome-lens stats --model {quoted} --layer" in refused(error, step)
    edit = rome(model, second_moment=moments[1], v_num_grad_steps=2).edit(REQUEST)
    assert str(source.parent) not in json.dumps(edit.to_dict())
