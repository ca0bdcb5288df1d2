"""What is lost of edits in weights of little precision, held against weights that they were written into."""

import pytest
import torch
from architectures import BACKENDS, own
from refused import refused

import rome_lens as rl
from rome_lens.backends import as_backend
from rome_lens.errors import ModelMismatchError

REQUESTS = [
    rl.EditRequest("{} is in the city of", "The tower", target_new=" Rome"),
    rl.EditRequest("{} stands in", "The lamp", target_new=" Oslo"),
]


def _moment(model, layer):
    return rl.SecondMoment.from_matrix(torch.eye(model.cfg.d_mlp).double(), layer=layer)


def _written(edit, model):
    """|what the weights gained less what they were to gain| / |what they were to gain|, of one layer after another."""
    backend, numbers = as_backend(model), [here.layer for here in edit.layers]
    before = [backend.w_out(layer).matrix.double().clone() for layer in numbers]
    with edit.applied(model):
        gained = [backend.w_out(layer).matrix.double() - old for layer, old in zip(numbers, before, strict=True)]
    wanted = [here.update.rows(slice(None)) for here in edit.layers]
    off = torch.cat([(one - other).flatten() for one, other in zip(gained, wanted, strict=True)])
    return (off.norm() / torch.cat([one.flatten() for one in wanted]).norm()).item()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("dtype", "least", "most"),
    [(torch.float64, 0, 1e-12), (torch.float32, 1e-9, 1e-4), (torch.bfloat16, 1e-3, 1.0), (torch.float16, 1e-4, 0.5)],
    ids=str,
)
def test_the_share_that_is_lost(backend, dtype, least, most):
    made = rl.ROME(
        full := own("llama", backend),
        layer=2,
        second_moment=_moment(full, 2),
        context_templates=["{}"],
        v_num_grad_steps=3,
    ).edit(REQUESTS[0])
    model = full if dtype == torch.float64 else full.to(dtype)
    share = made.lost_to_rounding(model)
    assert least <= share <= most
    assert share == pytest.approx(_written(made, model), rel=1e-6, abs=1e-12)
    with made.applied(model):
        assert made.lost_to_rounding(model) == share
    # A smaller edit loses more.
    assert made.scaled(0.1).lost_to_rounding(model) >= share


def test_of_several_layers_together(monkeypatch):
    from rome_lens.editing import rounding

    model = own("gpt2", BACKENDS[-1], torch.float32)
    made = rl.MEMIT(
        model,
        layers=[1, 2],
        second_moments={layer: _moment(model, layer) for layer in (1, 2)},
        context_templates=["{}"],
        v_num_grad_steps=3,
    ).edit_together(REQUESTS)
    whole = made.lost_to_rounding(model)
    assert whole == pytest.approx(_written(made, model), rel=1e-5)
    monkeypatch.setattr(rounding, "_ROWS", 7)
    assert made.lost_to_rounding(model) == pytest.approx(whole, rel=1e-12)
    assert made.scaled(0).lost_to_rounding(model) == 0


def test_another_model_is_refused():
    model, other = own("gpt2", BACKENDS[-1]), own("neox", BACKENDS[-1])
    made = rl.FineTuning(model, layer=2, num_steps=1).edit(REQUESTS[0])
    assert "was made" in refused(ModelMismatchError, made.lost_to_rounding, other)
    assert made.lost_to_rounding(model) < 1e-12
