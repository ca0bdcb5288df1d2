"""`rome-lens suggest`: a finished average in, the layer to edit out; every option does something."""

import csv
import json
import shutil
from types import SimpleNamespace

import pandas as pd
import plotly.graph_objects as go
import pytest
import typer
from tiny_shell import TinyHouse, refusal, write_facts

import rome_lens as rl
import rome_lens.evaluation
from rome_lens.cli import app
from rome_lens.editing.settings import Settings
from rome_lens.loading.tiny import tiny_model

MODEL = ("--model", "MODEL")
AVERAGE = ("average", "--facts", "facts.json", *MODEL, "--samples", "2", "--noise", "1", "--window", "2")
SUGGEST = ("suggest", "known", "--data", "records.json")

# Shells and folders are under test here; what is computed has tests of its own.
pytestmark = pytest.mark.usefixtures("unchecked")


def _record(subject):
    return {
        "case_id": 1,
        "requested_rewrite": {
            "prompt": "{} stands in",
            "relation_id": "P1",
            "target_new": {"str": "rome"},
            "target_true": {"str": "paris"},
            "subject": subject,
        },
        "paraphrase_prompts": [f"where stands {subject} ? it is in"],
        "neighborhood_prompts": ["the river is in"],
        "generation_prompts": [],
    }


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    """With an average that is finished, and others that are not what a sweep needs."""
    house = TinyHouse(tmp_path_factory.mktemp("house"))
    house.runs = tmp_path_factory.mktemp("runs")
    (house.runs / "records.json").write_text(json.dumps([_record(subject) for subject in ("the tower", "a museum")]))
    write_facts(house.model, house.runs / "facts.json")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(house.runs)
        patch.setattr(rl.AverageEffect, "write_html", lambda self, path: None)
        shell = house.shell(patch)
        for name, options in {
            "known": (),
            "part": ("--limit", "2", "--batch", "1", "--shard", "1/2"),
            "rough": ("--limit", "1", "--engine", "attribution"),
            "attention": ("--limit", "1", "--stream", "attn"),
            "with-bos": ("--limit", "1", "--bos", "--backend", "transformer-bridge", "--dtype", "float64"),
        }.items():
            assert shell.run(*AVERAGE, "--out", name, *options).exit_code == 0
    return house


