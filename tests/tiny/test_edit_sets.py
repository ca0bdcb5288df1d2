"""What a set of facts can do: other sets of it, files, folders, and beside other edits."""

import json
from dataclasses import replace

import pytest
import torch
from architectures import BACKENDS, own, save
from edits import TOKENS, assert_close, logits, random_edit, w_out
from fact_sets import random_facts, requests, set_of
from refused import refused
from safetensors.torch import load_file
from tiny_rome import moment

import rome_lens as rl
from rome_lens.editing.edit import Edit
from rome_lens.editing.together.edit_set import EditSet
from rome_lens.editing.together.set_fact import check_requests
from rome_lens.editing.weight_update import Dense
from rome_lens.errors import ArtefactError, EditError, EditStateError, SettingError

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:transformer_lens")

N, D_MLP, LAYER = 5, 64, 1
FOUND = {"v_num_grad_steps": 2, "context_templates": ["{}", "Well. {}"], "least_scale": None}
REQUESTS = requests(100)


def editor_of(model, kind=rl.MEMIT, layer=LAYER, **changes):
    return kind(model, layers=[layer], second_moments={layer: moment(D_MLP)}, **{**FOUND, **changes})


@pytest.fixture(scope="module")
def model():
    """Left as it is by every test."""
    return own("gpt2", BACKENDS[0]).to(torch.float32)


@pytest.fixture(scope="module")
def editor(model):
    return editor_of(model)


@pytest.fixture(scope="module")
def found(editor):
    """Two facts that were found."""
    return editor.edit_together(REQUESTS[:2], workers=1)


@pytest.fixture(scope="module")
def facts(editor, found):
    return random_facts(editor, found[0], REQUESTS)


@pytest.fixture
def some(found, facts):
    return set_of(found, facts[:N])


def same_bits(one, other):
    mine, theirs = one.layers[0].update.tensors, other.layers[0].update.tensors
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


# --- other sets -----------------------------------------------------------------------------------------------------


def test_facts_by_their_names(some, facts):
    for named in (2, -3, facts[2], facts[2].id, REQUESTS[2]):
        fewer = some.without(named)
        assert list(fewer) == [facts[0], facts[1], facts[3], facts[4]]
        assert fewer == some.without(-3)
    assert some.without() == some
    assert some.without(0, facts[3]) == some.without(3, 0) == some.without(0).without(facts[3])
    for unknown in (5, -6, True, 1.0, None, "0123456789abcdef", facts[7], REQUESTS[7], [1, 2]):
        said = refused(SettingError, some.without, unknown)
        assert "the set has no fact" in said
        assert said.endswith("expected one of its facts, a number from 0 to 4, an id, or a request")
    assert refused(SettingError, some.without, 2, facts[2]) == (
        f"the fact {facts[2].words!r} is named twice; name it once"
    )
    said = refused(SettingError, some.without, *range(N))
    assert said == "the set would be empty; it needs one fact at least"
    assert refused(SettingError, set_of, some, []) == said


def test_a_set_as_a_sequence(some, facts):
    assert len(some) == N
    assert some[1] is facts[1]
    assert some[-1] == facts[4]
    assert some[1:3] == facts[1:3]
    assert facts[1] in some
    assert REQUESTS[1] in some
    assert facts[7] not in some
    assert REQUESTS[7] not in some
    assert some.requests == REQUESTS[:N]
    assert "has 5 requests, and request is of one" in refused(SettingError, getattr, some, "request")
    assert some.words == f"{REQUESTS[0].words} and 4 more"


def test_further_facts(some, found, facts):
    more = some.plus(facts[5])
    assert list(more) == list(facts[:6])
    for given in ([facts[5:8]], [set_of(found, facts[5:8])], [facts[5], [facts[6], facts[7]]]):
        assert some.plus(*given) == set_of(found, facts[:8][::-1])
    for nothing in ([], [[]]):
        assert "nothing is given to put into the set" in refused(SettingError, some.plus, *nothing)
    for neither in ("text", 3, None, ["text"]):
        assert "expected an EditRequest, a fact of a set, a set, or a list of these" in refused(
            SettingError, some.plus, neither
        )
    assert "is in the set already; ask for it once" in refused(SettingError, some.plus, facts[1])
    assert "is request 0, too" in refused(SettingError, some.plus, facts[7], facts[7])
    assert "no model to find further values on; give editor=" in refused(SettingError, some.plus, REQUESTS[7])


