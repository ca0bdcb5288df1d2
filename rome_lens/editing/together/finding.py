"""Keys and values of facts, found one by one and kept as they are found: what takes the time, whatever solves them."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from rome_lens.backends import Backend, as_backend
from rome_lens.editing.history import edits_in_weights, unedited_fingerprint
from rome_lens.editing.outcome import Loss, Outcome, Probabilities
from rome_lens.editing.settings import Choices, Settings
from rome_lens.editing.solved import SolvedRequest, solve_requests
from rome_lens.editing.tensor_text import as_tensor, as_text
from rome_lens.editing.value_settings import ValueSettings
from rome_lens.errors import ModelError, OutOfMemoryError, RomeLensError
from rome_lens.facts import EditRequest
from rome_lens.loading.source import ModelSource, describe_model, rounded
from rome_lens.progress import Progress
from rome_lens.runs import RecordMaker, Task, Work

KIND = "facts"
"""What folders of facts call themselves."""

PART = "facts"
"""The part of a folder's records that holds facts."""


@dataclass(frozen=True)
class Finding:
    """All that decides what is found of a request, but for the model.

    Attributes:
        settings: the layer of the value, and how it is optimised.
        choices: how rows are made and weighed; its templates are known.
        values: where values are added, when they are enough, how long they may be, and which keys they answer.
        layers: the layers whose keys are read, from the lowest; the last is that of the value.
    """

    settings: Settings
    choices: Choices
    values: ValueSettings
    layers: tuple[int, ...]

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it, less words that decide nothing."""
        settings = {name: value for name, value in asdict(self.settings).items() if name != "source"}
        choices = asdict(self.choices) | {"context_templates": list(self.choices.context_templates or ())}
        return {"settings": settings, "choices": choices, "values": asdict(self.values), "layers": list(self.layers)}


@dataclass(frozen=True)
class FoundFact:
    """What was found for one request; what it is weighed by has no part in it.

    Attributes:
        outcome: the request, the old answer, what the model said before, and the losses.
        old_ids: token ids of the old answer.
        keys: [key, d_mlp] for each layer, in the model's precision, float32 at least.
        shares: of each key.
        residual: [d_model] what the layers' values lack together.
        goal: [d_model] what the last layer's block is to give; None for values at `W_out`.
        notes: what is worth knowing of it.
        engine: `blocks` or `plain`.
    """

    outcome: Outcome
    old_ids: tuple[int, ...]
    keys: tuple[Float[Tensor, "key d_mlp"], ...]
    shares: tuple[float, ...]
    residual: Float[Tensor, " d_model"]
    goal: Float[Tensor, " d_model"] | None
    notes: tuple[str, ...]
    engine: str

    @classmethod
    def of(cls, solved: SolvedRequest, finding: Finding, dtype: torch.dtype) -> "FoundFact":
        """From what was solved for a request.

        Of a mean key at `W_out` what is missing is `v* - W k`, as for r-ROME; at the block, and of several keys, what
        was added under each template, as in MEMIT's released code (the two differ by `v0 - W k`).
        """
        value = solved.value
        as_rome = finding.values.at == "w_out" and finding.values.keys == "mean"
        residual = (value.goal - value.known.mean_value)[0] if as_rome else value.change
        goal = None if value.resid_bare is None else (value.resid_bare + value.change).to("cpu", dtype)
        notes = () if value.said in (None, True) else ("the value does not say the target under every template",)
        return cls(
            Outcome(solved.rows.request, solved.old.answer, solved.before, None, value.curve),
            tuple(solved.old.answer_ids),
            tuple(value.keys[layer].to("cpu", dtype) for layer in finding.layers),
            value.shares,
            residual.to("cpu", dtype),
            goal,
            (*notes, *value.notes),
            value.engine,
        )

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it; numbers of tensors to the bit."""
        return {
            "outcome": self.outcome.to_dict(),
            "old_ids": list(self.old_ids),
            "keys": [as_text(keys) for keys in self.keys],
            "shares": list(self.shares),
            "residual": as_text(self.residual),
            "goal": None if self.goal is None else as_text(self.goal),
            "notes": list(self.notes),
            "engine": self.engine,
        }

    @classmethod
    def from_dict(cls, held: Mapping[str, Any]) -> "FoundFact":
        """What `to_dict` gave."""
        outcome = held["outcome"]
        return cls(
            Outcome(
                EditRequest(**outcome["request"]),
                outcome["old_answer"],
                Probabilities(**outcome["before"]),
                None,
                tuple(Loss(**loss) for loss in outcome["loss_curve"]),
            ),
            tuple(held["old_ids"]),
            tuple(as_tensor(keys).reshape(len(held["shares"]), -1) for keys in held["keys"]),
            tuple(held["shares"]),
            as_tensor(held["residual"]),
            None if held["goal"] is None else as_tensor(held["goal"]),
            tuple(held["notes"]),
            held["engine"],
        )


