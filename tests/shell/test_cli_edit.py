"""`rome-lens edit`: what it prints is what was measured, every option does something, every mistake is one line."""

import json
import re

import pytest
import torch
from architectures import BRIDGE, architecture
from hosts import needs_hooked
from set_options import SET_EFFECTS, SET_ELSEWHERE
from tiny_shell import (
    EDIT,
    FAST,
    LOADED,
    LOADING,
    PROMPT,
    SUBJECT,
    TARGET,
    C,
    in_json,
    ok,
    options_of,
    refusal,
    without,
    words_of,
    wrote,
)

import rome_lens as rl
from rome_lens.backends import as_backend
from rome_lens.editing.answers import joint_probabilities
from rome_lens.tokens import tokenise

NEIGHBOUR = "paris was built where it stands"

# The shell is under test here; what is computed has tests of its own.
pytestmark = pytest.mark.usefixtures("unchecked")


@pytest.fixture
def edit(shell):
    """The edit that is reported, by the library."""
    moment = rl.SecondMoment.load(shell.places[C])
    return rl.ROME(shell.model, second_moment=moment).edit(rl.EditRequest(PROMPT, SUBJECT, TARGET))


@pytest.fixture
def report(shell):
    return in_json(shell.run(*EDIT, "--json", "--neighbour", NEIGHBOUR))


def test_json_holds_the_edit_of_the_library(report, edit):
    assert report["edit"].pop("id") == edit.id
    assert without("seconds", report["edit"]) == without("seconds", json.loads(json.dumps(edit.to_dict())))
    assert len(report["edit"]["loss_curve"]) > 3


def test_what_is_printed_was_measured_on_the_edited_model(shell, report, edit):
    backend = as_backend(shell.model)
    kinds = [effect["kind"] for effect in report["prompts"]]
    # A text that the edit was made with is left out, and this model's words are few.
    assert (kinds[0], set(kinds[1:-1]), kinds[-1]) == ("prompt", {"behind_text"}, "neighbour")
    with backend.evaluating():
        for effect in report["prompts"]:
            row = tokenise(backend.tokenizer, effect["prompt"], effect["prompt"], answer=TARGET)
            old = tokenise(backend.tokenizer, effect["prompt"], effect["prompt"], answer=effect["old_answer"])
            before = joint_probabilities(backend, [row, old])
            with edit.applied(shell.model):
                after = joint_probabilities(backend, [row, old])
                logits = backend.logits(torch.tensor([row.ids[: row.n_prompt]]), keep=1)
            for when, expected in (("before", before), ("after", after)):
                assert [effect[when]["target"], effect[when]["old"]] == pytest.approx(expected, abs=1e-5)
            assert effect["after"]["says"] == backend.tokenizer.decode([int(logits.argmax())])
    assert report["prompts"][0]["after"]["target"] == pytest.approx(edit.after.target, abs=1e-5)
    assert report["prompts"][0]["before"]["old"] == pytest.approx(edit.before.old, abs=1e-5)
    assert report["prompts"][0]["old_answer"] == edit.old_answer
    # Another subject's old answer is what the model says there by itself.
    assert report["prompts"][-1]["old_answer"] == report["prompts"][-1]["before"]["says"]
    assert report["prompts"][-1]["old_answer"] != edit.old_answer


def test_the_continuations_are_those_of_the_two_models(shell, report, edit):
    from rome_lens.backends.generation import continue_text

    backend = as_backend(shell.model)
    before = continue_text(backend, edit.request.text, n_new=30)
    with edit.applied(shell.model):
        after = continue_text(backend, edit.request.text, n_new=30)
    assert report["continuations"] == {"before": before, "after": after}
    assert before != after


def test_the_model_is_left_as_it_was(shell):
    before = {name: value.clone() for name, value in shell.model.state_dict().items()}
    ok(shell.run(*FAST))
    assert all(torch.equal(value, before[name]) for name, value in shell.model.state_dict().items())
    assert rl.applied_edits(shell.model) == ()


