"""Which layers a window restores, which cells a grid has, which scores are known, and how cells share their runs."""

from collections import defaultdict

import pytest
from hypothesis import given
from hypothesis import strategies as st
from refused import refused

from rome_lens.checks import check_window
from rome_lens.errors import SettingError
from rome_lens.tracing.cells import Cell, known_score, plan_cells, window_layers
from rome_lens.tracing.lanes import count_positions, families_of, plan_lanes, share_out

LOW, HIGH = "low", "high"
LAYERS = st.integers(1, 40)


@pytest.mark.parametrize(
    ("layer", "window", "restored"),
    [
        (15, 10, range(10, 20)),  # the released code's l-5 .. l+4, not the paper's l-4 .. l+5
        (15, 1, range(15, 16)),
        (15, 2, range(14, 16)),
        (15, 3, range(14, 17)),
        (15, 5, range(13, 18)),
        (0, 10, range(5)),
        (4, 10, range(9)),
        (5, 10, range(10)),
        (26, 10, range(21, 31)),
        (27, 10, range(22, 31)),
        (30, 10, range(25, 31)),
        (0, 1, range(1)),
        (30, 31, range(15, 31)),
    ],
)
def test_windows_of_a_model_of_31_layers(layer, window, restored):
    assert window_layers(layer, window, 31) == restored


