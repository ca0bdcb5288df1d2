"""Where text comes from: files, lists, data sets, and the model itself."""

import json
import sys
from types import SimpleNamespace

import pytest
import torch
from architectures import BACKENDS, BRIDGE, architecture
from refused import refused

from rome_lens.backends import as_backend, decoding
from rome_lens.data.texts import read_texts
from rome_lens.editing.second_moment import text_pieces as making
from rome_lens.editing.second_moment.moment import SecondMoment
from rome_lens.editing.second_moment.text_pieces import Cut, SelfPieces, TextPieces
from rome_lens.errors import ArtefactError, OutOfMemoryError, SettingError


def _file(folder, content, name="texts.txt"):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize(
    ("content", "texts"),
    [
        ("one\ntwo\nthree", ["one", "two", "three"]),
        ("\ufeffone\r\ntwo\r\n", ["one", "two"]),
        ("one\ntwo\n\n\n", ["one", "two"]),
        ("one\ntwo\n\nthree\n", ["one\ntwo", "three"]),
        ("\n\n one\n two \n \t\n\nthrée", ["one\n two", "thrée"]),
    ],
)
def test_plain_text(tmp_path, content, texts):
    read = read_texts(_file(tmp_path, content))
    assert list(read) == list(read) == texts
    assert read.source == str(tmp_path / "texts.txt")


@pytest.mark.parametrize("name", ["a.json", "a.JSONL", "a.ndjson"])
def test_json(tmp_path, name):
    records = ["one", {"text": "two", "id": 3}, {"Text": " three "}, "", {"text": "b", "Text": "c"}]
    lines = "\n\n".join(map(json.dumps, records))
    path = _file(tmp_path, json.dumps(records) if name == "a.json" else lines, name)
    assert list(read_texts(str(path))) == ["one", "two", "three", "b"]
    path = _file(tmp_path, '[{"body": "one", "text": "two"}]' if name == "a.json" else '{"body": "one"}', name)
    assert list(read_texts(path, field="body")) == ["one"]


REFUSED = {
    "empty": ("a.txt", " \n\n", "{name} holds no text"),
    "no bytes": ("a.jsonl", "", "{name} holds no text"),
    "not UTF-8": ("a.txt", b"caf\xe9 au lait", "{name} is not in UTF-8 (invalid continuation byte); save it in UTF-8"),
    "line": ("a.jsonl", '"one"\n\n{"text": ', "line 3 of {name} is not JSON: "),
    "list": ("a.json", '{"text": "one"}', "{name} holds no JSON list; expected a list of texts, or of objects with a"),
    "json": ("a.json", "[1, ", "{name} is not JSON: "),
    "deep": ("a.json", "[" * 100_000, "{name} is not JSON: "),
    "number": ("a.json", '["a", 3]', "record 1 of {name} is int; expected a text, or an object that holds one"),
    "field": (
        "a.jsonl",
        '{"body": "x", "id": 1}',
        "line 1 of {name} has no field 'text'; name the one that holds the text (it has 'body', 'id')",
    ),
    "no text": ("a.jsonl", '{"text": 3}', "line 1 of {name}: the field 'text' is int; expected a text"),
}


@pytest.mark.parametrize(("name", "content", "said"), REFUSED.values(), ids=REFUSED)
def test_files_that_cannot_be_read(tmp_path, name, content, said):
    path = _file(tmp_path, content, name)
    assert refused(ArtefactError, lambda: list(read_texts(path))).startswith(said.format(name=repr(str(path))))


def test_what_is_no_file(tmp_path):
    assert refused(ArtefactError, read_texts, tmp_path / "none") == (
        f"there is no file {str(tmp_path / 'none')!r} to read texts from; a data set is written hub:NAME"
    )
    assert "is a folder; name a file of texts in it, or write hub:" in refused(ArtefactError, read_texts, tmp_path)
    path = _file(tmp_path, "x")
    read = read_texts(path)
    path.unlink()
    with pytest.raises(ArtefactError, match=r"cannot read texts from '.*': No such file or directory"):
        list(read)


class FakeHub:
    """Stands in for `datasets`; keeps what it was asked for."""

    def __init__(self, records):
        self.records, self.asked = records, []

    def load_dataset(self, *args, **settings):
        self.asked.append((args, settings))
        if isinstance(self.records, Exception):
            raise self.records
        return self.records