def test_the_printed_report(shell, report):
    lines = ok(shell.run(*EDIT, "--neighbour", NEIGHBOUR)).splitlines()
    assert lines[0] == f"where stands the tower → {TARGET}"
    assert re.fullmatch(r"tiny · \S+ · float32 on cpu · no BOS", lines[1])
    table = [line for line in lines if re.search(r"\d\.\d{3} → ", line)]
    for line, effect in zip(table, report["prompts"], strict=False):
        before, after = effect["before"], effect["after"]
        for name in ("target", "old"):
            assert f"{before[name]:.3f} → {after[name]:.3f}" in line
        assert line.endswith(f"{before['says']} → {after['says']}")
    old = report["edit"]["old_answer"]
    assert re.search(rf"^The prompt +p\({TARGET}\) +p\({old}\) +says$", "\n".join(lines), re.MULTILINE)
    assert re.search(rf"^Other subjects +p\({TARGET}\) +p\(its own\) +says$", "\n".join(lines), re.MULTILINE)
    assert "The prompt behind texts that the model wrote (seed 1)" in lines
    printed = " ".join(" ".join(lines).split())
    edit = report["edit"]
    cosine = edit["key_dot"] / edit["key_norm"]
    assert f"1 of 3 (from 0), r-rome, |update| / |W| {edit['relative_norm']:.3g}, cos(u, k*) {cosine:.3f}" in printed
    losses = [loss["total"] for loss in edit["loss_curve"]]
    assert f"loss {losses[0]:.3f} → {losses[-1]:.3f} in {len(losses)} step" in printed
    assert f"from: {edit['settings']['source']}" in printed
    assert "second moment of 640 tokens of self (seed 0), from tiny" in printed
    for when in ("before", "after"):
        assert f"{when} where stands the tower {' '.join(report['continuations'][when].split())}" in printed
    assert re.fullmatch(r"edited in \d+\.\d s", lines[-1])


def test_save(shell, tmp_path):
    path = tmp_path / "edit.safetensors"
    said = json.loads(wrote(shell.run(*FAST, "--json", "--save", path), path))
    assert said["path"] == str(path)
    assert rl.load_edit(path).id == said["edit"]["id"]
    assert [p.name for p in tmp_path.iterdir()] == ["edit.safetensors"]


@pytest.mark.parametrize(
    ("args", "advice"),
    [
        (["--steps", "1"], "the value itself falls short: choose another --layer, more --steps or a larger --clamp"),
        (
            ["--bare-weight", "0.1"],
            "the value says it, but the bare prompt's key differs from the one that is answered: raise --bare-weight, "
            "or take --variant p-rome",
        ),
    ],
)
def test_a_target_that_is_not_reached_is_said_on_stderr(shell, args, advice):
    result = shell.run(*FAST, *args)
    assert result.exit_code == 0
    said = rf"rome-lens: the target '{TARGET}' is not reached, its probability is \d[\d.e-]+: {advice}\n"
    assert re.fullmatch(said, result.stderr), result.stderr
    assert "The prompt" in result.stdout


def test_what_rounding_takes_is_said_where_it_is_much(shell, monkeypatch, report, edit):
    assert report["lost_to_rounding"] == edit.lost_to_rounding(shell.model) < 1e-3
    words = (
        "of the update is lost to rounding in float32 weights; edit the model in float32 (--dtype), or run the edit "
    )
    assert words not in shell.run(*FAST).stderr
    monkeypatch.setattr(rl.Edit, "lost_to_rounding", lambda *_: 0.254)
    assert f"rome-lens: 25.4% {words}through hooks (Edit.hooks)\n" in shell.run(*FAST).stderr
    assert json.loads(shell.run(*FAST, "--json").stdout)["lost_to_rounding"] == 0.254


def test_without_arguments_it_edits_the_eiffel_tower(shell, monkeypatch):
    asked = {}

    def watch(editor, request, **prompts):
        asked.update(prompts, request=request, layer=editor.layer)
        raise rl.PromptError("that is enough")

    import rome_lens.editing.effect

    monkeypatch.setattr(rome_lens.editing.effect, "watch", watch)
    assert refusal(shell.run("edit", "--second-moment", C, "--old", "Paris"), code=1) == "that is enough"
    assert shell.loads[0]["name"] == "smollm2-135m"
    assert asked["request"] == rl.EditRequest("{} is located in the city of", "The Eiffel Tower", "Rome", "Paris")
    assert len(asked["paraphrases"]) == 3
    assert all("Eiffel Tower" in prompt for prompt in asked["paraphrases"])
    assert asked["neighbours"]
    assert not [prompt for prompt in asked["neighbours"] if "Eiffel" in prompt]


def test_without_a_second_moment_there_is_no_edit(shell):
    said = refusal(shell.run(*EDIT[:6]), code=2)
    assert said.startswith("there is no second moment for layer 1 of tiny, and ROME is wrong without one; collect it")
    assert " --layer 1 --out FILE" in said