@pytest.fixture
def folder(house, tmp_path, monkeypatch):
    shutil.copytree(house.runs, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def shell(house, folder, monkeypatch):
    return house.shell(monkeypatch)


@pytest.fixture
def asked(shell, monkeypatch):
    """What `suggest_layer` was asked for; nothing is edited."""
    asked = {}

    def suggest_layer(model, **settings):
        asked.update(settings)
        saved = SimpleNamespace(save=lambda path: path.write_text("settings"))
        return SimpleNamespace(
            figure=go.Figure, to_dataframe=pd.DataFrame, settings=saved, summary=lambda: {"layer": 1}
        )

    monkeypatch.setattr(rome_lens.evaluation, "suggest_layer", suggest_layer)
    return asked


def test_the_layer_to_edit(shell, folder):
    result = shell.run(*SUGGEST, "--layer", "0", "--layer", "1")
    assert (result.exit_code, result.stderr) == (
        0,
        "rome-lens: wrote known/layers.html, and layers.csv beside it\nrome-lens: wrote known/layers/settings.json\n",
    )
    lines = result.stdout.splitlines()
    assert lines[0] == "Editing at several layers (r-rome)"
    assert rl.read_average(folder / "known").n_layers == 3
    assert max(map(len, lines)) <= 80
    # The model is the one that was traced.
    assert [load["name"] for load in shell.loads] == [shell.places["MODEL"]]
    settings = Settings.load(folder / "known" / "layers" / "settings.json")
    assert f"suggested  layer {settings.layer}, " in result.stdout
    with (folder / "known" / "layers.csv").open(newline="") as file:
        assert [row["layer"] for row in csv.DictReader(file) if row["S"]] == ["0", "1"]
    assert (folder / "known" / "layers.html").read_text().startswith("<!doctype html>")
    moment = folder / "known" / "layers" / "second-moments" / f"layer-{settings.layer}.safetensors"
    edited = shell.run(
        *("edit", "where stands {}", "-s", "the tower", "-t", "rome", *MODEL, "--generate", "0", "--json"),
        *("--settings", "known/layers/settings.json", "--second-moment", moment, "--steps", "2"),
    )
    assert edited.exit_code == 0
    assert json.loads(edited.stdout)["edit"]["layer"] == settings.layer
    other = f"C{1 - settings.layer}"
    args = ("edit", "where stands {}", "-s", "the tower", "-t", "rome", *MODEL, "--second-moment", other)
    message = refusal(shell.run(*args, "--settings", "known/layers/settings.json"), code=2)
    assert message.startswith(f"known/layers/settings.json names layer {settings.layer}, and ")


def test_json(shell, folder):
    moments = ("--second-moment", "C0", "--second-moment", "C1")
    result = shell.run(*SUGGEST, "--layer", "0", "--layer", "1", *moments, "--json")
    assert result.exit_code == 0, result.stderr
    said = json.loads(result.stdout)
    assert said["path"] == "known/layers/settings.json"
    assert sorted(said["sweep"]) == ["0", "1"]
    assert said["layer"] == Settings.load(folder / "known" / "layers" / "settings.json").layer
    assert not (folder / "known" / "layers" / "second-moments").exists()


# For every option: arguments that hold it, and what the library is asked for.
EFFECTS = {
    "--data": (["--data", "one.json"], "records", lambda v: [r.request.subject for r in v] == ["a river"]),
    "--limit": (["--limit", "1"], "records", lambda v: len(v) == 1),
    "--layer": (["--layer", "2", "-l", "0"], "layers", lambda v: v == [2, 0]),
    "--second-moment": (["--second-moment", "a", "--second-moment", "b"], "second_moments", lambda v: len(v) == 2),
    "--seed": (["--seed", "3"], "seed", lambda v: v == 3),
    "--bos": (["--bos"], "prepend_bos", lambda v: v is True),
    "--out": (["--out", "deep/there"], "out", lambda v: str(v) == "deep/there/layers"),
}
LOADING = {"--model": "name", "--device": "device"}
WRITING = {"--settings", "--png", "--json"}


def test_every_option_has_a_test():
    command = typer.main.get_command(app).commands["suggest"]
    assert {p.opts[0] for p in command.params if p.opts[0].startswith("--")} == {*EFFECTS, *LOADING, *WRITING}


@pytest.mark.parametrize("option", EFFECTS)
def test_options_that_change_what_is_asked(shell, folder, asked, option):
    (folder / "one.json").write_text(json.dumps([_record("a river")]))
    args, name, expected = EFFECTS[option]
    assert shell.run(*SUGGEST, "--json").exit_code == 0
    assert not expected(asked[name])
    assert len(asked["records"]) == 2
    result = shell.run(*SUGGEST, *args, "--json")
    assert result.exit_code == 0, result.stderr
    assert expected(asked[name])


@pytest.mark.parametrize("option", LOADING)
def test_options_that_change_what_is_loaded(shell, asked, option):
    value = {"--model": "tiny", "--device": "cpu"}[option]
    assert shell.run(*SUGGEST, "--json").exit_code == 0
    assert shell.run(*SUGGEST, option, value, "--json").exit_code == 0
    before, after = shell.loads
    assert before == {"name": shell.places["MODEL"], "backend": "auto", "device": None, "dtype": "float32"}
    assert after == before | {LOADING[option]: value}


def test_the_model_and_bos_are_those_of_the_traces(shell, asked):
    for options, expected in (((), True), (("--no-bos",), False)):
        assert shell.run("suggest", "with-bos", "--json", *options).exit_code == 0
        assert asked["prepend_bos"] is expected
        assert [shell.loads[-1][name] for name in ("backend", "dtype")] == ["transformer-bridge", "float64"]


def test_files(shell, folder, asked, monkeypatch):
    from rome_lens.figures import files

    monkeypatch.setattr(files, "check_png", lambda: None)
    monkeypatch.setattr(files, "write_png", lambda figure, path: path.write_bytes(b"a figure"))
    result = shell.run(*SUGGEST, "--png", "--out", "there", "--settings", "mine.json", "--json")
    assert (result.exit_code, result.stderr) == (
        0,
        "rome-lens: wrote there/layers.html, and layers.csv and sweep.png beside it\nrome-lens: wrote mine.json\n",
    )
    assert (folder / "there" / "sweep.png").read_bytes() == b"a figure"
    assert (folder / "mine.json").read_text() == "settings"
    assert json.loads(result.stdout) == {"layer": 1, "path": "mine.json"}
    assert not (folder / "known" / "layers").exists()


def test_without_an_average_the_built_in_facts_are_traced(shell, folder, monkeypatch):
    asked = {}

    def suggest_layer(model, **settings):
        asked.update(settings)
        raise rl.SettingError("that is enough")

    monkeypatch.setattr(rome_lens.evaluation, "suggest_layer", suggest_layer)
    assert refusal(shell.run("suggest"), code=2) == "that is enough"
    assert (asked["average"], asked["layers"], asked["prepend_bos"]) == (None, None, False)
    assert asked["records"] == rl.builtin_counterfact()[:8]
    assert str(asked["out"]) == "suggest/layers"
    assert shell.loads == [{"name": "smollm2-135m", "backend": "auto", "device": None, "dtype": "float32"}]


REFUSED = {
    "no folder": (1, ["suggest", "nowhere"], "there is no folder 'nowhere'; expected one that a run made"),
    "no run": (1, ["suggest", "."], "the folder '.' holds no run; expected one that a run made"),
    "a shard": (2, ["suggest", "part"], "'part' holds 1 of the 2 facts of its run; finish it, or merge its shards, f"),
    "rough": (2, ["suggest", "rough"], "the traces in 'rough' are approximated, and the sweep needs exact ones; aver"),
    "no mlp": (2, ["suggest", "attention"], "the traces in 'attention' lack the stream mlp; average the facts again"),
    "limit": (2, [*SUGGEST, "--limit", "0"], "limit is 0; expected a number of records, 1 or more"),
    "no data": (1, ["suggest", "known", "--data", "no.json"], "there is no file 'no.json' to read CounterFact from"),
    "layer": (2, [*SUGGEST, "--layer", "7"], "layer is 7; tiny has layers 0 to 2, counted from 0"),
    "settings": (1, [*SUGGEST, "--settings", "no/s.json"], "cannot write 'no/s.json': there is no folder 'no'"),
    "the run's": (2, [*SUGGEST, "--settings", "known/settings.json"], "'known/settings.json' says what the average"),
    "out": (1, [*SUGGEST, "--out", "facts.json"], "cannot make the folder 'facts.json/layers': "),
    "unknown option": (2, [*SUGGEST, "--window", "3"], "no such option: --window"),
}


@pytest.mark.parametrize(("code", "args", "start"), REFUSED.values(), ids=REFUSED)
def test_what_is_refused_before_anything_is_loaded(shell, code, args, start):
    assert refusal(shell.run(*args), code=code).startswith(start)
    assert shell.loads == []


def test_an_average_of_another_model(shell, house, monkeypatch):
    monkeypatch.setattr(rome_lens.loading, "load_model", lambda name, **settings: tiny_model("auto"))
    said = refusal(shell.run(*SUGGEST, "--layer", "0"), code=2)
    assert said.startswith("the average is of a model of 3 layers, this one has ")
