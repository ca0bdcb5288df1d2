"""Whatever happens to the edits of a model, its weights are those of a fresh model with the edits that are left."""

import copy
import tempfile
from contextlib import nullcontext
from functools import cache
from pathlib import Path

import effort
import pytest
import torch
from architectures import BACKENDS, BRIDGE, HOOKED
from edits import random_edit
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from refused import refused

import rome_lens as rl
from rome_lens.backends import as_backend
from rome_lens.errors import EditStateError
from rome_lens.loading.tiny import tiny_model

TOKENS = torch.tensor([[1, 2, 3, 4, 5], [5, 4, 3, 2, 1]])
# Layer of each edit. Edits 0 and 1 differ in their request alone, as do those that two people make of one fact.
LAYERS = (0, 0, 0, 1, 1)
some_edit, some_edits = st.sampled_from(range(5)), st.lists(st.sampled_from(range(5)), unique=True, max_size=3)


@cache
def pristine(backend):
    # In float64 the order of a sum shows in its last bits; in float32 rounding would hide it.
    return tiny_model(backend).to(torch.float64)


@cache
def in_use(backend):
    return as_backend(copy.deepcopy(pristine(backend)))


@cache
def original(backend):
    return [as_backend(pristine(backend)).w_out(layer).matrix for layer in (0, 1)]


@cache
def edits_of(backend):
    edits = [random_edit(pristine(backend), layer, seed=seed) for seed, layer in enumerate(LAYERS)]
    edits[1] = random_edit(pristine(backend), 0, seed=1, u=edits[0].u, v=edits[0].v)
    return tuple(edits)


@cache
def fresh(backend, applied):
    """Weights of both layers, and logits, of a fresh model with these edits, applied in the order of their numbers."""
    model = copy.deepcopy(pristine(backend))
    for number in sorted(applied):
        edits_of(backend)[number].apply(model)
    with torch.no_grad():
        return [as_backend(model).w_out(layer).matrix.clone() for layer in (0, 1)], model(TOKENS)


