"""`rome-lens show` and `rome-lens apply` of sets of facts: what is in them, and what is left without some."""

import json
import re

import pytest
import torch
from tiny_shell import COLOURS, MANY, REQUESTS, fitting, in_json, ok, refusal, wrote
from transformers import AutoModelForCausalLM

import rome_lens as rl
from rome_lens.storage import load_tensors, save_tensors

# The shell is under test here; what is computed has tests of its own.
pytestmark = pytest.mark.usefixtures("unchecked", "many")


@pytest.mark.parametrize("colours", [{}, COLOURS], ids=["plain", "colours"])
def test_show_a_set(shell, many, colours):
    printed = fitting(ok(shell.run("show", "SET", **colours)))
    path, lines = many.places["SET"], printed.splitlines()
    heading = lines.index("3 facts by memit, layer 1")
    # Where the lines break depends on how long the path is.
    title = "".join("".join(lines[:heading]).split())
    assert re.fullmatch(rf"{re.escape(path)}:asetoffacts,\d+\.\dkB", title)
    for number, fact in enumerate(many.facts):
        (row,) = [line for line in lines if re.match(rf" +{number}  ", line)]
        assert f"{fact.outcome.before.target:.3f} → {fact.outcome.after.target:.3f}" in row
        assert f" → {fact.request.target_new}" in row
    said = " ".join(printed.split())
    assert f"reached {sum(fact.outcome.after.reached for fact in many.facts)} of 3 targets said" in said
    assert "drift unknown: the file is without the second moments" in said
    assert f"settings v_num_grad_steps 2, v_lr {many.facts.settings['v_lr']}" in said
    assert "C second moment of 640 tokens of self (seed 0), from tiny" in said
    assert f"templates {{}} id {many.facts.id} edited in" in said


def test_show_for_machines(shell, many):
    (entry,) = in_json(shell.run("show", "SET", "--json"))
    assert (entry["kind"], entry["id"], entry["path"]) == ("edit_set", many.facts.id, many.places["SET"])
    assert entry["known"]["shortfall"] == pytest.approx(many.facts.shortfall.tolist())
    assert entry["known"]["drift"] is None
    assert [fact["id"] for fact in entry["facts"]] == [fact.id for fact in many.facts]
    assert entry["terms"]["penalty"] == many.facts.terms.penalty


def test_a_set_whose_layers_gain_one_after_the_other(shell, many, tmp_path):
    facts = many.editor(spread="released", at="block").edit_together([rl.EditRequest(*each) for each in REQUESTS])
    facts.save(tmp_path / "set")
    printed = fitting(ok(shell.run("show", tmp_path / "set")))
    assert "known      nothing more, where layers gain one after the other (spread released)" in printed
    assert "shortfall" not in printed
    assert in_json(shell.run("show", tmp_path / "set", "--json"))[0]["known"] is None
    said = refusal(shell.run("apply", tmp_path / "set", "--without", "0", "--save", tmp_path / "new"), code=2)
    assert said.endswith("leave facts out of it in Python: .without(…, editor=…)")


def test_facts_that_do_not_get_on_are_named(shell, many, tmp_path):
    asked = [*REQUESTS, ("where stands {}", "the tower", "berlin"), ("{} is old", "paris", "berlin")]
    facts = many.editor(preserve=100.0).edit_together([rl.EditRequest(*each) for each in asked], allow_conflicts=True)
    facts.save(tmp_path / "set")
    said = " ".join(fitting(ok(shell.run("show", tmp_path / "set"))).split())
    assert "conflict 0 and 3 have one key (overlap 1.00) and other targets" in said
    assert re.search(r"short \d facts? with more than half of the value missing: \d", said)
    (conflict,) = in_json(shell.run("show", tmp_path / "set", "--json"))[0]["known"]["conflicts"]
    assert conflict == {"facts": [0, 3], "overlap": pytest.approx(1)}


def test_a_set_without_some_of_its_facts(shell, many, tmp_path):
    path = tmp_path / "fewer"
    lines = wrote(shell.run("apply", "SET", "--without", "0", "--without", "2", "--save", path), path).splitlines()
    assert lines[0] == "a set of 1 fact"
    assert lines[1] == "  paris is in the city of → berlin (layer 1)"
    said = {}
    exec("\n".join(lines[-2:]), said)
    assert said["facts"].id == many.facts.without(0, 2).id
    assert "p(target)" in ok(shell.run("show", path))
    assert "reached    not measured since the set was made" in ok(shell.run("show", path))


