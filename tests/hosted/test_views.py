"""Weights taken where they are: views of the model they were read from, and no two with a number in common."""

import logging

import pytest
import torch
from architectures import HOOKED, byte_tokenizer, hugging_face_model
from hosts import HOOKED_HOSTS, needs_hooked

from rome_lens.loading import convert
from rome_lens.loading.convert import to_transformer_lens
from rome_lens.loading.hugging_face import Pretrained
from rome_lens.loading.views import bytes_beside, without_sharing


def is_view(tensor, of) -> bool:
    return tensor.untyped_storage().data_ptr() == of.untyped_storage().data_ptr()


def test_views_of_their_own_numbers_stay_views():
    whole = torch.randn(4, 12, requires_grad=True)
    q, k, v = whole.split(4, dim=1)
    weights = without_sharing({"q": q.T, "k": k.reshape(4, 2, 2).permute(1, 0, 2), "v": v, "other": torch.randn(3)})
    assert [is_view(weights[name], whole) for name in ("q", "k", "v", "other")] == [True, True, True, False]
    assert torch.equal(weights["q"], q.T)
    assert not any(weight.requires_grad for weight in weights.values())


@pytest.mark.parametrize(
    "second",
    [
        lambda x: x,
        lambda x: x.T,
        lambda x: x[1:],
        lambda x: x[:, 3:4],
        lambda x: x[-1:, -1:],
        lambda x: x.view(torch.int32),
        lambda x: x.view(torch.int16),
    ],
    ids=["itself", "transposed", "rows", "a column", "one number", "as another type", "as another size"],
)
def test_what_shares_a_number_is_a_copy(second):
    whole = torch.randn(4, 4)
    weights = without_sharing({"first": whole, "second": second(whole)})
    assert is_view(weights["first"], whole)
    assert not is_view(weights["second"], whole)
    assert torch.equal(weights["second"], second(whole))


def test_an_earlier_view_of_a_part_makes_the_whole_a_copy():
    whole = torch.randn(4, 4)
    weights = without_sharing({"left": whole[:, :2], "right": whole[:, 2:], "whole": whole})
    assert [is_view(weights[name], whole) for name in ("left", "right", "whole")] == [True, True, False]


def test_views_that_lie_between_one_another_stay_views():
    whole = torch.randn(24)
    weights = without_sharing({"even": whole[::2], "odd": whole[1::2], "third": whole[::3]})
    assert [is_view(weights[name], whole) for name in ("even", "odd", "third")] == [True, True, False]


def test_what_repeats_a_number_is_a_copy():
    row = torch.randn(1, 4)
    weights = without_sharing({"repeated": row.expand(3, 4), "row": row})
    assert not is_view(weights["repeated"], row)
    assert is_view(weights["row"], row)
    weights["repeated"][0] = 0
    assert weights["repeated"][1].any()


def test_copies_keep_their_layout():
    whole = torch.randn(4, 6)
    weights = without_sharing({"one": whole, "other": whole.T})
    assert weights["other"].stride() == whole.T.stride()


def test_nothing_shares_nothing():
    empty = torch.empty(0, 3)
    assert without_sharing({"one": empty, "other": empty}).keys() == {"one", "other"}


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_bytes_beside(device):
    tied, new = torch.empty(8, 4, device=device), torch.empty(5, device=device)
    assert bytes_beside({"one": tied.T}, [tied]) == 0
    assert bytes_beside({"one": tied, "other": tied.T, "new": new}, [tied]) == 4 * (32 + 5)
    assert bytes_beside({}, [tied]) == 0


# --- HookedTransformers


def pretrained(name: str) -> Pretrained:
    return Pretrained(name=name, model=hugging_face_model(name, dtype=torch.float32), tokenizer=byte_tokenizer())


@needs_hooked
@pytest.mark.parametrize("name", ["gpt2", "gptj", "neox", "llama", "qwen2", "phi3", "opt", "bloom"])
def test_a_hooked_transformer_is_made_in_one_copy(name):
    """Whatever is more than a view is small: what is tied, biases that there are not, masks."""
    source = pretrained(name)
    hooked = to_transformer_lens(source, backend=HOOKED)
    theirs = {parameter.untyped_storage().data_ptr() for parameter in source.model.parameters()}
    for parameter_name, parameter in hooked.named_parameters():
        if parameter_name.rpartition(".")[2] in ("W_in", "W_out", "W_gate", "W_Q", "W_O", "W_E"):
            assert parameter.untyped_storage().data_ptr() in theirs, parameter_name
    assert all(parameter.requires_grad and parameter.is_leaf for parameter in hooked.parameters())
    assert all(parameter.requires_grad for parameter in source.model.parameters())


@needs_hooked
@pytest.mark.parametrize("name", HOOKED_HOSTS)
def test_no_parameter_changes_with_another(name):
    parameters = dict(to_transformer_lens(pretrained(name), backend=HOOKED).named_parameters())
    with torch.no_grad():
        for number, parameter in enumerate(parameters.values()):
            parameter.fill_(number)
        for number, (parameter_name, parameter) in enumerate(parameters.items()):
            assert bool((parameter == number).all()), parameter_name


@needs_hooked
@pytest.mark.parametrize(("free", "backend"), [(10**9, "HookedTransformer"), (100, "TransformerBridge")])
def test_auto_takes_the_bridge_where_memory_is_short(free, backend, monkeypatch, caplog):
    monkeypatch.setattr(convert, "free_bytes", lambda device: free)
    source = pretrained("gpt2")
    assert type(to_transformer_lens(source, backend="auto")).__name__ == backend
    warned = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert warned == (
        []
        if free > 100
        else [
            "as a HookedTransformer 'gpt2' takes 0 MB beside what was read, and 0 MB are free; using a "
            "TransformerBridge"
        ]
    )


@needs_hooked
def test_what_a_view_needs_is_not_counted_twice(monkeypatch):
    """A model with nothing tied takes next to nothing as a HookedTransformer, however little is free."""
    source = pretrained("llama")
    size = sum(parameter.nbytes for parameter in source.model.parameters())
    monkeypatch.setattr(convert, "free_bytes", lambda device: size // 4)
    assert convert._room_missing(source) is None


@needs_hooked
def test_that_memory_is_short_is_no_reason_where_there_is_another(monkeypatch):
    """Of a model that no HookedTransformer can be made of, whoever converts it says so."""
    monkeypatch.setattr(convert, "free_bytes", lambda device: 100)
    assert convert._room_missing(pretrained("gemma2")) is None


@needs_hooked
def test_who_asks_for_a_hooked_transformer_gets_one(monkeypatch):
    monkeypatch.setattr(convert, "free_bytes", lambda device: 100)
    assert type(to_transformer_lens(pretrained("gpt2"), backend=HOOKED)).__name__ == "HookedTransformer"


@needs_hooked
def test_a_converter_that_cannot_be_asked_is_taken_to_copy_everything(monkeypatch):
    source = pretrained("llama")
    size = sum(parameter.nbytes for parameter in source.model.parameters())

    def refuse(*_):
        raise RuntimeError("looks at its numbers")

    monkeypatch.setattr(convert, "_translated", refuse)
    monkeypatch.setattr(convert, "free_bytes", lambda device: size - 1)
    assert "takes 0 MB beside what was read" in (convert._room_missing(source) or "")
    monkeypatch.setattr(convert, "free_bytes", lambda device: size + 1)
    assert convert._room_missing(source) is None