@given(n_layers=LAYERS, data=st.data())
def test_a_window_is_as_large_as_the_model_lets_it_be(n_layers, data):
    layer, window = data.draw(st.integers(0, n_layers - 1)), data.draw(st.integers(1, n_layers))
    restored = window_layers(layer, window, n_layers)
    assert layer in restored
    whole = range(layer - window // 2, layer - window // 2 + window)
    assert list(restored) == [i for i in whole if 0 <= i < n_layers]


def test_the_residual_stream_is_restored_one_layer_at_a_time():
    assert plan_cells("resid", n_layers=2, positions=[3, 5], window=2) == [
        Cell("resid", 0, 3, 0, 1),
        Cell("resid", 1, 3, 1, 2),
        Cell("resid", 0, 5, 0, 1),
        Cell("resid", 1, 5, 1, 2),
    ]


@pytest.mark.parametrize("stream", ["mlp", "attn"])
def test_the_other_streams_are_restored_in_windows(stream):
    assert plan_cells(stream, n_layers=3, positions=[4], window=2) == [
        Cell(stream, 0, 4, 0, 1),
        Cell(stream, 1, 4, 0, 2),
        Cell(stream, 2, 4, 1, 3),
    ]


def _known(cell, *, read=range(6, 7)):
    return known_score(cell, n_layers=4, first_corrupted=2, read=read)


@pytest.mark.parametrize(
    ("cell", "score"),
    [
        (Cell("resid", 0, 1, 0, 1), LOW),  # before the subject nothing is corrupted
        (Cell("mlp", 2, 0, 1, 3), LOW),
        (Cell("resid", 0, 2, 0, 1), None),
        (Cell("resid", 3, 2, 3, 4), LOW),  # after the last layer nothing reaches another position
        (Cell("resid", 3, 5, 3, 4), LOW),
        (Cell("resid", 3, 6, 3, 4), HIGH),
        (Cell("resid", 2, 6, 2, 3), None),
        (Cell("mlp", 3, 5, 3, 4), LOW),
        (Cell("attn", 3, 5, 3, 4), LOW),
        (Cell("mlp", 3, 5, 2, 4), None),  # restored before the last layer's attention too
        (Cell("attn", 3, 6, 3, 4), None),
        (Cell("mlp", 3, 6, 3, 4), None),
    ],
)
def test_scores_that_are_known_without_a_run(cell, score):
    assert _known(cell) == score


def test_an_answer_of_several_tokens_is_read_at_several_positions():
    last = [Cell("resid", 3, pos, 3, 4) for pos in range(2, 7)]
    assert [_known(cell, read=range(5, 8)) for cell in last] == [LOW, LOW, LOW, None, None]


@pytest.mark.parametrize("window", [1, 2, 31])
def test_a_window_within_the_model_is_taken(window):
    assert check_window(window, n_layers=31) == window


@pytest.mark.parametrize("window", [0, -1, 32, True, 10.0, "10", None])
def test_a_window_that_is_no_number_of_layers(window):
    assert refused(SettingError, check_window, window, n_layers=31) == (
        f"window is {window!r}; expected a whole number of layers from 1 to 31, the layers of this model"
    )


@st.composite
def grids(draw):
    """The cells of all three streams of a small model, its layers and its positions."""
    n_layers, n_tokens = draw(st.integers(1, 12)), draw(st.integers(1, 5))
    window = draw(st.integers(1, n_layers))
    cells = [
        cell
        for stream in ("resid", "mlp", "attn")
        for cell in plan_cells(stream, n_layers=n_layers, positions=range(n_tokens), window=window)
    ]
    return cells, n_layers, n_tokens


@given(grids(), st.randoms())
def test_every_cell_has_one_lane_and_follows_a_longer_one_or_none(grid, random):
    cells = list(grid[0])
    random.shuffle(cells)
    lanes = plan_lanes([cells])
    assert sorted(lane.cell.__repr__() for lane in lanes) == sorted(map(repr, cells))
    for index, lane in enumerate(lanes):
        if lane.leader is None:
            assert lane.born == lane.cell.first + 1
            continue
        leader = lane.leader
        assert leader.leader is None
        assert any(leader is earlier for earlier in lanes[:index])
        # Until the lane is born the two restore the same layers of the same stream at the same position.
        assert (leader.cell.stream, leader.cell.pos, leader.cell.first) == (
            lane.cell.stream,
            lane.cell.pos,
            lane.cell.first,
        )
        assert leader.born <= lane.born == lane.cell.end <= leader.cell.end


@given(grids())
def test_one_leader_for_all_that_begin_alike(grid):
    lanes = plan_lanes([grid[0]])
    beginnings = {(lane.cell.stream, lane.cell.pos, lane.cell.first) for lane in lanes}
    assert sum(lane.leader is None for lane in lanes) == len(beginnings)


def test_windows_cut_short_by_the_first_layer_share_their_run():
    lanes = plan_lanes([plan_cells("mlp", n_layers=4, positions=[0], window=4)])
    # Layers 0-1, 0-2, 0-3 and 1-3: the first two follow the third until they end.
    by_layer = {lane.cell.layer: lane for lane in lanes}
    assert [(by_layer[i].cell.first, by_layer[i].cell.end, by_layer[i].born) for i in range(4)] == [
        (0, 2, 2),
        (0, 3, 3),
        (0, 4, 1),
        (1, 4, 2),
    ]
    assert [by_layer[i].leader for i in range(4)] == [by_layer[2], by_layer[2], None, None]


def test_positions_to_run_counted_by_hand():
    cells = plan_cells("mlp", n_layers=4, positions=[1, 2], window=4)
    # After layers 1, 2, 0 and 1 there are 2, 1, 3 and 2 layers to run, on 2 positions (from 1 on) and on 1.
    assert count_positions(plan_lanes([cells]), n_layers=4, n_tokens=3) == (2 + 1 + 3 + 2) * (2 + 1)


@given(grids(), st.integers(1, 9))
def test_shares_hold_every_lane_once_with_its_leader_and_are_alike(grid, n_shares):
    cells, n_layers, n_tokens = grid
    lanes = plan_lanes([cells, cells[::2]])
    shares = share_out(lanes, n_shares, n_layers=n_layers, n_tokens=n_tokens)
    assert sorted(map(id, lanes)) == sorted(id(lane) for share in shares for lane in share)
    assert len(shares) <= n_shares
    assert all(shares)
    for share in shares:
        assert all(lane.leader is None or any(lane.leader is one for one in share) for lane in share)
        assert sum(map(len, families_of(share))) == len(share)
    costs = [count_positions(share, n_layers=n_layers, n_tokens=n_tokens) for share in shares]
    kept_together = defaultdict(list)
    for lane in lanes:
        kept_together[lane.case, lane.cell.pos, lane.cell.stream].append(lane)
    largest = max(count_positions(some, n_layers=n_layers, n_tokens=n_tokens) for some in kept_together.values())
    assert len(shares) < n_shares or max(costs) - min(costs) <= largest
