"""Files: written whole or not at all, and read back with every doubt about them said."""

import errno
import os
import re
import stat
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from refused import refused
from safetensors.torch import save_file

from rome_lens import CausalTrace
from rome_lens.errors import ArtefactError
from rome_lens.storage import check_writable, load_tensors, read_fields, save_tensors, whole_folder, write_whole

TRACE = CausalTrace(
    scores={
        "resid": torch.tensor([[0.1, 1 / 3], [1e-300, 1.0]], dtype=torch.float64),
        # A transposed view: what is stored has another layout than it has.
        "attn": torch.tensor([[0.25, 0.5], [0.75, 1.0]], dtype=torch.float64).T,
    },
    low=0.1,
    high=2 / 3,
    answer=" São 東京",
    answer_ids=(5, 6),
    prompt='a "b" \x1b[31m\n{}',
    subject="b",
    tokens=("a", " \ufffd"),
    token_ids=(0, 2**40),
    subject_span=(1, 2),
    noise=0.1 + 0.2,
    noise_rule="s3",
    noise_replaces=True,
    swap=None,
    window=10,
    samples=3,
    seed=2**32 - 1,
    prepend_bos=False,
    model_name="m/x",
    backend="transformer-bridge",
    dtype="float32",
    device="cpu",
    engine="plain",
    notes=("one", "two"),
    seconds=1e-9,
)
SWAPPED = replace(TRACE, noise=None, noise_rule=None, noise_replaces=False, swap="c", notes=(), prepend_bos=True)


def _same(found, expected):
    for field in fields(CausalTrace):
        was, now = getattr(expected, field.name), getattr(found, field.name)
        if field.name == "scores":
            assert list(now) == list(was)
            assert all(torch.equal(now[s], was[s]) and now[s].dtype == torch.float64 for s in was)
        else:
            assert (now, type(now)) == (was, type(was)), field.name


@pytest.fixture
def path(tmp_path):
    return tmp_path / "trace.safetensors"


@pytest.mark.parametrize("trace", [TRACE, SWAPPED], ids=["noise", "swap"])
def test_a_trace_comes_back_as_it_was(path, trace):
    trace.save(path)
    _same(CausalTrace.load(path), trace)
    _same(CausalTrace.load(str(path)), trace)


def test_a_real_trace_comes_back_as_it_was(path, tiny):
    from rome_lens import causal_trace

    trace = causal_trace(tiny, "the tower is in the city of", subject="tower", noise=1.0, answer="city of")
    trace.save(path)
    _same(CausalTrace.load(path), trace)


def test_saving_leaves_one_file_and_replaces_the_old_one(path):
    path.write_text("old")
    TRACE.save(path)
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    _same(CausalTrace.load(path), TRACE)


def test_fields_of_a_later_version_are_left_alone(path):
    settings = {k: v for k, v in TRACE.to_dict().items() if k != "scores"} | {"later": {"a": [1]}}
    save_tensors(path, kind="causal_trace", tensors={**TRACE.scores, "later": torch.ones(1)}, settings=settings)
    _same(CausalTrace.load(path), TRACE)


@pytest.mark.parametrize("missing", ["low", "subject_span", "prompt"])
def test_a_trace_with_fields_missing(path, missing):
    settings = {k: v for k, v in TRACE.to_dict().items() if k not in ("scores", missing)}
    save_tensors(path, kind="causal_trace", tensors=TRACE.scores, settings=settings)
    said = refused(ArtefactError, CausalTrace.load, path)
    assert said.startswith(f"cannot use {str(path)!r}: a causal_trace with fields missing (")
    assert repr(missing) in said


@pytest.mark.parametrize("kept", [0, 4, 8, 20, 400, -1])
def test_a_file_that_is_cut_short(path, kept):
    TRACE.save(path)
    path.write_bytes(path.read_bytes()[:kept])
    said = refused(ArtefactError, CausalTrace.load, path)
    assert said.startswith(f"cannot read {str(path)!r}: it is cut short, damaged or no safetensors file (")


def test_a_file_of_something_else(path):
    path.write_text("just a text\n" * 100)
    assert "it is cut short, damaged or no safetensors file" in refused(ArtefactError, CausalTrace.load, path)


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}, {"rome_lens": "null"}, {"rome_lens": "[1]"}])
def test_safetensors_that_are_none_of_ours(path, metadata):
    save_file({"resid": torch.ones(2, 2)}, path, metadata)
    assert refused(ArtefactError, CausalTrace.load, path) == (
        f"cannot use {str(path)!r}: expected a causal_trace of rome_lens, found something that rome_lens did not write"
    )


def test_metadata_that_is_no_json(path):
    save_file({"resid": torch.ones(2, 2)}, path, {"rome_lens": "{"})
    assert "cannot read" in refused(ArtefactError, CausalTrace.load, path)


def test_another_kind_of_ours(path):
    save_tensors(path, kind="second_moment", tensors={"c": torch.ones(2)}, settings={})
    said = refused(ArtefactError, load_tensors, path, kind="causal_trace")
    assert said == f"cannot use {str(path)!r}: expected a causal_trace of rome_lens, found second_moment"


