"""`rome-lens average`: every option does something, a run goes on where it was, every mistake is one line."""

import csv
import json
from pathlib import Path

import pytest
from tiny_shell import TinyHouse, refusal, write_facts

import rome_lens as rl

MODEL = ("--model", "MODEL")
# Shells and folders are under test here; what is computed has tests of its own.
pytestmark = pytest.mark.usefixtures("unchecked")
AVERAGE = ("average", "--facts", "facts.json", *MODEL, "--samples", "2", "--noise", "1", "--window", "2")
FILES = "summary.json, effects.csv and facts.csv"


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    return TinyHouse(tmp_path_factory.mktemp("house"))


@pytest.fixture
def folder(house, tmp_path, monkeypatch):
    write_facts(house.model, tmp_path / "facts.json")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def shell(house, folder, monkeypatch, request):
    if "page" not in request.fixturenames:  # most of a tiny run's time
        monkeypatch.setattr(rl.AverageEffect, "write_html", lambda self, path: Path(path).write_text("a page"))
    return house.shell(monkeypatch)


@pytest.fixture
def page():
    """Let the page be drawn for real."""


def done(result, out="average", files=FILES):
    expected = f"rome-lens: wrote {out}/average.html, and {files} beside it\n"
    assert (result.exit_code, result.stderr) == (0, expected), (result.stderr, result.exception)
    return result.stdout


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.usefixtures("page")
def test_what_is_printed_and_written(shell, folder):
    lines = done(shell.run(*AVERAGE)).splitlines()
    assert lines[0].endswith("tiny: 5 facts")
    assert [line.split()[0] for line in lines[1:4]] == ["high", "low", "ATE"]
    assert max(map(len, lines)) <= 80
    text = "\n".join(lines)
    for title in ("Restoring the residual state", "Restoring the MLP outputs", "Restoring the attention outputs"):
        assert title in text
    assert "paths severed" in text
    assert "MLPs severed" in text
    assert lines[-1] == "set aside  1 fact: the model does not know this fact"
    found = rl.read_average(folder / "average")
    assert f"ATE  {found.total_effect.mean:.3f} [{found.total_effect.low:.3f}, {found.total_effect.high:.3f}]" in text
    peak = found.peak("mlp", "last subject token")
    assert f"last subject token     {peak.effect.mean:.3f} [" in text
    rows = rows_of(folder / "average" / "effects.csv")
    assert {row["role"] for row in rows} >= {"last subject token", "last token"}
    assert len(rows_of(folder / "average" / "facts.csv")) == 6
    page = (folder / "average" / "average.html").read_text()
    assert "Where" in page
    assert "Severed paths" in page


def test_json(shell, folder):
    told = json.loads(done(shell.run(*AVERAGE, "--json")))
    assert told == json.loads((folder / "average" / "summary.json").read_text())
    assert (told["facts"], told["set_aside"]) == (5, 1)