def test_a_model_with_a_set_in_it(shell, many, tmp_path):
    result = shell.run("apply", "SET", "--without", "1", "-m", "MODEL", "--to-hf", tmp_path / "out", "--json")
    found = json.loads(wrote(result, tmp_path / "out"))
    fewer = many.facts.without(1)
    assert [each["id"] for each in found["edits"]] == [fewer.id]
    edited, plain = (
        AutoModelForCausalLM.from_pretrained(folder).transformer.h[1].mlp.c_proj.weight
        for folder in (tmp_path / "out", many.places["MODEL"])
    )
    torch.testing.assert_close(edited - plain, fewer.update, rtol=0, atol=1e-5)


def test_an_adapter_of_a_set(shell, many, tmp_path):
    result = shell.run("apply", "SET", "--without", "1", "--to-peft", tmp_path / "out")
    assert "where stands the tower → rome and 1 more (layer 1)" in wrote(result, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["r"] == 2


REFUSED = {
    "an edit": (2, "apply EDIT --without 0 --save NEW", "'EDIT' holds an edit of one fact, and --without goes with"),
    "two files": (2, "apply SET EDIT --without 0 --save NEW", "--without goes with one set of facts, and 2 files are"),
    "no such fact": (2, "apply SET --without 3 --save NEW", "without is 3; expected the number of a fact from 0 to 2"),
    "below 0": (2, "apply SET --without=-1 --save NEW", "without is -1; expected the number of a fact from 0 to 2"),
    "twice": (
        2,
        "apply SET --without 1 --without 1 --save NEW",
        "the fact 'paris is in the city of → berlin' is named",
    ),
    "all": (2, "apply SET --without 0 --without 1 --without 2 --save NEW", "the set would be empty; it needs one fact"),
    "nowhere": (2, "apply SET --without 0", "none of --to-hf, --to-peft and --save is given; name one to write"),
    "all of it": (2, "apply SET --save NEW", "--save goes with --without, and writes the set that is left; give the"),
    "two ways": (2, "apply SET --without 0 --save NEW --to-hf x", "--to-hf and --save are both given; name one"),
    "model": (
        2,
        "apply SET --without 0 --save NEW -m x",
        "--model goes with --to-hf; a set holds its facts alone, for",
    ),
    "no folder": (1, "apply SET --without 0 --save /nowhere/x", "cannot write '/nowhere/x': there is no folder"),
}


@pytest.mark.parametrize(("code", "args", "start"), REFUSED.values(), ids=REFUSED)
def test_what_is_refused(shell, tmp_path, monkeypatch, code, args, start):
    monkeypatch.chdir(tmp_path)
    said = refusal(shell.run(*args.split()), code=code)
    assert said.startswith(start.replace("'EDIT'", repr(shell.places["EDIT"])))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("options", [[], ["--json"]], ids=["text", "json"])
def test_damaged_sets(shell, many, tmp_path, options):
    tensors, settings = load_tensors(many.places["SET"], kind="edit_set")

    def written(name, without=None, **changes):
        held = {key: tensor for key, tensor in tensors.items() if key != without}
        save_tensors(tmp_path / name, kind="edit_set", tensors=held, settings=settings | changes)
        return tmp_path / name

    for path in (
        written("keys", without="facts.1.keys"),
        written("terms", terms={}),
        written("facts", facts=[]),
        written("origin", origin=settings["origin"] | {"settings": {"context_templates": 7}}),
        written("kernels", fact_kernels="x"),
    ):
        result = shell.run("show", path, *options)
        if options and result.exit_code == 0:
            continue  # what is odd and not wrong is shown to machines as it is
        assert (result.exit_code, result.stdout) == (1, "[]\n" if options else ""), path
        assert re.match(rf"rome-lens: cannot (use|show) '{path}': a damaged ", result.stderr), result.stderr


def test_an_edit_of_the_shell_is_shown_by_the_shell(shell, tmp_path):
    assert shell.run(*MANY, "--save", tmp_path / "set").exit_code == 0
    assert "3 facts by memit, layer 1" in ok(shell.run("show", tmp_path / "set"))
