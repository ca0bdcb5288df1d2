"""From corrupted facts to their grids: which way they are computed, how many together, and in how many parts."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from rome_lens.backends import HEADS, Backend, prefer_blocks
from rome_lens.errors import RomeLensError, SettingError
from rome_lens.progress import Progress, part
from rome_lens.tracing.answers import not_finite
from rome_lens.tracing.attribution import ATTRIBUTION, approximate_cells
from rome_lens.tracing.blocks import score_cells
from rome_lens.tracing.cases import Case
from rome_lens.tracing.cells import Cell, Known, known_score, plan_cells, plan_heads
from rome_lens.tracing.forwards import make_runs
from rome_lens.tracing.lanes import plan_lanes
from rome_lens.tracing.measures import PROBABILITY, Measure
from rome_lens.tracing.memory import Budget
from rome_lens.tracing.plain import score_cells_plainly
from rome_lens.tracing.said import NOTHING, Reading, Said, grid_name, merged, n_kept

BLOCKS, PLAIN = "blocks", "plain"


@dataclass(frozen=True)
class AskedGrids:
    """Which grids of a case are computed.

    Attributes:
        streams: `resid`, `mlp`, `attn`, `heads`: what is restored.
        severed: `mlp`, `attn`: what is held at the corrupted run's outputs while the residual stream is restored.
        severed_at: positions where that is done; None is all of the prompt's.
        window: layers restored together, for `mlp` and `attn`.
        heads_at: the position of `heads`.
        heads_window: layers restored together, for `heads`.
    """

    streams: Sequence[str]
    severed: Sequence[str]
    window: int
    severed_at: Sequence[int] | None = None
    heads_at: int = -1
    heads_window: int = 1

    def cells(self, backend: Backend, case: Case) -> list[Cell]:
        """All cells of a case."""
        n_layers = backend.n_layers
        everywhere = range(case.n_prompt)
        at = everywhere if self.severed_at is None else self.severed_at
        plans = [(stream, None, everywhere) for stream in self.streams if stream != HEADS]
        plans += [("resid", stream, at) for stream in self.severed]
        of_tokens = [
            cell
            for stream, severed, positions in plans
            for cell in plan_cells(stream, n_layers=n_layers, positions=positions, window=self.window, severed=severed)
        ]
        if HEADS not in self.streams:
            return of_tokens
        here = everywhere[self.heads_at]
        return of_tokens + plan_heads(n_layers=n_layers, n_heads=backend.n_heads, pos=here, window=self.heads_window)


@dataclass(frozen=True)
class Grids:
    """All scores of one case.

    Attributes:
        scores: [layer pos] by stream, for `heads` [layer head].
        severed: [layer pos] by severed stream; NaN where no cell was asked for.
        said: what the model says in each cell, [layer][column] by stream, `severed.mlp` for a severed one; `clean` and
            `corrupted` have one cell. Empty where nobody asked.
        low: score with nothing restored.
        high: score of the clean run.
        engine: `blocks` where the model's blocks were called alone, `plain` where whole forwards were run,
            `attribution` where the scores are approximated.
        notes: why, where `auto` could not take `blocks`.
    """

    scores: Mapping[str, Float[Tensor, "layer column"]]
    severed: Mapping[str, Float[Tensor, "layer pos"]]
    said: Mapping[str, Sequence[Sequence[Said]]]
    low: float
    high: float
    engine: str
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Scores:
    """What is read in some cells of one case; what else there is, is as in `Grids`."""

    cells: Mapping[Cell, Reading]
    low: Reading
    high: Reading
    engine: str
    notes: tuple[str, ...]


def score_grids(
    backend: Backend,
    cases: Sequence[Case],
    asked: Sequence[AskedGrids],
    *,
    engine: str,
    progress: Progress | None,
    said: bool = False,
    measure: Measure = PROBABILITY,
) -> list[Grids]:
    """Score every cell of every grid of some cases; as `score_cells_of`, but for `asked`: which grids, by case."""
    cells = [one.cells(backend, case) for case, one in zip(cases, asked, strict=True)]
    found = score_cells_of(backend, cases, cells, engine=engine, progress=progress, said=said, measure=measure)
    return [_as_grids(backend, *each) for each in zip(cases, cells, found, strict=True)]


def score_cells_of(
    backend: Backend,
    cases: Sequence[Case],
    cells: Sequence[Sequence[Cell]],
    *,
    engine: str,
    progress: Progress | None,
    said: bool = False,
    measure: Measure = PROBABILITY,
) -> list[Scores]:
    """Score some cells of each case.

    Args:
        backend: the model.
        cases: cases of one shape; those that memory holds go through the model together.
        cells: which cells, by case.
        engine: `auto`, `plain` or `attribution`.
        progress: called with (done, total, what).
        said: keep what the model says in each cell, too.
        measure: what is read in each cell.

    Raises:
        ModelError: the model gives no numbers. SettingError: the measure gives none.
    """
    said = said and engine != ATTRIBUTION
    plans = [_Plan(backend, case, some, said, measure) for case, some in zip(cases, cells, strict=True)]
    if engine == ATTRIBUTION:
        return _all_scores(backend, plans, ATTRIBUTION, progress)
    return prefer_blocks(
        backend,
        engine=engine,
        blocks=lambda watched: _all_scores(backend, plans, BLOCKS, watched),
        whole=lambda reason: _all_scores(
            backend,
            plans,
            PLAIN,
            progress,
            () if engine == PLAIN else (f"whole forwards were run, which is slower: {reason}",),
        ),
        progress=progress,
    )


@dataclass(frozen=True)
class _Plan:
    """A case with its cells: which are known without a run, and which have to be run; what is read and kept of each."""

    backend: Backend
    case: Case
    cells: Sequence[Cell]
    said: bool
    measure: Measure

    @cached_property
    def known(self) -> dict[Cell, Known]:
        """The cells whose score is `low` or `high`."""
        n_tokens, n_read, _ = self.case.shape
        read, first = range(n_tokens - n_read, n_tokens), self.case.corruption.span[0]
        return {
            cell: known
            for cell in self.cells
            if (known := known_score(cell, n_layers=self.backend.n_layers, first_corrupted=first, read=read))
        }

    @cached_property
    def todo(self) -> list[Cell]:
        return [cell for cell in self.cells if cell not in self.known]

    def scores(self, parts: Sequence["_Scored"], engine: str, notes: tuple[str, ...]) -> Scores:
        """The scores that the parts of the corrupted copies add up to.

        Raises:
            ModelError: a number is not finite.
        """
        low, (high, said) = _weighted(parts, [one.low for one in parts]), parts[-1].high
        high = Reading(high, None if said is None else merged([said], [1.0]))
        read = {cell: low if which == "low" else high for cell, which in self.known.items()}
        read |= {cell: _weighted(parts, [one.cells[cell] for one in parts]) for cell in self.todo}
        if not all(math.isfinite(each.score) for each in (low, high, *read.values())):
            raise self._not_finite()
        return Scores(read, low, high, engine, notes)

    def _not_finite(self) -> RomeLensError:
        if self.measure.function is None:
            return not_finite(self.backend)
        return SettingError(f"measure {self.measure.name} gave a number that is not finite")


def _as_grids(backend: Backend, case: Case, cells: Sequence[Cell], found: Scores) -> Grids:
    """The cells, each at its place; nothing is said in a cell that was not asked for."""
    scores: dict[str, Tensor] = {}
    severed: dict[str, Tensor] = {}
    said: dict[str, list[list[Said]]] = {}
    if found.low.said is not None and found.high.said is not None:
        said = {"clean": [[found.high.said]], "corrupted": [[found.low.said]]}
    for cell in cells:
        reading, name = found.cells[cell], grid_name(cell.stream, cell.severed)
        grids, key = (severed, cell.severed) if cell.severed else (scores, cell.stream)
        columns = backend.n_heads if cell.parts else case.n_prompt
        if key not in grids:
            grids[key] = torch.full((backend.n_layers, columns), torch.nan, dtype=torch.float64)
        grids[key][cell.layer, cell.column] = reading.score
        if reading.said is not None:
            if name not in said:
                said[name] = [[NOTHING] * columns for _ in range(backend.n_layers)]
            said[name][cell.layer][cell.column] = reading.said
    return Grids(scores, severed, said, found.low.score, found.high.score, found.engine, found.notes)


@dataclass(frozen=True)
class _Scored:
    """What some of a case's corrupted copies gave: `low` and what is read in the cells that were run are their mean."""

    share: float
    low: Reading
    high: Reading
    cells: Mapping[Cell, Reading]


