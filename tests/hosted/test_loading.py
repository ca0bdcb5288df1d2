"""load_model: folders, hub names, the default model, and what is said when it cannot be done."""

import importlib.metadata
import json
import logging
import re
import subprocess
import sys
import tempfile
import types
from pathlib import Path

import pytest
import torch
import transformers
from hosts import needs_hooked
from huggingface_hub import constants as hub_constants
from huggingface_hub.utils import are_progress_bars_disabled, enable_progress_bars
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import modeling_gguf_pytorch_utils as gguf_loader
from transformers.utils import logging as transformers_logging

from rome_lens.errors import ModelError, ModelNotFoundError, SettingError
from rome_lens.loading import convert, hugging_face, load_model
from rome_lens.loading.options import has_hooked_transformer

HOOKED = has_hooked_transformer()
BACKENDS = ["hooked-transformer", "transformer-bridge"] if HOOKED else ["transformer-bridge"]

SIZES = {
    "vocab_size": 258,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
GPT_SIZES = {"vocab_size": 258, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64} | dict.fromkeys(
    ("bos_token_id", "eos_token_id"), 0
)
ROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}
CONFIGS = {
    "gpt2": lambda: transformers.GPT2Config(**GPT_SIZES),
    "gptj": lambda: transformers.GPTJConfig(**GPT_SIZES, rotary_dim=4),
    "neox": lambda: transformers.GPTNeoXConfig(**SIZES),
    # A rotary base of its own: the default would hide a loader that ignores it.
    "llama": lambda: transformers.LlamaConfig(**SIZES, num_key_value_heads=2, **ROPE),
    "gemma2": lambda: transformers.Gemma2Config(**SIZES, num_key_value_heads=2, head_dim=8),
    "bert": lambda: transformers.BertConfig(**SIZES),
    "t5": lambda: transformers.T5Config(vocab_size=258, d_model=32, d_ff=48, num_layers=2, num_heads=4, d_kv=8),
}
CLASSES = {"bert": transformers.BertForMaskedLM, "t5": transformers.T5ForConditionalGeneration}


