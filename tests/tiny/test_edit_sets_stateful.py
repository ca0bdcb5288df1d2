"""However facts come into a set and out of it, it is the set that is solved at once: to the bit, in weights and ids."""

import copy
import tempfile
from contextlib import ExitStack
from functools import cache
from pathlib import Path

import effort
import torch
from architectures import BACKENDS, own
from edits import assert_close, random_edit
from fact_sets import random_facts, requests, set_of
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from refused import refused
from tiny_rome import moment

import rome_lens as rl
from rome_lens.backends import as_backend
from rome_lens.editing.together.edit_set import EditSet
from rome_lens.errors import EditStateError, SettingError

# Enough for a whole matrix to be smaller than the factors, and for more than a null space holds.
REQUESTS = requests(16)
FOUND = {"v_num_grad_steps": 2, "context_templates": ["{}", "Well. {}"], "least_scale": None}
LAYER = 1
EDITORS = {
    "one layer": (torch.float32, rl.MEMIT, {"layers": [LAYER], "preserve": 0.2}),
    "two layers": (torch.float64, rl.EMMET, {"layers": [0, LAYER], "epsilon": 3.0}),
    "null space": (torch.float64, rl.AlphaEdit, {"layers": [LAYER], "energy": 0.05, "l2": 0.01}),
}
one_fact, some_facts = st.integers(0, 15), st.lists(st.integers(0, 15), unique=True, min_size=1, max_size=12)


@cache
def pristine(name):
    return own("gpt2", BACKENDS[0]).to(EDITORS[name][0])


@cache
def editor_of(name, kind=None):
    _, own, changes = EDITORS[name]
    if kind is not None:
        own, changes = kind, {"layers": changes["layers"]}
    moments = {layer: moment(64) for layer in changes["layers"]}
    return own(pristine(name), second_moments=moments, **FOUND, **changes)


@cache
def found_one(name):
    """A set of one fact, found by the editor."""
    return editor_of(name).edit_together(REQUESTS[:1], workers=1)


@cache
def facts_of(name, kind=None):
    return random_facts(editor_of(name, kind), found_one(name)[0], REQUESTS)


def foreign_facts_of(name):
    """The same, weighed by another kernel, as facts of another set may be."""
    return facts_of(name, rl.EMMET if name == "null space" else rl.AlphaEdit)


@cache
def solved_at_once(name, numbers):
    """The set of these facts, in the order of their numbers."""
    return solved(name, [facts_of(name)[number] for number in sorted(numbers)])


def solved(name, facts):
    return set_of(found_one(name), facts)


@cache
def another(name):
    return random_edit(pristine(name), LAYER, seed=3)


@cache
def expected(name, numbers, with_another):
    """Both matrices of a model with these facts, solved at once, and nothing else."""
    with ExitStack() as applied:
        if with_another:
            applied.enter_context(another(name).applied(pristine(name)))
        if numbers:
            applied.enter_context(solved_at_once(name, numbers).applied(pristine(name)))
        return matrices(pristine(name))


def matrices(model):
    return [as_backend(model).w_out(layer).matrix.clone() for layer in (0, 1)]


@cache
def in_use(name):
    return copy.deepcopy(pristine(name))


def as_named(fact, number, how):
    """A fact as a caller may name it."""
    return {"number": number, "from the end": number, "id": fact.id, "fact": fact, "request": fact.request}[how]


how_named = st.sampled_from(["number", "id", "fact", "request"])


