"""load_model: folders, hub names, the default model, and what is said when it cannot be done."""

import importlib.metadata
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
import types
from pathlib import Path

import pytest
import torch
import transformers
from architectures import BACKENDS, BRIDGE, HOOKED, byte_level
from hosts import needs_hooked
from huggingface_hub import constants as hub_constants
from huggingface_hub.utils import are_progress_bars_disabled, enable_progress_bars
from refused import refused
from safetensors.torch import load_file, save_file
from transformers import modeling_gguf_pytorch_utils as gguf_loader
from transformers.utils import logging as transformers_logging

from rome_lens.errors import ModelError, ModelNotFoundError, SettingError
from rome_lens.loading import convert, hugging_face, load_model

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
GPT_SIZES = {"vocab_size": 258, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
GPT_SIZES |= {"bos_token_id": 0, "eos_token_id": 0}
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
                model = CLASSES.get(name, transformers.AutoModelForCausalLM.from_config)(config)
                # Larger than at initialisation, so that a mistake shows in the logits.
                for parameter in model.parameters():
                    parameter.data.normal_(std=0.2)
            model.save_pretrained(folder)
            special = {"bos_token": "<s>", "eos_token": "<s>", "unk_token": "<unk>"}
            transformers.PreTrainedTokenizerFast(tokenizer_object=byte_level(), **special).save_pretrained(folder)
        return folder

    return save


@pytest.fixture
def copy(saved, tmp_path):
    return lambda name: shutil.copytree(saved(name), tmp_path / "model")


TEXT = "The Eiffel Tower"


def hugging_face_logits(folder: Path, tokens: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    with torch.no_grad():
        return model(tokens).logits


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
    hooked = load_model(folder, backend=HOOKED, dtype=torch.float64)
    assert torch.equal(hooked.blocks[0].mlp.W_out, weight)


def test_auto_takes_the_hooked_transformer_where_there_is_one(saved):
    assert type(load_model(saved("gpt2"))).__name__ == (
        "HookedTransformer" if HOOKED in BACKENDS else "TransformerBridge"
    )


@needs_hooked
def test_auto_falls_back_to_the_bridge(saved, caplog):
    with caplog.at_level(logging.INFO, logger="rome_lens"):
        model = load_model(saved("gemma2"))
    assert type(model).__name__ == "TransformerBridge"
    assert "as a HookedTransformer (Gemma2ForCausalLM is not currently supported)" in caplog.text
    assert refused(ModelError, load_model, saved("gemma2"), backend=HOOKED) == (
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
    said = refused(ModelError, load_model, saved("llama"), backend=HOOKED)
    begin = "as a HookedTransformer 'llama' computes other logits than the LlamaForCausalLM that it was read from "
    assert f"{begin}(relative difference " in said
    assert "at most 1e-04 is rounding); use the backend 'transformer-bridge'" in said
    bridge = load_model(saved("llama"))
    assert type(bridge).__name__ == "TransformerBridge"
    assert all(parameter.requires_grad for parameter in bridge.parameters()), "the attempt has frozen nothing"


@needs_hooked
def test_nan_logits_are_no_agreement(copy):
    folder = copy("gpt2")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    model.transformer.ln_f.weight.data[0] = float("nan")
    model.save_pretrained(folder)
    said = refused(ModelError, load_model, folder, backend=HOOKED)
    assert "gives logits that are not finite in float32; check its weights" in said


@needs_hooked
@pytest.mark.parametrize("word", ["llama", "Gemma"])
def test_temporary_folder_that_names_an_architecture(saved, tmp_path, monkeypatch, word):
    misleading = tmp_path / word
    misleading.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(misleading))
    assert type(load_model(saved("gpt2"), backend=HOOKED)).__name__ == "HookedTransformer"

    monkeypatch.setattr(convert.os, "access", lambda folder, mode: word in str(folder))
    said = refused(ModelError, load_model, saved("gpt2"), backend=HOOKED)
    assert f"cannot read a model below {str(misleading)!r}" in said
    assert "set TMPDIR to a folder without llama and " in said


@pytest.mark.skipif(HOOKED in BACKENDS, reason="the installed TransformerLens has a HookedTransformer")
def test_hooked_transformer_is_gone(saved):
    said = refused(ModelError, load_model, saved("gpt2"), backend=HOOKED)
    assert "TransformerLens 4." in said
    end = "is installed, and HookedTransformer was removed in 4.0; use the backend 'transformer-bridge', or install "
    assert f" {end}'transformer-lens>=3.9,<4'" in said


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
    assert expected in refused(SettingError, load_model, saved("gpt2"), **settings)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("bert", "an encoder has no next token to predict"),
        ("t5", "an encoder-decoder answers another text and does not continue its own"),
    ],
)
def test_encoders(saved, name, expected):
    said = refused(ModelError, load_model, saved(name))
    assert said == f"{name!r} (a {name}) is not a language decoder: {expected}"


def test_encoder_by_its_config_alone_is_refused_before_its_weights_are_read(copy):
    folder = copy("bert")
    (folder / "model.safetensors").unlink()
    assert "an encoder has no next token to predict" in refused(ModelError, load_model, folder)