@pytest.mark.parametrize(
    ("options", "changed"),
    [
        (("--limit", "2"), {"data": 2}),
        (("--stream", "mlp"), {"streams": ["mlp"]}),
        (("--severed", "none"), {"severed": []}),
        (("--severed", "attn"), {"severed": ["attn"]}),
        (("--severed", "attn", "--severed", "mlp"), {"severed": ["attn", "mlp"]}),
        (("--severed-at", "all"), {"severed_at": "all"}),
        (("--window", "1"), {"window": 1}),
        (("--samples", "3"), {"samples": 3}),
        (("--noise", "s2"), {"noise": "s2"}),
        (("--noise-replaces",), {"noise_replaces": True}),
        (("--seed", "5"), {"seed": 5}),
        (("--bos",), {"prepend_bos": True}),
        (("--engine", "plain"), {"engine": "plain"}),
        (("--batch", "2"), {"batch_size": 2}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_every_option_reaches_the_run(options, changed, shell, folder):
    done(shell.run(*AVERAGE, "--limit", "1", *options))
    settings = rl.read_average(folder / "average").settings
    told = {name: settings["data"]["facts"] if name == "data" else settings[name] for name in changed}
    assert told == changed


def test_model_options(shell):
    done(shell.run(*AVERAGE, "--dtype", "float64", "--device", "cpu", "--backend", "auto", "--limit", "1"))
    (load,) = shell.loads
    assert (load["dtype"], load["device"], load["backend"]) == ("float64", "cpu", "auto")


@pytest.mark.usefixtures("page")
def test_an_approximation_says_so(shell, folder):
    text = done(shell.run(*AVERAGE, "--engine", "attribution"))
    assert "APPROXIMATED by attribution patching" in text.splitlines()[0]
    assert "Approximated by attribution patching" in (folder / "average" / "average.html").read_text()


def test_a_run_goes_on_and_other_settings_are_refused(shell, folder):
    first = done(shell.run(*AVERAGE, "--out", "mine"), out="mine")
    (folder / "mine" / "records" / "000001.json").unlink()
    assert done(shell.run(*AVERAGE, "--out", "mine"), out="mine") == first
    message = refusal(shell.run(*AVERAGE, "--out", "mine", "--seed", "2"), code=2)
    assert message.startswith("'mine' holds a run with seed=1, and this one has seed=2; give another folder")


def test_every_figure_becomes_a_png(shell, folder, monkeypatch):
    from rome_lens.figures import files

    monkeypatch.setattr(files, "check_png", lambda: None)
    monkeypatch.setattr(files, "write_png", lambda figure, path: path.write_text(str(len(figure.data))))
    done(
        shell.run(*AVERAGE, "--png"),
        files="summary.json, effects.csv, facts.csv, roles.png, layers.png and severed.png",
    )
    assert [int((folder / "average" / f"{name}.png").read_text()) > 2 for name in ("roles", "layers", "severed")] == [
        True
    ] * 3


@pytest.mark.slow  # test_cli_eval has workers at every landing
def test_workers(shell, folder):
    # Processes of their own load the model for themselves, from its folder.
    text = done(shell.run(*AVERAGE, "--workers", "1", "--limit", "2", "--out", "pooled"), out="pooled")
    assert text.splitlines()[0].endswith("tiny: 2 facts")


def test_shards_merge(shell, folder):
    whole = done(shell.run(*AVERAGE, "--batch", "2", "--out", "whole"), out="whole")
    for number in (1, 2):
        done(shell.run(*AVERAGE, "--batch", "2", "--shard", f"{number}/2", "--out", f"p{number}"), out=f"p{number}")
    assert done(shell.run("average", "merge", "p1", "p2", "--out", "joined"), out="joined") == whole
    lacking = shell.run("average", "merge", "p1", "--out", "half")
    assert lacking.exit_code == 1
    assert "facts are in none of the folders (0" in lacking.stderr


@pytest.mark.parametrize(
    ("options", "command"),
    [
        (("--suggest-layer",), "rome-lens suggest average"),
        (("--out", "known", "--suggest-layer", "--limit", "3"), "rome-lens suggest known"),
        (
            ("--suggest-layer", "--sweep-layer", "0", "--sweep-layer", "2", "--sweep-records", "4"),
            "rome-lens suggest average --layer 0 --layer 2 --limit 4",
        ),
        (("--sweep-records", "4"), "rome-lens suggest average --limit 4"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_the_sweep_of_layers_has_a_command_of_its_own(shell, folder, options, command):
    assert refusal(shell.run(*AVERAGE, *options), code=2) == (
        "the sweep of layers is a command of its own now; average the facts without --suggest-layer, and then type "
        f"'{command}'"
    )
    assert shell.loads == []
    assert "--suggest-layer" not in shell.run("average", "--help").stdout


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (("--limit", "0"), 2, "limit is 0; expected a number of facts, 1 or more"),
        (("--severed", "resid"), 2, "severed is 'resid'; choose from mlp, attn"),
        (("--severed-at", "x"), 2, "severed_at is 'x'; choose one of last-subject, all"),
        (("--facts", "none.json"), 1, "there is no file 'none.json' to read facts from"),
        (("--samples", "0"), 2, "samples is 0; expected a whole number of corrupted copies, 1 or more"),
        (("--noise", "loud"), 2, "noise is 'loud'; expected a number, s3"),
        (("--engine", "x"), 2, "engine is 'x'; choose one of auto, plain, attribution"),
        (("--stream", "x"), 2, "stream is 'x'; choose from resid, mlp, attn"),
        (("--shard", "3/2"), 2, "shard 3/2; expected i/n with i from 1 to n"),
        (("--batch", "0"), 2, "batch_size is 0; expected a whole number of facts, 1 or more"),
        (("--workers", "1", "--dask", "x"), 2, "--workers and --dask are given; choose one of them"),
        (("--nonsense",), 2, "no such option: --nonsense"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_mistakes_are_one_line(options, code, message, shell):
    assert refusal(shell.run(*AVERAGE, *options), code=code).startswith(message)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--window", "4"), "window is 4; expected a whole number of layers from 1 to 3, the layers of this model"),
        (("--samples", "0"), "samples is 0; expected a whole number of corrupted copies, 1 or more"),
        (("--noise", "loud"), "noise is 'loud'; expected a number, s3"),
        (("--severed", "resid"), "severed is 'resid'; choose from mlp, attn"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_what_is_refused_before_anything_is_loaded(shell, folder, options, message):
    assert refusal(shell.run(*AVERAGE, *options), code=2).startswith(message)
    assert not (folder / "average").exists()
    assert shell.loads == []


def test_severed_traces_in_the_shell(shell, house):
    args = ("trace", "where stands the tower", "-s", "the tower", *MODEL, "--noise", "1", "--window", "2")
    result = shell.run(*args, "--severed", "mlp", "--severed", "attn")
    assert result.exit_code == 0
    assert "Restoring the residual state, MLP outputs severed" in result.stdout
    assert "Restoring the residual state, attention outputs severed" in result.stdout
    assert result.stdout.count("best of the subject") == 5
    assert refusal(shell.run(*args, "--severed", "resid"), code=2) == "severed is 'resid'; choose from mlp, attn"
    approximate = shell.run(*args, "--engine", "attribution")
    assert approximate.stdout.count("(attribution patching: an approximation)") == 3
