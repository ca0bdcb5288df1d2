"""What memory cannot hold is refused before any work on it, with what it takes and what is free."""

import re

import pytest
import torch
from architectures import save
from refused import refused
from tiny_rome import REQUEST, moment, rome

import rome_lens as rl
from rome_lens import memory
from rome_lens.editing import tuning, values
from rome_lens.errors import OutOfMemoryError

FREE = 10_000
TEXTS = ["Rome is in a land of hills."]
OTHER = rl.EditRequest("a {}", subject="cd", target_new="xw")


@pytest.fixture
def full(monkeypatch):
    """Next to nothing is free, and an optimiser that begins all the same is a failure."""

    def descend(*given, **settings):
        raise AssertionError("the optimiser began")

    monkeypatch.setattr(memory, "free_bytes", lambda device: FREE)
    for module in (values, tuning):
        monkeypatch.setattr(module, "descend", descend)


def said(call, *args, **settings):
    """What is refused, what it takes, and what is advised instead."""
    message = refused(OutOfMemoryError, call, *args, **settings)
    found = re.fullmatch(r"(.*) takes about ([\d,.]+ [MG]B), and 0 MB are free; (.*)", message)
    assert found, message
    return found[1], found[3]


def test_a_trace(gpt2, full):
    what = said(rl.causal_trace, gpt2, "Rome is in" * 5, subject="Rome", noise=1.0)
    assert what == ("a trace of 50 tokens", "shorten the prompt")


def test_an_edit(gpt2, full):
    advice = "shorten the prompt, or give fewer or shorter context templates"
    assert said(rome(gpt2).solve, [REQUEST]) == ("to find an edit", advice)


def test_edits_together(gpt2, full):
    what = said(rome(gpt2).solve, [REQUEST, OTHER], batch_size=2)
    assert what == ("to find 2 edits together", "take a smaller batch_size")


def test_fine_tuning(gpt2, full):
    editor = rl.FineTuning(gpt2, layer=1, num_steps=3)
    what = said(editor.edit, REQUEST)
    assert what == ("to find an edit", "shorten the prompt or the target, or free some memory first")
    assert said(editor.edit_many, [REQUEST, OTHER])[0] == "to find 2 edits together"


@pytest.mark.parametrize("under", [False, True])
def test_the_factor_of_a_second_moment(gpt2, full, under):
    editor = rome(gpt2)
    given = ([REQUEST], [moment(len(editor.second_moment.matrix))]) if under else ([REQUEST],)
    what = said(editor.edit_many_under if under else editor.edit_many, *given)
    assert what == ("to solve with the second moment of layer 1", "free some memory first")


def test_a_factor_that_is_there_needs_no_room(gpt2, monkeypatch):
    editor = rome(gpt2)
    assert editor.second_moment.bytes_to_solve == 16 * len(editor.second_moment.matrix) ** 2
    editor.edit(REQUEST)
    assert not editor.second_moment.bytes_to_solve


def test_a_second_moment(gpt2, full):
    what = said(rl.SecondMoment.collect, gpt2, layers=[1], texts=TEXTS)
    assert what == ("to collect a second moment", "free some memory first")
    what = said(rl.SecondMoment.collect, gpt2, layers=[0, 1], texts=TEXTS)
    assert what == ("to collect the second moments of 2 layers", "collect fewer layers at a time")


def test_a_set(gpt2, full):
    def editor(*layers):
        return rl.MEMIT(gpt2, layers=layers, second_moments=dict.fromkeys(layers, moment(64)), context_templates=["{}"])

    what = said(editor(1).edit_together, [REQUEST, OTHER])
    assert what == ("to solve 2 facts", "edit fewer facts together")
    what = said(editor(0, 1).edit_together, [REQUEST, OTHER])
    assert what == ("to solve 2 facts in 2 layers", "edit one layer, or fewer facts together")


@pytest.mark.parametrize(
    ("dtype", "instead"),
    [("float64", "load it in float32, as it is stored"), ("bfloat16", "choose another device or a smaller dtype")],
)
def test_a_model(dtype, instead, full, tmp_path):
    save("llama", tmp_path / "tiny")
    what = said(rl.load_model, tmp_path / "tiny", dtype=dtype)
    assert what == (f"to load 'tiny' in {dtype}", instead)


def test_a_model_whose_weights_are_mapped_takes_none(full, tmp_path):
    save("llama", tmp_path / "tiny")
    assert rl.load_model(tmp_path / "tiny").cfg.n_layers == 4


def test_what_pytorch_keeps_of_a_gpu_is_free(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (100, 1000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 50)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 20)
    assert memory.free_bytes(torch.device("cuda")) == 130
    with pytest.raises(OutOfMemoryError, match=r"^it takes about 2\.0 GB, and 0 MB are free on cuda; leave it$"):
        memory.check_fits("it", 2 * 10**9, torch.device("cuda"), instead="leave it")