# For every option: arguments that hold it, and where in the report (a path) there is what.
SETTINGS = ("edit", "settings")
EFFECTS = {
    "--subject": (["--subject", "the museum"], ("edit", "request", "subject"), "the museum"),
    "--target": (["--target", "berlin"], ("edit", "request", "target_new"), "berlin"),
    "--old": (["--old", "paris"], ("prompts", 0, "old_answer"), " paris"),
    "--answer-joined": (["--answer-joined", "  "], ("edit", "request", "answer_joined"), "  "),
    "--layer": (["--layer", "0", "--second-moment", "C0"], ("edit", "layer"), 0),
    "--variant": (["--variant", "p-rome"], ("edit", "variant"), "p-rome"),
    "--second-moment": (["--second-moment", "C0"], ("edit", "layer"), 0),
    "--template": (["--template", "built. {}"], (*SETTINGS, "context_templates", -1), "built. {}"),
    "--bare-weight": (["--bare-weight", "0.25"], (*SETTINGS, "bare_weight"), 0.25),
    "--bos": (["--bos"], (*SETTINGS, "prepend_bos"), True),
    "--steps": (["--steps", "3"], (*SETTINGS, "v_num_grad_steps"), 3),
    "--lr": (["--lr", "0.1"], (*SETTINGS, "v_lr"), 0.1),
    "--decay": (["--decay", "0.5"], (*SETTINGS, "v_weight_decay"), 0.5),
    "--clamp": (["--clamp", "0.5"], (*SETTINGS, "clamp_norm_factor"), 0.5),
    "--kl": (["--kl", "2"], (*SETTINGS, "kl_factor"), 2),
    "--paraphrase": (["--paraphrase", "in paris stands the tower"], ("prompts", 1, "kind"), "paraphrase"),
    "--neighbour": (["--neighbour", "where is the museum"], ("prompts", -1, "prompt"), "where is the museum"),
    "--generate": (["--generate", "0"], ("continuations",), None),
}
# Chats are in test_cli_chat.py.
ELSEWHERE = {"--save", "--json", "--seed", "--chat", "--reply"}


def test_every_option_of_edit_has_a_test():
    # What --settings does is in test_cli_suggest.py.
    # Those of many facts are in test_cli_edit_set.py.
    assert options_of("edit") == {*EFFECTS, *LOADING, *ELSEWHERE, "--settings", *SET_EFFECTS, *SET_ELSEWHERE}


@pytest.fixture(scope="module")
def plain_report(house):
    with pytest.MonkeyPatch.context() as patch:
        return in_json(house.shell(patch).run(*FAST, "--json"))


@pytest.mark.parametrize("option", EFFECTS)
def test_options_that_change_the_report(shell, plain_report, option):
    args, path, expected = EFFECTS[option]
    fast = FAST if "--second-moment" not in args else [arg for arg in FAST if arg not in ("--second-moment", C)]
    result = shell.run(*fast, *args, "--json")
    before, after = plain_report, json.loads(result.stdout)
    for step in path:
        before, after = before[step], after[step]
    assert after == expected
    assert before != expected
    if path[0] == "edit":
        assert json.loads(result.stdout)["edit"]["id"] != plain_report["edit"]["id"]


def test_seed(shell):
    found = [in_json(shell.run(*EDIT, "--json", "--generate", "0", *args)) for args in ([], ["--seed", "3"])]
    assert [each["edit"]["settings"]["seed"] for each in found] == [0, 3]
    texts = [{effect["prompt"] for effect in each["prompts"][1:]} for each in found]
    assert texts[0].isdisjoint(texts[1])
    templates = [set(each["edit"]["settings"]["context_templates"][1:]) for each in found]
    assert templates[0] != templates[1]
    # The texts that the prompt stands behind are none that the edit was made with.
    for prompts, made_with in zip(texts, templates, strict=True):
        assert prompts
        assert prompts.isdisjoint(template.replace("{}", "where stands the tower") for template in made_with)


@pytest.mark.parametrize("option", LOADING)
def test_options_that_change_what_is_loaded(shell, option):
    value, name = LOADING[option]
    value = shell.places["MODEL"] if option == "--model" else value
    shell.run(*FAST, "--steps", "1", option, value)
    assert shell.loads == [LOADED | {name: value}]


def test_equal_weights(shell):
    result = shell.run(*FAST, "--bare-weight", "equal", "--json")
    assert json.loads(result.stdout)["edit"]["settings"]["bare_weight"] is None


