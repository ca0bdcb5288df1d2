"""From corrupted facts to their grids: which way they are computed, how many together, and in how many parts."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from rome_lens.backends import Backend, prefer_blocks
from rome_lens.progress import Progress
from rome_lens.tracing.attribution import ATTRIBUTION, approximate_cells
from rome_lens.tracing.blocks import count_positions, plan_lanes, score_cells
from rome_lens.tracing.cells import Cell, known_score, plan_cells
from rome_lens.tracing.forwards import Case, Runs, make_runs
from rome_lens.tracing.memory import Budget
from rome_lens.tracing.plain import score_cells_plainly
from rome_lens.tracing.request import not_finite

BLOCKS, PLAIN = "blocks", "plain"


@dataclass(frozen=True)
class Wanted:
    """Which grids of a case are computed.

    Attributes:
        streams: `resid`, `mlp`, `attn`: what is restored.
        severed: `mlp`, `attn`: what is held at the corrupted run's outputs while the residual stream is restored.
        severed_at: positions where that is done; None is all of the prompt's.
        window: layers restored together, for `mlp` and `attn`.
    """

    streams: Sequence[str]
    severed: Sequence[str]
    window: int
    severed_at: Sequence[int] | None = None

    def cells(self, case: Case, n_layers: int) -> list[Cell]:
        """All cells of a case."""
        everywhere = range(case.n_prompt)
        at = everywhere if self.severed_at is None else self.severed_at
        plans = [(stream, None, everywhere) for stream in self.streams]
        plans += [("resid", stream, at) for stream in self.severed]
        return [
            cell
            for stream, severed, positions in plans
            for cell in plan_cells(stream, n_layers=n_layers, positions=positions, window=self.window, severed=severed)
        ]


@dataclass(frozen=True)
class Grids:
    """All scores of one case.

    Attributes:
        scores: [layer pos] by stream.
        severed: [layer pos] by severed stream; NaN where no cell was wanted.
        low: score with nothing restored.
        high: score of the clean run.
        engine: `blocks` where the model's blocks were called alone, `plain` where whole forwards were run,
            `attribution` where the scores are approximated.
        notes: why, where `auto` could not take `blocks`.
    """

    scores: Mapping[str, Float[Tensor, "layer pos"]]
    severed: Mapping[str, Float[Tensor, "layer pos"]]
    low: float
    high: float
    engine: str
    notes: tuple[str, ...]


def score_grids(
    backend: Backend, cases: Sequence[Case], wanted: Sequence[Wanted], *, engine: str, progress: Progress | None
) -> list[Grids]:
    """Score every cell of every grid of some cases.

    Args:
        backend: the model.
        cases: cases of one shape; those that memory holds go through the model together.
        wanted: which grids, by case.
        engine: `auto`, `plain` or `attribution`.
        progress: called with (done, total, what).

    Raises:
        ModelError: the model gives no numbers.
    """
    notes: tuple[str, ...] = ()
    if engine == "auto" and (hooked := backend.foreign_hooks()):
        notes = (
            f"the model carries hooks of yours ({', '.join(hooked[:3])}{', …' if len(hooked) > 3 else ''}): whole "
            "forwards were run, so that they see every position of every cell",
        )
        engine = PLAIN
    cells = [w.cells(case, backend.n_layers) for case, w in zip(cases, wanted, strict=True)]
    parts = _Parts(backend, cases, cells, progress)
    if engine != "auto":
        return parts.run(engine, notes=notes)
    return prefer_blocks(
        backend,
        engine=engine,
        blocks=lambda progress: replace(parts, progress=progress).run(BLOCKS, notes=()),
        whole=lambda reason: parts.run(
            PLAIN, notes=(f"the model's blocks cannot be called alone ({reason}): whole forwards were run",)
        ),
        progress=progress,
    )


@dataclass
class _Parts:
    """Cases in as many parts, and their samples in as many, as memory asks for."""

    backend: Backend
    cases: Sequence[Case]
    cells: Sequence[Sequence[Cell]]
    progress: Progress | None

    def run(self, engine: str, *, notes: tuple[str, ...]) -> list[Grids]:
        budget = Budget.choose(self.backend)
        found: list[Grids] = []
        while len(found) < len(self.cases):
            start = len(found)
            together = slice(start, start + (self._together(budget, start) if engine == BLOCKS else 1))
            try:
                scored = self._scored(together, budget, engine)
            except (RuntimeError, MemoryError) as error:
                budget.halve_after(error)  # fewer cases together, the next time
                continue
            for (low, high, scores), cells in zip(scored, self.cells[together], strict=True):
                if not all(map(math.isfinite, (low, high, *scores.values()))):
                    raise not_finite(self.backend)
                ordinary = [cell for cell in cells if not cell.severed]
                severed = [cell for cell in cells if cell.severed]
                found.append(
                    Grids(
                        self._as_grids(scores, ordinary, lambda cell: cell.stream),
                        self._as_grids(scores, severed, lambda cell: cell.severed or ""),
                        low,
                        high,
                        engine,
                        notes,
                    )
                )
        return found

    def _together(self, budget: Budget, start: int) -> int:
        """How many cases from `start` on memory holds at once, with all that is run of them."""
        n_tokens, _, n_samples = self.cases[start].shape
        lanes = plan_lanes([self.cells[start]])
        states = n_samples * sum(n_tokens - lane.cell.pos for lane in lanes)
        return max(
            1,
            min(
                budget.state_positions // max(1, states),
                budget.run_positions // ((n_samples + 1) * n_tokens),
            ),
        )

    def _scored(self, together: slice, budget: Budget, engine: str) -> list[tuple[float, float, dict[Cell, float]]]:
        """Low, high and all cells of some cases."""
        cases, cells = self.cases[together], self.cells[together]
        n_tokens, _, n_samples = cases[0].shape
        lows, highs, scores = [0.0] * len(cases), [0.0] * len(cases), [dict.fromkeys(several, 0.0) for several in cells]
        start = 0
        while start < n_samples:
            # A backward pass holds what all layers gave.
            held = n_tokens * len(cases) * (self.backend.n_layers if engine == ATTRIBUTION else 1)
            some = slice(start, start + budget.samples(held))
            before = (together.start + len(cases) * start / n_samples) / len(self.cases)
            try:
                runs = make_runs(self.backend, [case.part(some) for case in cases], record=engine == BLOCKS)
                share = runs.n_samples / n_samples
                share_of_all = share * len(cases) / len(self.cases)
                done = self._score(runs, cells, budget, engine, before=before, share=share_of_all)
            except (RuntimeError, MemoryError) as error:
                if len(cases) > 1:
                    raise  # to be answered with fewer cases
                budget.halve_after(error)
                continue
            highs = list(runs.high)
            for case, theirs in enumerate(done):
                lows[case] += share * runs.low[case]
                for cell, score in theirs.items():
                    scores[case][cell] += share * score
            start += runs.n_samples
        # Set, not summed up: a known score is `low` or `high` to the last bit.
        for case, low, high, theirs in zip(cases, lows, highs, scores, strict=True):
            for cell in theirs:
                value = self._known(case, cell, low, high)
                if value is not None:
                    theirs[cell] = value
        return list(zip(lows, highs, scores, strict=True))

    def _known(self, case: Case, cell: Cell, low: float, high: float) -> float | None:
        n_tokens, n_read, _ = case.shape
        return known_score(
            cell,
            n_layers=self.backend.n_layers,
            first_corrupted=case.corruption.span[0],
            read=range(n_tokens - n_read, n_tokens),
            low=low,
            high=high,
        )

    def _score(
        self, runs: Runs, cells: Sequence[Sequence[Cell]], budget: Budget, engine: str, *, before: float, share: float
    ) -> list[dict[Cell, float]]:
        """The cells that have to be run, of a part of the samples."""
        todo = [
            [cell for cell in several if self._known(case, cell, low, high) is None]
            for case, several, low, high in zip(runs.cases, cells, runs.low, runs.high, strict=True)
        ]
        if engine != BLOCKS:
            tick = self._ticker(len(todo[0]), before, share)
            if engine == ATTRIBUTION:
                return [approximate_cells(self.backend, runs, todo[0], tick=tick)]
            return [score_cells_plainly(self.backend, runs, todo[0], budget=budget, tick=tick)]
        lanes = plan_lanes(todo)
        total = count_positions(lanes, n_layers=self.backend.n_layers, n_tokens=runs.n_tokens)
        tick = self._ticker(total, before, share)
        return score_cells(self.backend, runs, lanes, budget=budget, tick=tick)

    def _ticker(self, total: int, before: float, share: float) -> Callable[[int], None]:
        """Turns the positions or cells that are done into thousandths of the whole."""
        done = 0

        def tick(n: int) -> None:
            nonlocal done
            # A batch that memory cut short is done again: never past the end.
            done = min(total, done + n)
            if self.progress is not None:
                self.progress(round(1000 * (before + share * done / max(total, 1))), 1000, "tracing")

        return tick

    def _as_grids(
        self, scores: Mapping[Cell, float], cells: Sequence[Cell], name: Callable[[Cell], str]
    ) -> dict[str, Float[Tensor, "layer pos"]]:
        grids: dict[str, Tensor] = {}
        n_prompt = self.cases[0].n_prompt
        for cell in cells:
            if name(cell) not in grids:
                grids[name(cell)] = torch.full((self.backend.n_layers, n_prompt), torch.nan, dtype=torch.float64)
            grids[name(cell)][cell.layer, cell.pos] = scores[cell]
        return grids
