"""Whole numbers: Python's, numpy's and torch's are taken alike, and kept as Python's; everything else is refused."""

import json

import numpy as np
import pytest
import torch
from refused import refused

import rome_lens as rl
from rome_lens.checks import as_real, as_whole, check_layer, check_window, shown, whole_number, whole_numbers
from rome_lens.editing.settings import FineTuningSettings, Settings
from rome_lens.errors import SettingError
from rome_lens.evaluation.measures import Measures
from rome_lens.runs import Shard, check_batches
from rome_lens.tokens import find_subject


@pytest.mark.parametrize("value", [3, np.int64(3), np.uint8(3), np.array(3), torch.tensor(3)], ids=repr)
def test_whole_numbers(value):
    assert as_whole(value) == 3
    assert type(as_whole(value)) is int


@pytest.mark.parametrize(
    "value",
    [
        3.0,
        np.float64(3),
        "3",
        None,
        True,
        np.True_,
        torch.tensor(True),
        [3],
        np.array([3]),
        torch.tensor([3]),
        torch.tensor(3.0),
        np.array(True),
        torch.empty((), device="meta"),
    ],
    ids=repr,
)
def test_what_is_no_whole_number(value):
    assert as_whole(value) is None
    with pytest.raises(SettingError, match=r"^n is .*; expected a whole number$"):
        whole_number("n", value)


@pytest.mark.parametrize(
    ("bounds", "expected"),
    [
        ({"least": 4}, "n is 3; expected a whole number, 4 or more"),
        ({"least": 0, "most": 2}, "n is 3; expected a whole number from 0 to 2"),
        ({"least": 4, "expected": "a whole number of rows"}, "n is 3; expected a whole number of rows, 4 or more"),
    ],
)
@pytest.mark.parametrize("value", [3, np.int32(3)], ids=repr)
def test_ranges(value, bounds, expected):
    assert refused(SettingError, whole_number, "n", value, **bounds) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (2, 2),
        (0.5, 0.5),
        (np.float32(0.5), 0.5),
        (np.int64(2), 2),
        (float("nan"), None),
        (float("inf"), None),
        (10**400, None),
    ],
)
def test_real_numbers(value, expected):
    found = as_real(value)
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize("value", [True, "1", None, 1j])
def test_what_is_no_real_number(value):
    assert as_real(value) is None


def test_numbers_are_shown_without_their_type():
    assert [shown(v) for v in (np.int64(7), np.float64(0.5), 7, "7", True)] == ["7", "0.5", "7", "'7'", "True"]


def test_layers_and_windows():
    assert check_layer(np.int64(2), n_layers=3, model_name="m") == 2
    with pytest.raises(SettingError, match=r"^layer is 3; m has layers 0 to 2, counted from 0$"):
        check_layer(np.int64(3), n_layers=3, model_name="m")
    assert check_window(np.int64(3), n_layers=3) == 3
    with pytest.raises(SettingError, match=r"^window is 0; expected a whole number of layers from 1 to 3, the layers"):
        check_window(np.int64(0), n_layers=3)


# --- wherever the package takes one


def test_settings_keep_pythons_own_numbers():
    kept = [
        Settings(np.int64(1), np.int32(5), np.float32(0.5), np.float64(0), np.int64(4), 0.0625, "mine"),
        FineTuningSettings(np.int64(1), np.float32(0.25), np.int64(3), np.float64(1e-3), np.int64(0), 0.5, "mine"),
        Measures(n_texts=np.int64(2), text_length=np.int16(20), top_k=np.int8(3), seed=np.uint32(7)),
        Shard(np.int64(1), np.int64(2)),
    ]
    for one in kept:
        plain = {name: value for name, value in vars(one).items() if isinstance(value, np.generic)}
        assert plain == {}, type(one).__name__
    assert check_batches(np.int64(4), 10, of="records") == 4
    assert find_subject("a tower, a tower", "tower", np.int64(-1)) == (11, 16)


def test_a_trace_of_numpys_numbers(tiny, tmp_path):
    numbers = {"samples": 3, "window": 2, "seed": 5, "occurrence": 1}
    settings = {"subject": "the tower", "noise": 1.0}
    expected = rl.causal_trace(tiny, "the tower is in the city of", **settings, **numbers)
    given = {name: np.int64(number) for name, number in numbers.items()}
    found = rl.causal_trace(tiny, "the tower is in the city of", **(settings | {"noise": np.float64(1)}), **given)
    assert torch.equal(found.scores["mlp"], expected.scores["mlp"])
    json.dumps(found.to_dict())
    found.save(tmp_path / "trace.safetensors")
    assert rl.CausalTrace.load(tmp_path / "trace.safetensors").samples == 3


def test_a_sweep_over_numpys_layers(tiny, tmp_path):
    moments = rl.SecondMoment.collect(
        tiny,
        layers=np.arange(2),
        texts=["the tower is in the city of"] * 40,
        max_tokens=np.int64(100),
        seed=np.int64(0),
    )
    assert list(moments) == [0, 1]
    assert {type(layer) for layer in moments} == {int}
    request = rl.EditRequest("{} is in the city", "the tower", "the")
    for layer in np.arange(1):  # what the last layer says at the subject reaches no other token
        editor = rl.ROME(
            tiny,
            layer=layer,
            second_moment=moments[layer],
            context_templates=["{}"],
            seed=np.int64(1),
            v_num_grad_steps=np.int64(2),
        )
        edit = editor.edit_many([request], batch_size=np.int64(1))[0]
        edit.save(tmp_path / "edit.safetensors")
        assert type(rl.load_edit(tmp_path / "edit.safetensors").layer) is int
        tuned = rl.FineTuning(tiny, layer=layer, num_steps=np.int64(1)).edit(request)
        tuned.save(tmp_path / "tuned.safetensors")
        assert rl.load_edit(tmp_path / "tuned.safetensors").layer == layer