@pytest.mark.parametrize(
    ("source", "asked"),
    [
        ("hub:owner/name", ("owner/name", None, "train")),
        ("hub:owner/name:raw", ("owner/name", "raw", "train")),
        ("hub:owner/name:raw:test", ("owner/name", "raw", "test")),
        ("hub:owner/name::test", ("owner/name", None, "test")),
    ],
)
def test_data_sets_on_the_hub(monkeypatch, source, asked):
    hub = FakeHub([{"text": "one "}, {"text": " "}, {"text": "two"}])
    monkeypatch.setitem(sys.modules, "datasets", hub)
    read = read_texts(source)
    assert list(read) == ["one", "two"]
    assert (read.source, read.endless) == (source, True)
    assert hub.asked == [((*asked[:2],), {"split": asked[2], "streaming": True})]


def test_of_a_data_set_only_the_beginning_is_read(monkeypatch):
    def endless():
        while True:
            yield {"text": "again and again"}

    monkeypatch.setitem(sys.modules, "datasets", FakeHub(endless()))
    moment = SecondMoment.collect(architecture("llama", BRIDGE), layers=[0], texts="hub:endless")[0]
    assert (moment.n_tokens, moment.source) == (20 * 24, "hub:endless")


def test_a_data_set_in_a_folder(tmp_path):
    _file(tmp_path, '{"text": "one"}\n{"text": "two"}\n', "train.jsonl")
    assert list(read_texts(f"hub:{tmp_path}")) == ["one", "two"]


def test_a_data_set_that_cannot_be_reached(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", FakeHub(ConnectionError("no\n route")))
    assert refused(ArtefactError, lambda: list(read_texts("hub:owner/name:raw"))) == (
        "cannot read the data set 'owner/name raw train': no route; check the name and the network, or take a file or "
        "'self'"
    )
    monkeypatch.setitem(sys.modules, "datasets", FakeHub([{"body": "one"}]))
    with pytest.raises(ArtefactError, match="record 0 of 'owner/name train' has no field 'text'; name the one"):
        list(read_texts("hub:owner/name"))
    monkeypatch.setitem(sys.modules, "datasets", FakeHub([]))
    assert "'hub:owner/name' holds no text" in refused(ArtefactError, lambda: list(read_texts("hub:owner/name")))
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ArtefactError, match="needs the package datasets: pip install datasets"):
        list(read_texts("hub:owner/name"))


@pytest.mark.parametrize("source", ["hub:", "hub::x", "hub:a:b:c:d"])
def test_names_of_no_data_set(source):
    said = refused(SettingError, read_texts, source)
    assert said == (f"{source!r} names no data set; expected hub:NAME, or hub:NAME:CONFIGURATION:SPLIT")


def _written(backend, *, size=90, number=None, **settings):
    settings = {"max_tokens": 90, "seed": 0, "text_length": 20, "prepend_bos": False} | settings
    cut = Cut.checked(backend, settings.pop("text_length"), prepend_bos=settings.pop("prepend_bos"))
    pieces = SelfPieces(backend, **settings, cut=cut)
    portions = [portion for portion in pieces.portions(size) if number in (None, portion.number)]
    assert all(portion.pieces is portion.digest is None for portion in portions)
    return [piece for portion in portions for piece in pieces.write(portion)]


@pytest.mark.parametrize("name", BACKENDS)
def test_the_model_writes_pieces(name):
    backend = as_backend(architecture("llama", name))
    pieces = _written(backend)
    assert list(map(len, pieces)) == [20, 20, 20, 20, 10]
    words = making._FIRST_WORDS.split()
    firsts = {backend.tokenizer(word, add_special_tokens=False)["input_ids"][0] for word in words}
    assert {piece[0] for piece in pieces} <= firsts
    assert len({tuple(piece) for piece in pieces}) == 5
    # The tokenizer has 258 tokens; 0 is special.
    assert all(0 < i < 258 for piece in pieces for i in piece)
    with_bos = _written(backend, prepend_bos=True)
    assert list(map(len, with_bos)) == [20, 20, 20, 20, 10]
    assert all(piece[0] == 0 and 0 not in piece[1:] for piece in with_bos)


def test_special_tokens_and_padding_of_the_vocabulary_are_never_drawn(monkeypatch):
    backend, asked = as_backend(architecture("gpt2", BRIDGE)), []
    monkeypatch.setattr(making, "sample", lambda _, prompts, **settings: asked.append(settings) or prompts)
    # <s> and <unk> are special.
    _written(backend)
    monkeypatch.setattr(type(backend), "d_vocab", 260)
    _written(backend)
    assert [(settings["banned"], settings["temperature"]) for settings in asked] == [
        ([0, 1], 1.0),
        ([0, 1, 258, 259], 1.0),
    ]