@pytest.mark.parametrize("name", ["./nowhere", "/no/where", "no/such/folder", "../x", "", "a name", "~/no such folder"])
def test_no_such_folder(name):
    assert refused(ModelNotFoundError, load_model, name) == (
        f"no model {name!r}: there is no such folder, and it is neither 'smollm2-135m' nor a name on the hub"
    )


def test_folder_without_a_model(tmp_path):
    said = refused(ModelNotFoundError, load_model, tmp_path)
    assert f"the folder {str(tmp_path)!r} holds no model: it has no config.json" in said


def test_file_instead_of_a_folder(saved):
    file = saved("gpt2") / "model.safetensors"
    said = refused(ModelNotFoundError, load_model, file)
    assert f"{str(file)!r} is a file; a model is given by its folder, with config.json and weights" in said


NOWHERE = "': it is not 'smollm2-135m', there is no such folder, and the hub "


@pytest.mark.parametrize("name", ["gpt2", "EleutherAI/pythia-70m"])
def test_hub_cannot_be_reached(name, monkeypatch, tmp_path):
    monkeypatch.setattr(hub_constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub_constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    said = refused(ModelNotFoundError, load_model, name)
    assert f"{NOWHERE}cannot be reached or does not have it" in said
    assert name.split("/")[-1] in said


@pytest.mark.parametrize(
    ("cause", "said"),
    [
        (
            "GatedRepoError",
            "'owner/name' is gated on the hub: ask for access on its page, then run `hf auth login` and try again",
        ),
        (
            "RepositoryNotFoundError",
            f"no model 'owner/name{NOWHERE}has none of that name, or only for those who are logged in (`hf auth "
            "login`)",
        ),
        ("ConnectionError", f"no model 'owner/name{NOWHERE}cannot be reached or does not have it"),
    ],
)
def test_what_the_hub_says_is_said(cause, said, monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError("You are trying to access a repo.\nhttps://…") from type(cause, (OSError,), {})("403")

    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", refuse)
    assert refused(ModelNotFoundError, load_model, "owner/name") == said


def test_names_that_transformer_lens_knows_are_translated(monkeypatch):
    asked = []

    def record(location):
        asked.append(location.source)
        raise ModelError("enough")

    monkeypatch.setattr(hugging_face, "read_config", record)
    for name in ("pythia-70m", "gpt2-small", "owner/name"):
        assert "enough" in refused(ModelError, load_model, name)
    assert asked[0] == "EleutherAI/pythia-70m"
    assert asked[1].endswith("gpt2")
    assert asked[2] == "owner/name"


def remote_code(folder: Path) -> None:
    config = {"model_type": "custom", "auto_map": {"AutoConfig": "evil.Config"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "evil.py").write_text(f"open({str(folder / 'ran')!r}, 'w')")


def remove_one_tensor(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["transformer.h.1.mlp.c_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def change_config(change):
    def harm(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(change(path.read_text()))

    return harm


NO_MODEL, NO_WEIGHTS = "describes no model that transformers can load (", "the weights of 'model' cannot be loaded ("
INCOMPLETE = "the weights of 'model' are incomplete: 1 tensors are missing, transformer.h.1.mlp.c_proj.weight first"
HARMS = {
    "no JSON": (change_config(lambda text: "{not json"), NO_MODEL),
    "unknown architecture": (change_config(lambda text: json.dumps({"model_type": "unheard-of"})), NO_MODEL),
    "remote code": (remote_code, NO_MODEL),
    "weights cut short": (lambda folder: os.truncate(folder / "model.safetensors", 1000), NO_WEIGHTS),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), NO_WEIGHTS),
    "other shape": (change_config(lambda text: json.dumps(json.loads(text) | {"n_embd": 64})), NO_WEIGHTS),
    "one tensor missing": (remove_one_tensor, INCOMPLETE),
}


@pytest.mark.parametrize(("harm", "expected"), HARMS.values(), ids=HARMS)
def test_folder_that_cannot_be_read(copy, harm, expected):
    folder = copy("gpt2")
    harm(folder)
    said = refused(ModelError, load_model, folder)
    assert expected in said
    assert len(said) < 500
    assert not (folder / "ran").exists()


@pytest.mark.parametrize("name", ["gpt2", "gptj", "neox", "llama", "gemma2"])
def test_folder_without_a_tokenizer(copy, name):
    # transformers makes an empty tokeniser up for these.
    folder = copy(name)
    for file in folder.glob("token*"):
        file.unlink()
    assert "tokeniser" in refused(ModelError, load_model, folder)


def test_bridge_that_cannot_host_the_model(saved, monkeypatch):
    def refuse(*args, **kwargs):
        raise ValueError("Unsupported architecture: see https://example.com\nand much more")

    from transformer_lens.model_bridge import TransformerBridge

    monkeypatch.setattr(TransformerBridge, "boot_transformers", refuse)
    version = importlib.metadata.version("transformer-lens")
    other = f"another version of TransformerLens than {version} may host it"
    elsewhere = "the backend 'hooked-transformer' may be right" if HOOKED in BACKENDS else other
    assert refused(ModelError, load_model, saved("gpt2"), backend=BRIDGE) == (
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
