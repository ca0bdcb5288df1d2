"""`rome-lens eval`: every option does something, a run goes on where it was, every mistake is one line."""

import gzip
import json
import sys

import pytest
from effort import slow
from tiny_records import FACTS, FAST, MODEL, NEW, SUBJECTS, TRUE
from tiny_shell import LOADED, LOADING, ok, options_of, refusal, rows_of, stdout_of, without, words_of, wrote

import rome_lens as rl
from rome_lens.evaluation import read_run
from rome_lens.evaluation.metrics import consistency


def _question(number, subject):
    return {
        "subject": subject,
        "src": f"where stands {subject} ?",
        "rephrase": f"{subject} stands in where ?",
        "answers": [NEW[number % 3], "the city"],
        "loc": "where is the museum",
        "loc_ans": "in the old city",
    }


EVAL = ("eval", "counterfact", *MODEL, *FAST, "--data", "facts.json", "--limit", "3")
ROME = (*EVAL, "--editor", "r-rome")
# No texts, and no perplexity.
BARE = (*ROME, "--texts", "0", "--perplexity", "none")
FULL = (*ROME, "--texts", "2", "--text-length", "12", "--perplexity", "texts.txt")
ZSRE = ("eval", "zsre", *MODEL, *FAST, "--data", "questions.json", "--perplexity", "texts.txt")