def test_what_the_model_writes_is_its_own():
    backend = as_backend(architecture("gpt2", BRIDGE))
    pieces = _written(backend, max_tokens=2000)
    # Drawn from the model: its likely tokens come more often than chance has it.
    tokens = torch.tensor(pieces)
    with torch.no_grad():
        log_probabilities = backend.logits(tokens, keep=20).log_softmax(-1)
    taken = log_probabilities[:, :-1].gather(-1, tokens[:, 1:, None]).mean()
    assert taken > log_probabilities.mean() + 0.5


def test_portions_can_be_written_each_by_itself(monkeypatch):
    monkeypatch.setattr(making, "_MOST_ROWS", 2)
    backend = as_backend(architecture("gpt2", BRIDGE))
    pieces = _written(backend)
    assert len({tuple(piece[:10]) for piece in pieces}) == 5
    # Texts that are written together, one of them, and an odd number, which ends in the midst of them.
    for each, size in {2: 30, 1: 20, 3: 60}.items():
        assert _written(backend, size=size) == pieces
        for number, first in enumerate(range(0, 5, each)):
            assert _written(backend, size=size, number=number) == pieces[first : first + each]


def test_texts_that_portions_share_are_written_once(monkeypatch):
    monkeypatch.setattr(making, "_MOST_ROWS", 2)
    backend, calls, sample = as_backend(architecture("gpt2", BRIDGE)), [], making.sample
    monkeypatch.setattr(making, "sample", lambda *given, **settings: calls.append(1) or sample(*given, **settings))
    _written(backend, size=20)
    assert len(calls) == 3


def test_how_many_rows_are_written_together(monkeypatch):
    backend = as_backend(architecture("gpt2", BRIDGE))
    rows = SelfPieces(backend, max_tokens=9, seed=0, cut=Cut(20, ()))._rows
    assert rows() == 64
    # 20 tokens of 4 layers, keys and values, 16 numbers of 4 bytes.
    monkeypatch.setattr(decoding, "_MOST_CACHE", 20 * 4 * 2 * 16 * 4 * 5)
    assert rows() == 4
    monkeypatch.setattr(decoding, "_MOST_CACHE", 1)
    assert rows() == 1


def test_a_tokenizer_that_knows_no_first_word(tiny):
    backend = as_backend(tiny)
    special = set(tiny.tokenizer.all_special_ids)
    assert not special & {i for piece in _written(backend, text_length=16) for i in piece}


def test_memory_that_runs_out_while_the_model_writes(monkeypatch):
    def failing(*args, **settings):
        raise MemoryError

    monkeypatch.setattr(making, "sample", failing)
    assert refused(OutOfMemoryError, _written, as_backend(architecture("gpt2", BRIDGE))) == (
        "memory ran out while the model wrote 5 texts of 20 tokens; take a smaller text_length, or texts from a file"
    )


def test_progress_while_the_model_writes():
    seen = []
    cut = Cut(20, ())
    backend = as_backend(architecture("gpt2", BRIDGE))
    pieces = SelfPieces(backend, max_tokens=90, seed=0, cut=cut)
    for portion in pieces.portions(90):
        pieces.write(portion, lambda done, total, what: seen.append((done, total, what)))
    assert seen[-1] == (90, 90, "writing text")
    assert [done for done, _, _ in seen] == sorted(done for done, _, _ in seen)


def test_a_tokenizer_without_bos():
    backend = SimpleNamespace(tokenizer=SimpleNamespace(bos_token_id=None), n_ctx=None, model_name="any")
    assert refused(SettingError, Cut.checked, backend, None, prepend_bos=True) == (
        "prepend_bos is True, but this model's tokenizer has no BOS token; leave prepend_bos off"
    )
    assert Cut.checked(backend, None, prepend_bos=False) == Cut(256, ())
    assert Cut.checked(backend, 5000, prepend_bos=False) == Cut(5000, ())
    with pytest.raises(SettingError, match="text_length is 0; any takes 1 or more tokens at once"):
        Cut.checked(backend, 0, prepend_bos=False)


def test_portions_of_texts_and_their_digests():
    tokenizer = architecture("gpt2", BRIDGE).tokenizer

    def portions(*texts):
        pieces = TextPieces(tokenizer, texts, source="texts", max_tokens=None, cut=Cut(4, ()))
        return list(pieces.portions(6))

    first, last = portions("abcdef", "gh")
    assert [(one.number, one.first, one.n_pieces) for one in (first, last)] == [(0, 0, 2), (1, 2, 1)]
    assert [list(map(len, one.pieces or ())) for one in (first, last)] == [[4, 2], [2]]
    assert first == portions("abcdef", "xy")[0]
    assert first != portions("abcdeg", "gh")[0]
    # A digest is of all before it, too.
    assert len({portions(text, "gh")[1].digest for text in ("abcdef", "abcdeg")}) == 2
    assert portions() == []
