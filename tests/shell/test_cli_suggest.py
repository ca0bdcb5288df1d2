"""`rome-lens suggest`: a finished average in, the layer to edit out; every option does something."""

import json
import shutil
from types import SimpleNamespace

import pandas as pd
import plotly.graph_objects as go
import pytest
from published import published
from tiny_shell import AVERAGE, LOADED, LOADING, MODEL, options_of, refusal, rows_of, stdout_of, write_facts, wrote

import rome_lens as rl
import rome_lens.evaluation
from rome_lens.editing.settings import Settings
from rome_lens.loading.tiny import tiny_model

SUGGEST = ("suggest", "known", "--data", "records.json")

# Shells and folders are under test here; what is computed has tests of its own.
pytestmark = pytest.mark.usefixtures("unchecked", "folder")


def _record(subject):
    request = rl.EditRequest("{} stands in", subject, target_new="rome", target_true="paris")
    paraphrases = (f"where stands {subject} ? it is in",)
    return published(rl.CounterFactRecord(0, 1, "P1", request, paraphrases, ("the river is in",), ()))


@pytest.fixture(scope="module")
def house(house, tmp_path_factory):
    """With an average that is finished, and others that are not what a sweep needs."""
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
            stdout_of(shell.run(*AVERAGE, "--out", name, *options))
    return house


@pytest.fixture
def folder(house, tmp_path, monkeypatch):
    shutil.copytree(house.runs, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


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
    lines = wrote(result, "known/layers.html, and layers.csv beside it", "known/layers/settings.json").splitlines()
    assert lines[0] == "Editing at several layers (r-rome)"
    assert rl.read_average(folder / "known").n_layers == 3
    assert max(map(len, lines)) <= 80
    # The model is the one that was traced.
    assert [load["name"] for load in shell.loads] == [shell.places["MODEL"]]
    settings = Settings.load(folder / "known" / "layers" / "settings.json")
    assert f"suggested  layer {settings.layer}, " in result.stdout
    assert [row["layer"] for row in rows_of(folder / "known" / "layers.csv") if row["S"]] == ["0", "1"]
    assert (folder / "known" / "layers.html").read_text().startswith("<!doctype html>")
    moment = folder / "known" / "layers" / "second-moments" / f"layer-{settings.layer}.safetensors"
    edited = shell.run(
        *("edit", "where stands {}", "-s", "the tower", "-t", "rome", *MODEL, "--generate", "0", "--json"),
        *("--settings", "known/layers/settings.json", "--second-moment", moment, "--steps", "2"),
    )
    assert json.loads(stdout_of(edited))["edit"]["layer"] == settings.layer
    other = f"C{1 - settings.layer}"
    args = ("edit", "where stands {}", "-s", "the tower", "-t", "rome", *MODEL, "--second-moment", other)
    message = refusal(shell.run(*args, "--settings", "known/layers/settings.json"), code=2)
    assert message.startswith(f"known/layers/settings.json names layer {settings.layer}, and ")


def test_json(shell, folder):
    moments = ("--second-moment", "C0", "--second-moment", "C1")
    said = json.loads(stdout_of(shell.run(*SUGGEST, "--layer", "0", "--layer", "1", *moments, "--json")))
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
MODELS = ("--model", "--device")
WRITING = {"--settings", "--png", "--json"}


def test_every_option_has_a_test():
    assert options_of("suggest") == {*EFFECTS, *MODELS, *WRITING}


@pytest.mark.parametrize("option", EFFECTS)
def test_options_that_change_what_is_asked(shell, folder, asked, option):
    (folder / "one.json").write_text(json.dumps([_record("a river")]))
    args, name, expected = EFFECTS[option]
    stdout_of(shell.run(*SUGGEST, "--json"))
    assert not expected(asked[name])
    assert len(asked["records"]) == 2
    stdout_of(shell.run(*SUGGEST, *args, "--json"))
    assert expected(asked[name])


@pytest.mark.usefixtures("asked")
@pytest.mark.parametrize("option", MODELS)
def test_options_that_change_what_is_loaded(shell, option):
    value, name = LOADING[option]
    stdout_of(shell.run(*SUGGEST, "--json"))
    stdout_of(shell.run(*SUGGEST, option, value, "--json"))
    before = LOADED | {"name": shell.places["MODEL"]}
    assert shell.loads == [before, before | {name: value}]


def test_the_model_and_bos_are_those_of_the_traces(shell, asked):
    for options, expected in (((), True), (("--no-bos",), False)):
        stdout_of(shell.run("suggest", "with-bos", "--json", *options))
        assert asked["prepend_bos"] is expected
        assert [shell.loads[-1][name] for name in ("backend", "dtype")] == ["transformer-bridge", "float64"]


@pytest.mark.usefixtures("asked", "pngs")
def test_files(shell, folder):
    result = shell.run(*SUGGEST, "--png", "--out", "there", "--settings", "mine.json", "--json")
    printed = wrote(result, "there/layers.html, and layers.csv and sweep.png beside it", "mine.json")
    assert (folder / "there" / "sweep.png").read_text() == "0 None"
    assert (folder / "mine.json").read_text() == "settings"
    assert json.loads(printed) == {"layer": 1, "path": "mine.json"}
    assert not (folder / "known" / "layers").exists()


def test_without_an_average_the_built_in_facts_are_traced(shell, asked):
    stdout_of(shell.run("suggest", "--json"))
    assert (asked["average"], asked["layers"], asked["prepend_bos"]) == (None, None, False)
    assert asked["records"] == rl.builtin_counterfact()[:8]
    assert str(asked["out"]) == "suggest/layers"
    assert shell.loads == [LOADED]


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


def test_an_average_of_another_model(shell):
    shell.model = tiny_model("auto")
    said = refusal(shell.run(*SUGGEST, "--layer", "0"), code=2)
    assert said.startswith("the average is of a model of 3 layers, this one has ")
