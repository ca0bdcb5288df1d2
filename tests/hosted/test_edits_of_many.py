"""Edits of several layers, ranks and requests: in the weights, through hooks, in files and folders."""

import json
from dataclasses import replace

import pytest
import torch
from architectures import BACKENDS, BRIDGE, own, save
from edits import TOKENS, assert_close, changed, logits, random_edit, w_out
from refused import refused
from tiny_rome import REQUEST, rome

import rome_lens as rl
from rome_lens.backends import as_backend
from rome_lens.editing import hooks as hooks_module
from rome_lens.editing.edit import Edit
from rome_lens.editing.outcome import Earlier
from rome_lens.editing.patch import EditedLayer
from rome_lens.editing.weight_update import Dense, LowRank
from rome_lens.errors import EditStateError, SettingError

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:transformer_lens")
RANK, LAYERS = 3, (0, 2)


def many(model, *, seed=0, dense=(), layers=LAYERS):
    """An edit of some layers and as many requests, each layer of rank 3 or a whole matrix."""
    singles = [random_edit(model, layer, seed=seed + layer) for layer in layers]
    changes = []
    for single in singles:
        d_mlp, d_model = single.update.shape
        generator = torch.Generator().manual_seed(seed)
        left, right = (torch.randn(RANK, width, generator=generator).to(single.u) for width in (d_mlp, d_model))
        update = LowRank(single.layer, left / left.norm(), right * single.v.norm() / right.norm())
        if single.layer in dense:
            update = Dense(single.layer, update.matrix)
        changes.append(EditedLayer(update, single.fingerprint, 0.5, single.module, single.module_transposed))
    return Edit(tuple(one.outcomes[0] for one in singles), tuple(changes), singles[0].origin)


def matrices(model):
    return [w_out(model, layer).clone() for layer in range(as_backend(model).n_layers)]


def added(matrix, *updates):
    """The matrix with updates, the plain way."""
    return matrix + sum(update.rows(slice(None)) for update in updates)


def same(some, others):
    return all(torch.equal(one, other) for one, other in zip(some, others, strict=True))


@pytest.mark.parametrize("dense", [(), (2,), LAYERS], ids=str)
def test_weights_and_hooks_of_all_layers(backend, dense):
    model = own("llama", backend)
    edit, single = many(model, dense=dense), random_edit(model, 2, seed=7)
    before, plain = matrices(model), logits(model)
    hooked = logits(model, edit.hooks(model))
    with edit.applied(model):
        for layer, matrix in enumerate(matrices(model)):
            here = next((here.update for here in edit.layers if here.layer == layer), None)
            torch.testing.assert_close(matrix, before[layer] if here is None else added(before[layer], here))
        assert_close(hooked, logits(model), 1e-6)
        assert edit.is_applied(model)
        with single.applied(model):
            assert rl.applied_edits(model) == (edit, single)
            both = matrices(model)
    with single.applied(model), edit.applied(model):
        assert same(matrices(model), both)
        assert rl.applied_edits(model) == (edit, single)
    assert same(matrices(model), before)
    assert_close(logits(model), plain)
    by_row = logits(model, rl.hooks_for_rows(model, [None, [edit, single]]))
    assert_close(by_row[0], plain[0])
    with edit.applied(model), single.applied(model):
        assert_close(by_row[1], logits(model)[1], 1e-6)
    assert_close(logits(model, edit.hooks(model, rows=[1]))[0], plain[0])


def test_the_same_update_of_many_rows_is_multiplied_once(monkeypatch):
    model = own("llama", BACKENDS[0])
    edit, calls = many(model, layers=(1,)), []
    real = LowRank.gain
    monkeypatch.setattr(LowRank, "gain", lambda self, keys: calls.append(len(keys)) or real(self, keys))
    tokens = TOKENS[:1].repeat(4, 1)
    found = logits(model, rl.hooks_for_rows(model, [edit, None, [edit, edit], edit]), tokens)
    assert calls == [3]
    with edit.applied(model):
        once = logits(model, tokens=tokens)
    assert_close(found[0], once[0], 1e-6)
    assert_close(found[3], once[3], 1e-6)
    with edit.scaled(2).applied(model):
        assert_close(found[2], logits(model, tokens=tokens)[2], 1e-6)