def test_an_average_of_numpys_numbers(tiny, tmp_path):
    facts = [rl.Fact("{} is in the city of", "the tower", "city")]
    numbers = {"samples": np.int64(2), "window": np.int64(1), "seed": np.int64(3), "batch_size": np.int64(1)}
    found = rl.average_causal_effect(tiny, facts, noise=1.0, streams="mlp", out=tmp_path / "run", **numbers)
    assert rl.read_average(tmp_path / "run").n_layers == found.n_layers


def test_an_evaluation_of_numpys_numbers(tiny, tmp_path):
    record = rl.CounterFactRecord(
        number=0,
        case_id=0,
        relation=None,
        request=rl.EditRequest("{} is in the", "the tower", "of", "city"),
        paraphrases=("the city of the tower is",),
        neighbours=("the city is in the",),
        generation_prompts=(),
    )
    report = rl.evaluate_counterfact(
        tiny,
        "none",
        [record],
        measures=rl.Measures(n_texts=np.int64(0), seed=np.int64(1)),
        batch_size=np.int64(1),
        out=tmp_path / "run",
    )
    assert report.editors["none"].n_records == 1


@pytest.mark.parametrize("value", [0.5, np.float32(0.5), np.array(0.5), torch.tensor(0.5)], ids=repr)
def test_numbers_that_stand_alone_in_an_array_or_a_tensor(tiny, value):
    assert (as_real(value), type(as_real(value)), shown(value)) == (0.5, float, "0.5")
    settings = Settings(0, 1, value, value, value, value, "")
    assert {type(getattr(settings, f)) for f in ("v_lr", "v_weight_decay", "clamp_norm_factor", "kl_factor")} == {float}
    moment = rl.SecondMoment.from_matrix(torch.eye(tiny.cfg.d_mlp), layer=torch.tensor(0))
    editor = rl.ROME(tiny, layer=np.array(0), second_moment=moment, bare_weight=value, v_lr=value)
    assert (editor.bare_weight, editor.settings.v_lr, editor.layer) == (0.5, 0.5, 0)
    tuner = rl.FineTuning(tiny, layer=torch.tensor(1), norm_constraint=value, lr=value, stop_loss=value)
    assert (tuner.settings.norm_constraint, tuner.settings.lr, tuner.layer) == (0.5, 0.5, 1)
    trace = rl.causal_trace(
        tiny, "the tower is in", subject="the tower", noise=value, samples=np.array(2), streams="mlp"
    )
    assert (trace.noise, type(trace.noise), trace.samples) == (0.5, float, 2)
    json.dumps(trace.to_dict())
    assert rl.Measures(perplexity_bound=torch.tensor(1.5)).perplexity_bound == 1.5
    key = torch.ones(tiny.cfg.d_mlp)
    assert torch.equal(moment.solve(key, value), moment.solve(key, 0.5))


@pytest.mark.parametrize("value", [np.array([0.5, 1]), torch.tensor([0.5]), "0.5", True, np.array(np.nan)], ids=repr)
def test_what_is_no_number(tiny, value):
    assert as_real(value) is None
    moment = torch.eye(tiny.cfg.d_mlp)
    ask = {"prompt": "the tower is in", "subject": "the tower"}
    for step in (
        lambda: rl.ROME(tiny, layer=0, second_moment=moment, v_lr=value),
        lambda: rl.ROME(tiny, layer=0, second_moment=moment, bare_weight=value),
        lambda: rl.FineTuning(tiny, norm_constraint=value),
        lambda: rl.causal_trace(tiny, **ask, noise=[value]),
        lambda: rl.SecondMoment.from_matrix(moment, layer=0).solve(moment[0], value),
        lambda: rl.Measures(perplexity_bound=value),
    ):
        refused(SettingError, step)


def test_long_arrays_are_shown_in_one_line():
    assert shown(np.arange(5000)) == "a ndarray of 5000 numbers"
    assert shown(torch.zeros(2, 3)) == "a Tensor of 2 x 3 numbers"
    assert len(shown("x" * 5000)) < 300


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0, np.int64(2)], [0, 2]),
        (np.array([0, 2]), [0, 2]),
        (torch.tensor([0, 2]), [0, 2]),
        (range(2), [0, 1]),
        ((), []),
    ],
    ids=repr,
)
def test_lists_of_whole_numbers(values, expected):
    assert whole_numbers("rows", values) == expected
    assert all(type(number) is int for number in whole_numbers("rows", values))


@pytest.mark.parametrize(
    "values",
    [1, "01", b"1", None, torch.tensor(1), np.array(1), [True], np.array([True]), [1.0], [[1]], {"a": 1}],
    ids=repr,
)
def test_what_is_no_list_of_whole_numbers(tiny, values):
    assert refused(SettingError, whole_numbers, "rows", values).endswith("; expected a list of whole numbers")
    with pytest.raises(SettingError, match="expected a list of one or more layers, such as"):
        rl.SecondMoment.collect(tiny, layers=values, texts=["the tower"])
    edit = rl.FineTuning(tiny, layer=0, num_steps=1).edit(rl.EditRequest("{} is in the city", "the tower", "the"))
    if values is not None:
        with pytest.raises(SettingError, match=r"expected a list of rows of the batch, such as \[0, 2\]"):
            edit.hooks(tiny, rows=values)
