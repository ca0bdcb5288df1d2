"""`rome-lens eval --together`: facts that stay in the model, from the shell; every option of it does something."""

import json

import pytest
from tiny_records import FACTS, FAST, MODEL
from tiny_shell import refusal, rows_of, stdout_of, wrote

import rome_lens as rl

EVAL = ("eval", "counterfact", *MODEL, *FAST, "--data", "facts.json", "--perplexity", "texts.txt")
MANY = (*EVAL, "--together", "1,4,6")
FILES = "eval-counterfact/report.html, summary.json, checkpoints.csv, retention.csv and records.csv beside it"

EFFECTS = {
    "--together": (["--together", "2,3"], ("settings", "together", "at"), [2, 3]),
    "--sample": (["--sample", "2"], ("settings", "together", "sample"), 2),
    "--found-on": (["--found-on", "edited"], ("settings", "together", "found_on"), "edited"),
    "--collapse-perplexity": (["--collapse-perplexity", "3"], ("settings", "together", "perplexity"), 3.0),
    "--collapse-score": (["--collapse-score", "10"], ("settings", "together", "score"), 10.0),
    "--at-collapse": (["--at-collapse", "stop"], ("settings", "together", "at_collapse"), "stop"),
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "facts.json").write_text(json.dumps(FACTS))
    (tmp_path / "texts.txt").write_text("the tower is old .\n\nthe museum was built in rome and it is old .\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


# Shells and folders are under test here; what is computed has tests of its own.
pytestmark = pytest.mark.usefixtures("unchecked", "folder")


def test_the_curve_is_a_small_table_and_files_hold_the_rest(shell, folder):
    lines = wrote(shell.run(*MANY), FILES).splitlines()
    assert max(map(len, lines)) <= 80
    report = rl.read_run(folder / "eval-counterfact")
    assert list(report.editors) == ["memit", "r-rome"]
    for name, points in report.editors.items():
        for point in points:
            shown = f"{point.scores['S']:.1f}"
            assert any(name in line and f" {point.n} " in f"{line} " and shown in line for line in lines), (
                name,
                point.n,
            )
    out = folder / "eval-counterfact"
    assert [(row["editor"], row["n"]) for row in rows_of(out / "checkpoints.csv")] == [
        (name, n) for name in ("none", "memit", "r-rome") for n in ("1", "4", "6")
    ]
    assert len(rows_of(out / "records.csv")) == 2 * (1 + 4 + 6)
    assert {row["first"] for row in rows_of(out / "retention.csv")} == {"1", "2", "5"}
    assert (out / "report.html").read_text(encoding="utf-8").startswith("<!doctype html>")


def test_json_is_the_summary_of_the_folder(shell, folder):
    printed = wrote(shell.run(*MANY, "--json"), FILES)
    assert json.loads(printed) == json.loads((folder / "eval-counterfact" / "summary.json").read_text())


@pytest.fixture(scope="module")
def plain(house, tmp_path_factory):
    place = tmp_path_factory.mktemp("plain")
    (place / "facts.json").write_text(json.dumps(FACTS))
    (place / "texts.txt").write_text("the tower is old .\n\nthe museum was built in rome and it is old .\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        return json.loads(stdout_of(house.shell(patch).run(*MANY, "--json")))


@pytest.mark.parametrize("option", EFFECTS)
def test_options_that_change_the_summary(shell, plain, option):
    args, path, expected = EFFECTS[option]
    found = json.loads(stdout_of(shell.run(*MANY, *args, "--json")))
    value = found
    for step in path:
        value = value[step]
    assert value == expected
    assert found["settings"] != plain["settings"]
    if option == "--sample":
        assert [point["n_records"] for point in found["editors"]["memit"]] == [1, 1, 2]
    if option == "--found-on":
        assert "found_on edited" in found["descriptions"]["r-rome"]
        assert found["editors"]["r-rome"] != plain["editors"]["r-rome"]
        assert found["editors"]["memit"] == plain["editors"]["memit"]


def test_a_collapse_is_named_and_ends_an_editor(shell, folder):
    # Steps as long as these ruin a model.
    how = ("-e", "memit", "-e", "ft", "--set", "lr=3", "--set", "num_steps=4", "--collapse-perplexity", "1.5")
    printed = stdout_of(shell.run(*MANY, *how))
    n = rl.read_run(folder / "eval-counterfact").collapse["ft"]
    assert n is not None
    assert f"ft: at {n} fact" in " ".join(printed.split())
    stdout_of(shell.run(*MANY, *how, "--at-collapse", "stop", "--out", "stopped"))
    assert [point.n for point in rl.read_run(folder / "stopped").editors["ft"]] == [m for m in (1, 4, 6) if m <= n]


def test_values_are_shared_by_runs_and_with_edit(shell, folder):
    requests = [record.request.as_dict() for record in rl.read_counterfact(folder / "facts.json")]
    (folder / "requests.json").write_text(
        json.dumps([{k: v for k, v in one.items() if v is not None} for one in requests])
    )
    found = ("edit", "--requests", "requests.json", "--second-moment", "C1", "--template", "it was old. {}")
    stdout_of(shell.run(*found, "--steps", "2", "--out", "values", "--allow-conflicts", *MODEL[:2]))
    before = {path: path.read_bytes() for path in (folder / "values").rglob("*.json")}
    stdout_of(shell.run(*MANY, "-e", "memit", "--values", "values"))
    assert {path: path.read_bytes() for path in (folder / "values").rglob("*.json")} == before


def test_one_editor_under_two_names(shell, folder):
    how = ("-e", "stacked=r-rome", "-e", "sequence=r-rome", "--set", 'sequence.found_on="edited"')
    stdout_of(shell.run(*MANY, *how))
    said = rl.read_run(folder / "eval-counterfact").descriptions
    assert "found_on base" in said["stacked"]
    assert "found_on edited" in said["sequence"]
    assert refusal(shell.run(*MANY, "-e", "ft", "-e", "ft=r-rome"), code=2) == (
        "two editors are called 'ft'; call one of them otherwise, as NAME=r-rome"
    )


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("--together", "1,x"), "--together is '1,x'; expected numbers of facts with commas, such as 1,10,100"),
        (("--together", "4,1"), "together is (4, 1); expected numbers in rising order, each once"),
        (("--together", "7"), "together asks for 7 facts, and there are 6 records; give numbers up to that"),
        (
            ("--together", "2", "-e", "rome"),
            "editor is 'rome' (it edits one fact, and cannot be asked for many together)",
        ),
        (("--sample", "3"), "--sample is given without --together, and says something of its checkpoints"),
        (("--together", "2", "--at-collapse", "end"), "at_collapse is 'end'; choose one of go_on, stop"),
        (("--together", "2", "--set", 'r-rome.found_on="x"'), "r-rome.found_on is 'x'; choose one of base, edited"),
    ],
)
def test_mistakes_are_told_in_one_line(shell, args, said):
    assert refusal(shell.run(*EVAL, *args), code=2).startswith(said)
    assert not shell.loads
