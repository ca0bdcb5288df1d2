"""The runs of a trace's cells: what each begins from, what all of them cost, and which belong together."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from rome_lens.tracing.cells import Cell


@dataclass(eq=False)
class Lane:
    """The run of one cell: as many rows as there are samples, the positions from the cell's on.

    Attributes:
        cell: the cell.
        case: whose it is.
        born: the first layer that the lane runs through.
        leader: the lane that it is a copy of when it is born; None where it begins from the corrupted run.
    """

    cell: Cell
    case: int
    born: int
    leader: "Lane | None" = None


def plan_lanes(cells: Sequence[Sequence[Cell]]) -> list[Lane]:
    """One lane a cell. Cells that restore the same layers up to where they end follow the longest of them.

    Args:
        cells: by case.
    """
    lanes: list[Lane] = []
    for case, several in enumerate(cells):
        leaders: dict[tuple[object, ...], Lane] = {}
        for cell in sorted(several, key=lambda c: (c.pos, c.stream, c.first, -c.end)):
            key = cell.stream, cell.parts, cell.severed, cell.pos, cell.first
            leader = leaders.get(key)
            lane = Lane(cell, case, born=cell.first + 1 if leader is None else cell.end, leader=leader)
            leaders.setdefault(key, lane)
            lanes.append(lane)
    return lanes


def count_positions(lanes: Sequence[Lane], *, n_layers: int, n_tokens: int) -> int:
    """Positions that the lanes run through blocks, for one sample: the unit of `score_cells`' progress."""
    return sum((n_layers - lane.born) * (n_tokens - lane.cell.pos) for lane in lanes)


def families_of(lanes: Sequence[Lane]) -> list[list[Lane]]:
    """Lanes that are never parted: a leader with those that follow it, in the order of the leaders."""
    families: dict[int, list[Lane]] = defaultdict(list)
    for lane in lanes:
        families[id(lane.leader or lane)].append(lane)
    return list(families.values())


def share_out(lanes: Sequence[Lane], n_shares: int, *, n_layers: int, n_tokens: int) -> list[list[Lane]]:
    """Lanes in shares of about the same cost, none of them empty.

    Those of a case, a position and a stream stay together: they go through calls together. Heads and neurons do not,
    of which there are many at one position.

    Args:
        lanes: the lanes, planned.
        n_shares: how many shares at most.
        n_layers: layers of the model.
        n_tokens: positions of a row.
    """

    def cost(some: Sequence[Lane]) -> int:
        return count_positions(some, n_layers=n_layers, n_tokens=n_tokens)

    together: dict[tuple[object, ...], list[Lane]] = defaultdict(list)
    for family in families_of(lanes):
        cell = family[0].cell
        together[family[0].case, cell.pos, cell.stream, cell.parts, cell.severed] += family
    shares: list[list[Lane]] = [[] for _ in range(n_shares)]
    costs = [0] * n_shares
    for some in sorted(together.values(), key=cost, reverse=True):
        least = costs.index(min(costs))
        shares[least] += some
        costs[least] += cost(some)
    return [share for share in shares if share]
