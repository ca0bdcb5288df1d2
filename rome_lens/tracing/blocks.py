"""Scores of all cells, exactly and fast: the plain computation with everything left out that is already known.

What is saved, all of it exactly:

- the clean and the corrupted run are run once, layer by layer, for all streams;
- a cell starts after its first restored layer, from the corrupted run's residual;
- the first restored layer of a window needs its restored position only: attention's and the MLP's outputs there are
  known, or those of their heads and neurons, so the cells of all tokens take one call of one position each;
- positions before the restored token cannot change: their keys and values are the corrupted run's;
- windows cut short by the model's first layer restore the same layers up to their ends, so they share one run until
  there;
- the answer's positions alone are unembedded, and cells that are known without a run are not run.

All cells of a token go through a layer together, those of several cases too, and their number grows from layer to
layer. Where a call costs more than what it computes, those of several tokens share one: rows begin at positions of
their own, and are padded behind.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from multiprocessing.sharedctypes import RawArray

import torch
from einops import reduce, repeat
from jaxtyping import Float, Int
from torch import Tensor

from rome_lens.backends import Backend, ReplayError, fast_products
from rome_lens.progress import Progress
from rome_lens.runs import forked_map
from rome_lens.runs.side_by_side import side_by_side
from rome_lens.tracing.calls import BlockCalls, Layer, padded
from rome_lens.tracing.cells import Cell
from rome_lens.tracing.forwards import Runs
from rome_lens.tracing.lanes import Lane, count_positions, families_of, share_out
from rome_lens.tracing.memory import Budget
from rome_lens.tracing.said import Reading, most_probable, next_probabilities

# What a call of a block costs beside its arithmetic, in operations that could be done meanwhile: a millisecond at 60
# GFLOP/s. On a GPU it is reckoned and not measured: a hundred kernels that take 10 µs to start, at 30 TFLOP/s.
_CALL_FLOP = {"cpu": 6 * 10**7}
_GPU_CALL_FLOP = 3 * 10**10


@dataclass(eq=False)
class _Group:
    """All lanes of one restored position, in the order of their birth, so that the living ones are the first `alive`.

    Attributes:
        pos: the position.
        lanes: the lanes.
        cases: [lane], whose they are.
        state: what enters the next layer, [lane, sample, pos, d_model] for the positions from `pos` on.
        alive: how many lanes have been born.
    """

    pos: int
    lanes: list[Lane]
    cases: Int[Tensor, " lane"]
    state: Tensor
    alive: int = 0

    def next_lane(self) -> Lane | None:
        return self.lanes[self.alive] if self.alive < len(self.lanes) else None


def score_cells(
    backend: Backend, runs: Runs, lanes: Sequence[Lane], *, budget: Budget, progress: Progress
) -> list[dict[Cell, Reading]]:
    """What is read in every cell by case, on average over the corrupted copies.

    On a CPU the cells are shared out among processes that are forked, one thread each, where that is faster. Their
    number changes which cells go through a call together, and so the last digits: scores agree within 1e-6.

    Args:
        backend: the model.
        runs: the clean and corrupted runs that were made of it, recorded.
        lanes: the cells to score, planned; cells of known score are better left out.
        budget: memory to work in.
        progress: called with (done, total, what), positions (`count_positions`) as the unit.

    Raises:
        ReplayError: the model's blocks cannot be called alone, or give other numbers than the model itself.
        OutOfMemoryError: not even one cell fits into memory. RunError: a process was lost.
    """
    _check_recorded(backend, runs)
    shares = share_out(lanes, _n_processes(backend, runs, lanes, budget), **_sizes(backend, runs))
    if len(shares) < 2:
        return _scored(backend, runs, lanes, budget, progress)
    total, done = count_positions(lanes, **_sizes(backend, runs)), RawArray("q", len(shares))

    def share_scored(number: int) -> list[dict[Cell, Reading]]:
        def count(n_done: int, total: int, what: str) -> None:
            done[number] = n_done

        return _scored(backend, runs, shares[number], budget, count)

    def report() -> None:
        progress(sum(done), total, f"tracing in {len(shares)} processes")

    report()
    found = forked_map(share_scored, range(len(shares)), n_workers=len(shares), meanwhile=report)
    report()
    return [{cell: read for part in of_case for cell, read in part.items()} for of_case in zip(*found, strict=True)]


def _check_recorded(backend: Backend, runs: Runs) -> None:
    if runs.replay is None:
        raise ReplayError("the runs were not recorded")
    if runs.resid_pre is None or len(runs.resid_post) != backend.n_layers:
        raise ReplayError("nothing shows in a forward what enters and what leaves each of them")


def _sizes(backend: Backend, runs: Runs) -> dict[str, int]:
    return {"n_layers": backend.n_layers, "n_tokens": runs.n_tokens}


def _n_processes(backend: Backend, runs: Runs, lanes: Sequence[Lane], budget: Budget) -> int:
    """In how many processes the lanes are best run; more than one need at least a lane each."""
    return side_by_side(
        len(lanes),
        backend.device,
        n_bytes=budget.held_bytes(backend, runs.n_samples * runs.n_tokens * len(lanes)),
        n_flop=_flop_of_position(backend) * runs.n_samples * count_positions(lanes, **_sizes(backend, runs)),
    )


def _flop_of_position(backend: Backend) -> int:
    """About how many operations a block takes for one position."""
    return 2 * sum(parameter.numel() for parameter in backend.model.blocks[0].parameters())


def _scored(
    backend: Backend, runs: Runs, lanes: Sequence[Lane], budget: Budget, progress: Progress
) -> list[dict[Cell, Reading]]:
    """What is read in the lanes' cells, all of them in this process."""
    total = count_positions(lanes, **_sizes(backend, runs))
    assert runs.replay is not None
    assert runs.resid_pre is not None
    parts = {part for lane in lanes for part in lane.cell.parts_of_layers()}
    calls = BlockCalls(backend, runs, runs.replay, parts)
    engine = _Engine(backend, runs, calls, runs.resid_pre, budget, progress, total)
    with torch.no_grad(), calls.hooked(), fast_products(device=backend.device, dtype=backend.dtype):
        return engine.run(lanes)


