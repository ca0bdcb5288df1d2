"""What a model says after each prompt, for people and for machines."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console

from rome_lens.backends import Backend
from rome_lens.cli.printing import model_line
from rome_lens.editing.answers import NextTokens, joint_probabilities, next_tokens
from rome_lens.figures import format_probability, visible
from rome_lens.tokens import TokenisedPrompt, decode_each, tokenise
from rome_lens.tracing.answers import not_finite

# Prompts that go through the model together. They are of one length: logits are kept where each ends, and nowhere else.
_TOGETHER = 16


@dataclass(frozen=True)
class Answered:
    """One prompt, what the model says after it, and how probable the named answers are."""

    prompt: str
    tokens: tuple[str, ...]
    says: NextTokens
    answers: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        says = zip(self.tokens, self.says.ids, self.says.probabilities, strict=True)
        return {
            "prompt": self.prompt,
            "next": [{"token": token, "id": number, "probability": p} for token, number, p in says],
            "answers": [{"answer": answer, "probability": p} for answer, p in self.answers.items()],
        }


def answers_of(
    host: Backend,
    prompts: Sequence[str],
    answers: Sequence[str],
    *,
    most: int,
    prepend_bos: bool,
    answer_joined: str | None,
) -> list[Answered]:
    """Ask the model as it is.

    Args:
        host: the model.
        prompts: texts that it continues.
        answers: answers whose probability is asked for, each after every prompt.
        most: next tokens to name.
        prepend_bos: put BOS in front.
        answer_joined: what stands between a prompt and its answer; None leaves that to both.

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
    answered: dict[int, Answered] = {}
    for part in _of_one_length(bare):
        found = {answer: joint_probabilities(host, [rows[i] for i in part]) for answer, rows in named.items()}
        said = next_tokens(host, [bare[i] for i in part], most=most)
        for number, (i, says) in enumerate(zip(part, said, strict=True)):
            if not math.isfinite(says.probabilities[0]):
                raise not_finite(host)
            probabilities = {answer: of_part[number] for answer, of_part in found.items()}
            answered[i] = Answered(prompts[i], decode_each(host.tokenizer, says.ids), says, probabilities)
    return [answered[i] for i in range(len(prompts))]


def _of_one_length(rows: Sequence[TokenisedPrompt]) -> Iterator[list[int]]:
    """The numbers of rows that are equally long, a few at a time."""
    lengths: dict[int, list[int]] = {}
    for i, row in enumerate(rows):
        lengths.setdefault(row.n_prompt, []).append(i)
    for same in lengths.values():
        for start in range(0, len(same), _TOGETHER):
            yield same[start : start + _TOGETHER]


def answers_as_json(
    host: Backend, answered: Sequence[Answered], edited: Sequence[str], *, prepend_bos: bool
) -> dict[str, Any]:
    """What `--json` prints."""
    return {
        "model": host.model_name,
        "backend": host.name,
        "dtype": _dtype(host),
        "device": str(host.device),
        "prepend_bos": prepend_bos,
        "edits": list(edited),
        "prompts": [one.to_dict() for one in answered],
    }


def print_answers(
    console: Console, host: Backend, answered: Sequence[Answered], edited: Sequence[str], *, prepend_bos: bool
) -> None:
    """Print each prompt with the tokens that follow and the answers that were asked for."""
    console.print(model_line(host.model_name, host.name, _dtype(host), str(host.device), bos=prepend_bos))
    for edit in edited:
        console.print(f"edited: {visible(edit)}")
    for one in answered:
        console.print()
        console.print(visible(one.prompt), style="bold")
        for token, probability in zip(one.tokens, one.says.probabilities, strict=True):
            console.print(f"  {probability:.4f}  {visible(token)}")
        for answer, probability in one.answers.items():
            console.print(f"  {format_probability(probability, 4)}  {visible(answer.strip())} (asked for)")


def _dtype(host: Backend) -> str:
    return str(host.dtype).removeprefix("torch.")
