"""Edits as objects: in the weights and through hooks, on and off again."""

import copy
import logging

import pytest
import torch
from architectures import BACKENDS, BRIDGE, HOOKED, architecture, own
from edits import TOKENS, assert_close, logits, random_edit, w_out
from hosts import EACH_BACKEND, hosted, needs_hooked
from refused import refused

import rome_lens as rl
from rome_lens.editing import record
from rome_lens.editing.edit import Edit
from rome_lens.errors import EditStateError, ModelError, ModelMismatchError, SettingError
from rome_lens.loading.tiny import tiny_model

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:transformer_lens")


@pytest.mark.parametrize(("name", "backend"), hosted(without=["mixtral"]))
def test_hooks_and_weights_give_the_same(name, backend):
    model = architecture(name, backend)
    original, unedited = w_out(model).clone(), logits(model)
    edit = random_edit(model)
    hooked = logits(model, edit.hooks(model))
    with edit.applied(model):
        assert not torch.equal(w_out(model), original)
        weighed = logits(model)
    assert torch.equal(w_out(model), original)
    assert torch.equal(logits(model), unedited)
    # In Hugging Face's models some norms and softmaxes are in float32, whatever the weights are.
    assert_close(hooked, weighed, rtol=1e-10 if backend == HOOKED else 1e-6)
    assert (hooked - unedited).norm() > 1e-2 * unedited.norm()


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float32, 1e-5), (torch.bfloat16, 0.1)])
def test_hooks_and_weights_in_other_precisions(dtype, rtol, backend):
    model = own("llama", backend, dtype=dtype)
    original, edit = w_out(model).clone(), random_edit(model)
    hooked = logits(model, edit.hooks(model))
    with edit.applied(model):
        assert w_out(model).dtype == dtype
        assert_close(hooked, logits(model), rtol)
    assert torch.equal(w_out(model), original)


def test_rows_that_are_edited_and_rows_that_are_not(backend):
    model = architecture("gpt2", backend)
    edit, tokens = random_edit(model), TOKENS.repeat(2, 1)
    plain, edited = logits(model, tokens=tokens), logits(model, edit.hooks(model), tokens)
    for rows in ([0, 3], (1,), [-1], [2, 2], [], range(4)):
        chosen = torch.zeros(4, dtype=torch.bool)
        chosen[list(rows)] = True
        expected = torch.where(chosen[:, None, None], edited, plain)
        assert_close(logits(model, edit.hooks(model, rows=rows), tokens), expected)


@pytest.mark.parametrize("rows", [[4], [-5], [0, 7]])
def test_rows_that_the_batch_does_not_have(gpt2, rows):
    hooks = random_edit(gpt2).hooks(gpt2, rows=rows)
    said = refused(SettingError, logits, gpt2, hooks, TOKENS.repeat(2, 1))
    assert said == f"rows are {rows}, and the batch has rows 0 to 3"


def test_every_row_carries_edits_of_its_own(backend):
    model = architecture("neox", backend)
    a, b = random_edit(model, seed=1), random_edit(model, seed=2)
    c, d = random_edit(model, layer=3, seed=3), random_edit(model, layer=0, seed=4)
    rows = [a, None, (a, b), [c], (), (d, c, b), b]
    tokens = TOKENS[:1].repeat(len(rows), 1)
    together = logits(model, rl.hooks_for_rows(model, rows), tokens)
    for row, edits in enumerate(rows):
        several = [edits] if isinstance(edits, Edit) else edits or []
        for edit in several:
            edit.apply(model)
        alone = logits(model, tokens=tokens[:1])[0]
        for edit in several:
            edit.revert(model)
        assert_close(together[row], alone)
    joined = [hook for edit in (d, c, b) for hook in edit.hooks(model, rows=[5])]
    assert_close(logits(model, joined, tokens)[5], together[5])
    assert rl.hooks_for_rows(model, [None, None]) == []
    said = refused(SettingError, logits, model, rl.hooks_for_rows(model, rows), tokens[:3])
    assert said == "there are edits for 7 rows, and the batch has 3; give as many"


