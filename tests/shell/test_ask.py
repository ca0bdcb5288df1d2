"""`rome-lens ask`: what a model says next, held against plain forwards of one prompt."""

import pytest
import torch
from tiny_shell import PROMPT, SUBJECT, TARGET, in_json, ok, refusal

from rome_lens.backends import as_backend
from rome_lens.loading.tiny import tiny_model

PROMPTS = ("the tower is in the city of", "where stands the museum", "a river")


def plain(model, prompt, *, prepend_bos=False):
    """Probabilities of every token after one prompt: one forward of the whole model."""
    with torch.no_grad():
        return model(model.to_tokens(prompt, prepend_bos=prepend_bos))[0, -1].double().softmax(-1)


def of_word(model, prompt, word):
    """The probability of a word after a prompt."""
    return plain(model, prompt)[model.tokenizer.get_vocab()[word]].item()


@pytest.mark.parametrize("bos", [False, True])
def test_numbers_are_those_of_plain_forwards(shell, house, bos):
    said = in_json(shell.run("ask", *PROMPTS, "--top", "3", "--json", *(["--bos"] if bos else [])))
    assert said["model"] == "tiny"
    assert (said["backend"], said["dtype"], said["device"]) == (as_backend(house.model).name, "float32", "cpu")
    assert said["prepend_bos"] is bos
    assert said["edits"] == []
    assert [one["prompt"] for one in said["prompts"]] == list(PROMPTS)
    for one in said["prompts"]:
        expected, ids = plain(house.model, one["prompt"], prepend_bos=bos).topk(3)
        assert [token["id"] for token in one["next"]] == ids.tolist()
        assert [token["token"] for token in one["next"]] == [house.model.tokenizer.decode([i]) for i in ids]
        assert [token["probability"] for token in one["next"]] == pytest.approx(expected.tolist(), rel=1e-5)
        assert one["answers"] == []


def test_named_answers_are_read_jointly(shell, house):
    said = in_json(shell.run("ask", *PROMPTS, "-a", "paris", "--answer", "the old museum", "--json"))
    for one in said["prompts"]:
        first, second = one["answers"]
        assert [first["answer"], second["answer"]] == ["paris", "the old museum"]
        assert first["probability"] == pytest.approx(of_word(house.model, one["prompt"], "paris"), rel=1e-5)
        joint, text = 1.0, one["prompt"]
        for word in ("the", "old", "museum"):
            joint *= of_word(house.model, text, word)
            text += f" {word}"
        assert second["probability"] == pytest.approx(joint, rel=1e-5)


def test_an_edited_model_is_asked(shell, house):
    prompt = PROMPT.format(SUBJECT)
    edited = in_json(shell.run("ask", prompt, "--edit", "EDIT", "-a", TARGET, "--json"))
    assert edited["edits"] == [f"{prompt} → {TARGET}"]
    with house.edit.applied(house.model):
        expected = plain(house.model, prompt)
    assert edited["prompts"][0]["next"][0]["id"] == int(expected.argmax())
    assert edited["prompts"][0]["next"][0]["probability"] == pytest.approx(expected.max().item(), rel=1e-5)
    unedited = in_json(shell.run("ask", prompt, "-a", TARGET, "--json"))
    assert unedited["prompts"][0]["answers"][0]["probability"] < edited["prompts"][0]["answers"][0]["probability"]
    assert not house.edit.is_applied(house.model)
    assert "edited: where stands the tower → rome\n" in ok(shell.run("ask", prompt, "--edit", "EDIT"))


def test_what_is_printed(shell, house):
    printed = ok(shell.run("ask", *PROMPTS[:2], "--top", "2", "--answer", "berlin")).splitlines()
    assert printed[0] == f"tiny · {as_backend(house.model).name} · float32 on cpu · no BOS"
    expected, ids = plain(house.model, PROMPTS[0]).topk(2)
    words = [house.model.tokenizer.decode([i]) for i in ids]
    berlin = of_word(house.model, PROMPTS[0], "berlin")
    assert printed[1:6] == [
        "",
        PROMPTS[0],
        f"  {expected[0]:.4f}  {words[0]}",
        f"  {expected[1]:.4f}  {words[1]}",
        f"  {berlin:.4f}  berlin (asked for)",
    ]
    assert printed[7] == PROMPTS[1]
    assert len(printed) == 11


def test_more_tokens_than_there_are(shell, house):
    (one,) = in_json(shell.run("ask", "a river", "-n", "1000", "--json"))["prompts"]
    assert len(one["next"]) == house.model.cfg.d_vocab
    assert sum(token["probability"] for token in one["next"]) == pytest.approx(1)


def test_many_prompts_go_through_in_parts(shell, house):
    prompts = [f"the {'old ' * (n % 5)}museum" for n in range(90)]
    said = in_json(shell.run("ask", *prompts, "--json"))["prompts"]
    assert [one["next"][0]["id"] for one in said] == [int(plain(house.model, prompt).argmax()) for prompt in prompts]


def test_a_model_that_gives_no_numbers(shell):
    shell.model = tiny_model("auto")
    with torch.no_grad():
        next(shell.model.parameters()).fill_(float("nan"))
    for form in ([], ["--json"]):
        assert "gives numbers that are not finite in " in refusal(shell.run("ask", "a river", *form), code=1)


def test_what_the_shell_typed_is_shown_and_never_obeyed(shell):
    assert "the tower ␛[31m␇ is [bold]in[/]\n" in ok(shell.run("ask", "the tower \x1b[31m\x07 is [bold]in[/]"))


@pytest.mark.parametrize(
    ("args", "code", "expected", "loads"),
    [
        ((), 2, "missing argument 'PROMPT' (see 'rome-lens ask --help')", 0),
        (("a river", " "), 1, "the prompt is empty; expected a text that the model continues with the answer", 0),
        (("a river", "-a", ""), 1, "the answer '' is empty; expected a word or a name", 0),
        (("a river", "--top", "0"), 2, "top is 0; expected a number of tokens, 1 or more", 0),
        (("a river", "--edit", "nowhere"), 1, "there is no file 'nowhere'; expected one that rome_lens saved", 0),
        (("the " * 65,), 1, "the prompt takes 65 positions, and tiny has 64; shorten it", 1),
    ],
)
def test_what_is_refused(shell, args, code, expected, loads):
    assert refusal(shell.run("ask", *args), code=code) == expected
    assert len(shell.loads) == loads


def test_what_stands_between_a_prompt_and_a_named_answer(shell):
    asked = ["ask", PROMPTS[0], "--answer", "the old museum", "--json"]
    one, other = (in_json(shell.run(*asked, *joined)) for joined in ([], ["--answer-joined", " "]))
    assert one["prompts"] == other["prompts"]
    said = refusal(shell.run(*asked, "--answer-joined", ""), code=1)
    assert said.startswith("the answer 'the old museum' shares the token ")
    said = refusal(shell.run("ask", PROMPTS[0], "--answer-joined", ""), code=2)
    assert said == "answer-joined is '', and no --answer was given; there is nothing to join"
