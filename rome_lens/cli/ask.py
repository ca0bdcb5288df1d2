"""`rome-lens ask`: what does the model say next?"""

import math
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rome_lens.checks import whole_number
from rome_lens.cli.options import Backend, Device, Dtype, Json, Model, answer_joined_option
from rome_lens.cli.terminal import print_json, progress_bar, stdout
from rome_lens.errors import SettingError
from rome_lens.joining import check_answer, check_joined
from rome_lens.tokens import check_prompt

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rome_lens.backends import Backend as Host
    from rome_lens.editing.answers import NextTokens
    from rome_lens.tokens import TokenisedPrompt

_OUT: dict[str, Any] = {"rich_help_panel": "What comes out"}
_ASKED: dict[str, Any] = {"rich_help_panel": "What is asked"}

# Prompts that go through the model together. They are of one length: logits are kept where each ends, and nowhere else.
_TOGETHER = 16


@dataclass(frozen=True)
class _Answered:
    """One prompt, what the model says after it, and how probable the named answers are."""

    prompt: str
    tokens: tuple[str, ...]
    says: "NextTokens"
    answers: dict[str, float]


def ask(
    prompts: Annotated[
        list[str], typer.Argument(help="Texts that the model continues, one or several.", metavar="PROMPT")
    ],
    answer: Annotated[
        list[str] | None,
        typer.Option(
            "--answer",
            "-a",
            help="Say how probable this answer is, too; of several tokens, jointly. Repeat it for several.",
            metavar="TEXT",
            **_ASKED,
        ),
    ] = None,
    edit: Annotated[
        list[Path] | None,
        typer.Option(
            help="Ask the model with this edit in it, a file of 'rome-lens edit --save'; repeat it for several.",
            metavar="FILE",
            **_ASKED,
        ),
    ] = None,
    answer_joined: Annotated[str | None, answer_joined_option(_ASKED["rich_help_panel"])] = None,
    bos: Annotated[bool, typer.Option("--bos/--no-bos", help="Put a BOS token in front.", **_ASKED)] = False,
    model: Model = "smollm2-135m",
    backend: Backend = "auto",
    device: Device = None,
    dtype: Dtype = "float32",
    top: Annotated[int, typer.Option("--top", "-n", help="Tokens to show.", metavar="N", **_OUT)] = 5,
    as_json: Json = False,
) -> None:
    """Ask a model what it says next: the most probable tokens after each prompt, with their probabilities.

    A fact that the model does not know cannot be traced, and an edit needs to know
    what it says now: ask first.

    For example: rome-lens ask "The Colosseum is located in the city of" --answer Rome
    """
    whole_number("top", top, least=1, expected="a number of tokens")
    for prompt in prompts:
        check_prompt(prompt)
    for text in answer or ():
        check_answer(text)
    if answer_joined is not None:
        check_joined(answer_joined)
        if not answer:
            raise SettingError(
                f"answer-joined is {answer_joined!r}, and no --answer was given; there is nothing to join"
            )
    with progress_bar() as progress:
        progress(0, 0, "starting")
        from rome_lens.backends import as_backend
        from rome_lens.loading import load_model

        edits = []
        if edit:
            from rome_lens.editing import load_edit

            edits = [load_edit(path) for path in edit]
        host = as_backend(load_model(model, backend=backend, device=device, dtype=dtype, progress=progress))
        progress(0, 0, "asking")
        with ExitStack() as carried, host.evaluating():
            for each in edits:
                carried.enter_context(each.applied(host.model))
            answered = _ask(host, prompts, answer or [], most=top, prepend_bos=bos, answer_joined=answer_joined)
    said = {"model": host.model_name, "backend": host.name, "dtype": str(host.dtype).removeprefix("torch.")}
    said |= {"device": str(host.device), "prepend_bos": bos}
    edited = [f"{each.request.text} → {each.request.target_new.strip()}" for each in edits]
    if as_json:
        print_json({**said, "edits": edited, "prompts": [_as_json(one) for one in answered]})
    else:
        _print(answered, said, edited)


def _ask(
    host: "Host",
    prompts: list[str],
    answers: list[str],
    *,
    most: int,
    prepend_bos: bool,
    answer_joined: str | None,
) -> list[_Answered]:
    from rome_lens.editing.answers import joint_probabilities, next_tokens
    from rome_lens.tokens import decode_each, tokenise
    from rome_lens.tracing.answers import not_finite

    def row(prompt: str, answer: str | None = None) -> "TokenisedPrompt":
        text = tokenise(
            host.tokenizer, prompt, prompt, answer=answer, answer_joined=answer_joined, prepend_bos=prepend_bos
        )
        host.check_text(text)
        return text

    bare = [row(prompt) for prompt in prompts]
    named = {answer: [row(prompt, answer) for prompt in prompts] for answer in answers}
    answered: dict[int, _Answered] = {}
    for part in _of_one_length(bare):
        found = {answer: joint_probabilities(host, [rows[i] for i in part]) for answer, rows in named.items()}
        said = next_tokens(host, [bare[i] for i in part], most=most)
        for number, (i, says) in enumerate(zip(part, said, strict=True)):
            if not math.isfinite(says.probabilities[0]):
                raise not_finite(host)
            answered[i] = _Answered(
                prompts[i],
                decode_each(host.tokenizer, says.ids),
                says,
                {answer: probabilities[number] for answer, probabilities in found.items()},
            )
    return [answered[i] for i in range(len(prompts))]


def _of_one_length(rows: list["TokenisedPrompt"]) -> "Iterator[list[int]]":
    """The numbers of rows that are equally long, a few at a time."""
    lengths: dict[int, list[int]] = {}
    for i, row in enumerate(rows):
        lengths.setdefault(row.n_prompt, []).append(i)
    for same in lengths.values():
        for start in range(0, len(same), _TOGETHER):
            yield same[start : start + _TOGETHER]


def _as_json(one: _Answered) -> dict[str, Any]:
    says = zip(one.tokens, one.says.ids, one.says.probabilities, strict=True)
    return {
        "prompt": one.prompt,
        "next": [{"token": token, "id": number, "probability": p} for token, number, p in says],
        "answers": [{"answer": answer, "probability": p} for answer, p in one.answers.items()],
    }


def _print(answered: list[_Answered], said: dict[str, Any], edited: list[str]) -> None:
    from rome_lens.figures import format_probability, visible

    console = stdout()
    console.print(
        f"{visible(said['model'])} · {said['backend']} · {said['dtype']} on {said['device']} · "
        f"{'BOS' if said['prepend_bos'] else 'no BOS'}"
    )
    for edit in edited:
        console.print(f"edited: {visible(edit)}")
    for one in answered:
        console.print()
        console.print(visible(one.prompt), style="bold")
        for token, probability in zip(one.tokens, one.says.probabilities, strict=True):
            console.print(f"  {probability:.4f}  {visible(token)}")
        for answer, probability in one.answers.items():
            console.print(f"  {format_probability(probability, 4)}  {visible(answer.strip())} (asked for)")
