"""`rome-lens stats`: its options, its output, its files, and what it refuses before a model is loaded."""

import json
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
import torch
from tiny_shell import LOADED, LOADING, command_of, options_of, refusal, shell_on, stdout_of, wrote

from rome_lens.editing.second_moment.moment import SecondMoment

# Lines of 16 tokens, as many as the tiny model takes at once.
_WORDS = ["the", "tower", "is", "in", "the", "city", "of"]
TEXT = "".join(" ".join(_WORDS[(i * j + j * j // 3) % 7] for j in range(1, 17)) + "\n" for i in range(20))


@pytest.fixture
def workers(monkeypatch):
    """Threads in the place of processes and of a cluster, and what was asked for."""
    asked = []
    for name in ("process_pool", "dask_executor"):
        monkeypatch.setattr(f"rome_lens.runs.{name}", lambda given: asked.append(given) or ThreadPoolExecutor(1))
    return asked


@pytest.fixture
def shell(monkeypatch, tiny, tmp_path):
    """Runs the command on the tiny model in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text(TEXT)
    shell = shell_on(monkeypatch, tiny)
    shell.run = partial(shell.run, "stats")
    return shell


WORK = ("--layer", 1, "--texts", "text.txt", "--out", "c.safetensors")


def _json(result):
    return json.loads(stdout_of(result))


def test_the_printed_summary_and_the_file(shell, tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["/usr/bin/rome-lens", "stats", "--out", "a file"])
    lines = wrote(shell.run(*WORK), "c.safetensors").splitlines()
    moment = SecondMoment.load("c.safetensors", model=tiny, layer=1)
    assert lines[:3] == [
        f"tiny · {moment.backend} · float32 on cpu",
        "320 tokens of text.txt in 20 pieces of at most 16, no BOS",
        f"layer 1  64 x 64, condition number {moment.condition_number:.1e} with a ridge of {moment.ridge:g}",
    ]
    assert lines[3].startswith("collected in ")
    assert len(lines) == 4
    expected = SecondMoment.collect(tiny, layers=[1], texts=TEXT.splitlines())[1]
    assert torch.equal(moment.matrix, expected.matrix.float())
    assert moment.command == "rome-lens stats --out 'a file'"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["c.safetensors", "text.txt"]


def test_json_is_the_history(shell, tiny):
    (record,) = _json(shell.run(*WORK, "--json"))
    moment = SecondMoment.load("c.safetensors")
    assert {k: record[k] for k in moment.to_dict()} == moment.to_dict()
    assert record["condition_number"] == pytest.approx(moment.condition_number, rel=1e-3)
    assert (record["d_mlp"], record["warnings"], record["path"]) == (64, [], "c.safetensors")


def test_several_layers_have_a_file_each(shell):
    records = _json(shell.run(*WORK[2:4], "-l", 1, "-l", 0, "-l", 1, "-o", "c-{layer}", "--json"))
    assert [(r["layer"], r["path"]) for r in records] == [(1, "c-1"), (0, "c-0")]
    assert [SecondMoment.load(f"c-{layer}").layer for layer in (0, 1)] == [0, 1]


def test_without_a_layer_it_is_the_default_one(shell, tiny):
    from rome_lens.backends import as_backend
    from rome_lens.editing.settings import default_layer

    (record,) = _json(shell.run(*WORK[2:4], "--out", "c-{layer}", "--json"))
    assert record["layer"] == default_layer(as_backend(tiny))
    assert SecondMoment.load(f"c-{record['layer']}").layer == record["layer"]


def test_by_default_the_model_writes_the_text(shell):
    asked = ("--layer", 0, "--out", "c")
    (record,) = _json(shell.run(*asked, "--json"))
    assert (record["source"], record["seed"], record["n_tokens"]) == ("self", 0, 20 * 64)
    assert "1280 tokens of self (seed 0) in 80 pieces of at most 16, no BOS" in shell.run(*asked).stdout


def test_a_warning_goes_to_stderr(shell):
    result = shell.run(*WORK, "--tokens", 20)
    assert result.exit_code == 0
    assert result.stderr.splitlines()[1] == (
        "rome-lens: warning: layer 1: collected from 20 tokens, fewer than the 64 rows of C: it has no inverse of its "
        "own, and the ridge decides what an edit spares; collect 1280 tokens or more"
    )


# For every option: arguments that hold it, and what of the history it changes.
EFFECTS = {
    "--layer": (["--layer", 0, "--out", "c{layer}"], None),
    "--texts": (["--texts", "self", "--tokens", 100], {"source": "self", "n_tokens": 100}),
    "--field": (["--texts", "a.jsonl", "--field", "body"], {"source": "a.jsonl", "n_tokens": 2}),
    "--tokens": (["--tokens", 70], {"n_tokens": 70}),
    "--text-length": (["--text-length", 5], {"text_length": 5, "n_pieces": 80}),
    "--seed": (["--texts", "self", "--tokens", 100, "--seed", 7], {"seed": 7}),
    "--bos": (["--bos"], {"prepend_bos": True, "n_tokens": 360}),
    "--positions": (["--positions", 16], {}),
    "--resume": (["--resume", "work"], {}),
    "--workers": (["--workers", 1], {"n_tokens": 320}),
    "--dask": (["--dask", "tcp://scheduler:8786"], {"n_tokens": 320}),
    "--shard": (["--shard", "1/1"], {"shard": "1/1", "n_portions": 1}),
    "--out": (["--out", "elsewhere"], {"path": "elsewhere"}),
    "--json": ([], {}),
}


def test_every_option_has_a_test_and_help():
    assert options_of("stats") == {*EFFECTS, *LOADING}
    assert [p.name for p in command_of("stats").params if not p.help] == []


@pytest.mark.usefixtures("workers")
@pytest.mark.parametrize("option", EFFECTS)
def test_options_that_change_the_result(shell, tmp_path, option):
    (tmp_path / "a.jsonl").write_text('{"body": "the tower"}\n')
    args, changes = EFFECTS[option]
    records = _json(shell.run(*WORK, *args, "--json"))
    if changes is None:
        assert [record["layer"] for record in records] == [1, 0]
        return
    for name, expected in changes.items():
        assert records[0][name] == expected


@pytest.mark.parametrize("option", LOADING)
def test_options_that_change_what_is_loaded(shell, option):
    value, name = LOADING[option]
    # A layer is looked for in the model's configuration; no layer is named here.
    stdout_of(shell.run(*WORK[2:], option, value))
    assert shell.loads == [LOADED | {name: value}]


def test_a_checkpoint_is_taken_up(shell, monkeypatch, tmp_path):
    from rome_lens.editing.second_moment import checkpoint, collect, sums

    monkeypatch.setattr(checkpoint, "_SECONDS", 0.0)
    monkeypatch.setattr(collect, "_PORTION", 50)
    whole = shell.run(*WORK, "--json")
    product, calls = sums._product, []

    def interrupted(keys):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return product(keys)

    with monkeypatch.context() as patch:
        patch.setattr(sums, "_product", interrupted)
        result = shell.run(*WORK, "--resume", "work", "--out", "d")
    assert (result.exit_code, result.stderr) == (130, "rome-lens: interrupted\n")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["c.safetensors", "text.txt", "work"]
    resumed = shell.run(*WORK, "--resume", "work", "--out", "d", "--json")
    assert _json(resumed)[0]["digest"] == _json(whole)[0]["digest"]
    assert torch.equal(SecondMoment.load("d").matrix, SecondMoment.load("c.safetensors").matrix)
    assert not (tmp_path / "work").exists()


def test_workers(shell, workers):
    here = _json(shell.run(*WORK, "--json"))[0]
    shell.loads.clear()
    for option, value in {"--workers": 3, "--dask": "tcp://scheduler:8786"}.items():
        there = _json(shell.run(*WORK, option, value, "--json", "--out", "there"))[0]
        assert there["digest"] == here["digest"]
        torch.testing.assert_close(SecondMoment.load("there").matrix, SecondMoment.load("c.safetensors").matrix)
    # Here, and by the worker.
    assert (len(shell.loads), workers) == (4, [3, "tcp://scheduler:8786"])


def test_shards_are_joined(shell, monkeypatch, tmp_path):
    from rome_lens.editing.second_moment import collect

    monkeypatch.setattr(collect, "_PORTION", 50)
    work = (*WORK[2:4], "-l", 1, "-l", 0)
    whole = _json(shell.run(*work, "-o", "c-{layer}", "--json"))
    for number in (1, 2):
        result = shell.run(*work, "-o", f"{number}-{{layer}}", "--shard", f"{number}/2")
        assert f"layer 1: this is shard {number}/2 of a text; join it with the others" in result.stderr
    shell.loads.clear()
    files = ("2-0", "2-1", "1-0", "1-1")
    joined = _json(shell.run("merge", *files, "-o", "joined-{layer}", "--json"))
    assert shell.loads == []
    for record in joined:
        before = next(one for one in whole if one["layer"] == record["layer"])
        for name in ("n_tokens", "n_pieces", "digest", "shard", "source", "d_mlp"):
            assert record[name] == before[name]
        made, expected = (SecondMoment.load(f"{name}-{record['layer']}") for name in ("joined", "c"))
        torch.testing.assert_close(made.matrix, expected.matrix, rtol=2e-6, atol=0)
    lines = wrote(shell.run("merge", "1-1", "2-1", "-o", "one"), "one").splitlines()
    assert lines[1] == "320 tokens of text.txt in 20 pieces of at most 16, no BOS"
    for args, code, said in (
        (("1-1", "-o", "d"), 2, "the shards do not make a whole: 2/2 is missing; expected each of 2 once"),
        (("c-1", "-o", "d"), 2, "a second moment of layer 1 is of no shard; expected shards alone"),
        (files, 2, "--out is missing; name the file to write, such as --out layer-5.safetensors"),
        ((*files, "-o", "d"), 2, "--out is 'd' for 2 layers; write {layer} where the number goes"),
        (("none", "-o", "d"), 1, "there is no file 'none'"),
        (("text.txt", "-o", "d"), 1, "cannot read 'text.txt'"),
        (("-o", "d"), 2, "missing argument"),
    ):
        assert refusal(shell.run("merge", *args), code=code).lower().startswith(said.lower())
        assert not (tmp_path / "d").exists()


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (["-o", "c", "--workers", 0], 2, "workers is 0; expected a whole number of processes, 1 or more"),
        (["-o", "c", "--workers", 2, "--dask", "x"], 2, "--workers and --dask are given; choose one of them"),
        (["-o", "c", "--shard", "3/2"], 2, "shard 3/2; expected i/n with i from 1 to n, such as 2/4 for"),
        (["-o", "c", "--shard", "half"], 2, "shard 'half'; expected i/n with i from 1 to n, such as 2/4 for"),
        (["--layer", 1], 2, "--out is missing; name the file to write, such as --out layer-5.safetensors"),
        (["-l", 1, "-l", 0, "-o", "c"], 2, "--out is 'c' for 2 layers; write {layer} where the number goes"),
        (["-l", 1, "-o", "no/c"], 1, "cannot write 'no/c': there is no folder 'no'; make it first"),
        (["-l", 1, "-o", "c", "--resume", "."], 1, "cannot write '.': it is a folder; name a file in it"),
        (["-l", "one", "-o", "c"], 2, "invalid value for '--layer'"),
        (["-o", "c", "--texts", "none.txt"], 1, "there is no file 'none.txt' to read texts from"),
        (["-o", "c", "--texts", "hub:"], 2, "'hub:' names no data set"),
        (["-o", "c", "-l", 30], 2, "layer is 30; smollm2-135m has layers 0 to 29, counted from 0"),
        (["-o", "c", "--tokens", 0], 2, "max_tokens is 0; expected a whole number, 1 or more"),
        (["-o", "c", "--text-length", 0], 2, "text_length is 0; expected a whole number, 1 or more"),
        (["-o", "c", "--positions", 0], 2, "batch_positions is 0; expected a whole number, 1 or more"),
        (["-o", "c", "--seed", -1], 2, "seed is -1; expected a whole number from 0 to 4294967295"),
    ],
)
def test_what_is_refused_before_anything_is_loaded(shell, tmp_path, args, code, said):
    assert refusal(shell.run(*args), code=code).startswith(said)
    assert shell.loads == []
    assert [p.name for p in tmp_path.iterdir()] == ["text.txt"]


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--layer", 2], "layer is 2; tiny has layers 0 to 1, counted from 0"),
        (["--text-length", 17], "text_length is 17; tiny takes 1 to 16 tokens at once"),
    ],
)
def test_what_only_the_model_can_refuse(shell, tmp_path, args, said):
    assert refusal(shell.run(*WORK, "--out", "c{layer}", *args), code=2) == said
    assert [p.name for p in tmp_path.iterdir()] == ["text.txt"]