@needs_hooked
def test_an_edit_goes_from_one_class_to_the_other():
    hooked, bridge = (architecture("gpt2", backend) for backend in (HOOKED, BRIDGE))
    edit = random_edit(hooked)
    assert_close(logits(bridge, edit.hooks(bridge)), logits(hooked, edit.hooks(hooked)), 1e-6)
    processed = own("gpt2", HOOKED)
    processed.process_weights_()
    with edit.applied(hooked), edit.applied(processed):
        one, other = (logits(model).log_softmax(dim=-1) for model in (hooked, processed))
    assert_close(one, other, 1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_whatever_the_order_the_bits_are_the_same(backend, dtype):
    model = own("llama", backend, dtype=dtype)
    original = w_out(model).clone()
    edits = [random_edit(model, seed=seed) for seed in range(4)]
    found = []
    for order in ((0, 1, 2), (2, 0, 1), (1, 3, 2, 0)):
        for i in order:
            edits[i].apply(model)
        if 3 in order:
            edits[3].revert(model)
        found.append(w_out(model).clone())
        assert rl.applied_edits(model) == tuple(edits[i] for i in order if i != 3)
        for i in (1, 0, 2):
            assert edits[i].is_applied(model)
            edits[i].revert(model)
            assert not edits[i].is_applied(model)
        assert torch.equal(w_out(model), original)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
    exact = original.double() + sum(torch.outer(edit.u.double(), edit.v.double()) for edit in edits[:3])
    if dtype == torch.float64:
        torch.testing.assert_close(found[0], exact, rtol=1e-14, atol=1e-14)
    else:
        assert torch.equal(found[0], exact.to(dtype))
    assert rl.applied_edits(model) == ()
    assert "_rome_lens_edits" not in model.__dict__


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_many_edits_come_and_go_by_a_sum_that_is_kept(dtype, monkeypatch):
    """Each state has the bits of a model that has just these edits, whether their sum is kept or taken anew."""
    model, fresh = own("llama", BACKENDS[0], dtype=dtype), own("llama", BACKENDS[0], dtype=dtype)
    edits, original, on = [random_edit(model, seed=seed) for seed in range(9)], w_out(model).clone(), []
    generator = torch.Generator().manual_seed(0)
    for step in range(40):
        number = int(torch.randint(0, len(edits), (1,), generator=generator))
        monkeypatch.setattr(record, "_FEW", 2)
        (edits[number].revert if number in on else edits[number].apply)(model)
        on = [i for i in on if i != number] if number in on else [*on, number]
        monkeypatch.setattr(record, "_FEW", 100)
        if step % 4 == 0:
            for i in sorted(on):
                edits[i].apply(fresh)
            assert torch.equal(w_out(model), w_out(fresh))
            for i in sorted(on):
                edits[i].revert(fresh)
    for number in on:
        edits[number].revert(model)
    assert torch.equal(w_out(model), original)


def test_edits_are_told_by_layer_and_order(backend):
    model = own("gpt2", backend)
    late, first, second = random_edit(model, 3), random_edit(model, 0, seed=2), random_edit(model, 0, seed=1)
    with late.applied(model), first.applied(model), second.applied(model) as inside:
        assert inside is model
        assert rl.applied_edits(model) == (first, second, late)
    assert rl.applied_edits(model) == ()
    assert rl.applied_edits("no model") == ()


def test_the_block_ends_with_the_edit_off_whatever_happens():
    model = own("gpt2", BACKENDS[0])
    original, edit, other = w_out(model).clone(), random_edit(model), random_edit(model, seed=1)
    with pytest.raises(KeyboardInterrupt), edit.applied(model):
        raise KeyboardInterrupt
    with pytest.raises(ZeroDivisionError), edit.applied(model), other.applied(model):
        raise ZeroDivisionError
    with edit.applied(model):
        edit.revert(model)
    with pytest.raises(EditStateError, match="is applied already"), edit.applied(model), edit.applied(model):
        pass
    assert torch.equal(w_out(model), original)
    with edit.applied(model):
        other.apply(model)
    assert rl.applied_edits(model) == (other,)
    other.revert(model)
    assert torch.equal(w_out(model), original)


NAME = "the edit 'The tower is in' -> 'Rome 0' (layer 1)"
CHANGED = (
    "W_out of layer 1 was changed outside rome_lens after it was edited, and undoing the edit would undo that change "
    "too: put the weights back as they were, edited or not, or keep them as they are with "
    "rome_lens.forget_edits(model, layer=1)"
)


def test_states_that_do_not_allow_it(backend):
    model = own("gpt2", backend)
    edit, other = random_edit(model), random_edit(model, seed=1)
    said = refused(EditStateError, edit.revert, model)
    assert said == f"{NAME} is not applied to this model; there is nothing to revert"
    edit.apply(model)
    with pytest.raises(EditStateError) as caught:
        edit.apply(model)
    assert str(caught.value) == f"{NAME} is applied already; revert it first, or leave it as it is"
    for hooks in (lambda: edit.hooks(model), lambda: rl.hooks_for_rows(model, [None, [other, edit]])):
        assert refused(EditStateError, hooks) == (
            "the edit 'The tower is in' -> 'Rome 0' is in this model's weights already, and through hooks it would "
            "count twice; revert it first"
        )
    # Another edit through hooks is on top of those in the weights.
    through_hooks = logits(model, other.hooks(model))
    with other.applied(model):
        assert_close(through_hooks, logits(model))
    assert "is not applied to this model" in refused(EditStateError, other.revert, model)


def test_changes_of_somebody_elses_are_not_written_over(backend):
    model = own("llama", backend)
    edit, other = random_edit(model), random_edit(model, seed=1)
    original = w_out(model).clone()
    edit.apply(model)
    edited = w_out(model).clone()
    w_out(model).mul_(1.0001)
    changed = w_out(model).clone()
    for step in (lambda: edit.revert(model), lambda: other.apply(model)):
        assert refused(EditStateError, step) == CHANGED
        assert torch.equal(w_out(model), changed)
        assert rl.applied_edits(model) == (edit,)
    w_out(model).copy_(edited)
    edit.revert(model)
    assert torch.equal(w_out(model), original)


def test_a_model_that_changed_its_precision(backend, caplog):
    caplog.set_level(logging.ERROR)
    model = own("llama", backend, dtype=torch.float32)
    original, edit = w_out(model).clone(), random_edit(model)
    edit.apply(model)
    model.to(torch.float64)
    assert refused(EditStateError, edit.revert, model) == (
        "the model was torch.float32 when layer 1 was edited and is torch.float64 now; bring it back with "
        "model.to(torch.float32), then revert, or keep the weights as they are with rome_lens.forget_edits(model, "
        "layer=1)"
    )
    model.to(torch.float32)
    edit.revert(model)
    assert torch.equal(w_out(model), original)
    edit.apply(model)
    model.to(torch.bfloat16)
    assert "is torch.bfloat16 now" in refused(EditStateError, edit.revert, model)
    model.to(torch.float32)  # but the bits are gone
    assert "was changed outside rome_lens" in refused(EditStateError, edit.revert, model)


def test_another_model_of_the_same_shape(backend):
    model, stranger = architecture("gpt2", backend), own("gpt2", backend)
    edit = random_edit(model)
    w_out(stranger).copy_(w_out(model).roll(1, dims=0))
    original = w_out(stranger).clone()
    expected = (
        "the edit was made for layer 1 of gpt2, and gpt2 is another model (other weights in layer 1); force=True edits "
        "it all the same"
    )
    for step in (edit.apply, edit.hooks, lambda m: rl.hooks_for_rows(m, [edit, None])):
        assert refused(ModelMismatchError, step, stranger) == expected
    hooked = logits(stranger, edit.hooks(stranger, force=True))
    assert_close(logits(stranger, rl.hooks_for_rows(stranger, [edit, edit], force=True)), hooked)
    with edit.applied(stranger, force=True):
        assert_close(logits(stranger), hooked)
    assert torch.equal(w_out(stranger), original)


@pytest.mark.parametrize("force", [False, True])
def test_another_shape(llama, gpt2, force):
    edit = random_edit(gpt2)
    for step in (edit.apply, edit.hooks):
        assert refused(ModelMismatchError, step, llama, force=force) == (
            "the edit was made for layer 1 of gpt2, and llama is another model (d_model 16 against 32)"
        )


def test_a_layer_that_the_other_model_does_not_have(gpt2):
    edit = random_edit(gpt2, 3)
    said = refused(ModelMismatchError, edit.apply, tiny_model(BACKENDS[0]), force=True)
    assert said.endswith("tiny is another model (layer 3 of 2)")


def test_a_copy_of_an_edited_model_has_its_own_record(backend):
    model = own("llama", backend)
    original, edit = w_out(model).clone(), random_edit(model)
    edit.apply(model)
    twin = copy.deepcopy(model)
    edit.revert(model)
    assert (edit.is_applied(model), edit.is_applied(twin)) == (False, True)
    assert not torch.equal(w_out(twin), original)
    edit.revert(twin)
    assert torch.equal(w_out(twin), original)


@pytest.mark.parametrize(("name", "kept"), [("llama", True), ("gpt2", False)])
@pytest.mark.parametrize("no_processing", [True, False])
def test_a_bridge_that_is_brought_into_compatibility_mode(name, kept, no_processing):
    """Processing replaces the parameters. Where it leaves W_out's numbers alone, so does the edit's way back."""
    model = own(name, BRIDGE, dtype=torch.float32)
    original, edit = w_out(model).clone(), random_edit(model)
    edit.apply(model)
    model.enable_compatibility_mode(disable_warnings=True, no_processing=no_processing)
    if kept or no_processing:
        edit.revert(model)
        assert torch.equal(w_out(model), original)
    else:
        assert refused(EditStateError, edit.revert, model) == CHANGED


def _kept(model):
    return {name: x.clone() for name, x in model.state_dict().items()}


@pytest.mark.parametrize("assign", [False, True])
def test_weights_that_were_loaded_as_they_were_carry_no_edit(backend, assign):
    """F4: a record that the weights belie is dropped by whatever asks for it."""
    model = own("llama", backend, dtype=torch.float32)
    edit, other, kept = random_edit(model), random_edit(model, seed=1), _kept(model)
    original, plain, hooked = w_out(model).clone(), logits(model), logits(model, edit.hooks(model))

    def restored():
        edit.apply(model)
        model.load_state_dict({name: x.clone() for name, x in kept.items()}, assign=assign)
        return model

    assert not edit.is_applied(restored())
    assert rl.applied_edits(restored()) == ()
    assert rl.forget_edits(restored()) == ()
    assert "there is nothing to revert" in refused(EditStateError, edit.revert, restored())
    assert torch.equal(logits(restored(), edit.hooks(model)), hooked)
    assert_close(logits(restored(), rl.hooks_for_rows(model, [edit, None]))[1], plain[1], 1e-6)
    for step in (edit.apply, other.apply):
        step(restored())
        assert len(rl.applied_edits(model)) == 1
        rl.applied_edits(model)[0].revert(model)
        assert torch.equal(w_out(model), original)
    with edit.applied(model):
        model.load_state_dict(kept)
    assert torch.equal(logits(model), plain)
    assert "_rome_lens_edits" not in model.__dict__


def test_weights_of_a_moment_between_two_edits(backend):
    """F4: what the loaded weights hold is what is applied; layers do not ask for one another."""
    model = own("llama", backend, dtype=torch.float32)
    first, second, third = (random_edit(model, seed=seed) for seed in range(3))
    elsewhere, original = random_edit(model, layer=3, seed=3), w_out(model).clone()
    states = []
    for edit in (elsewhere, first, second, third):
        edit.apply(model)
        states.append(_kept(model))
    model.load_state_dict(states[1])
    assert rl.applied_edits(model) == (first, elsewhere)
    second.apply(model)
    assert torch.equal(w_out(model), _of(states[2], model))
    third.apply(model)
    everything = _kept(model)
    second.revert(model)
    without_second = _kept(model)
    second.apply(model)
    model.load_state_dict(everything)
    model.load_state_dict(without_second)
    assert rl.applied_edits(model) == (first, third, elsewhere)
    for edit in (third, first):
        edit.revert(model)
    assert torch.equal(w_out(model), original)
    assert rl.applied_edits(model) == (elsewhere,)


def _of(state, model):
    """W_out of layer 1 in a saved state."""
    twin = copy.deepcopy(model)
    twin.load_state_dict(state)
    return w_out(twin)


def _train(model):
    w_out(model).mul_(1.0001)


def _load_other_weights(model):
    model.load_state_dict({name: x * 1.0001 for name, x in model.state_dict().items()}, assign=True)


def _halve(model):
    model.to(torch.bfloat16)


def _halve_and_back(model):
    model.to(torch.bfloat16)
    model.to(torch.float32)


@pytest.mark.parametrize("change", [_train, _load_other_weights, _halve, _halve_and_back])
def test_edits_in_weights_that_others_changed_can_be_forgotten(backend, change, caplog):
    """F4: no dead end: the error names the layer and the way on, and on it goes."""
    caplog.set_level(logging.ERROR)
    model = own("llama", backend, dtype=torch.float32)
    edit, elsewhere = random_edit(model), random_edit(model, layer=3, seed=1)
    edit.apply(model)
    change(model)
    changed = w_out(model).clone()
    said = refused(EditStateError, edit.revert, model)
    assert said.endswith("as they are with rome_lens.forget_edits(model, layer=1)")
    elsewhere.apply(model, force=True)
    elsewhere.revert(model)
    assert rl.forget_edits(model, layer=3) == ()
    assert rl.forget_edits(model) == (edit,)
    assert (rl.applied_edits(model), edit.is_applied(model)) == ((), False)
    assert torch.equal(w_out(model), changed)
    another = random_edit(model, seed=2)
    another.apply(model)
    another.revert(model)
    assert torch.equal(w_out(model), changed)


def test_forgetting_asks_for_a_model_and_a_layer_of_it(gpt2):
    with pytest.raises(ModelError, match="expected a HookedTransformer or a TransformerBridge, got str"):
        rl.forget_edits("no model")
    assert "layer is 9" in refused(SettingError, rl.forget_edits, gpt2, layer=9)


def test_an_edit_of_weights_that_are_no_numbers_goes_on_and_off(backend):
    model = own("llama", backend, dtype=torch.float32)
    edit = random_edit(model)
    w_out(model)[2, 3] = float("nan")
    original = w_out(model).clone()
    edit.apply(model, force=True)
    assert edit.is_applied(model)
    edit.revert(model)
    torch.testing.assert_close(w_out(model), original, rtol=0, atol=0, equal_nan=True)


def test_an_edit_that_rounds_to_nothing_is_applied_all_the_same(backend):
    model = own("llama", backend, dtype=torch.bfloat16)
    edit = random_edit(model, size=1e-6)
    original = w_out(model).clone()
    edit.apply(model)
    assert torch.equal(w_out(model), original)
    assert edit.is_applied(model)
    edit.revert(model)
    assert not edit.is_applied(model)


def test_an_editor_of_a_layer_that_others_changed_asks_to_forget(backend):
    """The kept matrix is no longer what the layer was before: nothing is measured against it in silence."""
    model = own("llama", backend, dtype=torch.float32)
    random_edit(model).apply(model)
    _train(model)
    moment = torch.eye(w_out(model).shape[0])
    assert "forget_edits" in refused(EditStateError, rl.ROME, model, layer=1, second_moment=moment)
    rl.ROME(model, layer=2, second_moment=moment)
    rl.forget_edits(model)
    rl.ROME(model, layer=1, second_moment=moment)


def test_edits_are_equal_when_their_ids_are(backend, tmp_path):
    model = own("llama", backend, dtype=torch.float32)
    edit, other = random_edit(model), random_edit(model, seed=1)
    edit.save(tmp_path / "edit.safetensors")
    loaded = rl.load_edit(tmp_path / "edit.safetensors")
    assert loaded == edit
    assert (loaded != other, edit == 3, len({edit, loaded, other})) == (True, False, 2)
    with edit.applied(model):
        assert loaded in rl.applied_edits(model)
        assert other not in rl.applied_edits(model)


@pytest.mark.parametrize("backend", EACH_BACKEND)
def test_an_edit_that_came_in_with_loaded_weights_is_not_said_to_be_absent(backend):
    model = own("llama", backend)
    edit = random_edit(model)
    edit.apply(model)
    edited = _kept(model)
    edit.revert(model)
    model.load_state_dict(edited)
    assert "came into this model's weights by other means than rome_lens" in refused(EditStateError, edit.revert, model)