class EditedModel(RuleBasedStateMachine):
    backend: str

    @initialize()
    def begin(self):
        self.model = in_use(self.backend).model
        # A sequence that failed has left the model as it was then.
        self.model.__dict__.pop("_rome_lens_edits", None)
        with torch.no_grad():
            for layer in (0, 1):
                self.w_out(layer).copy_(original(self.backend)[layer])
        self.edits = list(edits_of(self.backend))
        self.on: list[int] = []
        # Saved states of the model that the record can still tell: the edits that were on, and the weights.
        self.saved: list[tuple[tuple[int, ...], dict[str, torch.Tensor]]] = []
        self.folder = tempfile.TemporaryDirectory()

    def w_out(self, layer):
        return in_use(self.backend).w_out(layer).matrix

    def assert_weights(self, expected):
        for layer in (0, 1):
            assert torch.equal(self.w_out(layer), expected[layer])

    def logits(self, hooks=()):
        with torch.no_grad():
            return self.model.run_with_hooks(TOKENS, fwd_hooks=list(hooks))

    @rule(number=some_edit)
    def apply(self, number):
        if number in self.on:
            assert "is applied already" in refused(EditStateError, self.edits[number].apply, self.model)
        else:
            self.edits[number].apply(self.model)
            self.on.append(number)

    @rule(number=some_edit)
    def revert(self, number):
        if number in self.on:
            self.edits[number].revert(self.model)
            self.on.remove(number)
        else:
            assert "there is nothing to revert" in refused(EditStateError, self.edits[number].revert, self.model)

    @rule(number=some_edit)
    def save_and_load(self, number):
        path = Path(self.folder.name) / f"{number}.safetensors"
        self.edits[number].save(path)
        loaded = rl.load_edit(path)
        assert loaded.id == self.edits[number].id
        assert loaded.is_applied(self.model) == (number in self.on)
        self.edits[number] = loaded

    @rule(number=some_edit)
    def run_through_hooks(self, number):
        if number in self.on:
            assert "it would count twice" in refused(EditStateError, self.edits[number].hooks, self.model)
        else:
            _, expected = fresh(self.backend, frozenset({*self.on, number}))
            found = self.logits(self.edits[number].hooks(self.model))
            torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)

    @rule(number=some_edit)
    def run_one_row_through_hooks(self, number):
        rows = [None, self.edits[number]]
        if number in self.on:
            assert "it would count twice" in refused(EditStateError, rl.hooks_for_rows, self.model, rows)
        else:
            _, edited = fresh(self.backend, frozenset({*self.on, number}))
            _, plain = fresh(self.backend, frozenset(self.on))
            found = self.logits(rl.hooks_for_rows(self.model, rows))
            torch.testing.assert_close(found, torch.stack([plain[0], edited[1]]), rtol=1e-9, atol=1e-9)

    @rule(numbers=some_edits, fails=st.booleans())
    def nest(self, numbers, fails):
        with pytest.raises(ZeroDivisionError) if fails else nullcontext():
            self._nest([number for number in numbers if number not in self.on], fails)

    def _nest(self, numbers, fails):
        if not numbers:
            self.assert_weights(fresh(self.backend, frozenset(self.on))[0])
            if fails:
                raise ZeroDivisionError
            return
        first, *others = numbers
        self.on.append(first)
        try:
            with self.edits[first].applied(self.model):
                self._nest(others, fails)
        finally:
            self.on.remove(first)

    @rule()
    def keep_the_state(self):
        self.saved.append((tuple(self.on), {name: x.clone() for name, x in self.model.state_dict().items()}))

    @precondition(lambda self: self.saved)
    @rule(data=st.data())
    def load_a_state(self, data):
        """Of a layer's edits those are left that the loaded weights hold, if it is a set that the record can tell."""
        on, state = data.draw(st.sampled_from(self.saved))
        now = copy.deepcopy(self.model.state_dict())
        self.model.load_state_dict(state)
        for layer in (0, 1):
            mine = [number for number in self.on if LAYERS[number] == layer]
            theirs = [number for number in on if LAYERS[number] == layer]
            told = [mine[:n] for n in range(len(mine) + 1)] + [mine[:i] + mine[i + 1 :] for i in range(len(mine))]
            if not any(set(theirs) == set(some) for some in told):
                self.model.load_state_dict(now)  # a state from before edits that came and went; that is foreign
                return
        gone = set(self.on) - set(on)
        self.on = [number for number in self.on if number not in gone]

    @precondition(lambda self: self.on)
    @rule(layer=st.sampled_from((0, 1)))
    def forget(self, layer):
        """Without its record an edited matrix is as good as any other."""
        twin = copy.deepcopy(self.model)
        forgotten = rl.forget_edits(twin, layer=layer)
        assert [edit.id for edit in forgotten] == [self.edits[i].id for i in self.on if LAYERS[i] == layer]
        left = [number for number in self.on if LAYERS[number] != layer]
        assert [number for number in range(5) if self.edits[number].is_applied(twin)] == sorted(left)
        assert all(
            torch.equal(as_backend(twin).w_out(one).matrix, as_backend(self.model).w_out(one).matrix) for one in (0, 1)
        )

    @precondition(lambda self: self.on)
    @rule(number=some_edit, layer=st.sampled_from((0, 1)))
    def somebody_else_trains(self, number, layer):
        """Neither on top of that nor below it is anything written; once it is undone all goes on."""
        before = self.w_out(layer).clone()
        self.w_out(layer)[0, 0] += 1
        changed = self.w_out(layer).clone()
        if LAYERS[number] == layer and any(LAYERS[other] == layer for other in self.on):
            step = self.edits[number].revert if number in self.on else self.edits[number].apply
            assert "was changed outside rome_lens" in refused(EditStateError, step, self.model)
        assert torch.equal(self.w_out(layer), changed)
        self.w_out(layer).copy_(before)

    @invariant()
    def weights_are_those_of_a_fresh_model(self):
        if not hasattr(self, "model"):
            return
        self.assert_weights(fresh(self.backend, frozenset(self.on))[0])
        by_layer = sorted(self.on, key=lambda number: LAYERS[number])
        assert [edit.id for edit in rl.applied_edits(self.model)] == [self.edits[number].id for number in by_layer]

    def teardown(self):
        if not hasattr(self, "model"):
            return
        self.folder.cleanup()
        for number in self.on:
            self.edits[number].revert(self.model)
        self.assert_weights(original(self.backend))
        assert "_rome_lens_edits" not in self.model.__dict__


def _case(name):
    machine = type(f"Edited_{name}", (EditedModel,), {"backend": name})
    case = machine.TestCase
    case.settings = settings(
        max_examples=(1000 if effort.ALL else 150) // len(BACKENDS),
        stateful_step_count=8,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    return case


TestBridge = _case(BRIDGE)
if HOOKED in BACKENDS:
    TestHookedTransformer = _case(HOOKED)
