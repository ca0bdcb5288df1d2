"""What is found of requests before a second moment has a part in it: keys, values and what the model says now."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from rome_lens.backends import Backend
from rome_lens.editing.answers import old_answers, read_answers
from rome_lens.editing.batches import in_parts
from rome_lens.editing.history import edits_in_weights
from rome_lens.editing.hooks import Hook
from rome_lens.editing.outcome import Earlier, Probabilities
from rome_lens.editing.prompts import RequestRows, processes_for, split_requests, tokenise_request
from rome_lens.editing.settings import Choices, Settings
from rome_lens.editing.value_settings import AS_ROME, ValueSettings
from rome_lens.editing.values import Value, find_values
from rome_lens.facts import EditRequest
from rome_lens.progress import Progress
from rome_lens.tokens import TokenisedPrompt


@dataclass(frozen=True)
class SolvedRequest:
    """One request with its keys and its value.

    Attributes:
        rows: the request in tokens, under its templates.
        old: the bare prompt, followed by the old answer.
        before: probabilities before the edit.
        value: its keys, and the value that was found.
        seconds: how long it took.
    """

    rows: RequestRows
    old: TokenisedPrompt
    before: Probabilities
    value: Value
    seconds: float


@dataclass(frozen=True)
class Solved:
    """Requests with their keys and values: what takes the time, and depends on no second moment.

    Attributes:
        layer: the layer at which they were found.
        requests: in the order in which they were asked.
        parts: their numbers, by the batches in which they were worked on.
        made_on: the edits that were in the weights meanwhile.
    """

    layer: int
    requests: tuple[SolvedRequest, ...]
    parts: tuple[tuple[int, ...], ...]
    made_on: tuple[Earlier, ...]


def solve_requests(
    backend: Backend,
    requests: Sequence[EditRequest],
    *,
    settings: Settings,
    choices: Choices,
    batch_size: int | None,
    value_settings: ValueSettings = AS_ROME,
    key_layers: Sequence[int] = (),
    progress: Progress | None,
) -> Solved:
    """Find keys and values of requests, each as if it were the only one: many in one batch, batches side by side.

    Args:
        backend: the model, in evaluation mode.
        requests: what is asked.
        settings: the layer, and how values are optimised.
        choices: how rows are made and weighed; its templates are known.
        batch_size: requests that are optimised together; None takes as many as fit into memory.
        value_settings: where values are added, when they are enough, and how long they may be.
        key_layers: layers of which each value holds the mean key, read in one forward before it is optimised.
        progress: called with (done, total, what) now and then.

    Raises:
        PromptError, SubjectError, AnswerError: a request does not fit the model, or it says the target already.
        EditError: a loss is no number. ModelError: what leaves the layer's MLP is not its key times `W_out`, or not
            what its block adds to its output. SettingError: the model has no such layer. RunError: one of the processes
            was lost.
        OutOfMemoryError: memory does not hold what the gradient of a request needs.
    """
    layers = [backend.check_layer(layer) for layer in key_layers]
    essence_at, templates = choices.essence_at, choices.context_templates
    assert essence_at is not None
    assert templates is not None
    rows = [
        tokenise_request(backend, request, templates=templates, prepend_bos=choices.prepend_bos, essence_at=essence_at)
        for request in requests
    ]
    n_processes = processes_for(backend, rows, layer=settings.layer, batch_size=batch_size)
    parts = split_requests(backend, rows, layer=settings.layer, batch_size=batch_size, n_processes=n_processes)

    def solved_together(part: Sequence[int], progress: Progress | None) -> list[SolvedRequest]:
        started = time.perf_counter()
        together = [rows[i] for i in part]
        bare = [row.rewriting[0] for row in together]
        old = old_answers(backend, [row.request for row in together], bare, prepend_bos=choices.prepend_bos)
        values = find_values(
            backend,
            together,
            settings=settings,
            choices=choices,
            value_settings=value_settings,
            key_layers=layers,
            progress=progress,
        )
        before = both_probabilities(backend, bare, old)
        seconds = (time.perf_counter() - started) / len(part)
        return [SolvedRequest(*found, seconds) for found in zip(together, old, before, values, strict=True)]

    found = in_parts(parts, solved_together, what="editing", progress=progress, n_workers=n_processes)
    return Solved(settings.layer, tuple(found), tuple(map(tuple, parts)), edits_in_weights(backend))


def both_probabilities(
    backend: Backend,
    targets: Sequence[TokenisedPrompt],
    old: Sequence[TokenisedPrompt],
    *,
    hooks: Sequence[tuple[str, Hook]] = (),
) -> list[Probabilities]:
    """What the model gives to the target and to the old answer of each request.

    Args:
        backend: the model, in evaluation mode.
        targets: the bare prompts, followed by the targets.
        old: the bare prompts, followed by the old answers.
        hooks: what is changed meanwhile; rows go target, old answer, target, and so on.
    """
    answers = [answer for pair in zip(targets, old, strict=True) for answer in pair]
    read = read_answers(backend, answers, hooks=hooks)
    return Probabilities.of_each(read[::2], read[1::2])