BEFORE_LOADING = {
    "prompt alone": (2, ["edit", PROMPT], "--subject and --target are missing; give a prompt, its --subject and a"),
    "no target": (2, ["edit", PROMPT, "-s", SUBJECT], "--target is missing; give a prompt, its --subject and a"),
    "no prompt": (2, ["edit", "-s", SUBJECT, "-t", TARGET], "PROMPT is missing; give a prompt, its --subject and a"),
    "target alone": (2, ["edit", "-t", TARGET], "PROMPT and --subject are missing; give a prompt, its --subject"),
    "no place": (
        1,
        ["edit", "where is it", *EDIT[2:]],
        "the subject 'the tower' is not in the prompt 'where is it'; give it letter for letter, or write {}",
    ),
    "2 places": (1, ["edit", "{} and {}", *EDIT[2:]], "the prompt '{} and {}' has 2 places for the subject; write {}"),
    "joined": (2, "--answer-joined -", "answer_joined is '-'; expected what stands between the prompt"),
    "empty subject": (1, "-s ' '", "the subject of the prompt 'where stands {}' is empty; name who"),
    "empty target": (1, "-t ''", "a target of 'where stands the tower' is empty; give the text"),
    "the old answer": (1, [*EDIT, "--old", TARGET], "target_new and target_true of 'where stands the tower' are both"),
    "variant": (2, "--variant memit", "variant is 'memit'; choose one of r-rome, rome, p-rome"),
    "seed": (2, "--seed -1", "seed is -1; expected a whole number from 0 to 4294967295"),
    "share": (2, "--bare-weight 2", "bare-weight is '2'; expected a share above 0 and at most 1, or equal"),
    "no share": (2, "--bare-weight nan", "bare-weight is 'nan'; expected a share above 0"),
    "share of words": (2, "--bare-weight half", "bare-weight is 'half'; expected a share above 0"),
    "steps": (2, "--steps 0", "v_num_grad_steps is 0; expected a whole number, 1 or more"),
    "lr": (2, "--lr 0", "v_lr is 0.0; expected a number above 0"),
    "lr nan": (2, "--lr nan", "v_lr is nan; expected a number above 0"),
    "decay": (2, "--decay=-1", "v_weight_decay is -1.0; expected a number, 0 or more"),
    "clamp": (2, "--clamp 0", "clamp_norm_factor is 0.0; expected a number above 0"),
    "kl": (2, "--kl inf", "kl_factor is inf; expected a number, 0 or more"),
    "negative layer": (2, [*EDIT[:6], "--layer=-1"], "layer is -1; smollm2-135m has layers 0 to 29, counted from 0"),
    "layer": (2, [*EDIT[:6], "-m", "MODEL", "--layer", "3"], "layer is 3; tiny has layers 0 to 2, counted from 0"),
    "empty paraphrase": (1, "--paraphrase ' '", "the prompt is empty; expected a text that the model"),
    "empty neighbour": (1, "--neighbour ''", "the prompt is empty; expected a text that the model"),
    "no number": (2, "--layer last", "invalid value for '--layer'"),
    "template": (2, "--template 'It was'", "context template is 'It was'; expected a text that ends with {}"),
    "generate": (2, "--generate=-1", "generate is -1; expected a number of tokens, 0 or more"),
    "folder": (1, "--save /nowhere/edit", "cannot write '/nowhere/edit': there is no folder '/nowhere'"),
    "no moment": (1, [*EDIT[:6], "--second-moment", "/nowhere/C"], "there is no file '/nowhere/C'; expected one"),
    "other layer": (1, "--layer 0", "the second moment is of layer 1, and layer 0 was asked for; collect"),
    "2 layers": (2, "--layer 0 --layer 1", "--layer is given 2 times, and ROME edits one layer; give it once, or a"),
    "2 moments": (2, "--second-moment C0", "--second-moment is given 2 times, and ROME edits one layer; give it"),
    "workers": (2, "--workers 2", "--workers goes with many facts; give --requests, --plus or a --method for many"),
    "preserve": (2, "--method rome --preserve 1", "--preserve goes with many facts; give --requests, --plus or a"),
    "an edit as a moment": (
        1,
        [*EDIT[:6], "--second-moment", "EDIT"],
        "cannot use 'EDIT': expected a second_moment of",
    ),
}
AFTER_LOADING = {
    "layer": (2, [*EDIT[:6], "--layer", "3"], "layer is 3; tiny has layers 0 to 2, counted from 0"),
    "unknown target": (1, "-t Paris", "the answer 'Paris' becomes '<|end|>', which is no word to this"),
    "unknown subject": (1, "-s Louvre", "the subject 'Louvre' is unknown to this model's tokenizer"),
    "said already": (1, [*FAST, "-t", "SAID"], "the target 'SAID' is what the model says after 'where stands the"),
    "too long": (1, [*FAST, "-s", "the " * 70], "the prompt with its answer takes 72 positions, and tiny has 64"),
    "template": (1, [*EDIT, "--template", "is " * 65 + "{}"], "the prompt 'where stands the tower' with its longest"),
    "neighbour": (1, [*FAST, "--neighbour", "the " * 70], "the prompt with its answer takes 70 positions, and tiny"),
}


