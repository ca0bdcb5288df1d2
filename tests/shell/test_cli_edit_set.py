"""`rome-lens edit --requests` and `--plus`: the sets of the library, options that do something, mistakes by name."""

import json
import re

import pytest
import torch
from set_options import SET_EFFECTS
from tiny_shell import MANY, MORE, PLUS, REQUESTS, C, fitting, refusal, stdout_of, words_of

import rome_lens as rl
from rome_lens.editing.settings import Settings
from rome_lens.editing.together import editor
from rome_lens.editing.together.reopen import reopened

# The shell is under test here; what is computed has tests of its own.
pytestmark = pytest.mark.usefixtures("unchecked", "many")


def _set_of(result):
    """The JSON of the set that a command made, whatever it had to say of it."""
    return json.loads(stdout_of(result))["set"]


@pytest.fixture(scope="module")
def plain(many):
    with pytest.MonkeyPatch.context() as patch:
        return _set_of(many.shell(patch).run(*MANY, "--json"))


def test_json_holds_the_set_of_the_library(many, plain):
    assert plain["id"] == many.facts.id
    assert [one["request"]["subject"] for one in plain["outcomes"]] == [subject for _, subject, _ in REQUESTS]
    known = plain["known"]
    assert known["shortfall"] == many.facts.shortfall.tolist()
    assert known["leverage"] == many.facts.leverage.tolist()
    assert list(zip(known["disturbed_by"], known["disturbance"], strict=True)) == list(many.facts.disturbed_by)
    assert (known["drift"], known["capacity"]) == (many.facts.drift, 64)
    assert known["conflicts"] == []


def test_the_printed_set(shell, many):
    lines = fitting(stdout_of(shell.run(*MANY))).splitlines()
    facts = many.facts
    assert lines[0] == "3 facts by memit, layer 1"
    assert re.fullmatch(r"tiny · \S+ · float32 on cpu · no BOS", lines[1])
    assert lines[3].split() == ["fact", "request", "p(target)", "shortfall", "leverage", "disturbed", "by"]
    rows = [re.split(r" {2,}", line.strip()) for line in lines[4:7]]
    worst = sorted(range(3), key=lambda number: (facts[number].outcome.after.reached, -facts.shortfall[number]))
    assert [int(row[0]) for row in rows] == worst
    for number, _, change, short, leverage, by in rows:
        outcome, (other, amount) = facts[int(number)].outcome, facts.disturbed_by[int(number)]
        assert change == f"{outcome.before.target:.3f} → {outcome.after.target:.3f}"
        assert float(short) == pytest.approx(facts.shortfall[int(number)].item(), abs=0.01)
        assert float(leverage) == pytest.approx(facts.leverage[int(number)].item(), abs=0.01)
        assert by == f"{other} ({amount:.2f})"
    said = " ".join(" ".join(lines[8:]).split())
    assert f"{facts.leverage.sum():.1f} of 64 that the layers hold ({facts.load:.1%})" in said
    assert f"drift {facts.drift:.2g} of the layers' values over text" in said
    assert f"layer 1 of 3 (from 0), |update| / |W| {facts.relative_norm:.3g}, rank 3" in said
    assert "second moment of 640 tokens of self (seed 0), from tiny" in said


def test_what_rounding_takes_is_said_where_it_is_much(shell, monkeypatch):
    monkeypatch.setattr(rl.Edit, "lost_to_rounding", lambda *_: 0.254)
    result = shell.run(*MANY, "--json")
    assert "rome-lens: 25.4% of the update is lost to rounding in float32 weights; edit the model" in result.stderr
    assert json.loads(result.stdout)["lost_to_rounding"] == 0.254


def test_targets_that_are_not_reached_are_said_on_stderr(shell, many):
    missed = [fact.words for fact in many.facts if not fact.outcome.after.reached]
    said = shell.run(*MANY).stderr
    assert said.startswith(f"rome-lens: {len(missed)} of 3 targets are not reached, such as {missed[0]!r}: ")


