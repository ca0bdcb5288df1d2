"""Every way in which a trace is refused: the class, the exit code and the very words."""

import re

import pytest
import torch
from effort import slow
from refused import refused

from rome_lens import errors
from rome_lens.backends import Backend, as_backend
from rome_lens.backends.hooked_transformer import HookedReplay
from rome_lens.backends.transformer_bridge import BridgeReplay
from rome_lens.loading.tiny import TINY_PROMPT, TINY_SUBJECT, tiny_model
from rome_lens.tracing import causal_trace
from rome_lens.tracing.memory import Budget, is_out_of_memory

FORMS = "a number, s3 (times the embeddings' deviation), m, t5 (degrees of freedom) or u0.5 (uniform, half width)"
NO_ROOM = "memory ran out even with one cell at a time; take fewer samples, a shorter prompt or a smaller dtype"
SIXTEEN = " ".join(["the tower is in the city of"] * 2 + ["the tower"])


def _trace(model, prompt=TINY_PROMPT, **settings):
    return causal_trace(model, prompt, **{"subject": TINY_SUBJECT, "noise": 1.0, "samples": 3} | settings)


EMPTY = "the prompt is empty; expected a text that the model continues with the answer"
LONG = "the prompt takes 17 positions, and tiny has 16; shorten it"
BROKEN_TWICE = "swap is 'the city' and a noise rule was given too; the subject is broken by one of them"
UNKNOWN = "the model does not know this fact: it continues with "


def _each(name, values, expected):
    """Cases of one setting."""
    said = f"{name} is {{!r}}; {expected}"
    return {f"{name} {value!r}": ({name: value}, errors.SettingError, said.format(value)) for value in values}


REFUSED = {
    "empty prompt": ({"prompt": ""}, errors.PromptError, EMPTY),
    "blank prompt": ({"prompt": " \n"}, errors.PromptError, EMPTY),
    "long prompt": ({"prompt": SIXTEEN + " is"}, errors.PromptError, LONG),
    "long prompt with BOS": ({"prompt": SIXTEEN, "prepend_bos": True}, errors.PromptError, LONG),
    "long answer": (
        {"prompt": SIXTEEN, "answer": "city of"},
        errors.PromptError,
        "the prompt with its answer takes 17 positions, and tiny has 16; shorten it",
    ),
    "half a character": (
        {"prompt": TINY_PROMPT + "\udcff"},
        errors.PromptError,
        "'the tower is in the city of\\udcff' holds '\\udcff', which is half a character; write the text in UTF-8",
    ),
    "subject": (
        {"subject": "the louvre"},
        errors.SubjectError,
        "the subject 'the louvre' is not in the prompt 'the tower is in the city of'; give it letter for letter",
    ),
    "subject's case": (
        {"subject": "The Tower"},
        errors.SubjectError,
        "the subject 'The Tower' is not in the prompt 'the tower is in the city of'; the prompt writes it 'the tower'",
    ),
    "empty subject": (
        {"subject": " "},
        errors.SubjectError,
        "the subject is empty; expected a part of the prompt, such as 'The Eiffel Tower'",
    ),
    "occurrence": (
        {"subject": "the", "occurrence": 3},
        errors.SubjectError,
        "occurrence 3 of the subject 'the' was asked for, but the prompt holds it 2 times",
    ),
    **_each("occurrence", [0], "expected 1 for the first occurrence of the subject, -1 for the last"),
    **_each("samples", [0, -1, True, 1.5, "10"], "expected a whole number of corrupted copies, 1 or more"),
    "samples without number": (
        {"samples": 10**15},
        errors.OutOfMemoryError,
        "the noise of 1000000000000000 samples does not fit into memory; take fewer samples",
    ),
    **_each(
        "noise",
        [-1, float("nan"), float("inf"), "s-3", "nan"],
        f"expected {FORMS}; the number must be finite and not negative",
    ),
    **_each("noise", ["x3"], f"expected {FORMS}"),
    **_each("noise", ["t2"], "a Student-t needs more than 2 degrees of freedom, as in t5"),
    "no facts": (
        {"noise": None, "facts": []},
        errors.SettingError,
        "noise is 's3', but the facts are too few to measure it on; give two or more",
    ),
    **_each("window", [3], "expected a whole number of layers from 1 to 2, the layers of this model"),
    **_each("window", [0, -1, True, 1.0], "expected a whole number of layers, 1 or more"),
    "stream": (
        {"streams": ["mlp", "resid_pre"]},
        errors.SettingError,
        "stream is 'resid_pre'; choose from resid, mlp, attn, heads",
    ),
    "no stream": ({"streams": []}, errors.SettingError, "stream is []; choose from resid, mlp, attn, heads"),
    **_each("seed", [-1, 2**32, True, 1.0], "expected a whole number from 0 to 4294967295"),
    **_each("engine", ["fast"], "choose one of auto, plain, attribution"),
    "answer and expect": (
        {"answer": "city", "expect": "tower"},
        errors.SettingError,
        "answer 'city' and expect 'tower' differ; give one of them",
    ),
    **{
        f"empty {name}": ({name: " "}, errors.AnswerError, "the answer ' ' is empty; expected a word or a name")
        for name in ("answer", "expect")
    },
    "unknown answer": (
        {"answer": "Paris"},
        errors.AnswerError,
        "the answer 'Paris' becomes '<|end|>', which is no word to this model; name another answer",
    ),
    "unknown fact": (
        {"expect": "tower"},
        errors.FactNotKnownError,
        UNKNOWN + "'city' (0.232), and the expected ' tower' has probability 0.13 (rank 5); nor does it say 'tower'",
    ),
    "fact that is half known": (
        {"expect": "city of"},
        errors.FactNotKnownError,
        UNKNOWN + "'city tower' (0.286), and the expected ' city of' has probability 0.0099; nor does it say 'city of'",
    ),
    "swap and noise": ({"swap": "the city"}, errors.SettingError, BROKEN_TWICE),
    "swap and replace": (
        {"swap": "the city", "noise": None, "noise_replaces": True},
        errors.SettingError,
        BROKEN_TWICE,
    ),
    "short swap": (
        {"swap": "tower", "noise": None},
        errors.SubjectError,
        "swap 'tower' takes 1 tokens where 'the tower' takes 2; symmetric token replacement needs as many",
    ),
    "empty swap": (
        {"swap": "", "noise": None},
        errors.SubjectError,
        "swap '' is empty; expected another subject of as many tokens as 'the tower'",
    ),
}


