"""How large a model is and what work on it takes, known before it is loaded, against models that are there."""

import json
from dataclasses import replace

import pytest
import torch
import transformers
from architectures import CONFIGS, byte_tokenizer, hugging_face_model, save
from refused import refused
from torch.utils.flop_counter import FlopCounterMode

import rome_lens as rl
from rome_lens.backends import as_backend
from rome_lens.cli.needs import Place, needs_of
from rome_lens.errors import ModelError, ModelNotFoundError
from rome_lens.loading.shape import Shape

PLACE = Place(torch.device("cpu"), torch.float32, free=2**34, n_processes=1, rate=1e9)
# Large enough that matrix products are what counts, as in any model that people trace.
SIZES = {"vocab_size": 258, "n_embd": 64, "n_layer": 6, "n_head": 2, "n_positions": 64, "bos_token_id": 0}
# Of experts, or not hosted by TransformerLens in either class.
UNKNOWN = {"mixtral", "cohere"}


@pytest.mark.parametrize("name", sorted(set(CONFIGS) - UNKNOWN))
def test_the_shape_of_a_folder_is_that_of_its_model(name, tmp_path):
    save(name, tmp_path)
    model = hugging_face_model(name, dtype=torch.float32)
    found = Shape.of(tmp_path)
    backend = as_backend(rl.load_model(tmp_path))
    assert (found.n_layers, found.d_model, found.d_vocab) == (backend.n_layers, backend.d_model, backend.d_vocab)
    assert found.d_mlp == backend.w_out(0).matrix.shape[0]
    assert found.n_parameters == sum(parameter.numel() for parameter in model.parameters())
    assert 0 < found.n_block * found.n_layers < found.n_parameters
    assert found.name == tmp_path.name


def test_the_shape_of_the_default_model_is_written_down_as_it_is():
    sizes = {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "vocab_size": 49152}
    config = transformers.LlamaConfig(**sizes, num_attention_heads=9, num_key_value_heads=3, tie_word_embeddings=True)
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(config)
    found = Shape.of("smollm2-135m")
    assert (found.n_layers, found.d_model, found.d_mlp, found.d_vocab) == (30, 576, 1536, 49152)
    assert found.n_parameters == model.num_parameters()
    assert found.n_block == sum(parameter.numel() for parameter in model.model.layers[0].parameters())


def test_what_is_no_decoder_has_no_shape(tmp_path):
    assert refused(ModelNotFoundError, Shape.of, str(tmp_path / "none")).startswith("no model ")
    transformers.BertConfig(num_hidden_layers=1).save_pretrained(tmp_path)
    assert "is not a language decoder" in refused(ModelError, Shape.of, tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2", "n_embd": 7, "n_head": 2, "n_layer": 1}))
    assert "does not say how large it is" in refused(ModelError, Shape.of, tmp_path)


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """A folder with a model whose work is mostly matrix products."""
    folder = tmp_path_factory.mktemp("wide")
    torch.manual_seed(0)
    transformers.GPT2LMHeadModel(transformers.GPT2Config(**SIZES)).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def _operations(run):
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def _seconds(folder):
    """What is said of each work, in operations: one a second is done, and no more than can be are lost."""
    found = needs_of(Shape.of(folder), replace(PLACE, rate=1 / 0.6), 10)
    return {need.what: need.seconds for need in found}


def test_the_operations_of_a_trace_are_those_that_are_counted(wide, monkeypatch):
    # What a model that is so small pads, to save calls that cost more, is not reckoned with.
    monkeypatch.setattr("rome_lens.tracing.blocks._CALL_FLOP", {"cpu": 0})
    model = rl.load_model(wide)
    counted = _operations(lambda: rl.causal_trace(model, "Rome is in", subject="ome", answer="a", noise=1.0))
    assert _seconds(wide)["trace"] == pytest.approx(counted, rel=0.25)


def test_the_operations_of_an_edit_are_those_that_are_counted(wide):
    model = rl.load_model(wide)
    templates = ["{}", *(f"{letter}. {{}}" for letter in "abcdefghijklmnopqrst")]
    editor = rl.ROME(
        model, layer=2, second_moment=torch.eye(256), context_templates=templates, v_num_grad_steps=20, v_lr=1e-4
    )
    request = rl.EditRequest("a {} is in ab", subject="Rom", target_new="x")
    counted = _operations(lambda: editor.edit(request))
    assert _seconds(wide)["edit"] == pytest.approx(counted, rel=0.35)


def test_the_operations_of_statistics_are_those_that_are_counted(wide):
    model = rl.load_model(wide)
    texts = ["Rome is in a land of hills and rivers, and so on."] * 400
    counted = _operations(lambda: rl.SecondMoment.collect(model, layers=[2], texts=texts, max_tokens=20 * 256))
    assert _seconds(wide)["stats"] == pytest.approx(counted, rel=0.25)


def test_memory_goes_with_the_dtype_the_processes_and_the_facts(wide):
    shape = Shape.of(wide)

    def needs(n_facts=10, **changes):
        return {need.what: need.n_bytes for need in needs_of(shape, replace(PLACE, **changes), n_facts)}

    found = needs()
    assert found["model"] == 4 * (shape.n_parameters + 258 * 64)
    assert needs(dtype=torch.bfloat16)["model"] == found["model"] / 2
    assert needs(n_processes=4)["trace"] > 3 * found["trace"]
    # The two keys of 100,000 facts in float64, and as many weighed ones.
    assert needs(n_facts=100_000)["100,000 facts"] > 2 * 2 * 100_000 * 256 * 8 > found["10 facts"]