@pytest.mark.parametrize("dense", [(), LAYERS], ids=str)
def test_an_edit_of_another_strength(dense):
    model = own("llama", BACKENDS[0])
    edit = many(model, dense=dense)
    half = edit.scaled(0.5)
    for here, halved in zip(edit.layers, half.layers, strict=True):
        torch.testing.assert_close(halved.update.matrix, here.update.matrix / 2)
        assert halved.relative_norm == here.relative_norm / 2
    assert (half.outcomes, half.origin) == (edit.outcomes, edit.origin)
    assert half.id != edit.id == half.scaled(2).id
    for factor in ("2", None, True, float("nan")):
        assert "expected a finite number" in refused(SettingError, edit.scaled, factor)


def test_all_layers_or_none(backend, monkeypatch):
    model = own("llama", backend)
    edit, other, before = many(model), random_edit(model, 0, seed=5), matrices(model)
    other.apply(model)
    with_other = matrices(model)
    kind = type(as_backend(model).w_out(2))
    real, calls = kind.write, []

    def failing(self, matrix):
        calls.append(matrix)
        if len(calls) == 2:
            raise MemoryError("no room")
        real(self, matrix)

    monkeypatch.setattr(kind, "write", failing)
    with pytest.raises(MemoryError):
        edit.apply(model)
    assert same(matrices(model), with_other)
    assert rl.applied_edits(model) == (other,)
    edit.apply(model)
    with_both = matrices(model)
    calls.clear()
    with pytest.raises(MemoryError):
        edit.revert(model)
    assert same(matrices(model), with_both)
    edit.revert(model)
    other.revert(model)
    assert same(matrices(model), before)
    assert "_rome_lens_edits" not in model.__dict__


def test_a_layer_that_was_put_back_by_other_means(backend):
    """The edit is then no longer applied, and what is left of it can be taken out."""
    model = own("llama", backend)
    edit, before = many(model), matrices(model)
    edit.apply(model)
    w_out(model, 2).copy_(before[2])
    assert not edit.is_applied(model)
    assert "is applied already; revert it first" in refused(EditStateError, edit.apply, model)
    edit.revert(model)
    assert same(matrices(model), before)
    edit.apply(model)
    w_out(model, 2).mul_(1.5)
    assert "W_out of layer 2 was changed outside rome_lens" in refused(EditStateError, edit.revert, model)


def test_files(tmp_path):
    model = own("llama", BACKENDS[0])
    for name, edit in (("factors", many(model)), ("matrices", many(model, dense=LAYERS, seed=1))):
        path = tmp_path / name
        if name == "matrices":
            outcomes = tuple(replace(outcome, loss_curve=(2.0, 1.0)) for outcome in edit.outcomes)
            edit = Edit(outcomes, edit.layers, edit.origin)
        edit.save(path)
        loaded = rl.load_edit(path)
        assert (loaded.id, loaded.outcomes, loaded.origin) == (edit.id, edit.outcomes, edit.origin)
        assert loaded.to_dict() == edit.to_dict()
        json.dumps(edit.to_dict())
        with edit.applied(model):
            assert loaded.is_applied(model)


def test_ids_tell_such_edits_apart():
    model = own("llama", BACKENDS[0])
    edit = many(model)
    others = [
        many(model, seed=1),
        many(model, layers=(0, 1)),
        Edit(edit.outcomes[:1], edit.layers, edit.origin),
        Edit(edit.outcomes[::-1], edit.layers, edit.origin),
        Edit(edit.outcomes, edit.layers[:1], edit.origin),
        Edit(edit.outcomes, edit.layers[1:], edit.origin),
    ]
    assert len({edit.id, *(other.id for other in others)}) == 7


def test_what_is_of_one_request_one_layer_or_rank_one_says_so():
    edit = many(own("llama", BACKENDS[0]))
    assert [request.target_new for request in edit.requests] == ["Rome 0", "Rome 2"]
    assert edit.rank == 2 * RANK
    assert edit.words == "The tower is in → Rome 0 and 1 more"
    assert repr(edit) == "Edit(2 requests, layers 0, 2 of llama, r-rome, 2 targets reached)"
    for name in ("request", "before", "after", "old_answer", "loss_curve"):
        said = refused(SettingError, getattr, edit, name)
        assert said == f"the edit has 2 requests, and {name} is of one; take .outcomes"
    for name in ("layer", "update", "u", "v", "delta", "key_norm", "relative_norm", "module"):
        said = refused(SettingError, getattr, edit, name)
        assert said == f"the edit changes layers 0, 2, and {name} is of one; take .layers"
    one = Edit(edit.outcomes[:1], edit.layers[:1], edit.origin)
    assert "the edit is of rank 3, and u is of rank one" in refused(SettingError, getattr, one, "u")
    assert "of low rank and keeps no matrix" in refused(SettingError, getattr, one, "delta")
    whole = many(own("llama", BACKENDS[0]), layers=(1,), dense=(1,))
    assert whole.rank is None
    assert "the edit is a whole matrix and has no v" in refused(SettingError, getattr, whole, "v")