@pytest.mark.parametrize(("settings", "error", "message"), REFUSED.values(), ids=REFUSED)
def test_what_is_refused_and_in_which_words(tiny, settings, error, message):
    assert refused(error, _trace, tiny, **settings) == message
    assert not as_backend(tiny).foreign_hooks()


@pytest.mark.parametrize(
    "model", [None, "gpt2", torch.nn.Linear(2, 2), object], ids=["None", "a name", "a module", "a class"]
)
def test_a_model_that_is_none_of_transformer_lens(model):
    assert refused(errors.ModelError, _trace, model) == (
        f"expected a HookedTransformer or a TransformerBridge, got {type(model).__name__}; rome_lens.load_model makes "
        "one, and so does TransformerBridge.boot_transformers(name, hf_model=model)"
    )


@pytest.mark.parametrize("settings", [{}, {"answer": "city"}, {"expect": "city"}], ids=str)
def test_a_model_that_gives_no_numbers(settings):
    model = tiny_model("auto")
    with torch.no_grad():
        next(model.parameters()).fill_(float("nan"))
    said = refused(errors.ModelError, _trace, model, **settings)
    assert re.match(r"tiny gives numbers that are not finite in (torch\.)?float32; ", said)


def test_a_prompt_as_long_as_the_context_is_traced(tiny):
    assert len(_trace(tiny, SIXTEEN).tokens) == 16
    assert len(_trace(tiny, SIXTEEN, answer="city").tokens) == 16
    assert len(_trace(tiny, SIXTEEN, subject="tower", swap="city", noise=None, answer="city").tokens) == 16


TREE = {
    "RomeLensError": ("Exception", 1),
    "SettingError": ("RomeLensError", 2),
    "PromptError": ("RomeLensError", 1),
    "SubjectError": ("PromptError", 1),
    "AnswerError": ("PromptError", 1),
    "FactNotKnownError": ("RomeLensError", 1),
    "ModelError": ("RomeLensError", 1),
    "ModelNotFoundError": ("ModelError", 1),
    "ModelMismatchError": ("ModelError", 1),
    "DownloadError": ("RomeLensError", 1),
    "ArtefactError": ("RomeLensError", 1),
    "OutOfMemoryError": ("RomeLensError", 1),
    "RunError": ("RomeLensError", 1),
    "EditError": ("RomeLensError", 1),
    "EditStateError": ("EditError", 1),
    "CollapseError": ("EditError", 1),
}


def test_the_tree_of_errors():
    found = {name: cls for name, cls in vars(errors).items() if isinstance(cls, type)}
    assert {name: (cls.__base__.__name__, cls.exit_code) for name, cls in found.items()} == TREE
    assert issubclass(errors.SettingError, ValueError)
    assert issubclass(errors.PromptError, ValueError)
    assert issubclass(errors.ModelNotFoundError, LookupError)