@dataclass(eq=False)
class _Engine:
    """Runs lanes.

    Attributes:
        backend: the model.
        runs: the clean and corrupted runs.
        calls: calls the model's blocks.
        resid_pre: what enters the first of them in these runs, [row pos d_model].
        budget: memory to work in.
        progress: called with (done, total, what).
        total: positions that all lanes run through blocks.
        done: how many of them are done.
    """

    backend: Backend
    runs: Runs
    calls: BlockCalls
    resid_pre: Tensor
    budget: Budget
    progress: Progress
    total: int
    done: int = 0

    def __post_init__(self) -> None:
        self.n_layers, self.n_samples, self.n_tokens = self.backend.n_layers, self.runs.n_samples, self.runs.n_tokens
        # As many positions as a block could compute in the time that calling it takes.
        self.padding = _CALL_FLOP.get(self.backend.device.type, _GPU_CALL_FLOP) // _flop_of_position(self.backend)
        # By layer: whether positions may share calls.
        self.joins = [False] * self.n_layers

    def run(self, lanes: Sequence[Lane]) -> list[dict[Cell, Reading]]:
        scores: list[dict[Cell, Reading]] = [{} for _ in self.runs.cases]
        waiting = list(self._batches(lanes))
        while waiting:
            batch = waiting.pop(0)
            try:
                for lane, value in zip(*self._run_batch(batch), strict=True):
                    scores[lane.case][lane.cell] = value
            except (RuntimeError, MemoryError) as error:
                if len(self.runs.cases) > 1:
                    raise  # to be answered with fewer cases
                self.budget.halve_after(error)
                waiting[:0] = self._batches(batch)
        return scores

    def _batches(self, lanes: Sequence[Lane]) -> Iterator[list[Lane]]:
        """Lanes whose states fit into memory together; a lane is never parted from its leader."""
        batch: list[Lane] = []
        taken = 0
        for family in families_of(lanes):
            size = sum(self.n_samples * (self.n_tokens - lane.cell.pos) for lane in family)
            if batch and taken + size > self.budget.state_positions:
                yield batch
                batch, taken = [], 0
            batch += family
            taken += size
        if batch:
            yield batch

    def _run_batch(self, lanes: Sequence[Lane]) -> tuple[list[Lane], list[Reading]]:
        groups, runs = self._groups(lanes), self.runs
        base = self.resid_pre
        for layer in range(self.n_layers):
            with self.calls.replay.layer_ready(layer):
                entering = runs.resid_post[layer - 1] if layer else self.resid_pre[runs.checked_rows]
                self.joins[layer] = self.calls.check(layer, entering, own_rows=self.padding > 0)
                here = self.calls.record(layer, base)
                for group in groups:
                    self._fork(group, layer)
                for several in self._together(groups, layer):
                    self._advance(several, layer, here)
                self._begin(groups, layer, base, here)
            base = here.resid
        return self._read(groups)

    def _groups(self, lanes: Sequence[Lane]) -> list[_Group]:
        # Those that begin after a layer come before those that fork in front of the next.
        ordered = sorted(lanes, key=lambda lane: (lane.cell.pos, lane.born, lane.leader is not None))
        groups = []
        for pos, several in groupby(ordered, key=lambda lane: lane.cell.pos):
            members = list(several)
            shape = (len(members), self.n_samples, self.n_tokens - pos, self.backend.d_model)
            cases = torch.tensor([lane.case for lane in members], device=self.backend.device)
            groups.append(_Group(pos, members, cases, self.resid_pre.new_empty(shape)))
        return groups

    def _fork(self, group: _Group, layer: int) -> None:
        """Lanes that part from their leader in front of this layer begin as a copy of it."""
        while (lane := group.next_lane()) is not None and lane.leader is not None and lane.born == layer:
            group.state[group.alive] = group.state[group.lanes.index(lane.leader)]
            group.alive += 1

    def _together(self, groups: Sequence[_Group], layer: int) -> Iterator[list[_Group]]:
        """Groups with living lanes, those together in one call whose padding costs less than a call of their own."""
        together: list[_Group] = []
        for group in groups:
            if not group.alive:
                continue
            if together and not (self.joins[layer] and self._pays(together, group)):
                yield together
                together = []
            together.append(group)
        if together:
            yield together

    def _pays(self, together: Sequence[_Group], group: _Group) -> bool:
        """Whether a group that joins others adds less padding than a call costs, within the bound of a call."""
        first = together[0].pos
        rows = self.n_samples * sum(one.alive for one in (*together, group))
        padding = self.n_samples * group.alive * (group.pos - first)
        return padding <= self.padding and rows * (self.n_tokens - first) <= self.budget.call_positions

    def _advance(self, groups: Sequence[_Group], layer: int, here: Layer) -> None:
        """Run one layer on all living lanes of some positions; rows of later positions are padded behind."""
        members = [(group, index) for group in groups for index in range(group.alive)]
        n_pos = groups[0].state.shape[2]

        def advance(part: slice) -> None:
            places = [
                (group, slice(some[0][1], some[-1][1] + 1))
                for group, some in ((key, list(found)) for key, found in groupby(members[part], lambda one: one[0]))
            ]
            state = padded([group.state[lanes] for group, lanes in places])
            cases = torch.cat([group.cases[lanes] for group, lanes in places])
            lanes = [lane for group, some in places for lane in group.lanes[some]]
            after = self.calls.advance(layer, here, lanes, cases, state)
            for (group, lanes), state in zip(places, after.split([s.stop - s.start for _, s in places]), strict=True):
                group.state[lanes] = state[:, :, : group.state.shape[2]]

        for part, _ in self.budget.in_parts(len(members), lambda _: self.budget.lanes(self.n_samples * n_pos), advance):
            # A batch that memory cut short is done again: never past the end.
            done = sum(group.state.shape[2] for group, _ in members[part])
            self.done = min(self.total, self.done + done)
            self.progress(self.done, self.total, "tracing")

    def _begin(self, groups: Sequence[_Group], layer: int, base: Tensor, here: Layer) -> None:
        """Lanes whose first restored layer this was begin behind it, from the corrupted run."""
        windows: list[tuple[_Group, int]] = []
        for group in groups:
            while (lane := group.next_lane()) is not None and lane.leader is None and lane.cell.first == layer:
                rows = self.runs.corrupted_rows(group.cases[group.alive])
                group.state[group.alive] = here.resid[rows, group.pos :]
                if lane.cell.stream == "resid":
                    group.state[group.alive, :, 0] = here.resid[lane.case, group.pos]
                else:
                    windows.append((group, group.alive))
                group.alive += 1
        if windows:
            lanes = [group.lanes[index] for group, index in windows]
            parts = self.budget.in_parts(
                len(windows),
                most=lambda _: self.budget.lanes(self.n_samples),
                run=lambda part: self.calls.begin(layer, here, lanes[part], base),
            )
            for part, first in parts:
                for (group, index), states in zip(windows[part], first, strict=True):
                    group.state[index, :, 0] = states

    def _read(self, groups: Sequence[_Group]) -> tuple[list[Lane], list[Reading]]:
        """What is read in the cells, from what left the last layer."""
        self.calls.acts = {}
        assert all(group.alive == len(group.lanes) for group in groups), "a cell was never begun"
        lanes = [lane for group in groups for lane in group.lanes]
        cases = torch.cat([group.cases for group in groups])
        final = torch.cat([group.state[:, :, -self.runs.n_read :] for group in groups])
        n_logits = self.runs.n_read * int(self.backend.model.cfg.d_vocab)
        with self.calls.replay.unembed_ready():
            parts = self.budget.in_parts(
                len(lanes),
                most=lambda _: max(1, self.budget.logit_rows(n_logits) // self.n_samples),
                run=lambda part: self._readings(final[part], cases[part], self.budget.logit_rows(n_logits)),
            )
            return lanes, [reading for _, some in parts for reading in some]

    def _readings(
        self, final: Float[Tensor, "lane sample read d_model"], cases: Int[Tensor, " lane"], n_rows: int
    ) -> list[Reading]:
        """What is read in some cells; of one cell alone, so many samples at a time."""
        scores, said = torch.zeros(len(cases), dtype=torch.float64, device=final.device), None
        for some in final.split(n_rows if len(cases) == 1 else self.n_samples, dim=1):
            logits = self.calls.replay.unembed(some.flatten(0, 1))
            of_rows = repeat(cases, "lane -> (lane sample)", sample=some.shape[1])
            values = self.runs.scores(logits, of_rows)
            scores += reduce(values, "(lane sample) -> lane", "sum", sample=some.shape[1])
            if self.runs.n_said:
                of_lane = "(lane sample) d_vocab -> lane d_vocab"
                here = reduce(next_probabilities(logits), of_lane, "sum", sample=some.shape[1])
                said = here if said is None else said + here
        spoken = [None] * len(cases) if said is None else most_probable(said / self.n_samples, self.runs.n_said)
        return [*map(Reading, (scores / self.n_samples).tolist(), spoken)]
