"""Blocks called alone, else whole forwards with the reason why: whatever a block does when it is called alone."""

import pytest
import torch
from architectures import BRIDGE, architecture, own
from refused import refused
from reports import by_number, measured
from tiny_rome import REQUEST, rome

import rome_lens as rl
from rome_lens.backends import ReplayError, as_backend, called_alone, prefer_blocks
from rome_lens.backends.generation import sample
from rome_lens.backends.hooked_transformer import HookedReplay
from rome_lens.backends.transformer_bridge import BridgeReplay
from rome_lens.data.records import CounterFactRecord
from rome_lens.evaluation import Measures
from rome_lens.evaluation.answering import BlockAnswerer
from rome_lens.evaluation.measurer import RecordMeasurer

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:transformer_lens")

PROMPT, SUBJECT = "a cd fg", "cd"
FACTS = [rl.Fact("{} is", subject, "x") for subject in ("the tower", "a hill", "Zorn")]
RECORDS = [
    CounterFactRecord(
        number=0,
        case_id="0",
        relation=None,
        request=rl.EditRequest("{} is in", "the tower", "rome", "paris"),
        paraphrases=("so it is in",),
        neighbours=("a hill is in",),
        generation_prompts=("the tower",),
    )
]
REPLAY = {"hooked-transformer": HookedReplay, "transformer-bridge": BridgeReplay}


def trace(model, **settings):
    settings = {"noise": 2.0, "samples": 2, "answer": "x"} | settings
    return rl.causal_trace(model, PROMPT, subject=SUBJECT, **settings)


def evaluate(model, **measures):
    return measured(model, RECORDS, None, name="none", n_texts=1, text_length=16, **measures)[0]


def assert_left_alone(model):
    """Nothing of an attempt is left in the model."""
    assert not as_backend(model).foreign_hooks()
    assert all("forward" not in block.__dict__ for block in model.blocks)
    assert all(not block._forward_pre_hooks for block in model.blocks)
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("name", ["falcon-alibi", "gpt1", "xglm", "opt-narrow"])
def test_what_blocks_refuse_is_done_by_whole_forwards(name):
    # Hugging Face's XGLM has no float64.
    model = architecture(name, BRIDGE, torch.float32 if name == "xglm" else torch.float64)
    streams = ("mlp", "attn") if name == "gpt1" else ("resid", "mlp", "attn")
    auto, plain = (trace(model, streams=streams, engine=engine) for engine in ("auto", "plain"))
    assert auto.high == pytest.approx(plain.high, rel=1e-5)
    rounding = 1e-3 if name == "xglm" else 1e-6
    torch.testing.assert_close(auto.scores, plain.scores, rtol=rounding, atol=0)
    reasons = [note for note in auto.notes if "whole forwards were run" in note]
    assert (auto.engine, len(reasons)) == ("plain", 1) if name in ("falcon-alibi", "gpt1") else ("blocks", 0)
    assert all("\n" not in note for note in auto.notes)

    edit, other = (rome(model, engine=engine).edit(REQUEST) for engine in ("auto", "plain"))
    torch.testing.assert_close(edit.v, other.v, rtol=rounding, atol=rounding)
    tuned = rl.FineTuning(model, layer=1, num_steps=2).edit(REQUEST)
    assert tuned.settings["engine"] == auto.engine
    found, expected = evaluate(model), evaluate(model, engine="plain")
    assert found["answers"][0]["nll_new"] == pytest.approx(expected["answers"][0]["nll_new"], rel=1e-5)
    assert found["texts"] == expected["texts"]
    assert (found["engine"], bool(found["notes"])) == (auto.engine, auto.engine == "plain")
    assert expected["notes"] == ["engine='plain' was asked for"]
    prompts = torch.tensor([[70, 71, 72]])
    assert sample(as_backend(model), prompts, n_new=3, generator=None).shape == (1, 6)
    assert_left_alone(model)


def test_a_stream_that_nothing_passes_is_refused_in_one_line():
    said = refused(rl.ModelError, trace, architecture("gpt1", BRIDGE))
    assert "nothing passes it in a forward; leave its stream out" in said


@pytest.mark.parametrize("noise", [None, "m", "t5", "u0.5"])
@pytest.mark.parametrize("engine", ["auto", "attribution"])
def test_noise_is_as_wide_as_what_passes_hook_embed(noise, engine):
    model = architecture("opt-narrow", BRIDGE)
    assert (as_backend(model).embed_width, as_backend(model).d_model) == (16, 32)
    found = trace(model, noise=noise, facts=FACTS, engine=engine)
    assert found.low != found.high


