"""What a model says after each prompt, for people and for machines."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console

from rome_lens.backends import Backend
from rome_lens.cli.printing import model_line
from rome_lens.editing.answers import joint_probabilities, next_tokens
from rome_lens.figures import format_probability, visible
from rome_lens.tokens import TokenisedPrompt, decode_each, tokenise
from rome_lens.tracing.answers import not_finite

# Prompts that go through the model together. They are of one length: logits are kept where each ends, and nowhere else.
_TOGETHER = 16


def ask_model(
    host: Backend,
    prompts: Sequence[str],
    answers: Sequence[str],
    edited: Sequence[str],
    *,
    most: int,
    prepend_bos: bool,
    answer_joined: str | None,
) -> dict[str, Any]:
    """Ask the model as it is.

    Args:
        host: the model.
        prompts: texts that it continues.
        answers: answers whose probability is asked for, each after every prompt.
        edited: the edits that the model carries, in words.
        most: next tokens to name.
        prepend_bos: put BOS in front.
        answer_joined: what stands between a prompt and its answer; None leaves that to both.

    Returns:
        What `rome-lens ask --json` prints.

    Raises:
        PromptError, AnswerError: a text does not fit the model. ModelError: it gives numbers that are not finite.
    """

    def row(prompt: str, answer: str | None = None) -> TokenisedPrompt:
        text = tokenise(
            host.tokenizer, prompt, prompt, answer=answer, answer_joined=answer_joined, prepend_bos=prepend_bos
        )
        host.check_text(text)
        return text

    bare = [row(prompt) for prompt in prompts]
    named = {answer: [row(prompt, answer) for prompt in prompts] for answer in answers}
    said: dict[int, Any] = {}
    for part in _of_one_length(bare):
        found = {answer: joint_probabilities(host, [rows[i] for i in part]) for answer, rows in named.items()}
        reached = next_tokens(host, [bare[i] for i in part], most=most)
        for place, (i, says) in enumerate(zip(part, reached, strict=True)):
            if not math.isfinite(says.probabilities[0]):
                raise not_finite(host)
            tokens = zip(decode_each(host.tokenizer, says.ids), says.ids, says.probabilities, strict=True)
            said[i] = {
                "prompt": prompts[i],
                "next": [{"token": token, "id": number, "probability": p} for token, number, p in tokens],
                "answers": [{"answer": answer, "probability": of_part[place]} for answer, of_part in found.items()],
            }
    return {
        "model": host.model_name,
        "backend": host.name,
        "dtype": str(host.dtype).removeprefix("torch."),
        "device": str(host.device),
        "prepend_bos": prepend_bos,
        "edits": list(edited),
        "prompts": [said[i] for i in range(len(prompts))],
    }


def _of_one_length(rows: Sequence[TokenisedPrompt]) -> Iterator[list[int]]:
    """The numbers of rows that are equally long, a few at a time."""
    lengths: dict[int, list[int]] = {}
    for i, row in enumerate(rows):
        lengths.setdefault(row.n_prompt, []).append(i)
    for same in lengths.values():
        for start in range(0, len(same), _TOGETHER):
            yield same[start : start + _TOGETHER]


def print_answers(console: Console, asked: Mapping[str, Any]) -> None:
    """Print each prompt with the tokens that follow and the answers that were asked for."""
    where = (asked[name] for name in ("model", "backend", "dtype", "device"))
    console.print(model_line(*where, bos=asked["prepend_bos"]))
    for edit in asked["edits"]:
        console.print(f"edited: {visible(edit)}")
    for one in asked["prompts"]:
        console.print()
        console.print(visible(one["prompt"]), style="bold")
        for token in one["next"]:
            console.print(f"  {token['probability']:.4f}  {visible(token['token'])}")
        for answer in one["answers"]:
            shown = format_probability(answer["probability"], 4)
            console.print(f"  {shown}  {visible(answer['answer'].strip())} (asked for)")
