"""Work on a model that is on another device: the same numbers, no operation on tensors of two devices, few waits."""

from typing import Any

import pytest
import torch
from architectures import BACKENDS, own
from disguise import FURTHER, HERE, THERE, Disguise, MixedDevicesError, put, put_model, spread

import rome_lens as rl
from rome_lens.backends import as_backend
from rome_lens.editing import values
from rome_lens.evaluation import questions
from rome_lens.tracing import cases

PROMPT, SUBJECT = "The tower is in the city of", "The tower"
REQUESTS = [
    rl.EditRequest("{} is in the city of", SUBJECT, target_new=" Rome"),
    rl.EditRequest("{} stands in", "The lamp", target_new=" Oslo"),
]
TEXTS = ["The tower is in the city of Paris. The tower is old.", "Water"]


def moment(model: Any, layer: int = 2) -> rl.SecondMoment:
    return rl.SecondMoment.from_matrix(torch.diag(torch.linspace(1, 2, model.cfg.d_mlp).double()), layer=layer)


def rome(model: Any, n_steps: int = 3) -> rl.ROME:
    return rl.ROME(
        model, layer=2, second_moment=moment(model), context_templates=["{}", "So {}"], v_num_grad_steps=n_steps
    )


def weights(model: Any, *edits: Any, layer: int = 2) -> list[torch.Tensor]:
    """What a layer holds with each of some edits."""
    found = []
    for one in edits:
        with one.applied(model):
            found.append(as_backend(model).w_out(layer).matrix.detach().clone())
    return found


def trace(model: Any, **settings: Any) -> list[torch.Tensor]:
    return list(rl.causal_trace(model, PROMPT, subject=SUBJECT, samples=3, **settings).scores.values())


def severed(model: Any) -> list[torch.Tensor]:
    return trace(model, streams=("resid",), severed=("mlp", "attn"))


def plain(model: Any) -> list[torch.Tensor]:
    return trace(model, engine="plain")


def edit(model: Any) -> list[torch.Tensor]:
    made = rome(model).edit(REQUESTS[0])
    tokens = torch.tensor([model.tokenizer(PROMPT)["input_ids"]], device=as_backend(model).device)
    with torch.no_grad():
        hooked = model.run_with_hooks(tokens, fwd_hooks=made.hooks(model))
    return [*weights(model, made), hooked]


def many(model: Any) -> list[torch.Tensor]:
    settings = {"context_templates": ["{}"], "v_num_grad_steps": 3}
    made = rl.MEMIT(model, layers=[2], second_moments={2: moment(model)}, **settings).edit_together(REQUESTS)
    return weights(model, made, made.without(REQUESTS[0]))


def of_two_layers(model: Any) -> list[torch.Tensor]:
    """Layers that two devices hold where a model is spread over them."""
    settings = {"context_templates": ["{}"], "v_num_grad_steps": 3, "layers": [1, 2]}
    moments = {1: moment(model, layer=1), 2: moment(model)}
    made = [
        rl.MEMIT(model, spread="released", at="block", second_moments=moments, **settings).edit_together(REQUESTS),
        rl.AlphaEdit(model, second_moments=moments, **settings).edit_together(REQUESTS),
    ]
    return weights(model, *made, layer=1) + weights(model, *made)


def fine_tune(model: Any) -> list[torch.Tensor]:
    return weights(model, rl.FineTuning(model, layer=2).edit(REQUESTS[0]))


def stats(model: Any) -> list[torch.Tensor]:
    collected = rl.SecondMoment.collect(model, layers=[1, 3], texts=TEXTS, text_length=30)
    written = rl.SecondMoment.collect(model, layers=[2], texts="self", max_tokens=60, text_length=20)
    return [one.matrix for one in (*collected.values(), *written.values())]


def evaluation(model: Any) -> list[torch.Tensor]:
    measures = rl.Measures(n_texts=1, text_length=40, watched=tuple(TEXTS))
    records = rl.builtin_counterfact()[:1]
    report = rl.evaluate_counterfact(model, {"r-rome": rome(model, 2)}, records, measures=measures)
    return [torch.from_numpy(report.to_dataframe().select_dtypes("number").to_numpy(float))]