@pytest.mark.parametrize(("code", "args", "start"), BEFORE_LOADING.values(), ids=BEFORE_LOADING)
def test_what_is_refused_before_anything_is_loaded(shell, code, args, start):
    said = refusal(shell.run(*words_of(args, EDIT)), code=code)
    assert said.startswith(start.replace("'EDIT'", repr(shell.places["EDIT"])))
    assert shell.loads == []


@pytest.mark.parametrize(("code", "args", "start"), AFTER_LOADING.values(), ids=AFTER_LOADING)
def test_what_only_the_model_can_refuse(shell, plain_report, tmp_path, code, args, start):
    said = plain_report["edit"]["old_answer"]
    args = [said if arg == "SAID" else arg for arg in words_of(args, EDIT)]
    result = shell.run(*args, "--json", "--save", tmp_path / "edit")
    assert refusal(result, code=code).startswith(start.replace("SAID", said))
    assert list(tmp_path.iterdir()) == []


def test_a_key_that_the_second_moment_leaves_nothing_of(shell, monkeypatch):
    from rome_lens.editing import SecondMoment

    def solve(self, key, ridge=0.0):
        u = torch.zeros_like(key)
        u[..., 0], u[..., 1] = -key[..., 1], key[..., 0]
        return u

    monkeypatch.setattr(SecondMoment, "solve", solve)
    said = refusal(shell.run(*FAST), code=1)
    assert said.startswith("the key and C^-1 k* are all but orthogonal (cosine ")
    assert said.endswith("so the update would explode; collect the second moment from more tokens")


def test_a_mixture_of_experts(shell, tmp_path):
    shell.model = architecture("mixtral", BRIDGE)
    rl.SecondMoment.from_matrix(torch.eye(24), layer=1).save(tmp_path / "C")
    assert refusal(shell.run(*EDIT[:6], "--second-moment", tmp_path / "C"), code=1) == (
        "layer 1 of mixtral has no W_out of its own (a mixture of experts, or a layer without an MLP); rank-one "
        "editing needs one matrix there: choose another layer or model"
    )


@needs_hooked
def test_a_norm_behind_the_mlp(shell, monkeypatch):
    monkeypatch.setattr(shell.model.cfg, "use_normalization_before_and_after", True)
    assert refusal(shell.run(*EDIT), code=1) == (
        "tiny norms what leaves its MLPs, and HookedTransformer has no hook point in between; rank-one editing needs "
        "one: load the model as a TransformerBridge"
    )


def test_a_loss_that_is_no_number(shell, tmp_path):
    shell.model = rl.load_model(shell.places["MODEL"])
    with torch.no_grad():
        for name, parameter in shell.model.named_parameters():
            if "blocks.2." in name or ".h.2." in name:
                parameter.fill_(torch.nan)
    said = refusal(shell.run(*FAST, "--paraphrase", "stands the tower", "--save", tmp_path / "edit"), code=1)
    assert said == (
        "the loss of 'where stands the tower' -> 'rome' is nan at step 1; load the model in float32, or lower v_lr"
    )
    assert list(tmp_path.iterdir()) == []


def test_a_short_context_leaves_out_texts_that_do_not_fit(shell):
    shell.model.cfg.n_ctx, before = 16, shell.model.cfg.n_ctx
    try:
        found = in_json(shell.run(*FAST, "--json", "--generate", "30"))
    finally:
        shell.model.cfg.n_ctx = before
    kinds = [effect["kind"] for effect in found["prompts"]]
    assert set(kinds) <= {"prompt", "behind_text"}
    assert len(found["continuations"]["after"].split()) <= 12


def test_an_edit_takes_a_prompt_that_holds_its_subject(shell):
    given = ["-s", "the tower", "-t", "paris", "--second-moment", "C1", "--steps", "1", "--template", "{}", "--json"]
    one, other = (
        json.loads(shell.run("edit", prompt, *given, "--generate", "0", "--paraphrase", "in paris").stdout)
        for prompt in ("where stands the tower", "where stands {}")
    )
    assert one["edit"]["request"] == other["edit"]["request"]
