"""Portions of text that are added up in other processes: forked from this one, or an executor's workers."""

from collections import deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch

from rome_lens.backends import Backend, as_backend
from rome_lens.editing.second_moment.budget import RowBudget
from rome_lens.editing.second_moment.sums import Sums
from rome_lens.editing.second_moment.text_pieces import Cut, Pieces, Portion, SelfPieces
from rome_lens.errors import RunError
from rome_lens.loading.source import ModelSource, describe_model
from rome_lens.memory import free_bytes
from rome_lens.progress import Progress
from rome_lens.runs import HeldWork, RecordMaker, Task, Work, forked_pool
from rome_lens.runs.worker import Outcome, compute, forget, lost_worker

# Portions that are given away before the first of them is taken back.
_MOST_AWAY = 32


@dataclass(frozen=True)
class Recipe:
    """How a portion is added up, wherever that is.

    Attributes:
        widths: d_mlp of each layer.
        cut: how text is cut.
        written: for text that the model writes: tokens in all, and the seed.
        positions: how many are run at once.
    """

    widths: Mapping[int, int]
    cut: Cut
    written: tuple[int, int] | None
    positions: int

    @classmethod
    def of(cls, widths: Mapping[int, int], cut: Cut, pieces: Pieces, positions: int) -> "Recipe":
        """The recipe for portions of some pieces."""
        return cls(widths, cut, (pieces.n_tokens, pieces.seed) if isinstance(pieces, SelfPieces) else None, positions)


@dataclass(frozen=True)
class PortionWork(Work):
    """What a worker of another machine receives.

    Attributes:
        model: where the model comes from.
        recipe: how portions are added up.
    """

    model: ModelSource
    recipe: Recipe

    def open(self, progress: Progress) -> "PortionMaker":
        return PortionMaker(as_backend(self.model.open(progress)), self.recipe)


class PortionMaker(RecordMaker):
    """A model, and the sums of one portion after another."""

    def __init__(self, backend: Backend, recipe: Recipe) -> None:
        """Take a model."""
        self._backend, self._recipe = backend, recipe
        self._pieces = None
        if recipe.written is not None:
            max_tokens, seed = recipe.written
            self._pieces = SelfPieces(backend, max_tokens=max_tokens, seed=seed, cut=recipe.cut)

    def prepare(self) -> dict[str, Any]:
        return describe_model(self._backend.model)

    def run(self, task: Task, progress: Progress) -> Iterator[tuple[str, dict[str, Any]]]:
        portion: Portion = task.payload
        sums = Sums(self._backend, self._recipe.widths, RowBudget(self._recipe.positions))
        with self._backend.evaluating():
            pieces = portion.read(self._pieces)
            sums.add(pieces)
        totals = {layer: total.cpu().numpy() for layer, total in sums.totals.items()}
        # What was sent here is not sent back.
        yield task.keys[0], {"totals": totals, "pieces": pieces if portion.pieces is None else None}


class Elsewhere:
    """Where portions are given to, and sums are taken from."""

    def __init__(
        self,
        backend: Backend,
        recipe: Recipe,
        *,
        executor: Executor | None,
        source: ModelSource,
        n_workers: int,
    ) -> None:
        """Choose.

        Args:
            backend: the model here.
            recipe: how portions are added up.
            executor: whose workers do it; None forks processes.
            source: where the executor's workers have the model from.
            n_workers: how many processes are forked.
        """
        self._backend, self._executor, self._n_workers = backend, executor, n_workers
        maker = PortionMaker(backend, recipe)
        self._prepared = maker.prepare()
        self._work: Work = HeldWork(maker) if executor is None else PortionWork(source, recipe)
        n_bytes = sum(8 * width**2 for width in recipe.widths.values())
        self._most_away = max(2, min(_MOST_AWAY, free_bytes(torch.device("cpu")) // 4 // n_bytes))

    def added(self, portions: Iterator[Portion], sums: Sums) -> Generator[tuple[Portion, Sequence[list[int]]]]:
        """Add portions to the sums, in their order.

        Args:
            portions: the portions.
            sums: what they are added to.

        Yields:
            Each that is in the sums now, and its pieces.

        Raises:
            RunError: a worker was lost, or has another model.
        """
        away: deque[tuple[Portion, Future[Outcome]]] = deque()
        with ExitStack() as stack:
            executor = self._executor
            if executor is None:
                assert isinstance(self._work, HeldWork)
                executor = stack.enter_context(forked_pool(self._work, self._n_workers))
            try:
                for portion in portions:
                    key = f"{portion.number:06d}"
                    away.append((portion, executor.submit(compute, self._work, Task(key, (key,), portion))))
                    if len(away) >= self._most_away:
                        yield self._taken(*away.popleft(), sums)
                while away:
                    yield self._taken(*away.popleft(), sums)
            except BaseException as error:
                for _, future in away:
                    future.cancel()
                if lost_worker(error):
                    raise RunError(
                        "a worker was lost (killed, or out of memory); with a checkpoint (in a shell: --resume) the "
                        "same call goes on from the last portions that it holds"
                    ) from error
                raise
            finally:
                forget(self._work.token)  # threads of this process had the maker too

    def _taken(self, portion: Portion, future: "Future[Outcome]", sums: Sums) -> tuple[Portion, Sequence[list[int]]]:
        outcome = future.result()
        if outcome.prepared != self._prepared:
            raise RunError(
                f"a worker has another model than this process: {outcome.prepared} against {self._prepared}; load the "
                "same one everywhere"
            )
        ((_, record),) = outcome.records
        for layer, total in sums.totals.items():
            total += torch.from_numpy(record["totals"][layer]).to(total.device)
        return portion, portion.pieces if portion.pieces is not None else record["pieces"]