def test_folders(tmp_path):
    """A whole model gives the edited model's logits; an adapter holds the factors of all edits on a layer."""
    folder = tmp_path / "source"
    save("llama", folder)
    model = rl.load_model(folder, backend=BRIDGE, device="cpu")
    edit = many(model)
    edit.to_hf(folder, tmp_path / "out")
    note = json.loads((tmp_path / "out" / "rome_lens.json").read_text())
    assert [(held["layer"], held["edits"]) for held in note["layers"]] == [(0, [edit.id]), (2, [edit.id])]
    edited = rl.load_model(tmp_path / "out", backend=BRIDGE, device="cpu")
    with edit.applied(model):
        torch.testing.assert_close(logits(edited), logits(model), rtol=1e-5, atol=1e-5)
    assert "is in these weights already" in refused(EditStateError, edit.apply, edited)
    found = rl.FineTuning(edited, layer=1, num_steps=1).edit(REQUEST)
    assert found.made_on == (f"{edit.words} (layers 0, 2, {edit.id})",)
    edit.to_peft(tmp_path / "adapter")
    settings = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (settings["r"], len(settings["target_modules"])) == (RANK, 2)
    peft = pytest.importorskip("peft")
    from transformers import AutoModelForCausalLM

    adapted = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder), tmp_path / "adapter")
    with edit.applied(model), torch.no_grad():
        torch.testing.assert_close(adapted(TOKENS).logits, logits(model), rtol=1e-4, atol=1e-4)


def test_edits_that_were_found_on_top_of_one_that_is_taken_out(backend):
    model = own("llama", backend)
    first, second = random_edit(model, 0, seed=1), random_edit(model, 1, seed=2)
    editor = rome(model, v_num_grad_steps=1)
    first.apply(model)
    second.apply(model)
    found = editor.edit(REQUEST)
    assert found.origin.made_on == tuple(
        Earlier(f"{edit.words} (layer {edit.layer}, {edit.id})", (edit.layer,), edit.id) for edit in (first, second)
    )
    assert found.made_on_ids == {first.id, second.id}
    found.apply(model)
    assert rl.stale_edits(model) == ()
    with pytest.warns(UserWarning, match=r"was in the weights when the edit .*'xy' \(layer 1\) was found") as caught:
        first.revert(model)
    assert str(caught[0].message).startswith("the edit 'The tower is in' -> 'Rome 1' (layer 0) was in the weights when")
    assert caught[0].filename == __file__
    assert rl.stale_edits(model) == (found,)
    first.apply(model)
    assert rl.stale_edits(model) == ()
    found.revert(model)
    first.revert(model)  # nothing was found on top of it that is still there
    second.revert(model)
    assert rl.stale_edits(model) == rl.stale_edits("no model") == ()


def test_a_batch_of_updates_by_owner():
    """What evaluation asks for: rows that belong to records, in any number and order."""
    model = own("llama", BACKENDS[0])
    backend = as_backend(model)
    single, several = random_edit(model, 1, seed=1), many(model, layers=(1, 3))
    updates = [[here.update for here in edit.layers] for edit in (single, several)]
    rows = hooks_module.RowUpdates(backend, [*updates, []])
    assert (rows.start, rows.n_owners, rows.of(2).start) == (1, 3, backend.n_layers)
    tokens = TOKENS[:1].repeat(5, 1)
    found = logits(model, rows.all_hooks(torch.tensor([1, 2, 0, 0, 1])), tokens)
    alone = [logits(model, edit.hooks(model), tokens[:1])[0] for edit in (single, several)]
    for row, expected in enumerate((alone[1], logits(model, tokens=tokens)[0], alone[0], alone[0], alone[1])):
        assert_close(found[row], expected, 1e-6)
    assert_close(logits(model, rows.of(1).all_hooks(torch.tensor([0])), tokens[:1])[0], alone[1], 1e-6)
    assert changed(single, seconds=1.0) == single
