"""Edited models and adapters, read back by transformers and by peft, against the edited TransformerLens model."""

import copy
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers
from architectures import BACKENDS, BRIDGE, HOOKED, architecture, byte_tokenizer, hugging_face_model, own
from edits import random_edit
from hosts import needs_hooked
from refused import refused

import rome_lens as rl
from rome_lens.editing import export
from rome_lens.editing.export import NOTE, export_adapter, export_model
from rome_lens.errors import ArtefactError, EditError, EditStateError, ModelError, ModelMismatchError, SettingError
from rome_lens.loading.convert import to_transformer_lens
from rome_lens.loading.pretrained import load_pretrained

peft = pytest.importorskip("peft")

NAMES = ["gpt2", "llama", "neox", "opt"]
TOKENS = torch.tensor([[3, 141, 59, 26, 53, 58, 97, 93]])


@torch.no_grad()
def logits(model):
    if hasattr(model, "hook_dict"):
        return model(TOKENS, prepend_bos=False)
    return model(TOKENS, use_cache=False).logits


def edited_logits(model, *edits):
    for edit in edits:
        edit.apply(model)
    found = logits(model)
    for edit in edits:
        edit.revert(model)
    return found


def load(folder, dtype=torch.float64):
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="eager").eval()


def adapted(name, folder, dtype=torch.float32):
    return peft.PeftModel.from_pretrained(hugging_face_model(name, dtype=dtype), folder).eval()


def far(a, b):
    return (a - b).abs().max().item()


def rounding(model, *, log_probabilities=False):
    """How far apart the unedited models may be: TransformerLens takes some norms and rotations in float32."""
    here, plain = logits(model), logits(hugging_face_model(model.cfg.model_name))
    apart = far(here.log_softmax(-1), plain.log_softmax(-1)) if log_probabilities else far(here, plain)
    assert apart < 1e-5
    return 1e-9 + 5 * apart


@pytest.mark.parametrize("name", NAMES)
def test_folder_gives_the_edited_models_logits(name, backend, tmp_path):
    model = architecture(name, backend)
    edits = [random_edit(model, 1), random_edit(model, 1, seed=1), random_edit(model, 3, seed=2)]
    expected = edited_logits(model, *edits)
    assert far(expected, logits(model)) > 1e-2
    source = hugging_face_model(name)
    plain = logits(source)
    export_model(edits, source, tmp_path / "out")
    assert torch.equal(logits(source), plain)
    assert far(logits(load(tmp_path / "out")), expected) < rounding(model)
    note = json.loads((tmp_path / "out" / NOTE).read_text())
    assert [Path(p).name for p in tmp_path.iterdir()] == ["out"]
    assert note["kind"] == "edited_model"
    assert [edit["layer"] for edit in note["edits"]] == [1, 1, 3]


@pytest.mark.parametrize("name", NAMES)
def test_adapter_gives_the_edited_models_logits(name, backend, tmp_path):
    model = architecture(name, backend, torch.float32)
    edits = [
        random_edit(model, 1),
        random_edit(model, 1, seed=1),
        random_edit(model, 3, seed=2),
        random_edit(model, 2, seed=3),
    ]
    expected = edited_logits(model, *edits)
    export_adapter(edits, tmp_path / "out")
    model_with_adapter = adapted(name, tmp_path / "out")
    tolerance = 1e-5 * max(1, expected.abs().max().item())
    assert far(logits(model_with_adapter), expected) < tolerance
    assert far(logits(model_with_adapter.merge_and_unload()), expected) < tolerance


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_one_edit_is_an_adapter_of_rank_one(name, tmp_path):
    model = architecture(name, BACKENDS[0], torch.float32)
    edit = random_edit(model, 1)
    edit.to_peft(tmp_path / "out")
    settings = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (settings["r"], settings["lora_alpha"]) == (1, 1)
    assert settings["fan_in_fan_out"] == (name == "gpt2")
    model_with_adapter = adapted(name, tmp_path / "out")
    expected = edited_logits(model, edit)
    assert far(logits(model_with_adapter), expected) < 1e-5 * max(1, expected.abs().max().item())
    with model_with_adapter.disable_adapter():
        assert far(logits(model_with_adapter), logits(model)) < 1e-5 * max(1, expected.abs().max().item())


def check_log_probabilities(model, name, tmp_path):
    """An edit found on a processed model, written into the raw one."""
    edit = random_edit(model, 2)
    expected = edited_logits(model, edit).log_softmax(-1)
    assert far(expected, logits(model).log_softmax(-1)) > 1e-2
    export_model([edit], hugging_face_model(name), tmp_path / "model")
    assert far(logits(load(tmp_path / "model")).log_softmax(-1), expected) < rounding(model, log_probabilities=True)
    edit.to_peft(tmp_path / "adapter")
    model_with_adapter = adapted(name, tmp_path / "adapter", torch.float64)
    assert far(logits(model_with_adapter.merge_and_unload()).log_softmax(-1), expected) < 1e-5


