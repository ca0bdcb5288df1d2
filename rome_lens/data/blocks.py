"""Prompts with answers of their own that stand beside an edit: what follows from it, and what it should leave alone."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from rome_lens.data.entries import says_nothing
from rome_lens.data.fields import FieldError, checked, member, text_in
from rome_lens.facts import EditRequest


@dataclass(frozen=True)
class Asked:
    """A prompt that a record asks beside its edit.

    Attributes:
        field: where the prompt stands in the record, for people.
        about: what the data set calls its kind.
        prompt: the whole prompt.
        answers: what answers it, any of them; empty where the record says nothing about that.
    """

    field: str
    about: str
    prompt: str
    answers: tuple[str, ...]


def asked_beside(record: Mapping[str, Any], name: str) -> Iterator[Asked]:
    """The prompts of `portability` or `locality`, in the forms of EasyEdit and KnowEdit.

    These are the fields NAME_prompt and NAME_ground_truth, and the object NAME, which holds a block a kind: an object
    with `prompt` and `ground_truth`, or a list of such. Several prompts may stand in a list, with an answer each.

    Args:
        record: what was read.
        name: `portability` or `locality`.

    Raises:
        FieldError: something else stands there.
    """
    alone, truth = f"{name}_prompt", f"{name}_ground_truth"
    yield from _pairs(record.get(alone), record.get(truth), alone, truth, about=name)
    blocks = record.get(name)
    if blocks is not None and not isinstance(blocks, Mapping):
        raise FieldError(name, f"is {type(blocks).__name__}; expected an object with lists of prompts and answers")
    for about, block in (blocks or {}).items():
        several = block if isinstance(block, list) else [] if block is None else [block]
        for index, one in enumerate(several):
            inside = f"{name}.{about}" + (f"[{index}]" if isinstance(block, list) else "")
            if not isinstance(one, Mapping):
                raise FieldError(inside, f"is {type(one).__name__}; expected an object with prompt and ground_truth")
            fields = f"{inside}.prompt", f"{inside}.ground_truth"
            for asked in _pairs(one.get("prompt"), one.get("ground_truth"), *fields, about=about):
                yield Asked(f"{name}.{about}.prompt", about, asked.prompt, asked.answers)


def ripples(record: Mapping[str, Any], name: str) -> Iterator[Asked]:
    """The prompts of a block of RippleEdits.

    Raises:
        FieldError: it holds something else.
    """
    if record.get(name) is None:
        return
    for number, test in enumerate(member(record, name, "", list, "a list of tests")):
        inside = f"{name}[{number}]."
        for index, query in enumerate(member(test, "test_queries", inside, list, "a list of queries")):
            within = f"{inside}test_queries[{index}]."
            prompt = text_in(query, "prompt", within)
            yield Asked(f"{name}.test_queries.prompt", name, prompt, _answers(query, within))


def _answers(query: Mapping[str, Any], within: str) -> tuple[str, ...]:
    """What answers a query of RippleEdits: values and their other names."""
    field, said = f"{within}answers", []
    if query.get("answers") is None:
        return ()
    for index, answer in enumerate(member(query, "answers", within, list, "a list of answers")):
        if not isinstance(answer, Mapping):
            raise FieldError(f"{field}[{index}]", f"is {type(answer).__name__}; expected an object with value")
        for name in ("value", "aliases"):
            said += texts_of(answer.get(name), f"{field}[{index}].{name}")
    # The benchmark itself takes no single letter for an answer.
    return tuple(dict.fromkeys(text for text in said if len(text) > 1 or text.isdigit()))


def answered(several: Iterable[Asked], passed: set[str]) -> list[Asked]:
    """Those of the prompts that have an answer.

    Args:
        several: the prompts.
        passed: the fields of the others go there.
    """
    found = []
    for asked in several:
        if asked.answers:
            found.append(asked)
        else:
            passed.add(asked.field)
    return found


def left_alone(
    several: Iterable[Asked], request: EditRequest, passed: set[str]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Neighbours and their answers, as a record holds them: no answers where all of them are the edit's old one.

    A neighbour whose answer is the edit's new one cannot tell whether the edit leaves it alone, and is passed over.

    Args:
        several: the prompts.
        request: the edit.
        passed: the fields of those that are passed over go there.
    """
    found = []
    for asked in answered(several, passed):
        if asked.answers[0].strip() == request.target_new.strip():
            passed.add(asked.field)
        else:
            found.append(asked)
    answers = tuple(asked.answers[0] for asked in found)
    return tuple(asked.prompt for asked in found), () if set(answers) <= {request.target_true} else answers


def texts_of(value: Any, field: str) -> list[str]:
    """All texts of an answer: of a text itself, of a list of any depth; blank ones and null say nothing.

    Raises:
        FieldError: something else is among them.
    """
    if says_nothing(value):
        return []
    if isinstance(value, list):
        return [text for index, one in enumerate(value) for text in texts_of(one, f"{field}[{index}]")]
    return [checked(value, field)]


def _pairs(prompts: Any, truths: Any, prompt_field: str, truth_field: str, *, about: str) -> Iterator[Asked]:
    """Prompts with their answers: one, which any text in its answer answers, or a list with an answer each."""
    if says_nothing(prompts):
        return
    if not isinstance(prompts, list):
        prompt, answers = checked(prompts, prompt_field), texts_of(truths, truth_field)
        yield Asked(prompt_field, about, prompt, tuple(dict.fromkeys(answers)))
        return
    if not isinstance(truths, list) or len(truths) != len(prompts):
        many = f"a list of {len(truths)}" if isinstance(truths, list) else type(truths).__name__
        raise FieldError(truth_field, f"is {many}; expected a list of {len(prompts)}, an answer for each prompt")
    for index, (prompt, truth) in enumerate(zip(prompts, truths, strict=True)):
        answers = tuple(dict.fromkeys(texts_of(truth, f"{truth_field}[{index}]")))
        yield Asked(prompt_field, about, checked(prompt, f"{prompt_field}[{index}]"), answers)