@pytest.mark.parametrize("option", SET_EFFECTS)
def test_options_that_change_the_set(shell, plain, option):
    args, (*path, last), expected = SET_EFFECTS[option]
    before, after = plain, _set_of(shell.run(*MANY, *args, "--json"))
    # Of targets so far away that one text alone does not say them, what ends a value's search early changes nothing; of
    # one text there is one key.
    assert after["id"] != plain["id"] or option in ("--at", "--stop-said", "--least-scale", "--keys")
    for step in path:
        before, after = before[step], after[step]
    assert after[last] == expected
    assert before.get(last, "nothing") != expected


COMMON = {
    "--layer": (["--layer", "0", "--layer", "1", "--second-moment", "C0"], "layers", [0, 1]),
    "--second-moment": (["--second-moment", "C0", "--layer", "0", "--layer", "1"], "layers", [0, 1]),
    "--bos": (["--bos"], "prepend_bos", True),
    "--bare-weight": (["--bare-weight", "equal"], "bare_weight", None),
    "--template": (["--template", "it was. {}"], "context_templates", ["{}", "it was. {}"]),
    "--clamp": (["--clamp", "0.5"], "clamp_norm_factor", 0.5),
    "--seed": (["--seed", "3"], "seed", 3),
}


@pytest.mark.parametrize(("args", "name", "expected"), COMMON.values(), ids=COMMON)
def test_how_values_are_found_is_chosen_as_for_one_fact(shell, plain, args, name, expected):
    settings = _set_of(shell.run(*MANY, *args, "--json"))["settings"]
    assert settings[name] == expected != plain["settings"][name]


def test_settings_of_a_file(shell, tmp_path):
    Settings(1, 2, 0.25, 0.1, 2, 0.5, "a test").save(tmp_path / "settings.json")
    given = ("edit", "--requests", "MORE", "--second-moment", C, "--template", "{}", "--json")
    settings = _set_of(shell.run(*given, "--settings", tmp_path / "settings.json"))["settings"]
    assert (settings["layers"], settings["v_lr"]) == ([1], 0.25)
    assert settings["source"].startswith("a test")
    Settings(0, 2, 0.25, 0.1, 2, 0.5, "a test").save(tmp_path / "settings.json")
    said = refusal(shell.run(*given, "--settings", tmp_path / "settings.json"), code=2)
    assert said.endswith("give the second moment of that layer, or each --layer to edit")


def test_one_fact_is_a_set_where_the_method_is_one(shell, many):
    prompt, subject, target = REQUESTS[0]
    made = _set_of(shell.run("edit", prompt, "-s", subject, "-t", target, "--method", "memit", *MANY[3:], "--json"))
    assert made["id"] == many.editor().edit_together([rl.EditRequest(*REQUESTS[0])]).id