def test_requests_whose_values_are_found_first(editor, found, tmp_path):
    once = editor.edit_together(REQUESTS[:3], workers=1)
    more = found.plus(REQUESTS[2], out=tmp_path / "facts")
    assert more == once
    assert same_bits(more, once)
    assert [outcome.after for outcome in more.outcomes] == [None] * 3
    other = replace(found, editor=None)
    assert other.plus(REQUESTS[2], editor=editor, out=tmp_path / "facts") == once
    assert found.replace(1, REQUESTS[2]) == once.without(1)
    assert once.without(2) == found
    assert same_bits(once.without(2), found)


def test_one_fact_for_another(some, facts):
    other = some.replace(facts[1], facts[8])
    assert list(other) == [facts[0], facts[8], *facts[2:5]]
    assert other == some.without(1).plus(facts[8])
    assert some.replace(1, facts[1]) == some
    assert "the set has no fact" in refused(SettingError, some.replace, 9, facts[8])
    assert "is in the set already" in refused(SettingError, some.replace, 1, facts[2])
    for by in (3, None, [facts[8], facts[9]], some):
        assert "expected an EditRequest, or a fact of a set" in refused(SettingError, some.replace, 1, by)


def test_facts_of_other_layers_models_and_kernels(model, editor, some, facts):
    below = editor_of(model, layer=0).edit_together(REQUESTS[8:9], workers=1)
    of_another = own("gpt2", BACKENDS[0]).to(torch.float32)
    w_out(of_another).mul_(1.5)
    elsewhere = editor_of(of_another).edit_together(REQUESTS[8:9], workers=1)
    for one in (below, elsewhere):
        said = refused(SettingError, some.plus, one)
        assert said.endswith("was found for other layers or another model; find it anew: give its .request")
        assert said == refused(SettingError, some.replace, 0, one[0])
    null = random_facts(editor_of(model, rl.AlphaEdit), facts[0], REQUESTS)
    assert some.plus(null[5]) == some.plus(facts[5])
    assert some.plus(null[5])[-1].kernels == facts[0].kernels
    bare = replace(some, kernels=None)
    assert "is weighed by another second moment or null space" in refused(SettingError, bare.plus, null[5])
    assert bare.plus(null[5], editor=editor) == some.plus(facts[5])


def test_requests_that_one_set_cannot_serve(editor):
    one, other = REQUESTS[:2]
    twice = replace(one, target_new="Paris")
    again = refused(SettingError, editor.edit_together, [one, other, one])
    assert again == (
        f"request 2, {one.text!r} -> 'Rome', is request 0, too; ask for it once, since twice would count it double"
    )
    two = refused(SettingError, editor.edit_together, [one, other, twice])
    assert two.startswith(f"the subject {one.subject!r} has two targets: {one.text!r} -> 'Rome' and")
    assert two.endswith("leave one out, or give allow_conflicts=True (in a shell: --allow-conflicts)")
    check_requests([one, twice], allow_conflicts=True)
    check_requests([replace(one, prompt="{} lies in"), one], allow_conflicts=False)
    assert "allow_conflicts is 3" in refused(SettingError, lambda: editor.edit_together([one], allow_conflicts=3))
    assert "there are no requests" in refused(SettingError, editor.edit_together, [])


def test_facts_of_other_keys_do_not_mix(model, editor, found):
    assert (editor.values.keys, len(found[0].shares)) == ("split", 2)
    other = editor_of(model, keys="mean").edit_together(REQUESTS[2:3], workers=1)
    for one, more, n, theirs in ((found, other, "1 key", 2), (other, found, "2 keys", 1)):
        said = refused(SettingError, one.plus, more)
        assert f"has {n}, and those of this set have {theirs}; find it anew as they were found" in said
    # Of two templates each is as good as split.
    each = editor_of(model, keys="each").edit_together(REQUESTS[:2], workers=1)
    assert same_bits(each, found)


def test_layer_by_layer_goes_by_the_mean_key(model):
    released = editor_of(model, spread="released", at="block")
    assert released.values.keys == "mean"
    said = refused(SettingError, lambda: editor_of(model, spread="released", at="block", keys="each"))
    assert said.endswith("and keys is 'each'; give keys='mean' with it, or spread='joint'")
    said = refused(SettingError, lambda: editor_of(model, keys="all"))
    assert said == "keys is 'all'; choose one of mean, split, each"