@dataclass(frozen=True)
class FindingWork(Work):
    """What a worker of another machine receives.

    Attributes:
        model: where the model comes from.
        finding: what decides what is found.
    """

    model: ModelSource
    finding: Finding

    def open(self, progress: Progress) -> "FactMaker":
        return FactMaker(self.model.open(progress), self.finding)


class FactMaker(RecordMaker):
    """A model, and requests whose keys and values are found on it.

    A request that cannot be edited gets a record that says why, and the others go on.
    """

    def __init__(self, model: Any, finding: Finding) -> None:
        """Take a model."""
        self.model, self._finding, self._backend = model, finding, as_backend(model)

    def prepare(self) -> dict[str, Any]:
        """What identifies the model: of every layer, since a value depends on all above its own, with its edits."""
        return self._identity

    @cached_property
    def _identity(self) -> dict[str, Any]:
        # Asked for by the folder, by the run and by every worker; a maker sees no other weights in its life.
        held = [earlier.id or earlier.words for earlier in edits_in_weights(self._backend)]
        return describe_model(self.model) | {"layers": _sketches(self._backend), "made_on": held}

    def run(self, task: Task, progress: Progress) -> Iterator[tuple[str, dict[str, Any]]]:
        requests: tuple[EditRequest, ...] = task.payload
        try:
            found = self.find(requests, progress)
        except OutOfMemoryError:
            raise
        except RomeLensError as error:
            if len(requests) == 1:
                yield task.keys[0], _failed(requests[0], error)
                return
            for key, request in zip(_keys(requests), requests, strict=True):
                yield from self.run(Task(key, (key,), (request,)), progress)
            return
        for request, fact in zip(requests, found, strict=True):
            yield key_of(request), fact.to_dict()

    def find(self, requests: Sequence[EditRequest], progress: Progress) -> list[FoundFact]:
        """Keys and values of requests on the model as it is now, optimised together.

        Raises:
            PromptError, SubjectError, AnswerError, EditError, ModelError: a request cannot be edited.
        """
        finding, backend = self._finding, self._backend
        dtype = torch.promote_types(backend.dtype, torch.float32)
        # A caller's inference mode would leave nothing to differentiate.
        with torch.inference_mode(False), backend.evaluating():
            solved = solve_requests(
                backend,
                requests,
                settings=finding.settings,
                choices=finding.choices,
                value_settings=finding.values,
                key_layers=finding.layers,
                batch_size=len(requests),
                progress=progress,
            )
        return [FoundFact.of(one, finding, dtype) for one in solved.requests]


def key_of(request: EditRequest) -> str:
    """The name of a request's record: its digest, so that a folder's facts serve whatever list they are asked in."""
    asked = json.dumps(request.as_dict(), sort_keys=True).encode()
    return f"{PART}/{hashlib.sha256(asked).hexdigest()[:32]}"


def tasks_of(requests: Sequence[EditRequest], *, batch_size: int) -> list[Task]:
    """A task for so many requests each."""
    parts = [tuple(requests[start : start + batch_size]) for start in range(0, len(requests), batch_size)]
    return [Task(f"{PART} {number}", _keys(part), part) for number, part in enumerate(parts)]


def failure_of(held: Mapping[str, Any]) -> str | None:
    """Why a record's request cannot be edited; None where it was."""
    return held.get("failed")


def _keys(requests: Sequence[EditRequest]) -> tuple[str, ...]:
    return tuple(key_of(request) for request in requests)


def _failed(request: EditRequest, error: RomeLensError) -> dict[str, Any]:
    return {"request": request.as_dict(), "failed": str(error)}


def _sketches(backend: Backend) -> list[list[float] | None]:
    """A few numbers of every layer's `W_out`, rounded so that they do not depend on the number of threads."""
    found: list[list[float] | None] = []
    for layer in range(backend.n_layers):
        try:
            known = unedited_fingerprint(backend, layer)
        except ModelError:
            found.append(None)
            continue
        found.append([rounded(known.norm), *map(rounded, known.sketch)])
    return found