def _fill(folder):
    for name, content in {
        "facts.json": FACTS,
        "other.json": FACTS[::-1],
        "broken.json": [FACTS[0], FACTS[1] | {"paraphrase_prompts": "x"}, FACTS[2], 3],
        "questions.json": [_question(number, subject) for number, subject in enumerate(SUBJECTS)],
        "references.json": {name: [f"{name} is old", "the museum was in it"] for name in NEW},
    }.items():
        (folder / name).write_text(json.dumps(content))
    (folder / "texts.txt").write_text("the tower is old .\n\nthe museum was built in rome and it is old .\n")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    _fill(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def files_in(out):
    return f"{out}/report.html, summary.json and a CSV for each editor beside it"


def done(result, out="eval-counterfact"):
    """What a run printed that had nothing else to say."""
    return wrote(result, files_in(out))


def columns_of(printed):
    return [word for line in printed.splitlines() if line.startswith("editor") for word in line.split()[1:]]


def summary_of(folder):
    return json.loads((folder / "summary.json").read_text())


# Shells and folders are under test here; what is computed has tests of its own.
pytestmark = pytest.mark.usefixtures("unchecked", "folder", "quick_pages")

# --- what comes out -------------------------------------------------------------------------------------------------


def test_the_defaults_compare_the_unedited_model_and_r_rome(shell, folder):
    printed = done(shell.run(*EVAL, "--texts", "0"))
    lines = printed.splitlines()
    assert lines[0].startswith("CounterFact, ")
    assert lines[0].endswith("tiny, 3 records, 2 editors")
    assert [line.split()[0] for line in lines[2:5]] == ["editor", "none", "r-rome"]
    assert lines[2].split() == ["editor", "S", "ES", "PS", "NS"]
    assert max(map(len, lines)) <= 80
    report = read_run(folder / "eval-counterfact")
    for name in ("none", "r-rome"):
        (row,) = [line for line in lines[:6] if line.startswith(name)]
        scores = report.editors[name].scores
        assert [f"{scores[metric]:.1f}" for metric in ("S", "ES", "PS", "NS")] == row.replace("±", " ").split()[1::2]
    # Nothing is edited by nobody.
    assert all(
        record["before"] == {k: record["scores"][k] for k in record["before"]} for record in report.records["none"]
    )


def test_json_is_the_summary_of_the_folder(shell, folder):
    printed = done(shell.run(*FULL, "--json"))
    assert json.loads(printed) == summary_of(folder / "eval-counterfact")
    assert printed.isascii()


@pytest.mark.usefixtures("page")
def test_the_files_of_a_run(shell, folder):
    done(shell.run(*FULL, "-e", "none", "--out", "deep/run"), "deep/run")
    run = folder / "deep" / "run"
    names = {path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file()}
    folders = ("none", "r-rome", "references")
    records = {f"records/{place}/{number:06d}.json" for place in folders for number in range(3)}
    kept = "settings.json prepared.json plan.json summary.json none.csv r-rome.csv report.html"
    assert names - {".lock"} == records | set(kept.split())
    rows = rows_of(run / "r-rome.csv")
    assert [(row["number"], row["case_id"], row["subject"]) for row in rows] == [
        (str(number), str(100 + number), SUBJECTS[number]) for number in range(3)
    ]
    assert all(row["ES"] and row["GE"] and row["perplexity_ratio"] for row in rows)
    page = (run / "report.html").read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>")
    assert "the museum" in page
    record = json.loads((run / "records" / "r-rome" / "000001.json").read_text())
    assert (record["editor"], record["case_id"], record["prompt"]) == ("r-rome", 101, "where stands the museum")
    assert [text["prompt"] for text in record["texts"]] == ["the museum was built", "the museum is"]


def test_zsre(shell, folder):
    printed = done(shell.run(*ZSRE), "eval-zsre")
    lines = printed.splitlines()
    assert lines[0].startswith("zsRE, ")
    assert lines[0].endswith("tiny, 6 records, 2 editors")
    assert max(map(len, lines)) <= 80
    expected = "efficacy paraphrase specificity efficacy_free paraphrase_free specificity_free PPL"
    assert columns_of(printed) == expected.split()
    (answer,) = [a for a in read_run(folder / "eval-zsre").records["none"][0]["answers"] if a["kind"] == "neighborhood"]
    assert (answer["prompt"], answer["answer"]) == ("where is the museum?", "in the old city")


def test_the_model_is_left_as_it_was(shell):
    before = {name: value.clone() for name, value in shell.model.state_dict().items()}
    done(shell.run(*BARE, "-e", "ft", "--set", "num_steps=2"))
    assert all((value == before[name]).all() for name, value in shell.model.state_dict().items())
    assert rl.applied_edits(shell.model) == ()


def test_a_terminal_without_unicode(shell):
    printed = done(shell.run(*BARE, charset="ascii"))
    assert printed.isascii()
    assert "+-" in printed


def test_without_a_command_the_built_in_records_are_taken(shell, folder):
    # The tiny model has no second moment of its own: it is refused, and the folder says what was asked for.
    said = refusal(shell.run("eval"), code=2)
    assert said.startswith("there is no second moment for layer 1 of tiny, and ROME is wrong without one; collect it")
    assert shell.loads == [LOADED]
    asked = json.loads((folder / "eval-counterfact" / "settings.json").read_text())["settings"]
    refusal(shell.run("eval", "counterfact", "--out", "same"), code=2)
    assert asked == json.loads((folder / "same" / "settings.json").read_text())["settings"]
    records = rl.builtin_counterfact()
    assert asked["data"] == {"records": len(records), "digest": records.digest}
    assert [editor["name"] for editor in asked["editors"]] == ["none", "r-rome"]
    assert (asked["batch_size"], asked["shard"], asked["second_moments"]) == (8, None, {})
    measures = asked["measures"]
    assert measures.pop("watched")["texts"] == 20
    assert measures == {
        "prepend_bos": False,
        "n_texts": 10,
        "text_length": 100,
        "top_k": 5,
        "seed": 0,
        "references": None,
        "perplexity_bound": 1.2,
        "engine": "auto",
    }


# --- every option ---------------------------------------------------------------------------------------------------

# For every option: arguments that hold it, where in the summary (a path) there is what, and whether scores change.
EDITOR = ("editors", "r-rome")
EFFECTS = {
    "--data": (["--data", "other.json"], ("editors", "r-rome", "by_relation", "P1", "n"), 2, True),
    "--limit": (["--limit", "2"], ("settings", "data", "records"), 2, True),
    "--editor": (["--editor", "ft-l", "--set", "num_steps=1"], ("editors", "ft-l", "n_records"), 3, False),
    "--set": (["--set", "r-rome.kl_factor=2"], ("settings", "prepared", *EDITOR, "kl_factor"), 2, True),
    "--second-moment": (["--second-moment", "C0"], ("settings", "prepared", *EDITOR, "layer"), 1, False),
    "--bos": (["--bos"], ("settings", "measures", "prepend_bos"), True, True),
    "--seed": (["--seed", "3"], ("settings", "measures", "seed"), 3, True),
    "--texts": (["--texts", "1"], ("settings", "measures", "n_texts"), 1, True),
    "--text-length": (["--text-length", "20"], ("settings", "measures", "text_length"), 20, True),
    "--references": (["--references", "references.json"], ("settings", "measures", "references"), "", True),
    "--perplexity": (["--perplexity", "built-in"], ("settings", "measures", "watched", "texts"), 20, True),
    "--perplexity-texts": (["--perplexity-texts", "1"], ("settings", "measures", "watched", "texts"), 1, True),
    "--perplexity-bound": (["--perplexity-bound", "9"], ("settings", "perplexity_bound"), 9.0, False),
    "--batch": (["--batch", "2"], ("settings", "batch_size"), 2, False),
    "--shard": (["--batch", "1", "--shard", "2/2"], (*EDITOR, "n_records"), 1, True),
}
ELSEWHERE = {"--out", "--json", "--workers", "--dask"}
# Those of many facts in one model, which test_cli_eval_together tests.
TOGETHER = {"--together", "--sample", "--found-on", "--collapse-perplexity", "--collapse-score", "--at-collapse"}
TOGETHER |= {"--values"}
COUNTERFACT_ALONE = {"--texts", "--text-length", "--references"}


def test_every_option_has_a_test():
    counterfact = options_of("eval", "counterfact")
    assert counterfact == {*EFFECTS, *LOADING, *ELSEWHERE, *TOGETHER}
    assert options_of("eval", "zsre") == counterfact - COUNTERFACT_ALONE
    assert options_of("eval", "merge") == {"--out", "--json"}


@pytest.fixture(scope="module")
def plain_summary(house, tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain")
    _fill(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return json.loads(done(house.shell(patch).run(*FULL, "--json")))


def _at(value, path):
    for step in path:
        value = value.get(step) if isinstance(value, dict) else None
    return value


@pytest.mark.parametrize("option", EFFECTS)
def test_options_that_change_the_summary(shell, plain_summary, option):
    args, path, expected, scores_change = EFFECTS[option]
    found = json.loads(stdout_of(shell.run(*FULL, *args, "--json")))
    if option == "--references":
        assert len(_at(found, path)) == 16
        assert _at(plain_summary, path) is None
    else:
        assert _at(found, path) == expected
    before, after = (_at(summary, (*EDITOR, "intervals")) for summary in (plain_summary, found))
    assert (before != after) is scores_change or option == "--batch"
    assert found["settings"] != plain_summary["settings"]


@pytest.mark.parametrize("option", LOADING)
def test_options_that_change_what_is_loaded(shell, option):
    value, name = LOADING[option]
    done(shell.run(*(arg for arg in BARE if arg not in ("--model", "MODEL")), "--limit", "1", option, value))
    assert shell.loads == [LOADED | {name: value}]


def test_a_second_moment_chooses_the_layer(shell):
    args = [arg if arg != "C1" else "C0" for arg in BARE]
    found = json.loads(done(shell.run(*args, "--json")))
    assert found["settings"]["prepared"]["editors"]["r-rome"]["layer"] == 0


def test_what_is_not_measured_has_no_column(shell):
    printed = done(shell.run(*BARE))
    assert not [word for word in ("GE", "RS", "PPL") if word in printed]
    assert columns_of(printed) == ["S", "ES", "PS", "NS", "EM", "PM", "NM", "ES_free", "PS_free", "NS_free"]


def test_references_of_ones_own_are_compared_with(shell, folder):
    done(shell.run(*FULL, "--references", "references.json"))
    report = read_run(folder / "eval-counterfact")
    texts = [[each["prompt"] + each["text"] for each in record["texts"]] for record in report.records["r-rome"]]
    given = json.loads((folder / "references.json").read_text())
    expected = consistency(texts, [given[name] for name in NEW], [text for each in given.values() for text in each])
    assert [record["scores"]["RS"] for record in report.records["r-rome"]] == pytest.approx(expected)


def test_several_editors_and_ones_own(shell, folder):
    (folder / "own_editor_of_the_shell.py").write_text(
        "import rome_lens as rl\n\n\nclass Mine:\n    def edit(self, request):\n"
        "        raise rl.EditError(f'no edit of {request.subject}')\n\n\n"
        "def make(model, *, strength=1):\n    return Mine()\n"
    )
    mine = "own_editor_of_the_shell:make"
    try:
        result = shell.run(*BARE, "-e", mine, "-e", "none", "-e", "identity", "--set", "make.strength=2")
    finally:
        sys.modules.pop("own_editor_of_the_shell", None)
    printed = done(result)
    assert [line.split()[0] for line in printed.splitlines()[3:7]] == ["r-rome", "make", "none", "identity"]
    assert "no edit    make: 1 of 3 (record 0): no edit of the tower\n" in printed
    report = read_run(folder / "eval-counterfact")
    assert report.editors["make"].scores == report.editors["none"].scores
    assert report.settings["editors"][1] == {"name": "make", "kind": mine, "settings": {"strength": 2}}


def test_flagged_edits_are_named_when_the_run_ends(shell):
    args = (*BARE, "--limit", "6", "--perplexity", "texts.txt", "--perplexity-bound", "1.0001", "-e", "none")
    result = shell.run(*args)
    assert "perplexity r-rome: 6 of 6 beyond a factor of 1.0001" in stdout_of(result)
    assert result.stderr == (
        "rome-lens: 6 of 6 edits of r-rome moved the perplexity by more than a factor of 1.0001: records 0, 1, 2, 3, "
        f"4, …\nrome-lens: wrote {files_in('eval-counterfact')}\n"
    )
    again = shell.run(*args, "--limit", "1", "--out", "one")
    assert again.stderr == (
        "rome-lens: 1 of 1 edits of r-rome moved the perplexity by more than a factor of 1.0001: records 0\n"
        f"rome-lens: wrote {files_in('one')}\n"
    )


def test_records_that_break_the_schema_are_named(shell):
    result = shell.run(*BARE, "--data", "broken.json")
    assert "tiny, 2 records, 1 editor" in stdout_of(result)
    assert result.stderr == (
        "rome-lens: left out record 1: paraphrase_prompts is str; expected a list of texts\n"
        "rome-lens: left out record 3: itself is int; expected an object\n"
        f"rome-lens: wrote {files_in('eval-counterfact')}\n"
    )


def test_what_a_file_was_read_as_is_said_and_what_was_passed_over(shell, folder):
    easy = [
        {
            "prompt": f"where stands {subject}",
            "subject": subject,
            "target_new": NEW[0],
            "ground_truth": TRUE[0],
            "rephrase_prompt": f"{subject} stands in",
            "locality_prompt": "the river was in",
            "locality_ground_truth": "berlin",
            "portability_prompt": f"{subject} is in the city of",
            "portability_ground_truth": ["rome", "the city"],
            "notes": "new\x1b" if number else "",
        }
        for number, subject in enumerate(SUBJECTS)
    ]
    del easy[2]["prompt"]
    (folder / "easy.json").write_bytes(gzip.compress(json.dumps([*easy, *FACTS[:1]]).encode()))
    printed = shell.run(*BARE, "--data", "easy.json")
    assert printed.stderr == (
        "rome-lens: read as EasyEdit's CounterFact and CounterFact\n"
        "rome-lens: passed over notes (4 records)\n"
        "rome-lens: left out record 2: requested_rewrite is missing; expected an object\n"
        f"rome-lens: wrote {files_in('eval-counterfact')}\n"
    )
    assert "portability_free" in columns_of(stdout_of(printed))
    zsre = [
        record | {"target_new": TRUE[1], "prompt": record["prompt"] + " ?"} for record in easy if "prompt" in record
    ]
    (folder / "easy-zsre.json").write_text(json.dumps(zsre))
    result = shell.run(*ZSRE, "--data", "easy-zsre.json", "--limit", "1", "--out", "zsre")
    assert result.stderr.startswith("rome-lens: read as EasyEdit's zsRE\nrome-lens: passed over notes (4 records)\n")
    assert columns_of(stdout_of(result))[:4] == ["efficacy", "paraphrase", "specificity", "portability"]


def test_of_many_records_that_are_left_out_the_first_are_named(shell, folder):
    (folder / "many.json").write_text(json.dumps([*FACTS[:2], *range(30)]))
    lines = shell.run(*BARE, "--data", "many.json").stderr.splitlines()
    assert lines[19] == "rome-lens: left out record 21: itself is int; expected an object"
    assert lines[20:] == ["rome-lens: left out 10 more records", f"rome-lens: wrote {files_in('eval-counterfact')}"]


def test_records_that_this_model_cannot_be_asked_are_told(shell, folder):
    unknown = json.loads(json.dumps(FACTS[:2]).replace('"rome"', '"Louvre"', 1))
    (folder / "unknown.json").write_text(json.dumps(unknown))
    printed = done(shell.run(*BARE, "--data", "unknown.json"))
    assert "tiny, 1 record, 1 editor" in printed
    assert "left out   1 record (record 0): the answer 'Louvre' becomes '<|end|>'" in printed


# --- a run that goes on ---------------------------------------------------------------------------------------------


def test_a_run_goes_on_in_its_folder(shell, folder):
    args = (*FULL, "-e", "none", "--batch", "1")
    first = done(shell.run(*args))
    run = folder / "eval-counterfact"
    lost, kept = run / "records/r-rome/000001.json", run / "records/r-rome/000000.json"
    record, before = json.loads(lost.read_text()), (kept.stat().st_mtime_ns, kept.read_bytes())
    summary = (run / "summary.json").read_bytes()
    lost.unlink()
    shell.loads.clear()
    assert done(shell.run(*args)) == first
    assert len(shell.loads) == 1
    assert (kept.stat().st_mtime_ns, kept.read_bytes()) == before
    assert without("edit", json.loads(lost.read_text())) == without("edit", record)
    assert (run / "summary.json").read_bytes() == summary
    # Nothing is loaded for a run that is finished.
    shell.loads.clear()
    assert done(shell.run(*args)) == first
    assert shell.loads == []


@pytest.mark.parametrize(
    ("args", "difference"),
    [
        (["--limit", "1"], "data.digest="),
        (["--batch", "4"], "batch_size=8, and this one has batch_size=4;"),
        (["--seed", "1"], "measures.seed=0, and this one has measures.seed=1;"),
        (["-e", "none"], "editors=[{"),
        (
            ["--set", "kl_factor=1"],
            "no editors[0].settings.kl_factor, and this one has editors[0].settings.kl_factor=1;",
        ),
        (["--dtype", "float64"], 'model.dtype="float32", and this one has model.dtype="float64";'),
    ],
)
def test_other_settings_are_refused_in_the_same_folder(shell, args, difference):
    done(shell.run(*BARE))
    shell.loads.clear()
    said = refusal(shell.run(*BARE, *args), code=2)
    assert said.startswith(f"'eval-counterfact' holds a run with {difference}")
    assert said.endswith("; give another folder, or the settings of the run that is there")
    assert shell.loads == []


def test_the_number_of_workers_is_no_setting(shell):
    done(shell.run(*BARE))
    done(shell.run(*BARE, "--workers", "2", "--device", "cpu"))


# --- parts, and workers ---------------------------------------------------------------------------------------------


def test_merged_parts_are_the_whole_run(shell, folder):
    args = (*EVAL, "--texts", "1", "--text-length", "10", "--perplexity", "texts.txt", "--batch", "2")
    whole = done(shell.run(*args, "--out", "whole"), "whole")
    for part in ("1/3", "2/3", "3/3"):
        out = f"part-{part[0]}"
        done(shell.run(*args, "--shard", part, "--out", out), out)
    parts = ["part-3", "part-1", "part-2"]
    assert done(shell.run("eval", "merge", *parts, "-o", "merged"), "merged") == whole
    assert (folder / "merged/summary.json").read_bytes() == (folder / "whole/summary.json").read_bytes()
    for name in ("none.csv", "r-rome.csv"):
        assert (folder / "merged" / name).read_bytes() == (folder / "whole" / name).read_bytes()
    # The same command goes on with it, and a second time nothing changes.
    assert done(shell.run(*args, "--out", "merged"), "merged") == whole
    printed = done(shell.run("eval", "merge", *parts, "-o", "merged", "--json"), "merged")
    assert json.loads(printed) == summary_of(folder / "merged")


def test_a_part_that_is_missing_is_named(shell, folder):
    args = (*BARE, "--batch", "1", "--limit", "6")
    done(shell.run(*args, "--shard", "1/2", "--out", "first"), "first")
    result = shell.run("eval", "merge", "first", "--out", "merged")
    assert result.exit_code == 1
    assert result.stderr == (
        f"rome-lens: wrote {files_in('merged')}\n"
        "rome-lens: 3 records are in none of the folders (r-rome/000001, r-rome/000003, r-rome/000005); run the parts "
        "that lack them\n"
    )
    assert "tiny, 3 records, 1 editor" in result.stdout
    assert summary_of(folder / "merged")["editors"]["r-rome"]["n_records"] == 3


def test_of_many_missing_records_a_few_are_named(shell):
    done(shell.run(*BARE, "-e", "none", "--batch", "1", "--limit", "6", "--shard", "1/6", "--out", "first"), "first")
    result = shell.run("eval", "merge", "first", "--out", "merged")
    assert result.stderr.splitlines()[-1] == (
        "rome-lens: 10 records are in none of the folders (none/000001, none/000002, none/000003, none/000004, "
        "none/000005, …); run the parts that lack them"
    )


def test_runs_of_several_editors_are_joined(shell, folder):
    of_all = ("eval", "counterfact", *MODEL, "--data", "facts.json", "--limit", "2", "--texts", "0")
    for name, settings in (("none", ()), ("identity", FAST)):
        done(shell.run(*of_all, "--perplexity", "none", "-e", name, *settings, "-o", name), name)
    done(shell.run("eval", "merge", "none", "identity", "-o", "both"), "both")
    both = summary_of(folder / "both")
    assert set(both["editors"]) == {"none", "identity"}
    for name in ("none", "identity"):
        assert both["editors"][name] == summary_of(folder / name)["editors"][name]


MERGES = {
    "no folder": (2, "merge -o m", "missing argument 'DIR' (see 'rome-lens eval merge --help')"),
    "no out": (2, "merge run", "missing option '--out' / '-o' (see 'rome-lens eval merge --help')"),
    "nowhere": (1, "merge run nowhere -o m", "there is no folder 'nowhere'; expected one that a run made"),
    "no run": (1, "merge empty -o m", "the folder 'empty' holds no run; expected one that a run made"),
    "itself": (2, "merge run -o run", "'run' is to be merged and written at once; give another folder to"),
    "others": (2, "merge run -o full", "the folder 'full' holds no run but other files ('a'); give a new or"),
    "measures": (2, "merge run other -o m", "'run' holds a run with measures.seed=0, and 'other' one with"),
}


def test_folders_that_cannot_be_merged(shell, folder):
    done(shell.run(*BARE, "--limit", "1", "-o", "run"), "run")
    done(shell.run(*BARE, "--limit", "1", "--seed", "1", "-o", "other"), "other")
    (folder / "empty").mkdir()
    (folder / "full").mkdir()
    (folder / "full" / "a").touch()
    for code, args, start in MERGES.values():
        assert refusal(shell.run("eval", *args.split()), code=code).startswith(start)
    assert not (folder / "m").exists()


@pytest.mark.parametrize("workers", [1, slow(2)])
def test_workers_give_the_numbers_of_this_process(shell, folder, workers):
    args = (*FULL, "-e", "none", "--batch", "1", "--limit", "2")
    done(shell.run(*args, "--out", "here"), "here")
    shell.loads.clear()
    done(shell.run(*args, "--out", "there", "--workers", f"{workers}"), "there")
    # Each worker loads the model from its folder.
    assert shell.loads == []
    here, there = (summary_of(folder / name) for name in ("here", "there"))
    for name in ("none", "r-rome"):
        one, other = here["editors"][name], there["editors"][name]
        assert one["intervals"].keys() == other["intervals"].keys()
        for metric, score in one["intervals"].items():
            assert other["intervals"][metric] == pytest.approx(score, abs=1e-3), metric
    assert here["settings"]["data"] == there["settings"]["data"]


# --- mistakes -------------------------------------------------------------------------------------------------------

BEFORE_LOADING = {
    "limit": (2, "--limit 0", "limit is 0; expected a number of records, 1 or more"),
    "limit of broken": (2, "--data broken.json --limit=-1", "limit is -1; expected a number of records"),
    "limit word": (2, "--limit all", "invalid value for '--limit': "),
    "editor": (2, "-e mend", "editor is 'mend'; choose one of none, r-rome, rome, p-rome, identity, "),
    "editor twice": (2, "-e r-rome", "two editors are called 'r-rome'; call one of them otherwise, as NAME=r-rome"),
    "own editor": (2, "-e nowhere:make", "the editor 'nowhere:make' cannot be imported: No module named"),
    "no setting": (2, "--set v_lr", "'v_lr' is no setting; expected NAME=VALUE or EDITOR.NAME=VALUE, such"),
    "setting": (2, "--set lr=1", "no editor takes the setting 'lr'; they take bare_weight, clamp_norm_fac"),
    "value": (2, "--set v_lr=fast", "'v_lr=fast': the value is no JSON; expected a number, true, null or"),
    "seed": (2, "--seed=-1", "seed is -1; expected a whole number from 0 to 4294967295"),
    "texts": (2, "--texts=-1", "n_texts is -1; expected a whole number, 0 or more"),
    "length": (2, "--text-length 1", "text_length is 1; expected a whole number, 2 or more"),
    "watched": (2, "--perplexity-texts 0", "perplexity-texts is 0; expected a number of texts, 1 or more"),
    "bound": (2, "--perplexity-bound 1", "perplexity_bound is 1.0; expected a factor above 1, such as 1.2"),
    "no bound": (2, "--perplexity-bound nan", "perplexity_bound is nan; expected a factor above 1, such"),
    "batch": (2, "--batch 0", "batch_size is 0; expected a whole number of records, 1 or more"),
    "shard": (2, "--shard 3/2", "shard 3/2; expected i/n with i from 1 to n, such as 2/4 for the second of"),
    "no shard": (2, "--shard half", "shard 'half'; expected i/n with i from 1 to n, such as 2/4"),
    "workers": (2, "--workers 0", "workers is 0; expected a whole number of processes, 1 or more"),
    "both": (2, "--workers 2 --dask x", "--workers and --dask are given; choose one of them"),
    "dask": (2, "--dask ' '", "the address ' ' is none of a dask scheduler; expected one such as tcp://"),
    "no data": (1, "--data no.json", "there is no file 'no.json' to read CounterFact from; a data set is"),
    "data of zsRE": (1, "--data questions.json", "'questions.json' holds no CounterFact record that can be"),
    "data set": (2, "--data hub:", "'hub:' names no data set; expected hub:NAME, or hub:NAME:CONFIGURAT"),
    "zsRE": (2, ["eval", "zsre"], "missing option '--data' (see 'rome-lens eval zsre --help')"),
    "zsRE of facts": (1, [*ZSRE, "--data", "facts.json"], "'facts.json' holds no zsRE record that can be used; record"),
    "zsRE with texts": (2, [*ZSRE, "--texts", "3"], "no such option: --texts"),
    "references": (1, "--references no.json", "cannot read reference texts from 'no.json': No such file or"),
    "no references": (1, "--references facts.json", "'facts.json' holds no reference texts: expected an"),
    "perplexity": (1, "--perplexity no.txt", "there is no file 'no.txt' to read texts from; a data set is"),
    "moment": (1, "--second-moment no", "cannot read the second moment 'no': No such file or directory"),
    "out is a file": (1, "--out texts.txt", "cannot make the folder 'texts.txt': there is a file of that"),
    "out is taken": (2, "--out .", "the folder '.' holds no run but other files ('broken.json'); give a"),
    "layer": (2, "--set layer=9", "layer is 9; tiny has layers 0 to 2, counted from 0"),
    "steps": (2, "--set v_num_grad_steps=0", "v_num_grad_steps is 0; expected a whole number, 1 or more"),
    "share": (2, "--set bare_weight=2", "bare_weight is 2; expected a share above 0 and at most 1, or No"),
    "essence": (2, "--set 'essence_at=\"first\"'", "essence_at is 'first'; choose one of last, subject"),
    "drawn layers": (2, "-e random-layer --set n_layers=0", "n_layers is 0; expected a whole number"),
    "rate": (2, "-e ft --set ft.lr=0", "lr is 0; expected a number above 0"),
    "no command": (2, ["eval", "memit"], "no such command 'memit'"),
    "option of the default": (2, ["eval", "--limit", "3"], "no such option: --limit (see 'rome-lens eval --help')"),
}
AFTER_LOADING = {
    "no moment": (2, "--set layer=0", "there is no second moment for layer 0 of tiny, and ROME is wrong"),
    "an edit": (1, "--second-moment EDIT", "cannot use 'EDIT': expected a second_moment of"),
    "moment twice": (2, "--second-moment C1", "two second moments of layer 1 are given; expected one a lay"),
}


@pytest.mark.parametrize(("code", "args", "start"), BEFORE_LOADING.values(), ids=BEFORE_LOADING)
def test_what_is_refused_before_anything_is_loaded(shell, code, args, start):
    assert refusal(shell.run(*words_of(args, BARE)), code=code).startswith(start)
    assert shell.loads == []


@pytest.mark.parametrize(("code", "args", "start"), AFTER_LOADING.values(), ids=AFTER_LOADING)
def test_what_only_the_model_can_refuse(shell, code, args, start):
    said = refusal(shell.run(*words_of(args, BARE)), code=code)
    assert said.startswith(start.replace("'EDIT'", repr(shell.places["EDIT"])))


def test_a_dask_scheduler_that_does_not_answer(shell):
    said = refusal(shell.run(*BARE, "--dask", "tcp://127.0.0.1:1"), code=1)
    assert said == ("no dask scheduler answers at 'tcp://127.0.0.1:1'; start one (dask scheduler), or give its address")
    assert shell.loads == []


@pytest.mark.parametrize("content", ["[]", '{"rome": "old"}', '{"rome": []}', '{"rome": [1]}', "{", "caf\udce9"])
def test_references_that_are_none(shell, folder, content):
    (folder / "r.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    said = refusal(shell.run(*BARE, "--references", "r.json"), code=1)
    expected = {
        "[]": "'r.json' holds no reference texts: expected an object with a list of texts for each name",
        "{": "'r.json' is not JSON, which reference texts are kept in: Expecting property name enclosed in double qu",
        "caf\udce9": "'r.json' is not JSON, which reference texts are kept in: 'utf-8' codec can't decode byte 0xe9",
    }
    assert said.startswith(expected.get(content, "'r.json': 'rome' has no list of texts; expected one text or more"))


# --- help -----------------------------------------------------------------------------------------------------------


def test_help_says_what_is_done_without_a_command(shell):
    text = ok(shell.run("eval", "--help"))
    assert "Without a command: the unedited default model and r-rome on the built-in" in text
    assert all(name in text for name in ("counterfact", "zsre", "merge"))