def test_an_average_has_noise_as_wide_as_what_passes_hook_embed(monkeypatch):
    monkeypatch.setattr("rome_lens.tracing.answers.check_known", lambda backend, text: None)
    average = rl.average_causal_effect(architecture("opt-narrow", BRIDGE), FACTS, samples=2, streams=("resid",))
    assert average.high != average.low


@pytest.mark.parametrize("error", [TypeError("no\nsuch"), IndexError("list index out of range"), KeyError("x")])
def test_whatever_a_block_raises_alone_leads_to_whole_forwards(backend, error, monkeypatch):
    model = architecture("llama", backend)
    expected = trace(model)
    told = []

    def fail(self, layer, *args, **kwargs):
        if layer:
            raise error
        return run(self, layer, *args, **kwargs)

    run = REPLAY[backend].run
    monkeypatch.setattr(REPLAY[backend], "run", fail)
    found = trace(model, progress=lambda *step: told.append(step))
    assert found.engine == "plain"
    assert found.notes[0].startswith(
        f"whole forwards were run, which is slower: a block called alone raised {type(error).__name__}: "
    )
    assert "\n" not in found.notes[0]
    torch.testing.assert_close(found.scores, expected.scores, rtol=1e-6, atol=0)
    assert told[-1][0] == told[-1][1]
    assert rome(model).edit(REQUEST).settings["engine"] == "plain"
    assert rl.FineTuning(model, layer=1, num_steps=2).edit(REQUEST).settings["engine"] == "plain"
    assert evaluate(model)["engine"] == "plain"
    assert_left_alone(model)


def test_what_the_whole_forward_raises_too_reaches_the_user(llama, monkeypatch):
    backend = type(as_backend(llama))
    monkeypatch.setattr(backend, "_forward", lambda *args, **kwargs: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        trace(llama)


@pytest.mark.parametrize(
    "work",
    [
        lambda model, progress: trace(model, progress=progress),
        lambda model, progress: rome(model).edit_many([REQUEST], progress=progress),
        lambda model, progress: rl.FineTuning(model, layer=1, num_steps=2).edit_many([REQUEST], progress=progress),
    ],
)
@pytest.mark.parametrize("error", [ValueError("stop"), RuntimeError("stop"), KeyboardInterrupt()])
def test_a_callback_that_cancels_is_asked_once(llama, work, error):
    model, calls = llama, []

    def cancel(*step):
        calls.append(step)
        raise error

    with pytest.raises(type(error)) as raised:
        work(model, cancel)
    assert raised.value is error
    assert len(calls) == 1
    assert_left_alone(model)


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("can't allocate memory"), rl.EditError("mine")])
def test_errors_that_are_no_block_s_pass(llama, error):
    backend = as_backend(llama)

    def fail(told):
        raise error

    with pytest.raises(type(error)) as raised:
        prefer_blocks(backend, engine="auto", blocks=fail, whole=lambda reason: reason)
    assert raised.value is error


def test_the_reason_is_one_line():
    with pytest.raises(ReplayError) as error, called_alone():
        raise RuntimeError("one\ntwo")
    assert str(error.value) == "a block called alone raised RuntimeError: one"


@pytest.mark.parametrize("method", ["ask", "ask_again"])
def test_a_block_that_fails_later_has_the_batch_run_by_whole_forwards(llama, method, monkeypatch):
    expected = evaluate(llama, engine="plain")
    run = BlockAnswerer._run

    def fail(self, chunk, entering, updates, keep=()):
        if (updates is not None) == (method == "ask_again"):
            raise IndexError("later")
        return run(self, chunk, entering, updates, keep)

    monkeypatch.setattr(BlockAnswerer, "_run", fail)
    measurer = RecordMeasurer(llama, Measures(n_texts=1, text_length=16), layers=[1])
    edit = rome(llama).edit(RECORDS[0].request)
    for editor in (None, type("Given", (), {"edit": lambda self, request: edit})()):
        found = by_number(measurer.measure(RECORDS, "mine", editor))[0]
    measurer.close()
    assert (found["engine"], found["notes"]) == ("plain", ["a block called alone raised IndexError: later"])
    assert found["answers"][0]["before_nll_new"] == pytest.approx(expected["answers"][0]["nll_new"], rel=1e-9)
    assert_left_alone(llama)


def test_a_block_s_own_forward_is_put_back():
    model = own("llama", BRIDGE)
    block = model.blocks[0]
    its_own = type(block).forward.__get__(block)
    object.__setattr__(block, "forward", its_own)
    rome(model).edit(REQUEST)
    assert block.__dict__["forward"] is its_own