def test_one_template_is_one_key(model):
    for keys in ("mean", "split", "each"):
        (fact,) = editor_of(model, keys=keys, context_templates=["{}"]).edit_together(REQUESTS[:1], workers=1)
        assert (fact.shares, len(fact.keys[0])) == ((1.0,), 1)
    (fact,) = editor_of(model, keys="split", bare_weight=1).edit_together(REQUESTS[:1], workers=1)
    assert (fact.shares, len(fact.keys[0])) == ((1.0,), 1)


def test_conflicts(found, facts):
    nearly = tuple(key * 1.01 for key in facts[0].keys)
    weighed = tuple(key * 1.01 for key in facts[0].weighed)
    clash = replace(facts[1], keys=nearly, weighed=weighed)
    alike = replace(facts[3], keys=nearly, weighed=weighed)  # wants the same
    some = set_of(found, [facts[2], facts[0], clash])
    (conflict,) = some.conflicts()
    assert (conflict.one, conflict.other, conflict.overlap) == (facts[0], clash, pytest.approx(1))
    assert str(conflict) == f"{facts[0].words!r} and {clash.words!r} (overlap 1.00)"
    assert "1 pair in conflict, see conflicts()" in repr(some)
    assert set_of(found, [facts[0], alike]).conflicts() == []
    assert [one.overlap for one in some.conflicts(above=0)] == sorted(
        (one.overlap for one in some.conflicts(above=0)), reverse=True
    )
    for above in (2, -1, "x", None):
        assert "expected a share from 0 to 1" in refused(SettingError, lambda above=above: some.conflicts(above=above))
    assert some.disturbed_by[1][0] == 2
    assert some.disturbed_by[2][0] == 1


# --- what it says ---------------------------------------------------------------------------------------------------


def test_what_a_set_says_of_itself(model, found, some):
    reached = sum(fact.outcome.after.reached for fact in found)
    assert repr(found) == f"EditSet(2 facts, layer 1 of gpt2, memit, {reached} targets reached)"
    assert repr(some.without(1)).startswith("EditSet(4 facts, layer 1 of gpt2, memit, not measured")
    assert repr(found[0]) == f"SetFact('The tower 0 is in' -> 'Rome', {found[0].id})"
    forgotten = found.plus(some[3])
    assert "not measured" in repr(forgotten)
    measured = forgotten.measured(model)
    assert measured == forgotten
    with forgotten.applied(model):
        assert [one.after for one in forgotten.measured(model).outcomes] == pytest.approx(
            [one.after for one in measured.outcomes]
        ) or all(
            one.after.target == pytest.approx(other.after.target, rel=1e-4)
            for one, other in zip(forgotten.measured(model).outcomes, measured.outcomes, strict=True)
        )


def test_a_table(found, some):
    names = ["prompt", "subject", "target", "old_answer", "before", "after", "reached"]
    known = ["shortfall", "leverage", "alone", "disturbed_by", "disturbance"]
    table = found.to_dataframe()
    assert list(table) == [*names, *known]
    assert table["subject"].tolist() == [request.subject for request in REQUESTS[:2]]
    assert table["after"].tolist() == [one.after.target for one in found.outcomes]
    blank = some.without(0).to_dataframe()
    assert blank["after"].isna().all()
    assert blank["reached"].isna().all()
    alone = some.without(1, 2, 3, 4).to_dataframe()
    assert alone["disturbed_by"].isna().all()
    assert alone["disturbance"].tolist() == [0.0]
    assert alone["alone"].tolist() == pytest.approx([1.0])


def test_what_is_known_comes_in_the_facts_order(found, facts):
    some, turned = set_of(found, facts[:N]), set_of(found, facts[:N][::-1])
    assert some == turned
    assert same_bits(some, turned)
    for what in ("shortfall", "leverage", "alone"):
        assert torch.equal(getattr(some, what), getattr(turned, what).flip(0))
    assert [(N - 1 - other, much) for other, much in turned.disturbed_by[::-1]] == list(some.disturbed_by)
    keys = torch.stack([fact.keys[0] for fact in facts[:N]]).double()
    lacks = torch.stack([fact.residual for fact in facts[:N]]).double()
    misfit = (lacks[:, None] - keys @ some.layers[0].update.matrix.double()).square().sum(dim=2)
    left = (misfit * torch.tensor([fact.shares for fact in facts[:N]])).sum(dim=1).sqrt() / lacks.norm(dim=1)
    torch.testing.assert_close(some.shortfall, left, rtol=1e-4, atol=1e-6)


