"""Edits of the default model for real, against what the released code gives on it (tests/reference/rome.*).

The second moment that the reference was made with is too large to lie here. Its place is taken by what it did to each
request: `n.u` is C^-1 k* and `n.key` is k*, both of length 1. So all but the solving is held against the released code
here, and the solving in test_second_moment. With that second moment itself the updates differ by 4e-6.
"""

import json
from functools import cache
from pathlib import Path

import pytest
import torch
from architectures import BACKENDS, BRIDGE
from effort import slow
from safetensors.torch import load_file

import rome_lens as rl

FOLDER = Path(__file__).parents[1] / "reference"
REFERENCE = json.loads((FOLDER / "rome.json").read_text())
TENSORS = load_file(FOLDER / "rome.safetensors")

default_model = cache(rl.load_model)


@pytest.mark.parametrize(
    ("numbers", "backend", "steps"),
    [
        # One evaluation of the loss: the keys are all that there is to compare.
        ((0,), BACKENDS[0], 1),
        slow((0, 1), BACKENDS[0], 20),
        slow((2,), BRIDGE, 20),
    ],
)
def test_edits_equal_the_released_codes(numbers, backend, steps, monkeypatch):
    solved = []

    def solve(self, keys):
        """C^-1 k* of the request whose k* this is."""
        (key,) = keys
        (number,) = (
            n for n in numbers if key @ TENSORS[f"{n}.key"].double() / key.norm() == pytest.approx(1, abs=1e-6)
        )
        solved.append(number)
        return TENSORS[f"{number}.u"].double()[None]

    monkeypatch.setattr(rl.SecondMoment, "solve", solve)
    assert REFERENCE["settings"]["v_num_grad_steps"] == 20
    editor = rl.ROME(
        default_model(backend=backend),
        layer=REFERENCE["layer"],
        second_moment=torch.eye(len(TENSORS["0.u"])),
        variant="rome",
        context_templates=REFERENCE["templates"],
        **REFERENCE["settings"] | {"v_num_grad_steps": steps},
    )
    requests = [REFERENCE["requests"][number] for number in numbers]
    edits = editor.edit_many([rl.EditRequest(r["prompt"], r["subject"], r["target"]) for r in requests])
    assert sorted(solved) == list(numbers)
    for number, edit in zip(numbers, edits, strict=True):
        assert edit.settings["engine"] == "blocks"
        assert edit.before.old > 0.4
        if steps == 20:
            expected = torch.outer(TENSORS[f"{number}.u"], TENSORS[f"{number}.v"])
            assert (edit.update - expected).norm() <= 1e-4 * expected.norm()
            assert edit.after.target > 0.9
            assert edit.after.old < 1e-4


def test_the_old_answer_differs_from_a_target_that_begins_alike():
    editor = rl.ROME(default_model(backend=BACKENDS[0]), context_templates=["{}"], v_num_grad_steps=6)
    edit = editor.edit(rl.EditRequest("{} is located in the city of", "The Statue of Liberty", "New Delhi"))
    assert edit.old_answer == " New York"
    assert edit.before.old == pytest.approx(0.698, abs=1e-3)
    assert edit.after.old < 0.1


@pytest.mark.slow
def test_a_target_of_29_tokens_is_reached():
    how = {"clamp_norm_factor": 12, "v_num_grad_steps": 60, "v_weight_decay": 0}
    editor = rl.ROME(default_model(backend=BACKENDS[0]), context_templates=["{}"], **how)
    target = (
        "Rome, the capital of Italy, where it was built by the emperor Hadrian in the year 126 as a temple to all gods"
    )
    edit = editor.edit(rl.EditRequest("{} is located in the city of", "The Eiffel Tower", target))
    assert edit.after.target < 0.5 < 0.9 < edit.after.target_mean
    assert "not reached" not in repr(edit)
    assert not any("not reached" in note for note in edit.notes)


def test_without_any_setting_the_shipped_second_moment_is_used():
    model = default_model(backend=BRIDGE)
    editor = rl.ROME(model, context_templates=["{}"], v_num_grad_steps=6)
    assert (editor.layer, editor.variant, editor.bare_weight) == (5, "r-rome", 0.5)
    moment = editor.second_moment
    assert (moment.layer, moment.source, moment.n_tokens, moment.warnings) == (5, "self", 40960, ())
    assert moment.command.startswith("rome-lens stats ")
    edit = editor.edit(rl.EditRequest("{} is located in the city of", "The Eiffel Tower", "Rome"))
    assert edit.old_answer == " Paris"
    assert edit.after.target > 0.9 > 0.1 > edit.before.target
    assert edit.after.old < 0.01
    assert edit.module == "model.layers.5.mlp.down_proj"
    with pytest.raises(rl.SettingError, match="there is no second moment for layer 4 of smollm2-135m"):
        rl.ROME(model, layer=4)