class SetsOfFacts(RuleBasedStateMachine):
    name: str

    @initialize(numbers=some_facts)
    def begin(self, numbers):
        self.model = in_use(self.name)
        self.model.__dict__.pop("_rome_lens_edits", None)  # a sequence that failed has left it as it was then
        with torch.no_grad():
            for layer, matrix in enumerate(matrices(pristine(self.name))):
                as_backend(self.model).w_out(layer).matrix.copy_(matrix)
        self.asked = list(numbers)
        self.set = solved(self.name, [facts_of(self.name)[number] for number in numbers])
        self.on: tuple[EditSet, frozenset[int]] | None = None
        self.with_another = False
        self.folder = tempfile.TemporaryDirectory()

    @property
    def free(self):
        return [number for number in range(16) if number not in self.asked]

    @precondition(lambda self: len(self.asked) < 16)
    @rule(data=st.data(), given=st.sampled_from(["facts", "a list", "a set", "of another kernel"]))
    def plus(self, data, given):
        numbers = data.draw(st.lists(st.sampled_from(self.free), unique=True, min_size=1, max_size=6))
        facts = [facts_of(self.name)[number] for number in numbers]
        if given == "of another kernel":
            facts = [foreign_facts_of(self.name)[number] for number in numbers]
            if self.set.kernels is None:
                assert "find the fact anew" in refused(SettingError, self.set.plus, *facts)
                return
        if given != "a set" and self.set.kernels is None and self.too_many(len(numbers)):
            assert "give editor=" in refused(SettingError, self.set.plus, *facts)
            self.set = self.set.plus(*facts, editor=editor_of(self.name))
        else:
            given_as = {"a list": lambda: [facts], "a set": lambda: [solved(self.name, facts)]}.get(
                given, lambda: facts
            )
            self.set = self.set.plus(*given_as())
        self.asked += numbers

    def too_many(self, more):
        """More keys than directions need what the file of few does not hold."""
        n_keys = (len(self.asked) + more) * len(self.set[0].shares)
        return len(self.set.layers) == 1 and n_keys > self.set.terms.layers[0].width

    @precondition(lambda self: len(self.asked) > 1)
    @rule(data=st.data(), how=how_named)
    def without(self, data, how):
        away = data.draw(st.lists(st.sampled_from(self.asked), unique=True, max_size=len(self.asked) - 1))
        named = [as_named(facts_of(self.name)[number], self.asked.index(number), how) for number in away]
        self.set = self.set.without(*named)
        self.asked = [number for number in self.asked if number not in away]

    @precondition(lambda self: len(self.asked) < 16)
    @rule(data=st.data(), how=how_named)
    def replace(self, data, how):
        old, new = data.draw(st.sampled_from(self.asked)), data.draw(st.sampled_from(self.free))
        place = self.asked.index(old)
        self.set = self.set.replace(as_named(facts_of(self.name)[old], place, how), facts_of(self.name)[new])
        self.asked[place] = new

    @rule(number=one_fact)
    def refuse_what_is_not_there_or_there_twice(self, number):
        fact = facts_of(self.name)[number]
        if number in self.asked:
            assert "is in the set already" in refused(SettingError, self.set.plus, fact)
        else:
            assert "the set has no fact" in refused(SettingError, self.set.without, fact)

    @precondition(lambda self: self.on is None)
    @rule()
    def apply(self):
        self.set.apply(self.model)
        self.on = self.set, frozenset(self.asked)

    @precondition(lambda self: self.on is not None)
    @rule()
    def revert(self):
        self.on[0].revert(self.model)
        self.on = None

    @precondition(lambda self: self.on is not None)
    @rule()
    def revert_by_its_equal(self):
        """What is in the weights is known by its facts, whoever made the set and in whatever order."""
        solved_at_once(self.name, self.on[1]).revert(self.model)
        self.on = None

    @rule()
    def another_edit_comes_or_goes(self):
        edit = another(self.name)
        edit.revert(self.model) if self.with_another else edit.apply(self.model)
        self.with_another = not self.with_another

    @rule()
    def save_and_load(self):
        path = Path(self.folder.name) / "set.safetensors"
        self.set.save(path)
        loaded = rl.load_edit(path)
        assert loaded.to_dict() == self.set.to_dict()
        assert loaded.is_applied(self.model) == self.set.is_applied(self.model)
        self.set = loaded

    @rule()
    def run_through_hooks(self):
        if self.set.is_applied(self.model):
            assert "it would count twice" in refused(EditStateError, self.set.hooks, self.model)
            return
        tokens = torch.tensor([[1, 2, 3, 4, 5]])
        with torch.no_grad():
            found = self.model.run_with_hooks(tokens, fwd_hooks=self.set.hooks(self.model))
            with self.set.applied(self.model):
                wanted = self.model(tokens)
        assert_close(found, wanted, 1e-4 if found.dtype == torch.float32 else 1e-9)

    @invariant()
    def it_is_the_set_that_is_solved_at_once(self):
        if not hasattr(self, "set"):
            return
        at_once = solved_at_once(self.name, frozenset(self.asked))
        assert self.set == at_once
        assert self.set.id == at_once.id
        assert [fact.request for fact in self.set] == [REQUESTS[number] for number in self.asked]
        for mine, theirs in zip(self.set.layers, at_once.layers, strict=True):
            assert mine.update.tensors.keys() == theirs.update.tensors.keys()
            assert all(torch.equal(mine.update.tensors[name], one) for name, one in theirs.update.tensors.items())

    @invariant()
    def weights_are_those_of_a_fresh_model(self):
        if not hasattr(self, "set"):
            return
        wanted = expected(self.name, frozenset() if self.on is None else self.on[1], self.with_another)
        assert all(torch.equal(one, other) for one, other in zip(matrices(self.model), wanted, strict=True))
        assert self.set.is_applied(self.model) == (self.on is not None and self.on[1] == frozenset(self.asked))

    def teardown(self):
        if not hasattr(self, "set"):
            return
        self.folder.cleanup()
        if self.on is not None:
            self.on[0].revert(self.model)
        if self.with_another:
            another(self.name).revert(self.model)
        wanted = matrices(pristine(self.name))
        assert all(torch.equal(one, other) for one, other in zip(matrices(self.model), wanted, strict=True))
        assert "_rome_lens_edits" not in self.model.__dict__


def _case(name):
    machine = type(f"Set_{name.replace(' ', '_')}", (SetsOfFacts,), {"name": name})
    case = machine.TestCase
    case.settings = settings(
        max_examples=334 if effort.ALL else 100,
        stateful_step_count=6,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    return case


TestOneLayer, TestTwoLayers, TestNullSpace = map(_case, EDITORS)