def test_room_and_drift(model, found, some):
    assert some.capacity == D_MLP
    assert some.load == pytest.approx(some.leverage.sum().item() / D_MLP)
    null = editor_of(model, rl.AlphaEdit, energy=0.05)
    narrow = null.edit_together(REQUESTS[:1], workers=1)
    assert narrow.capacity == null.kernels[0].width < D_MLP
    c, w = moment(D_MLP), w_out(model).double()
    delta = some.layers[0].update.matrix.double()
    assert some.drift == pytest.approx(((delta.t() @ c @ delta).trace() / (w.t() @ c @ w).trace()).item())
    assert replace(some, kernels=None).drift is None


# --- files ----------------------------------------------------------------------------------------------------------


def test_a_set_comes_back_as_it_was(tmp_path, model, editor, found, some, facts):
    for one in (found, some):
        one.save(tmp_path / "set")
        loaded = rl.load_edit(tmp_path / "set")
        assert type(loaded) is EditSet
        assert (loaded.id, loaded.facts, loaded.outcomes, loaded.origin, loaded.terms) == (
            one.id,
            one.facts,
            one.outcomes,
            one.origin,
            one.terms,
        )
        assert loaded.to_dict() == one.to_dict()
        json.dumps(one.to_dict())
        assert same_bits(loaded, one)
        assert torch.equal(loaded.shortfall, one.shortfall)
        with one.applied(model):
            assert loaded.is_applied(model)
    assert loaded.without(1) == some.without(1)
    assert same_bits(loaded.without(1), some.without(1))
    assert loaded.plus(facts[7]) == some.plus(facts[7])
    assert "read from a file and has no model" in refused(SettingError, loaded.plus, REQUESTS[7])
    assert loaded.plus(REQUESTS[7], editor=editor).without(-1) == some


@pytest.mark.parametrize("kind", [rl.MEMIT, rl.AlphaEdit])
def test_more_facts_than_directions_keep_what_they_are_weighed_by(tmp_path, model, found, kind):
    editor = editor_of(model, kind)
    like = editor.edit_together(REQUESTS[:1], workers=1)
    facts = random_facts(editor, found[0], REQUESTS[:80])
    many = set_of(like, facts[:70])
    assert many.system.by_direction
    assert type(many.layers[0].update) is Dense
    many.save(tmp_path / "many")
    loaded = rl.load_edit(tmp_path / "many")
    assert loaded.kernels[0].id == many.kernels[0].id
    assert loaded.drift == many.drift
    for one, other in (
        (loaded, many),
        (loaded.without(3), many.without(3)),
        (loaded.plus(facts[71]), many.plus(facts[71])),
    ):
        assert one == other
        assert same_bits(one, other)
    few = many.without(*range(10, 70))
    few.save(tmp_path / "few")
    assert not any(name.startswith("kernel") for name in load_file(tmp_path / "few"))
    loaded = rl.load_edit(tmp_path / "few")
    said = refused(SettingError, loaded.plus, facts[10:70])
    assert "without its second moment or null space; give editor=" in said
    for given in ({"editor": editor}, {}):
        more = loaded.plus(facts[10:70], **given) if given else loaded.plus(set_of(like, facts[10:70]))
        assert more == many
        assert same_bits(more, many)


