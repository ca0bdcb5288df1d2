"""An average as work for a run: what a worker is given, and what it does with a few facts."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, get_args

import torch

from rome_lens.backends import as_backend
from rome_lens.errors import AnswerError, FactNotKnownError, PromptError
from rome_lens.facts import Fact
from rome_lens.loading.source import ModelSource, describe_model
from rome_lens.progress import Progress
from rome_lens.runs import RecordMaker, Task, Work
from rome_lens.tokens import TokenisedPrompt, tokenise_span
from rome_lens.tracing.answers import known_text
from rome_lens.tracing.attribution import ATTRIBUTION
from rome_lens.tracing.average.settings import AverageSettings
from rome_lens.tracing.cases import Case, noisy_case
from rome_lens.tracing.cells import window_of
from rome_lens.tracing.corruption import fitted_noise
from rome_lens.tracing.grid import AskedGrids, Grids, score_grids
from rome_lens.tracing.roles import LAST_SUBJECT, roles_of
from rome_lens.tracing.settings import SEVERED, Stream, check_streams


@dataclass(frozen=True)
class AverageWork(Work):
    """What a worker is given.

    Attributes:
        model: where the model comes from.
        settings: what is traced.
        facts: all facts of the run, which the noise is measured on.
    """

    model: ModelSource
    settings: AverageSettings
    facts: tuple[Fact, ...]

    def open(self, progress: Progress) -> "AverageWorker":
        return AverageWorker(self.model.open(progress), self.settings, self.facts)


class AverageWorker(RecordMaker):
    """A model, and facts by the batch."""

    def __init__(self, model: Any, settings: AverageSettings, facts: Sequence[Fact]) -> None:
        """Measure the noise.

        Args:
            model: the model.
            settings: what is traced.
            facts: all facts of the run.

        Raises:
            SettingError, ModelError: the settings do not fit the model.
        """
        backend = as_backend(model)
        streams = check_streams(backend, settings.streams, known=get_args(Stream))
        severed = settings.severed
        if severed is None:
            can = "resid" in streams and settings.engine != ATTRIBUTION
            severed = tuple(stream for stream in SEVERED if can and stream in backend.streams())
        severed = check_streams(backend, severed)
        self._model, self._backend, self.settings = model, backend, settings
        self.grids = AskedGrids(streams, severed, window_of(settings.window, backend.n_layers))
        with ExitStack() as stack:
            stack.enter_context(backend.evaluating())
            self._noise = fitted_noise(backend, settings.rule, facts)
            self._stack = stack.pop_all()

    def prepare(self) -> dict[str, Any]:
        level = float(f"{self._noise.level:.6g}")
        severed = list(self.grids.severed)
        return {**describe_model(self._model), "noise": level, "window": self.grids.window, "severed": severed}

    @torch.no_grad()
    def run(self, task: Task, progress: Progress) -> Iterator[tuple[str, dict[str, Any]]]:
        shapes: dict[tuple[int, ...], list[_Known]] = defaultdict(list)
        for number, fact in task.payload:
            try:
                known = self._known(number, fact)
                shapes[known.case.shape].append(known)
            except (AnswerError, FactNotKnownError, PromptError) as error:
                yield key_of(number), {"number": number, **fact.as_dict(), "known": False, "why": str(error)}
        for several in shapes.values():
            # All of a shape or none: rounding depends on who goes along.
            if any(key_of(known.number) in task.keys for known in several):
                cases, asked = [known.case for known in several], [known.grids for known in several]
                found = score_grids(self._backend, cases, asked, engine=self.settings.engine, progress=progress)
                for known, grids in zip(several, found, strict=True):
                    yield key_of(known.number), _record(known, grids)

    def close(self) -> None:
        self._stack.close()

    def _known(self, number: int, fact: Fact) -> "_Known":
        """A fact ready to be traced.

        Raises:
            FactNotKnownError: the model does not know it. PromptError, AnswerError: it does not fit the model.
        """
        backend, settings = self._backend, self.settings
        read = partial(
            tokenise_span,
            backend.tokenizer,
            fact.text,
            fact.subject_span,
            answer=fact.answer,
            prepend_bos=settings.prepend_bos,
        )
        text, taken = known_text(backend, read, prompt=fact.text, answer=fact.answer, answer_joined=fact.answer_joined)
        case = noisy_case(backend, text, self._noise, samples=settings.samples, seed=settings.seed)
        grids = self.grids
        if settings.severed_at == "last-subject":
            at = roles_of(text.subject_span, text.n_prompt).get(LAST_SUBJECT, range(0))
            grids = replace(grids, severed_at=at)
        return _Known(number, fact, text, case, grids, taken)


@dataclass(frozen=True)
class _Known:
    """A fact that the model knows."""

    number: int
    fact: Fact
    text: TokenisedPrompt
    case: Case
    grids: AskedGrids
    notes: tuple[str, ...]


def _record(known: _Known, grids: Grids) -> dict[str, Any]:
    text, severed_at = known.text, known.grids.severed_at
    at = list(range(text.n_prompt) if severed_at is None else severed_at)
    return {
        "number": known.number,
        **known.fact.as_dict(),
        "known": True,
        "tokens": list(text.tokens),
        "subject_span": list(text.subject_span),
        "low": grids.low,
        "high": grids.high,
        "scores": {stream: grid.tolist() for stream, grid in grids.scores.items()},
        "severed_at": at,
        "severed": {stream: grid[:, at].tolist() for stream, grid in grids.severed.items()},
        "engine": grids.engine,
        "notes": [*known.notes, *grids.notes],
    }


def tasks_of(facts: Sequence[Fact], *, batch: int) -> list[Task]:
    """Facts that are traced by one call; like ones together, so that many are of one shape.

    Args:
        facts: all facts of the run; a fact's number is its place.
        batch: facts a task.
    """
    # The words are counted, not the tokens: tasks are made where there is no model.
    order = sorted(range(len(facts)), key=lambda i: (len(facts[i].text.split()), len(facts[i].text), i))
    tasks = []
    for start in range(0, len(order), batch):
        numbers = order[start : start + batch]
        payload = tuple((number, facts[number]) for number in numbers)
        tasks.append(Task(f"facts/{start // batch}", tuple(key_of(number) for number in numbers), payload))
    return tasks


def key_of(number: int) -> str:
    """The name of a fact's file in a run folder."""
    return f"{number:06d}"