def test_what_is_found_is_kept(shell, tmp_path, plain):
    args = (*MANY, "--json", "--out", tmp_path / "facts", "--save", tmp_path / "set")
    assert _set_of(shell.run(*args))["id"] == plain["id"]
    assert rl.load_edit(tmp_path / "set").id == plain["id"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rome_lens.editing.together.finding.solve_requests", None)
        assert _set_of(shell.run(*args))["id"] == plain["id"]


def test_workers(shell, monkeypatch):
    asked = []

    def find_facts(*args, **_):
        asked.append(args[4].workers)
        raise rl.EditError("that is enough")

    monkeypatch.setattr(editor, "find_facts", find_facts)
    for args in ((), ("--workers", "2")):
        assert refusal(shell.run(*MANY, *args), code=1) == "that is enough"
    assert asked == [None, 2]


def test_a_guard_refuses_a_set_with_which_the_model_collapses(shell, monkeypatch):
    assert _set_of(shell.run(*MANY, "--json", "--guard", "1000"))["id"]
    monkeypatch.setattr(rl.CollapseGuard, "ratio", lambda self, model: 3.0)
    assert refusal(shell.run(*MANY, "--guard", "2"), code=1) == (
        "the model would collapse with 3 facts together: texts are 3 times as perplexing as to the unedited model, "
        "above 2 times; take fewer, or a larger penalty for what moves (preserve, l2)"
    )
    assert refusal(shell.run(*MANY, "--guard", "1"), code=2) == (
        "perplexity is 1.0; expected a factor above 1, such as 2"
    )


def _file(tmp_path, *requests):
    path = tmp_path / "requests.jsonl"
    fields = ("prompt", "subject", "target_new")
    path.write_text("\n".join(json.dumps(dict(zip(fields, each, strict=True))) for each in requests))
    return path


def test_a_request_that_fails_is_named_and_may_be_left_out(shell, many, tmp_path, monkeypatch):
    from rome_lens.editing.together import finding

    solve = finding.solve_requests

    def solve_requests(backend, requests, **how):
        if requests[0].subject == "paris":
            raise rl.EditError("its loss is nan")
        return solve(backend, requests, **how)

    monkeypatch.setattr(finding, "solve_requests", solve_requests)
    said = refusal(shell.run(*MANY, "--workers", "1", "--out", tmp_path / "out"), code=1)
    assert said.startswith(
        "1 of 3 requests cannot be edited: 'paris is in the city of → berlin': its loss is nan; what"
    )
    assert said.endswith("(in a shell: --skip-failed)")
    made = _set_of(shell.run(*MANY, "--skip-failed", "--workers", "1", "--json"))
    assert len(made["facts"]) == 2
    assert "left out, since it cannot be edited: 'paris is in the city of → berlin' (its loss is nan)" in made["notes"]


def test_two_targets_of_one_subject(shell, tmp_path):
    path = _file(tmp_path, REQUESTS[0], ("in the old city stands {}", "the tower", "berlin"))
    args = ("edit", "--requests", path, *MANY[3:])
    said = refusal(shell.run(*args), code=2)
    assert said.startswith("the subject 'the tower' has two targets: ")
    assert said.endswith("(in a shell: --allow-conflicts)")
    assert shell.loads == []
    assert len(_set_of(shell.run(*args, "--allow-conflicts", "--json"))["facts"]) == 2


def test_many_facts_are_told_by_the_worst_of_them(shell, tmp_path):
    words = ("tower", "river", "museum", "city", "rome", "paris", "berlin", "old")
    asked = [(prompt, word, "it") for prompt in ("{} is in the", "a {} was", "where stands {} ?") for word in words]
    args = ("edit", "--requests", _file(tmp_path, *asked[:23]), *MANY[3:-1], "1")
    lines = fitting(stdout_of(shell.run(*args))).splitlines()
    rows = [line for line in lines if re.match(r" +\d+  ", line)]
    assert len(rows) == 20
    assert "      and 3 more (--json shows all)" in lines


def test_wide_and_long_requests_fit(shell, tmp_path):
    long = "the tower is in the old city of paris and it was built where the river stands and {} is"
    path = _file(
        tmp_path, (long, "the museum", "in the city of rome and paris"), ("東京 東京 東京 {} is", "rome", "berlin")
    )
    printed = fitting(stdout_of(shell.run("edit", "--requests", path, *MANY[3:])))
    assert re.search(r"^ +0  the .*….* → in the…\w+ ", printed, re.MULTILINE)
    assert re.search(r"^ +1  東京 東京.* → berlin ", printed, re.MULTILINE)


def test_further_facts(shell, many, tmp_path):
    result = shell.run(*PLUS, "--requests", "MORE", "--json", "--save", tmp_path / "more")
    made = _set_of(result)
    at_once = many.editor().edit_together([rl.EditRequest(*each) for each in (*REQUESTS, *MORE)])
    assert made["id"] == at_once.id == rl.load_edit(tmp_path / "more").id
    assert [one["after"]["target"] for one in made["outcomes"]] == pytest.approx(
        [fact.outcome.after.target for fact in at_once], abs=1e-6
    )
    assert made["known"]["drift"] == pytest.approx(at_once.drift)
    assert shell.loads[-1]["name"] == "tiny"


def test_one_further_fact_that_is_typed(shell, many):
    prompt, subject, target = MORE[0]
    made = _set_of(shell.run("edit", prompt, "-s", subject, "-t", target, *PLUS[1:], "--json"))
    assert made["id"] == many.facts.plus(rl.EditRequest(*MORE[0])).id


@pytest.mark.parametrize(("kind", "settings"), [(rl.EMMET, {}), (rl.AlphaEdit, {}), (rl.MEMIT, {"at": "block"})])
def test_further_facts_of_sets_of_each_kind(shell, many, tmp_path, kind, settings):
    asked = [rl.EditRequest(*each) for each in (*REQUESTS, *MORE)]
    if settings:
        settings |= {"spread": "released"}
    made = many.editor(kind, **settings)
    made.edit_together(asked[:3]).save(tmp_path / "set")
    found = _set_of(shell.run("edit", "--plus", tmp_path / "set", "--requests", "MORE", *PLUS[3:], "--json"))
    assert found["id"] == made.edit_together(asked).id


def test_sets_are_joined_without_a_second_moment(shell, many, tmp_path):
    many.editor().edit_together([rl.EditRequest(*MORE[0])]).save(tmp_path / "more")
    made = _set_of(shell.run("edit", "--plus", "SET", "--plus", tmp_path / "more", "--json"))
    assert made["id"] == many.facts.plus(rl.EditRequest(*MORE[0])).id


def test_a_set_is_reopened_with_its_own_second_moment_alone(many):
    moment = rl.SecondMoment.from_matrix(torch.eye(64), layer=1)
    with pytest.raises(rl.SettingError, match="solved with another second moment of layer 1; give the one"):
        reopened(many.facts, many.model, second_moments={1: moment})
    again = reopened(rl.load_edit(many.places["SET"]), many.model, second_moments={1: many.moment})
    assert again.editor.finding.to_dict() == many.facts.editor.finding.to_dict()
    assert again.drift == pytest.approx(many.facts.drift)


BEFORE_LOADING = {
    "prompt": (2, [*MANY, "where stands {}"], "PROMPT asks for one fact, and --requests for those of a file; give one"),
    "subject": (2, "-s x", "--subject asks for one fact, and --requests for those of a file; give one of the two"),
    "no file": (1, ["edit", "--requests", "/nowhere"], "there is no file '/nowhere' to read requests from"),
    "method": (2, "--method mend", "method is 'mend'; choose one of rome, memit, emmet, alphaedit"),
    "rome": (2, "--method rome", "--method rome edits one fact, alone; choose one of memit, emmet, alphaedit, or"),
    "variant": (2, "--variant r-rome", "--variant goes with one fact and --method rome; leave it out"),
    "generate": (2, "--generate 30", "--generate goes with one fact and --method rome; leave it out"),
    "epsilon": (2, "--epsilon 1", "--epsilon goes with --method emmet, and this is memit; leave it out"),
    "energy": (2, "--method alphaedit --energy 2", "energy is 2.0; expected a number above 0 and at most 1"),
    "preserve": (2, "--preserve=-1", "preserve is -1.0; expected a number, 0 or more"),
    "spread": (2, "--spread wide", "spread is 'wide'; choose one of joint, released"),
    "released": (2, "--spread released --at w_out", "--spread released goes with --at block; leave out --at w_out"),
    "at": (2, "--at top", "at is 'top'; choose one of w_out, block"),
    "stop-said": (2, "--stop-said=-1", "stop_said is -1; expected None or a whole number of steps, 0 or more"),
    "least-scale": (2, "--least-scale half", "least_scale is 'half'; expected a number, 1 or more, or None"),
    "workers": (2, "--workers 0", "workers is 0; expected a whole number of processes, 1 or more"),
    "steps": (2, "--steps 0", "v_num_grad_steps is 0; expected a whole number, 1 or more"),
    "share": (2, "--bare-weight 2", "bare-weight is '2'; expected a share above 0 and at most 1, or equal"),
    "two moments": (2, "--second-moment C1", "two second moments are of layer 1; give one for each layer"),
    "other layer": (1, "--layer 0", "the second moment is of layer 1, and layer 0 was asked for; collect"),
    "not edited": (2, "--layer 1 --layer 2 --second-moment C0", "a second moment is of layer 0, and edited are 1, 2"),
    "layer": (2, "-m MODEL --layer 1 --layer 3", "layer is 3; tiny has layers 0 to 2, counted from 0"),
    "folder": (1, "--save /nowhere/set", "cannot write '/nowhere/set': there is no folder '/nowhere'"),
    "plus what": (2, PLUS, "nothing is asked beside the set of --plus; give --requests, a prompt, or another --plus"),
    "plus an edit": (2, ["edit", "--plus", "EDIT", "--plus", "SET"], "'EDIT' holds an edit of one fact, which nothing"),
    "plus no set": (1, ["edit", "--plus", C, "--plus", C], "cannot use"),
    "plus layer": (2, [*PLUS, "--requests", "MORE", "--layer", "1"], "--layer is what the set of --plus was made with"),
    "plus seed": (2, [*PLUS, "--requests", "MORE", "--seed", "0"], "--seed is what the set of --plus was made with"),
    "plus at": (2, [*PLUS, "--requests", "MORE", "--at", "block"], "--at is what the set of --plus was made with"),
    "plus workers": (2, [*PLUS, "--requests", "MORE", "--workers", "2"], "--workers goes with a new set; leave it out"),
    "plus itself": (
        2,
        [*PLUS, "--plus", "SET"],
        "request 0, 'where stands the tower' -> 'rome', is in the set already",
    ),
    "plus out": (
        2,
        [*PLUS, "--plus", "SET", "--out", "x"],
        "--out keeps values as they are found, and nothing is asked",
    ),
    "plus moment": (
        2,
        ["edit", "--plus", "SET", "--requests", "MORE", "--second-moment", "C0"],
        "a second moment is of layer 0, and edited is 1; leave it out",
    ),
}


@pytest.mark.parametrize(("code", "args", "start"), BEFORE_LOADING.values(), ids=BEFORE_LOADING)
def test_what_is_refused_before_anything_is_loaded(shell, code, args, start):
    said = refusal(shell.run(*words_of(args, MANY)), code=code)
    assert said.startswith(start.replace("'EDIT'", repr(shell.places["EDIT"])))
    assert shell.loads == []


AFTER_LOADING = {
    "no moment": (2, MANY[:3], "there is no second moment for layer 1 of tiny, and facts that are solved without one"),
    "a word": (
        1,
        ["edit", "in {} it is", "-s", "rome", "-t", "Paris", *PLUS[1:]],
        "request 0, 'in rome it is → Paris': the answer 'Paris' becomes",
    ),
    "moment of the set": (2, [*PLUS[:3], "--requests", "MORE"], "there is no second moment for layer 1 of tiny, and"),
}


@pytest.mark.parametrize(("code", "args", "start"), AFTER_LOADING.values(), ids=AFTER_LOADING)
def test_what_only_the_model_can_refuse(shell, tmp_path, code, args, start):
    assert refusal(shell.run(*args, "--save", tmp_path / "set"), code=code).startswith(start)
    assert list(tmp_path.iterdir()) == []


def test_a_set_of_another_model(shell, many):
    shell.model = rl.load_model(many.places["MODEL"])
    with torch.no_grad():
        shell.model.blocks[1].mlp.W_out.mul_(-1)
    said = refusal(shell.run(*PLUS, "--requests", "MORE"), code=1)
    assert "the edit was made for layer 1 of tiny" in said