def _weighted(parts: Sequence[_Scored], read: Sequence[Reading]) -> Reading:
    """What all copies give: the mean of what their parts gave."""
    total = 0.0
    for one, each in zip(parts, read, strict=True):
        total += one.share * each.score
    said = [each.said for each in read if each.said is not None]
    return Reading(total, merged(said, [one.share for one in parts]) if said else None)


def _all_scores(
    backend: Backend, plans: Sequence[_Plan], engine: str, progress: Progress | None, notes: tuple[str, ...] = ()
) -> list[Scores]:
    """The scores of all cases, those together that memory holds."""
    budget = Budget.checked(backend, max((plan.case.n_prompt for plan in plans), default=1))
    found: list[Scores] = []

    def scored(some: slice) -> list[list[_Scored]]:
        together = plans[some]
        here = part(progress, 1000 * some.start / len(plans), 1000 * len(together) / len(plans))
        return _scored(backend, together, engine, budget, here)

    def most(start: int) -> int:
        return _n_together(budget, plans[start]) if engine == BLOCKS else 1

    for some, several in budget.in_parts(len(plans), most, scored):
        found += [plan.scores(parts, engine, notes) for plan, parts in zip(plans[some], several, strict=True)]
    return found


def _n_together(budget: Budget, plan: _Plan) -> int:
    """How many cases of a shape memory holds at once, with all that is run of them: at least one."""
    n_tokens, _, n_samples = plan.case.shape
    states = n_samples * sum(n_tokens - cell.pos for cell in plan.cells)
    by_states = budget.state_positions // max(1, states)
    return max(1, min(by_states, budget.run_positions // ((n_samples + 1) * n_tokens)))


def _scored(
    backend: Backend, plans: Sequence[_Plan], engine: str, budget: Budget, progress: Progress
) -> list[list[_Scored]]:
    """What cases give that go through the model together: by case, the parts of their corrupted copies."""
    n_tokens, _, n_samples = plans[0].case.shape
    lanes = plan_lanes([plan.todo for plan in plans]) if engine == BLOCKS else []
    # A backward pass holds what all layers gave.
    held = n_tokens * len(plans) * (backend.n_layers if engine == ATTRIBUTION else 1)

    def run(some: slice) -> list[_Scored]:
        share = (some.stop - some.start) / n_samples
        here = part(progress, 1000 * some.start / n_samples, 1000 * share)
        n_said = n_kept(whole=share == 1) if plans[0].said else 0
        cases = [plan.case.part(some) for plan in plans]
        runs = make_runs(backend, cases, record=engine == BLOCKS, n_said=n_said, measure=plans[0].measure)
        if engine == BLOCKS:
            cells = score_cells(backend, runs, lanes, budget=budget, progress=here)
        elif engine == ATTRIBUTION:
            cells = [approximate_cells(backend, runs, plans[0].todo, progress=here)]
        else:
            cells = [score_cells_plainly(backend, runs, plans[0].todo, budget=budget, progress=here)]
        return [_Scored(share, *one) for one in zip(runs.low, runs.high, cells, strict=True)]

    # Several cases that memory does not hold are answered with fewer of them.
    parts = budget.in_parts(n_samples, lambda _: budget.samples(held), run, halve=len(plans) == 1)
    return [list(of_case) for of_case in zip(*(scored for _, scored in parts), strict=True)]