WORK = (trace, severed, plain, edit, many, of_two_layers, fine_tune, stats, evaluation)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("work", WORK, ids=lambda work: work.__name__)
def test_the_same_numbers_on_another_device(work, backend):
    expected = work(own("llama", backend))
    model = put_model(own("llama", backend))
    with Disguise():
        assert as_backend(model).device == THERE
        found = work(model)
    for one, other in zip(found, expected, strict=True):
        # Batches are of other sizes there, and Adam's steps of what that rounds otherwise are whole ones.
        torch.testing.assert_close(torch.as_tensor(one), torch.as_tensor(other), rtol=1e-6, atol=1e-7, equal_nan=True)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("work", WORK, ids=lambda work: work.__name__)
def test_the_same_numbers_on_two_devices(work, backend):
    expected = work(own("llama", backend))
    with spread(own("llama", backend)) as model, Disguise():
        found = work(model)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(torch.as_tensor(one), torch.as_tensor(other), rtol=1e-6, atol=1e-7, equal_nan=True)


@pytest.mark.parametrize("backend", BACKENDS)
def test_layers_on_two_devices_are_called_alone(backend):
    with spread(own("llama", backend)) as model, Disguise():
        devices = [next(block.parameters()).device for block in model.blocks]
        assert devices == [THERE, THERE, FURTHER, FURTHER]
        traced, made = rl.causal_trace(model, PROMPT, subject=SUBJECT, samples=2), rome(model).edit(REQUESTS[0])
    assert (traced.engine, traced.notes) == ("blocks", ())
    assert made.settings["engine"] == "blocks"


def here(tensor: torch.Tensor) -> torch.Tensor:
    return put(tensor.clone(), HERE)


def _answers(monkeypatch, model):
    case = cases.Case
    monkeypatch.setattr(cases, "Case", lambda tokens, corruption, answers: case(tokens, corruption, here(answers)))


def _first_change(monkeypatch, model):
    begin = values._ValueLoss.__init__

    def begun(self, *given):
        begin(self, *given)
        self.zero = here(self.zero)

    monkeypatch.setattr(values._ValueLoss, "__init__", begun)


def _weight(monkeypatch, model):
    put(next(weight for name, weight in model.named_parameters() if "mlp" in name), HERE)


def _what_is_read(monkeypatch, model):
    chunk = questions.Chunk
    monkeypatch.setattr(questions, "Chunk", lambda **of: chunk(**of | {"read_target": here(of["read_target"])}))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("work", "misplace"),
    [(trace, _answers), (edit, _first_change), (stats, _weight), (evaluation, _what_is_read), (many, _first_change)],
)
def test_a_misplaced_tensor_is_an_error(monkeypatch, backend, work, misplace):
    model = put_model(own("gpt2", backend))
    misplace(monkeypatch, model)
    try:
        with Disguise(), pytest.raises(MixedDevicesError, match="of tensors of two devices"):
            work(model)
    finally:
        put_model(model)  # others have the same one


def _waits(backend, work):
    model = put_model(own("gpt2", backend))
    with Disguise() as disguise:
        work(model)
    return disguise.waits


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_step_of_an_edit_waits_once(backend):
    """For its losses; TransformerBridge's own forward asks once more whether anything is padding."""
    few, more = (_waits(backend, lambda it, n=n: rome(it, n).edit_many(REQUESTS)) for n in (2, 6))
    assert {name: (more - few)[name] for name in more - few} == {"rome_lens.editing.descent.descend: tolist": 4} | {
        name: 4 for name in more if name.startswith("rome_lens.backends.transformer_bridge.unembed")
    }


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_trace_waits_no_more_for_more_cells(backend):
    def of(*streams):
        return _waits(backend, lambda it: trace(it, streams=streams, noise=1.0))

    few, more = of("resid"), of("resid", "mlp", "attn")
    assert more - few == {}
    assert sum(more.values()) < 40