def test_a_budget_halves_down_to_one():
    budget = Budget(call_positions=5, state_positions=1, logits=8, run_positions=2)
    budget.halve_after(MemoryError())
    assert budget == Budget(call_positions=2, state_positions=1, logits=4, run_positions=1)
    for _ in range(2):
        budget.halve_after(MemoryError())
    assert budget == Budget(1, 1, 1, 1)
    assert refused(errors.OutOfMemoryError, budget.halve_after, MemoryError()) == NO_ROOM


def test_even_the_smallest_budget_runs_something():
    budget = Budget(1, 1, 1, 1)
    assert (budget.lanes(70), budget.samples(7), budget.logit_rows(50_000)) == (1, 1, 1)
    budget = Budget(call_positions=210, state_positions=1, logits=200, run_positions=77)
    assert (budget.lanes(70), budget.samples(7), budget.logit_rows(90)) == (3, 10, 2)


@pytest.mark.parametrize(
    ("error", "memory"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried 9 bytes"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("can't allocate memory"), False),
    ],
    ids=["python", "cuda", "cpu", "shapes", "value"],
)
def test_errors_that_say_that_memory_ran_out(error, memory):
    assert is_out_of_memory(error) is memory
    budget = Budget(4, 4, 4, 4)
    if memory:
        budget.halve_after(error)
    else:
        with pytest.raises(type(error)) as caught:
            budget.halve_after(error)
        assert caught.value is error
    assert budget == (Budget(2, 2, 2, 2) if memory else Budget(4, 4, 4, 4))


def _same_numbers(found, expected):
    assert found.engine == expected.engine
    assert found.low == pytest.approx(expected.low, abs=1e-7)
    assert found.high == pytest.approx(expected.high, abs=1e-7)
    torch.testing.assert_close(found.scores, expected.scores, atol=1e-6, rtol=0)


@pytest.fixture
def failing(monkeypatch):
    """Makes the calls of a method that are numbered in `when` fail for want of memory; gives the list of all calls."""

    def arrange(name, when, *classes):
        calls = []

        def wrapped(method):
            def run(self, *args, **kwargs):
                calls.append(name)
                if len(calls) - 1 in when:
                    raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")
                return method(self, *args, **kwargs)

            return run

        for cls in classes:
            monkeypatch.setattr(cls, name, wrapped(getattr(cls, name)))
        return calls

    return arrange


REPLAYS = (HookedReplay, BridgeReplay)
# Without an answer of the user's the model is asked for its own before anything is run.
NAMED = {"answer": "city", "samples": 5}


@pytest.mark.parametrize(
    ("step", "when"), [*(("run", when) for when in (0, 1, 3, 5, 6, 7)), ("unembed", 0)], ids=lambda value: str(value)
)
def test_a_block_that_finds_no_memory_is_run_in_smaller_parts(tiny, failing, step, when):
    expected = _trace(tiny, **NAMED)
    calls = failing(step, {when}, *REPLAYS)
    _same_numbers(_trace(tiny, **NAMED), expected)
    assert len(calls) > when + 1


@pytest.mark.parametrize(("engine", "when"), [("auto", 0), ("plain", 0), ("plain", 2), ("plain", 3)])
def test_a_forward_that_finds_no_memory_is_run_in_smaller_parts(tiny, failing, tighten, engine, when):
    expected = _trace(tiny, engine=engine, **NAMED)
    # Just enough for all at once, so that half of it is too little.
    tighten(call_positions=120, state_positions=120, logits=120, run_positions=42)
    calls = failing("logits", {when}, Backend)
    _same_numbers(_trace(tiny, engine=engine, **NAMED), expected)
    assert len(calls) > when + 1


@pytest.mark.parametrize("engine", ["auto", "plain"])
@pytest.mark.parametrize("size", [1, slow(2), slow(30)])
def test_the_numbers_do_not_depend_on_the_memory(tiny, tighten, engine, size):
    expected = _trace(tiny, engine=engine, **NAMED)
    tighten(call_positions=size, state_positions=size, logits=size, run_positions=size)
    found = _trace(tiny, engine=engine, **NAMED)
    _same_numbers(found, expected)
    assert (found.scores["resid"][-1, :-1] == found.low).all()


@pytest.mark.parametrize(
    ("engine", "step", "classes"),
    [
        ("auto", "run", REPLAYS),
        ("auto", "unembed", REPLAYS),
        ("auto", "logits", [Backend]),
        ("plain", "logits", [Backend]),
    ],
)
def test_memory_that_never_suffices(tiny, failing, engine, step, classes):
    failing(step, range(10**9), *classes)
    assert refused(errors.OutOfMemoryError, _trace, tiny, engine=engine, **NAMED) == NO_ROOM
    assert not as_backend(tiny).foreign_hooks()