@needs_hooked
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_edits_of_processed_hooked_transformers_fit_the_raw_weights(name, tmp_path):
    model = own(name, HOOKED)
    raw = model.W_out.clone()
    # Processing walks over float32 names of TransformerLens's own; the weights stay float64.
    model.load_and_process_state_dict(model.state_dict())
    model.to(torch.float64)
    assert (far(model.W_out, raw) > 1e-3) == (name == "gpt2")
    check_log_probabilities(model, name, tmp_path)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_edits_of_bridges_in_compatibility_mode_fit_the_raw_weights(name, tmp_path):
    model = own(name, BRIDGE)
    model.enable_compatibility_mode(disable_warnings=True)
    check_log_probabilities(model, name, tmp_path)
    with pytest.raises(ModelError, match="processed when compatibility mode was enabled"):
        random_edit(model).to_hf(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", [*NAMES, "neo", "falcon", "gemma2", "bloom"])
def test_bridge_is_written_and_goes_on_working(name, tmp_path):
    model = own(name, BRIDGE)
    edit, other = random_edit(model, 1), random_edit(model, 2, seed=1)
    before, expected = logits(model), edited_logits(model, edit)
    edit.to_hf(model, tmp_path / "out")
    assert torch.equal(logits(model), before)
    assert torch.equal(edited_logits(model, edit), expected)
    assert far(logits(load(tmp_path / "out")), expected) < rounding(model)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer("a tower", add_special_tokens=False).input_ids == byte_tokenizer().encode(
        "a tower", add_special_tokens=False
    )
    # Edits that are applied are no part of the unedited model: neither this one nor another.
    other.apply(model)
    with edit.applied(model):
        edit.to_hf(model, tmp_path / "again")
        assert edit.is_applied(model)
    written = (folder / "model.safetensors" for folder in (tmp_path / "out", tmp_path / "again"))
    assert len({file.read_bytes() for file in written}) == 1


def test_bridge_in_compatibility_mode_without_processing_is_raw(tmp_path):
    model = own("gpt2", BRIDGE)
    model.enable_compatibility_mode(disable_warnings=True, no_processing=True)
    edit = random_edit(model)
    edit.to_hf(model, tmp_path / "out")
    assert far(logits(load(tmp_path / "out")), edited_logits(model, edit)) < rounding(model)


def test_folder_is_given_by_its_name(tmp_path):
    source = hugging_face_model("llama", dtype=torch.float32)
    source.generation_config.temperature = 0.7  # without do_sample, which save_pretrained refuses
    source.generation_config.to_json_file(tmp_path / "generation_config.json")
    source.generation_config.temperature = 1.0
    folder = tmp_path / "source"
    source.to(torch.bfloat16).save_pretrained(folder)
    (tmp_path / "generation_config.json").replace(folder / "generation_config.json")
    tokenizer = byte_tokenizer()
    tokenizer.add_bos_token = False
    tokenizer.init_kwargs["add_bos_token"] = False
    tokenizer.save_pretrained(folder)
    model = rl.load_model(folder, backend=BRIDGE, device="cpu")
    edit = random_edit(model)
    edit.to_hf(folder, tmp_path / "out")
    # Weights of a bfloat16 folder are edited in float32, as the model was.
    assert far(logits(load(tmp_path / "out", "auto")), edited_logits(model, edit)) < 1e-5
    before, after = (
        json.loads((path / "config.json").read_text()) | {"dtype": None} for path in (folder, tmp_path / "out")
    )
    assert before == after
    assert json.loads((tmp_path / "out" / "generation_config.json").read_text())["temperature"] == 0.7
    stored, written = (transformers.AutoTokenizer.from_pretrained(path) for path in (folder, tmp_path / "out"))
    assert written("a tower").input_ids == stored("a tower").input_ids
    export_model([edit], folder, tmp_path / "half", dtype=torch.bfloat16)
    assert load(tmp_path / "half", "auto").dtype == torch.bfloat16
    edit.to_hf(load(folder), tmp_path / "loaded")  # a model that knows where it came from
    assert (tmp_path / "loaded" / "tokenizer.json").is_file()


def test_given_model_keeps_its_dtype(tmp_path):
    model = architecture("gpt2", BRIDGE, torch.float32)
    source = hugging_face_model("gpt2", dtype=torch.bfloat16)
    config = source.config.to_dict()
    edit = random_edit(model)
    edit.to_hf(source, tmp_path / "out")
    assert source.config.to_dict() == config
    written = load(tmp_path / "out", "auto")
    assert written.dtype == torch.bfloat16
    weight = source.transformer.h[1].mlp.c_proj.weight.double() + torch.outer(edit.u, edit.v)
    assert torch.equal(written.transformer.h[1].mlp.c_proj.weight, weight.bfloat16())
    assert written.lm_head.weight is written.transformer.wte.weight


def test_nameless_module_is_found_by_its_weights(tmp_path):
    model = architecture("neox", BRIDGE)
    edit = random_edit(model, module=None)
    edit.to_hf(hugging_face_model("neox"), tmp_path / "out")
    assert far(logits(load(tmp_path / "out")), edited_logits(model, edit)) < rounding(model)
    with pytest.raises(
        EditError,
        match=r"the Hugging Face name of .* layer 1 of neox is unknown.*with to_hf, or make the edit on a Trans",
    ):
        edit.to_peft(tmp_path / "adapter")


@needs_hooked
def test_hooked_transformers_cannot_be_turned_back(tmp_path):
    model = architecture("gpt2", HOOKED)
    with pytest.raises(ModelError, match="holds no Hugging Face model to write; give the name or the folder"):
        random_edit(model).to_hf(model, tmp_path / "out")


def test_refused_models(tmp_path):
    model = own("gpt2", BRIDGE)
    edit = random_edit(model)
    with pytest.raises(ModelMismatchError, match=r"made for layer 1 of gpt2, and .* \(no such matrix in layer 1\)"):
        edit.to_hf(hugging_face_model("llama"), tmp_path / "out")
    other = hugging_face_model("gpt2")
    torch.nn.init.normal_(other.transformer.h[1].mlp.c_proj.weight)
    assert "other weights in layer 1" in refused(ModelMismatchError, edit.to_hf, other, tmp_path / "out")
    with pytest.raises(ModelError, match="TransformerBridge was built around this GPT2LMHeadModel"):
        edit.to_hf(model.original_model, tmp_path / "out")
    quantised = hugging_face_model("gpt2")
    quantised.config.quantization_config = {"quant_method": "bitsandbytes"}
    assert "quantised (bitsandbytes)" in refused(ModelError, edit.to_hf, quantised, tmp_path / "out")
    with pytest.raises(ModelError, match="expected a HookedTransformer or a TransformerBridge"):
        edit.to_hf(torch.nn.Linear(2, 2), tmp_path / "out")
    assert "no model 'no such model'" in refused(rl.ModelNotFoundError, edit.to_hf, "no such model", tmp_path / "out")
    edit.apply(model)
    with torch.no_grad():
        model.blocks[1].mlp.out.weight.mul_(2)
    with pytest.raises(EditStateError, match="W_out of layer 1 was changed outside rome_lens"):
        edit.to_hf(model, tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "write", [lambda edits, out: export_model(edits, hugging_face_model("gpt2"), out), export_adapter]
)
def test_refused_edits_and_folders(write, tmp_path):
    edit = random_edit(architecture("gpt2", BRIDGE))
    assert "there are no edits to write" in refused(SettingError, write, [], tmp_path / "out")
    with pytest.raises(SettingError, match=r"'The tower is in' -> 'Rome 0' \(layer 1\) is given twice"):
        write([edit, edit], tmp_path / "out")
    with pytest.raises(ModelMismatchError, match="made for different models, gpt2 and llama"):
        write([edit, random_edit(architecture("llama", BRIDGE), 2)], tmp_path / "out")
    full, file, link = tmp_path / "full", tmp_path / "file", tmp_path / "link"
    full.mkdir()
    file.write_text("mine")
    (full / "file").write_text("mine")
    for path, reason in {
        full: "the folder is not empty; name a new one",
        file: "it is a file; name a new folder",
        tmp_path / "no" / "out": "there is no folder '.*no'; make it first",
        "a\0b": "null",
    }.items():
        with pytest.raises(ArtefactError, match=rf"cannot write .*: .*{reason}"):
            write([edit], path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "full"]
    (tmp_path / "empty").mkdir()
    link.symlink_to(tmp_path / "empty")
    write([edit], link)
    assert link.is_symlink()
    assert (tmp_path / "empty" / NOTE).is_file()


def test_a_failure_leaves_nothing_behind(tmp_path, monkeypatch):
    edit = random_edit(architecture("gpt2", BRIDGE))
    monkeypatch.setattr(
        "rome_lens.editing.export._write_note", lambda *_, **__: (_ for _ in ()).throw(OSError(28, "full"))
    )
    with pytest.raises(ArtefactError, match=r"cannot write .*: full; free some room"):
        edit.to_hf(hugging_face_model("gpt2"), tmp_path / "out")
    with pytest.raises(ArtefactError, match=r"cannot write .*: full; free some room"):
        edit.to_peft(tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_default_model_is_written_out(tmp_path, monkeypatch):
    settings = {"dtype": torch.float32, "device": torch.device("cpu"), "tokenizer_as_stored": True}
    pretrained = load_pretrained("smollm2-135m", **settings)

    def load_again(name, **given):  # reading the file takes a while
        assert (name, given) == ("smollm2-135m", settings)
        return pretrained

    monkeypatch.setattr(export, "load_pretrained", load_again)
    model = to_transformer_lens(replace(pretrained, model=copy.deepcopy(pretrained.model)), backend=BRIDGE)
    edit = random_edit(model, 5)
    edit.to_hf("smollm2-135m", tmp_path / "out")
    expected = edited_logits(model, edit)
    written = load(tmp_path / "out", "auto")
    assert far(logits(written), expected) < 1e-5 * expected.abs().max().item()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    text = "The Eiffel Tower is in"
    assert tokenizer(text).input_ids == model.to_tokens(text, prepend_bos=False)[0].tolist()
    assert tokenizer.chat_template
    assert "local_files_only" not in (tmp_path / "out" / "tokenizer_config.json").read_text()