def test_no_file(path):
    said = refused(ArtefactError, CausalTrace.load, path)
    assert said == f"there is no file {str(path)!r}; expected one that rome_lens saved"
    path.mkdir()
    said = refused(ArtefactError, CausalTrace.load, path)
    assert said == f"{str(path)!r} is a folder; expected a file that rome_lens saved"


@pytest.mark.parametrize("step", ["fsync", "replace"])
@pytest.mark.parametrize("there", [True, False])
def test_a_disk_that_fills_up_leaves_what_was_there(path, monkeypatch, step, there):
    if there:
        path.write_text("old")

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(*(os, "fsync", full) if step == "fsync" else (Path, "replace", full))
    said = refused(ArtefactError, TRACE.save, path)
    monkeypatch.undo()
    assert said == (f"cannot write {str(path)!r}: no room is left on the disk; free some, or choose another place")
    assert [p.read_text() for p in path.parent.iterdir()] == (["old"] if there else [])


def test_an_interruption_leaves_nothing(path, monkeypatch):
    def interrupted(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        TRACE.save(path)
    assert list(path.parent.iterdir()) == []


def test_what_is_read_lies_as_a_new_tensor_does(path):
    """Products of what lies at an odd place of memory may round otherwise, and the bits of sets depend on products."""
    tensors = {f"{n} {kind}": torch.arange(n, dtype=kind) for n in (1, 3, 7) for kind in (torch.float32, torch.float64)}
    save_tensors(path, kind="edit", tensors=tensors, settings={})
    loaded, _ = load_tensors(path, kind="edit")
    assert {name: tensor.data_ptr() % 64 for name, tensor in loaded.items()} == dict.fromkeys(tensors, 0)
    assert all(torch.equal(loaded[name], tensor) for name, tensor in tensors.items())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_device_without_room():
    with pytest.raises(ArtefactError, match=r"^cannot write '/dev/full': no room is left on the disk"):
        write_whole("/dev/full", b"x" * 100)
    assert stat.S_ISCHR(Path("/dev/full").stat().st_mode)


def test_a_link_stays_a_link(path):
    target = path.with_name("target")
    path.symlink_to(target)
    write_whole(path, b"x")
    assert path.is_symlink()
    assert target.read_bytes() == b"x"


REFUSED = [
    ("nowhere/trace", "there is no folder '{folder}/nowhere'; make it first"),
    ("folder", "it is a folder; name a file in it"),
    ("file/trace", "there is no folder '{folder}/file'; make it first"),
]


@pytest.mark.parametrize(("name", "reason"), REFUSED, ids=["no folder", "a folder", "below a file"])
@pytest.mark.parametrize("write", [lambda path: write_whole(path, b"x"), check_writable], ids=["write", "check"])
def test_paths_that_cannot_be_written(tmp_path, write, name, reason):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    said = refused(ArtefactError, write, tmp_path / name)
    expected = reason.format(folder=tmp_path)
    assert said == f"cannot write {str(tmp_path / name)!r}: {expected}"


@pytest.mark.parametrize("write", [lambda path: write_whole(path, b"x"), check_writable], ids=["write", "check"])
def test_a_folder_of_somebody_elses(path, write, monkeypatch):
    def denied(*_):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    # The tests may run as root, who may write everywhere.
    monkeypatch.setattr(os, "access", lambda *_: False)
    monkeypatch.setattr(Path, "open", denied)
    said = refused(ArtefactError, write, path)
    folder = str(path.parent)
    assert said == (f"cannot write {str(path)!r}: no permission to write in {folder!r}; choose another place")


def test_a_path_that_can_be_written_is_left_as_it_is(path):
    check_writable(path)
    assert not path.exists()
    path.write_text("old")
    check_writable(path)
    assert path.read_text() == "old"


def test_a_folder_may_hold_folders(tmp_path):
    with whole_folder(tmp_path / "out") as folder:
        (folder / "chat_templates").mkdir()
        (folder / "chat_templates" / "tool_use.jinja").write_text("{{ messages }}")
    assert (tmp_path / "out" / "chat_templates" / "tool_use.jinja").read_text() == "{{ messages }}"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_path_with_a_null_character_is_refused():
    for write in (lambda path: write_whole(path, b"x"), check_writable):
        assert "null" in refused(ArtefactError, write, "a\0b")


KINDS = {"layer": int, "seconds": int | float, "bos": bool | None, "on": bool, "name": str | None}
FIELDS = {"layer": 3, "seconds": 1, "bos": None, "on": True, "name": "x"}


def test_fields_are_read_and_those_of_later_forms_left_alone():
    assert read_fields(FIELDS | {"new": 1}, KINDS) == FIELDS
    assert read_fields({"layer": 3, "seconds": 0.5, "on": False}, KINDS) == {
        "layer": 3, "seconds": 0.5, "bos": None, "on": False, "name": None
    }  # fmt: skip


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (FIELDS | {"layer": True}, "layer is True"),
        (FIELDS | {"layer": 1.0}, "layer is 1.0"),
        (FIELDS | {"seconds": "1"}, "seconds is '1'"),
        (FIELDS | {"bos": 0}, "bos is 0"),
        (FIELDS | {"on": None}, "on is None"),
        ({"layer": 3}, "seconds is missing"),
        ([], "expected fields, found list"),
    ],
)
def test_damaged_fields(values, said):
    with pytest.raises(ValueError, match=f"^{re.escape(said)}$"):
        read_fields(values, KINDS)