def save_tokenizer(folder: Path) -> None:
    """A tokeniser of single bytes, with one special token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(["<s>", "<unk>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="<s>", unk_token="<unk>"
    ).save_pretrained(folder)


@pytest.fixture(scope="session")
def saved(tmp_path_factory):
    """Tiny random models by name, each in a folder of its own; a test that changes one takes `copy` instead."""
    root = tmp_path_factory.mktemp("models")

    def save(name: str) -> Path:
        folder = root / name
        if not folder.exists():
            with torch.random.fork_rng():
                torch.manual_seed(0)
                config = CONFIGS[name]()
                model = (
                    CLASSES[name](config) if name in CLASSES else transformers.AutoModelForCausalLM.from_config(config)
                )
                # Larger than at initialisation, so that a mistake shows in the logits.
                for parameter in model.parameters():
                    parameter.data.normal_(std=0.2)
            model.save_pretrained(folder)
            save_tokenizer(folder)
        return folder

    return save


@pytest.fixture
def copy(saved, tmp_path):
    def make(name: str, to: str = "model") -> Path:
        (tmp_path / to).mkdir()
        for file in saved(name).iterdir():
            (tmp_path / to / file.name).write_bytes(file.read_bytes())
        return tmp_path / to

    return make


TEXT = "The Eiffel Tower"


def hugging_face_logits(folder: Path, tokens: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    with torch.no_grad():
        return model(tokens).logits


def assert_one_line(error: pytest.ExceptionInfo, *parts: str) -> None:
    text = str(error.value)
    assert "\n" not in text
    for part in parts:
        assert part in text


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["gpt2", "gptj", "neox", "llama"])
def test_local_folder(saved, name, backend):
    model = load_model(saved(name), backend=backend)
    assert type(model).__name__ == {"hooked-transformer": "HookedTransformer"}.get(backend, "TransformerBridge")
    assert model.cfg.model_name == name, "the folder's name, even where TransformerLens has an alias of that name"
    assert not model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}

    tokens = model.to_tokens(TEXT, prepend_bos=False)
    assert tokens.shape == (1, len(TEXT))
    assert model.to_tokens(TEXT, prepend_bos=True)[0, 0] == 0
    with torch.no_grad():
        torch.testing.assert_close(model(tokens), hugging_face_logits(saved(name), tokens), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
def test_dtypes(saved, backend):
    folder = saved("llama")
    for name, dtype in [("bfloat16", torch.bfloat16), ("torch.float16", torch.float16), ("float64", torch.float64)]:
        model = load_model(folder, backend=backend, dtype=name)
        assert {parameter.dtype for parameter in model.parameters()} == {dtype}
        assert model.cfg.dtype == dtype
    tokens = model.to_tokens(TEXT)
    with torch.no_grad():
        expected = hugging_face_logits(folder, tokens, torch.float64)
        # The rotary tables are float32 on both sides, and rounded apart.
        torch.testing.assert_close(model(tokens), expected, atol=1e-5, rtol=1e-5)


@needs_hooked
def test_float64_weights_are_not_rounded(copy):
    folder = copy("gpt2")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    weight = model.transformer.h[0].mlp.c_proj.weight
    weight.data.add_(1e-12)
    model.save_pretrained(folder)
    hooked = load_model(folder, backend="hooked-transformer", dtype=torch.float64)
    assert torch.equal(hooked.blocks[0].mlp.W_out, weight)


def test_auto_takes_the_hooked_transformer_where_there_is_one(saved):
    assert type(load_model(saved("gpt2"))).__name__ == ("HookedTransformer" if HOOKED else "TransformerBridge")


@needs_hooked
def test_auto_falls_back_to_the_bridge(saved, caplog):
    with caplog.at_level(logging.INFO, logger="rome_lens"):
        model = load_model(saved("gemma2"))
    assert type(model).__name__ == "TransformerBridge"
    assert "as a HookedTransformer (Gemma2ForCausalLM is not currently supported)" in caplog.text
    with pytest.raises(ModelError) as error:
        load_model(saved("gemma2"), backend="hooked-transformer")
    assert str(error.value) == (
        "TransformerLens cannot host 'gemma2', a Gemma2ForCausalLM, as a HookedTransformer "
        "(Gemma2ForCausalLM is not currently supported); use the backend 'transformer-bridge'"
    )


@needs_hooked
def test_a_hooked_transformer_with_other_logits_is_refused(saved, monkeypatch):
    original = convert._describe

    def wrong_rotary_base(model):
        described = original(model)
        described["rope_parameters"]["rope_theta"] = 10000.0
        return described

    monkeypatch.setattr(convert, "_describe", wrong_rotary_base)
    with pytest.raises(ModelError) as error:
        load_model(saved("llama"), backend="hooked-transformer")
    assert_one_line(
        error,
        "as a HookedTransformer 'llama' computes other logits than the LlamaForCausalLM that it was read from "
        "(relative difference ",
        "at most 1e-04 is rounding); use the backend 'transformer-bridge'",
    )
    bridge = load_model(saved("llama"))
    assert type(bridge).__name__ == "TransformerBridge"
    assert all(parameter.requires_grad for parameter in bridge.parameters()), "the attempt has frozen nothing"


@needs_hooked
def test_nan_logits_are_no_agreement(copy):
    folder = copy("gpt2")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    model.transformer.ln_f.weight.data[0] = float("nan")
    model.save_pretrained(folder)
    with pytest.raises(ModelError, match=r"gives logits that are not finite in float32; check its weights"):
        load_model(folder, backend="hooked-transformer")


@needs_hooked
@pytest.mark.parametrize("word", ["llama", "Gemma"])
def test_temporary_folder_that_names_an_architecture(saved, tmp_path, monkeypatch, word):
    misleading = tmp_path / word
    misleading.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(misleading))
    assert type(load_model(saved("gpt2"), backend="hooked-transformer")).__name__ == "HookedTransformer"

    monkeypatch.setattr(convert.os, "access", lambda folder, mode: word in str(folder))
    with pytest.raises(ModelError) as error:
        load_model(saved("gpt2"), backend="hooked-transformer")
    assert_one_line(
        error, f"cannot read a model below {str(misleading)!r}", "set TMPDIR to a folder without llama and "
    )


@pytest.mark.skipif(HOOKED, reason="the installed TransformerLens has a HookedTransformer")
def test_hooked_transformer_is_gone(saved):
    with pytest.raises(ModelError) as error:
        load_model(saved("gpt2"), backend="hooked-transformer")
    assert_one_line(
        error,
        "TransformerLens 4.",
        " is installed, and HookedTransformer was removed in 4.0; use the backend 'transformer-bridge', "
        "or install 'transformer-lens>=3.9,<4'",
    )


def process_state() -> dict[str, object]:
    return {
        "levels": [logging.getLogger(name).level for name in ("", "transformers", "huggingface_hub", "gguf")],
        "handlers": list(logging.getLogger().handlers),
        "hook": transformers_logging._tqdm_hook,
        "gguf bar": vars(gguf_loader)["tqdm"],
        "hub bars off": are_progress_bars_disabled(),
        "gradients": torch.is_grad_enabled(),
        "default dtype": torch.get_default_dtype(),
        "temporary folder": tempfile.tempdir,
    }


@pytest.mark.parametrize("progress", [None, lambda done, total, what: None], ids=["silent", "reporting"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_nothing_is_printed_and_nothing_global_stays_changed(saved, capfd, backend, progress):
    folder = saved("gptj")
    tempfile.gettempdir()
    # pytest's own handlers are on the root logger; without them TransformerLens's messages would go to stderr.
    root = logging.getLogger()
    handlers, root.handlers = root.handlers, []
    try:
        # Set here, so that what an earlier load has left behind cannot pass for the user's.
        for name, level in [("transformers", logging.WARNING), ("huggingface_hub", logging.INFO), ("gguf", 0)]:
            logging.getLogger(name).setLevel(level)
        enable_progress_bars()
        before = process_state()
        assert not before["hub bars off"]
        capfd.readouterr()
        load_model(folder, backend=backend, progress=progress)
        assert capfd.readouterr() == ("", "")
        assert process_state() == before
        with pytest.raises(ModelError):
            load_model(saved("bert"), backend=backend, progress=progress)
        assert process_state() == before
    finally:
        root.handlers = handlers


@needs_hooked
def test_that_memory_is_short_is_said_where_nobody_has_set_up_logging(saved, capfd, monkeypatch):
    monkeypatch.setattr(convert, "free_bytes", lambda device: 100)
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    assert type(load_model(saved("gpt2"))).__name__ == "TransformerBridge"
    out, err = capfd.readouterr()
    assert out == ""
    assert re.fullmatch(r"as a HookedTransformer 'gpt2' takes .* free; using a TransformerBridge\n", err)


def test_gradients_switched_off_by_the_user_stay_off(saved):
    with torch.no_grad():
        load_model(saved("gpt2"))
        assert not torch.is_grad_enabled()


def test_progress(saved):
    seen = []
    load_model(saved("gpt2"), progress=lambda *step: seen.append(step))
    assert seen[0] == (0, 0, "loading gpt2")
    last = [step for step in seen if step[2] == "loading gpt2"][-1]
    assert last[0] == last[1] > 0
    assert all(isinstance(part, int) for step in seen for part in step[:2])


def test_importing_the_package_is_cheap():
    program = (
        "import sys, rome_lens.loading; print([m for m in ('torch', 'transformers', 'transformer_lens', 'numpy') "
        "if m in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", program], text=True).strip() == "[]"


# --- what cannot be loaded


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"backend": "bridge"}, "backend is 'bridge'; choose one of auto, hooked-transformer, transformer-bridge"),
        ({"dtype": "float31"}, "dtype is 'float31'; choose one of float32, float64, bfloat16, float16"),
        ({"dtype": torch.int8}, "dtype is 'int8'; choose one of float32, float64, bfloat16, float16"),
        ({"device": "gpu"}, "device 'gpu' cannot be used (no such kind of device); choose cpu, cuda, cuda:1, mps, …"),
        ({"device": "cpu:x"}, "device 'cpu:x' cannot be used (Invalid device string: 'cpu:x'); choose cpu, "),
        ({"device": "meta"}, "device is 'meta', which holds no weights; choose cpu, cuda, cuda:1, mps, …"),
        ({"device": "cuda:99"}, "device 'cuda:99' cannot be used ("),
    ],
)
def test_settings(saved, settings, expected):
    with pytest.raises(SettingError) as error:
        load_model(saved("gpt2"), **settings)
    assert_one_line(error, expected)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("bert", "'bert' (a bert) is not a language decoder: an encoder has no next token to predict"),
        (
            "t5",
            "'t5' (a t5) is not a language decoder: "
            "an encoder-decoder answers another text and does not continue its own",
        ),
    ],
)
def test_encoders(saved, name, expected):
    with pytest.raises(ModelError) as error:
        load_model(saved(name))
    assert str(error.value) == expected


def test_encoder_by_its_config_alone_is_refused_before_its_weights_are_read(copy):
    folder = copy("bert")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="an encoder has no next token to predict"):
        load_model(folder)


@pytest.mark.parametrize("name", ["./nowhere", "/no/where", "no/such/folder", "../x", "", "a name", "~/no such folder"])
def test_no_such_folder(name):
    with pytest.raises(ModelNotFoundError) as error:
        load_model(name)
    assert str(error.value) == (
        f"no model {name!r}: there is no such folder, and it is neither 'smollm2-135m' nor a name on the hub"
    )


def test_folder_without_a_model(tmp_path):
    with pytest.raises(ModelNotFoundError) as error:
        load_model(tmp_path)
    assert_one_line(error, f"the folder {str(tmp_path)!r} holds no model: it has no config.json")


def test_file_instead_of_a_folder(saved):
    file = saved("gpt2") / "model.safetensors"
    with pytest.raises(ModelNotFoundError) as error:
        load_model(file)
    assert_one_line(error, f"{str(file)!r} is a file; a model is given by its folder, with config.json and weights")


@pytest.mark.parametrize("name", ["gpt2", "EleutherAI/pythia-70m"])
def test_hub_cannot_be_reached(name, monkeypatch, tmp_path):
    monkeypatch.setattr(hub_constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub_constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelNotFoundError) as error:
        load_model(name)
    assert_one_line(
        error,
        "': it is not 'smollm2-135m', there is no such folder, and the hub cannot be reached or does not have it",
        name.split("/")[-1],
    )


@pytest.mark.parametrize(
    ("cause", "said"),
    [
        (
            "GatedRepoError",
            "'owner/name' is gated on the hub: ask for access on its page, then run `hf auth login` and try again",
        ),
        (
            "RepositoryNotFoundError",
            "no model 'owner/name': it is not 'smollm2-135m', there is no such folder, and the hub has none of that "
            "name, or only for those who are logged in (`hf auth login`)",
        ),
        (
            "ConnectionError",
            "no model 'owner/name': it is not 'smollm2-135m', there is no such folder, and the hub cannot be reached "
            "or does not have it",
        ),
    ],
)
def test_what_the_hub_says_is_said(cause, said, monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError("You are trying to access a repo.\nhttps://…") from type(cause, (OSError,), {})("403")

    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", refuse)
    with pytest.raises(ModelNotFoundError) as error:
        load_model("owner/name")
    assert str(error.value) == said


def test_names_that_transformer_lens_knows_are_translated(monkeypatch):
    asked = []

    def record(location):
        asked.append(location.source)
        raise ModelError("enough")

    monkeypatch.setattr(hugging_face, "read_config", record)
    for name in ("pythia-70m", "gpt2-small", "owner/name"):
        with pytest.raises(ModelError, match="enough"):
            load_model(name)
    assert asked[0] == "EleutherAI/pythia-70m"
    assert asked[1].endswith("gpt2")
    assert asked[2] == "owner/name"


def damage_config(folder: Path) -> None:
    (folder / "config.json").write_text("{not json")


def unknown_architecture(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"model_type": "unheard-of"}))


def remote_code(folder: Path) -> None:
    config = {"model_type": "custom", "auto_map": {"AutoConfig": "evil.Config"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "evil.py").write_text(f"open({str(folder / 'ran')!r}, 'w')")


def truncate_weights(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])


def remove_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def remove_one_tensor(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    del weights["transformer.h.1.mlp.c_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def other_shape(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"n_embd": 64}))


@pytest.mark.parametrize(
    ("harm", "expected"),
    [
        (damage_config, "describes no model that transformers can load ("),
        (unknown_architecture, "describes no model that transformers can load ("),
        (remote_code, "describes no model that transformers can load ("),
        (truncate_weights, "the weights of 'model' cannot be loaded ("),
        (remove_weights, "the weights of 'model' cannot be loaded ("),
        (other_shape, "the weights of 'model' cannot be loaded ("),
        (
            remove_one_tensor,
            "the weights of 'model' are incomplete: 1 tensors are missing, transformer.h.1.mlp.c_proj.weight first",
        ),
    ],
)
def test_folder_that_cannot_be_read(copy, harm, expected):
    folder = copy("gpt2")
    harm(folder)
    with pytest.raises(ModelError) as error:
        load_model(folder)
    assert_one_line(error, expected)
    assert len(str(error.value)) < 500
    assert not (folder / "ran").exists()


@pytest.mark.parametrize("name", ["gpt2", "gptj", "neox", "llama", "gemma2"])
def test_folder_without_a_tokenizer(copy, name):
    # transformers makes an empty tokeniser up for these.
    folder = copy(name)
    for file in folder.glob("token*"):
        file.unlink()
    with pytest.raises(ModelError) as error:
        load_model(folder)
    assert_one_line(error, "tokeniser")


def test_bridge_that_cannot_host_the_model(saved, monkeypatch):
    def refuse(*args, **kwargs):
        raise ValueError("Unsupported architecture: see https://example.com\nand much more")

    from transformer_lens.model_bridge import TransformerBridge

    monkeypatch.setattr(TransformerBridge, "boot_transformers", refuse)
    version = importlib.metadata.version("transformer-lens")
    other = f"another version of TransformerLens than {version} may host it"
    elsewhere = "the backend 'hooked-transformer' may be right" if HOOKED else other
    with pytest.raises(ModelError) as error:
        load_model(saved("gpt2"), backend="transformer-bridge")
    assert str(error.value) == (
        "TransformerLens cannot host 'gpt2', a GPT2LMHeadModel, as a TransformerBridge "
        "(Unsupported architecture: see an address); " + elsewhere
    )


# --- the default model, for real: fetched by pip unless the user's cache has it


@pytest.fixture(scope="module")
def default_models() -> dict[str, types.SimpleNamespace]:
    loaded = {}
    for backend in BACKENDS:
        seen = []
        model = load_model(backend=backend, device="cpu", progress=lambda *step, seen=seen: seen.append(step))
        loaded[backend] = types.SimpleNamespace(model=model, seen=seen)
    return loaded


PROMPT = "The Eiffel Tower is located in the city of"


@pytest.mark.parametrize("backend", BACKENDS)
def test_default_model(default_models, backend):
    model = default_models[backend].model
    assert (model.cfg.model_name, model.cfg.n_layers, model.cfg.d_model) == ("smollm2-135m", 30, 576)
    tokens = model.to_tokens(PROMPT, prepend_bos=False)
    assert tokens.tolist() == [[504, 414, 46682, 18669, 314, 3807, 281, 260, 2240, 282]]
    assert model.to_tokens(PROMPT).tolist() == [[1, *tokens[0].tolist()]], "TransformerLens's own default"
    with torch.no_grad():
        probability, answer = model(tokens)[0, -1].softmax(-1).max(-1)
    assert model.tokenizer.decode(answer) == " Paris"
    assert probability.item() == pytest.approx(0.702, abs=1e-3)
    assert any(
        what == "loading smollm2-135m" and 0 < done == total for done, total, what in default_models[backend].seen
    )


@needs_hooked
def test_default_model_is_the_same_on_both_backends(default_models):
    hooked, bridge = (default_models[backend].model for backend in BACKENDS)
    tokens = hooked.to_tokens(PROMPT)
    with torch.no_grad():
        one, other = (model(tokens).log_softmax(-1) for model in (hooked, bridge))
    torch.testing.assert_close(one, other, atol=1e-4, rtol=0)
