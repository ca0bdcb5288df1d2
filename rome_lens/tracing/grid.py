"""From a corruption to the grids of all streams: which way they are computed, and in how many parts."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rome_lens.backends import Backend, ReplayError
from rome_lens.progress import Progress
from rome_lens.tracing.cells import Cell, known_score, plan_cells
from rome_lens.tracing.engine import count_positions, plan_lanes, score_cells
from rome_lens.tracing.memory import Budget
from rome_lens.tracing.plain import score_cells_plainly
from rome_lens.tracing.runs import Corruption, Runs, make_runs


@dataclass(frozen=True)
class Grids:
    """All scores of one trace.

    Attributes:
        scores: [layer pos] by stream.
        low: score with nothing restored.
        high: score of the clean run.
        engine: `blocks` where the model's blocks were called alone, `plain` where whole forwards were run.
        notes: why, where it was not `blocks`.
    """

    scores: Mapping[str, Float[Tensor, "layer pos"]]
    low: float
    high: float
    engine: str
    notes: tuple[str, ...]


def score_grids(
    backend: Backend,
    tokens: Int[Tensor, " pos"],
    corruption: Corruption,
    answer_ids: Int[Tensor, " read"],
    *,
    n_prompt: int,
    streams: Sequence[str],
    window: int,
    engine: str,
    progress: Progress | None,
) -> Grids:
    """Score every cell of every stream.

    Args:
        backend: the model.
        tokens: the prompt's token ids and all but the last of the answer's.
        corruption: what is broken.
        answer_ids: the answer.
        n_prompt: how many of `tokens` are the prompt's: the grids have as many positions.
        streams: which grids.
        window: layers restored together, for `mlp` and `attn`.
        engine: `auto` or `plain`.
        progress: called with (done, total, what).
    """
    notes: list[str] = []
    if engine == "auto" and (hooked := backend.foreign_hooks()):
        notes.append(
            f"the model carries hooks of yours ({', '.join(hooked[:3])}{', …' if len(hooked) > 3 else ''}): whole "
            "forwards were run, so that they see every position of every cell"
        )
        engine = "plain"
    cells = [
        cell
        for stream in streams
        for cell in plan_cells(stream, n_layers=backend.n_layers, positions=range(n_prompt), window=window)
    ]
    parts = _Parts(backend, tokens, corruption, answer_ids, cells, progress)
    if engine == "auto":
        try:
            low, high, scores = parts.run(plain=False)
            return Grids(_as_grids(scores, cells, backend.n_layers, n_prompt), low, high, "blocks", ())
        except ReplayError as error:
            notes.append(f"the model's blocks cannot be called alone ({error}): whole forwards were run")
    low, high, scores = parts.run(plain=True)
    return Grids(_as_grids(scores, cells, backend.n_layers, n_prompt), low, high, "plain", tuple(notes))


@dataclass
class _Parts:
    """A trace in as many parts of its samples as memory asks for."""

    backend: Backend
    tokens: Int[Tensor, " pos"]
    corruption: Corruption
    answer_ids: Int[Tensor, " read"]
    cells: Sequence[Cell]
    progress: Progress | None

    def run(self, *, plain: bool) -> tuple[float, float, dict[Cell, float]]:
        budget = Budget.choose(self.backend)
        n_samples, start = self.corruption.n_samples, 0
        low = high = 0.0
        scores = dict.fromkeys(self.cells, 0.0)
        while start < n_samples:
            part = self.corruption.part(slice(start, start + budget.samples(self.tokens.shape[0])))
            try:
                runs = make_runs(self.backend, self.tokens, part, self.answer_ids, record=not plain)
            except (RuntimeError, MemoryError) as error:
                budget.halve_after(error)
                continue
            share = part.n_samples / n_samples
            done = self._score(runs, budget, plain=plain, before=start / n_samples, share=share)
            low, high = low + share * runs.low, runs.high
            for cell, score in done.items():
                scores[cell] += share * score
            start += part.n_samples
        # Set, not summed up: a known score is `low` or `high` to the last bit.
        for cell in self.cells:
            value = self._known(cell, low, high)
            if value is not None:
                scores[cell] = value
        return low, high, scores

    def _known(self, cell: Cell, low: float, high: float) -> float | None:
        n_tokens = self.tokens.shape[0]
        return known_score(
            cell,
            n_layers=self.backend.n_layers,
            first_corrupted=self.corruption.span[0],
            read=range(n_tokens - self.answer_ids.shape[0], n_tokens),
            low=low,
            high=high,
        )

    def _score(self, runs: Runs, budget: Budget, *, plain: bool, before: float, share: float) -> dict[Cell, float]:
        """The cells that have to be run, of a part of the samples."""
        todo = [cell for cell in self.cells if self._known(cell, runs.low, runs.high) is None]
        if plain:
            tick = self._ticker(len(todo), before, share)
            return score_cells_plainly(self.backend, runs, todo, budget=budget, tick=tick)
        lanes = plan_lanes(todo)
        total = count_positions(lanes, n_layers=self.backend.n_layers, n_tokens=runs.n_tokens)
        tick = self._ticker(total, before, share)
        return score_cells(self.backend, runs, lanes, budget=budget, tick=tick)

    def _ticker(self, total: int, before: float, share: float) -> Callable[[int], None]:
        """Turns the positions or cells that are done into thousandths of the whole trace."""
        done = 0

        def tick(n: int) -> None:
            nonlocal done
            # A batch that memory cut short is done again: never past the end.
            done = min(total, done + n)
            if self.progress is not None:
                self.progress(round(1000 * (before + share * done / max(total, 1))), 1000, "tracing")

        return tick


def _as_grids(
    scores: Mapping[Cell, float], cells: Sequence[Cell], n_layers: int, n_prompt: int
) -> dict[str, Float[Tensor, "layer pos"]]:
    grids: dict[str, Tensor] = {}
    for cell in cells:
        if cell.stream not in grids:
            grids[cell.stream] = torch.empty(n_layers, n_prompt, dtype=torch.float64)
        grids[cell.stream][cell.layer, cell.pos] = scores[cell]
    return grids