@pytest.mark.parametrize("n", [N, 70])
def test_damaged_files_are_refused_in_one_line(tmp_path, found, facts, n):
    from rome_lens.storage import load_tensors, save_tensors

    path = tmp_path / "set"
    set_of(found, facts[:n]).save(path)
    tensors, settings = load_tensors(path, kind="edit_set")

    def assert_refused(tensors=tensors, **changes):
        save_tensors(path, kind="edit_set", tensors=tensors, settings={**settings, **changes})
        said = refused(ArtefactError, rl.load_edit, path)
        assert repr(str(path)) in said
        assert "a damaged set of facts" in said

    for name in tensors:
        assert_refused({key: value for key, value in tensors.items() if key != name})
        assert_refused({**tensors, name: tensors[name][:-1]})
        assert_refused({**tensors, name: torch.full_like(tensors[name], float("nan"))})
    for name in settings:
        for value in (None, 3, "text", [], [3], {}, [{}]):
            if (name, value) != ("kernel", None):
                assert_refused(**{name: value})
    for name in ("penalty", "spread", "dtype", "layers"):
        for value in (None, "text", -1, [3]):
            assert_refused(terms={**settings["terms"], name: value})
    assert_refused(facts=settings["facts"][:-1])
    assert_refused(fact_kernels=settings["fact_kernels"][:-1])
    if n > D_MLP:
        for name in ("name", "numbers"):
            assert_refused(kernel={**settings["kernel"], name: "text of another kind"})
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert "it is cut short" in refused(ArtefactError, rl.load_edit, path)


# --- in models ------------------------------------------------------------------------------------------------------


def test_beside_other_edits_in_any_order(model, some, facts, found):
    before, single, other = w_out(model).clone(), random_edit(model, 1, seed=5), set_of(found, facts[6:9])
    edits = (some, single, other)
    for order in ((0, 1, 2), (2, 0, 1), (1, 2, 0)):
        for edit in edits:
            edit.apply(model)
        assert rl.applied_edits(model) == edits
        together = w_out(model).clone()
        for n in order:
            edits[n].revert(model)
        assert torch.equal(w_out(model), before)
        for n in order:
            edits[n].apply(model)
        assert torch.equal(w_out(model), together)
        for edit in edits:
            edit.revert(model)
        assert rl.applied_edits(model) == ()
    with some.applied(model):
        assert "is applied already" in refused(EditStateError, set_of(found, facts[:N][::-1]).apply, model)


def test_found_on_top_of_a_set(model, some):
    with some.applied(model):
        later = editor_of(model).edit_together(REQUESTS[9:10], workers=1)
        assert later.made_on_ids == {some.id}
        later.apply(model)
        assert rl.stale_edits(model) == ()
        with pytest.warns(UserWarning, match="was in the weights when"):
            some.revert(model)
        assert rl.stale_edits(model) == (later,)
        later.revert(model)
        some.apply(model)


def test_rows_of_their_own(model, some, facts, found):
    other = set_of(found, facts[6:9])
    plain = logits(model)
    rows = logits(model, rl.hooks_for_rows(model, [some, other]))
    for row, edit in enumerate((some, other)):
        with edit.applied(model):
            assert_close(rows[row], logits(model)[row], 1e-4)
    assert_close(logits(model, rl.hooks_for_rows(model, [None, some]))[0], plain[0], 1e-6)


def test_another_strength(some):
    half = some.scaled(0.5)
    assert type(half) is Edit
    torch.testing.assert_close(half.layers[0].update.matrix, some.layers[0].update.matrix / 2)
    for factor in ("2", None, float("nan")):
        assert "expected a finite number" in refused(SettingError, some.scaled, factor)


def test_a_trace_with_a_set_in_the_weights(model, some):
    prompt = REQUESTS[0].text
    trace = rl.causal_trace(model, prompt, subject=REQUESTS[0].subject, edits=[some], samples=1)
    assert trace.edits == (some.words,)


def test_folders(tmp_path, found, facts):
    save("gpt2", tmp_path / "source")
    model = rl.load_model(tmp_path / "source", backend=BACKENDS[-1], device="cpu")
    editor = editor_of(model)
    like = editor.edit_together(REQUESTS[:1], workers=1)
    some = set_of(like, random_facts(editor, like[0], REQUESTS[:3]))
    some.to_hf(tmp_path / "source", tmp_path / "out")
    edited = rl.load_model(tmp_path / "out", backend=BACKENDS[-1], device="cpu")
    with some.applied(model):
        torch.testing.assert_close(logits(edited), logits(model), rtol=1e-3, atol=1e-4)
    assert TOKENS.shape[0] == 2
    some.to_peft(tmp_path / "adapter")
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["r"] == 6  # two keys a fact
    whole = set_of(like, random_facts(editor, like[0], REQUESTS[:20]))
    assert whole.rank is None
    said = refused(EditError, whole.to_peft, tmp_path / "whole")
    assert "changes a whole matrix, and an adapter holds edits of low rank; write a whole model with to_hf" in said
