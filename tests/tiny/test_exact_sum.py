"""Sums of updates, against sums of fractions: whatever comes and goes, in whatever order."""

from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rome_lens.editing import exact_sum
from rome_lens.editing.exact_sum import ExactSum, same, sum_on
from rome_lens.editing.weight_update import Dense, LowRank

D_MLP, D_MODEL = 5, 3


def rank_one(seed, size=0):
    """Factors of numbers that are not of one size, times 2^size."""
    generator = torch.Generator().manual_seed(seed)
    u, v = (torch.randn(1, width, generator=generator) for width in (D_MLP, D_MODEL))
    exponents = torch.randint(-12, 13, (1, D_MLP), generator=generator)
    return LowRank(0, u * 2.0**exponents, v * 2.0**size)


def dense(seed):
    return Dense(0, torch.randn(D_MLP, D_MODEL, generator=torch.Generator().manual_seed(seed)))


def several(seed):
    """A sum of three outer products, whose own sum is a float64 like any other."""
    generator = torch.Generator().manual_seed(seed)
    return LowRank(0, torch.randn(3, D_MLP, generator=generator), torch.randn(3, D_MODEL, generator=generator))


def entries(update, i, j):
    """What an update adds to one number, as a fraction."""
    if isinstance(update, LowRank) and update.rank == 1:
        return Fraction(update.left[0, i].item()) * Fraction(update.right[0, j].item())
    return Fraction(update.rows(slice(None))[i, j].item())


def in_fractions(original, updates):
    """The matrix plus the exact sum, rounded to float64 and then to the matrix's precision."""
    found = torch.empty(original.shape, dtype=torch.float64)
    for i in range(D_MLP):
        for j in range(D_MODEL):
            total = Fraction(original[i, j].item()) + sum(entries(update, i, j) for update in updates)
            found[i, j] = float(total)
    return found.to(original.dtype)


UPDATES = [*(rank_one(seed) for seed in range(4)), rank_one(9, 60), rank_one(10, -60), dense(5), several(6)]
steps = st.lists(st.tuples(st.integers(0, len(UPDATES) - 1), st.booleans()), max_size=25)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@settings(max_examples=150, deadline=None)
@given(steps=steps)
def test_the_sum_is_that_of_what_is_in_it(dtype, steps):
    original = torch.randn(D_MLP, D_MODEL, generator=torch.Generator().manual_seed(1)).to(dtype)
    total, there = ExactSum(original), []
    for number, _ in steps:
        if number in there:
            there.remove(number)
            total.remove(UPDATES[number])
        else:
            there.append(number)
            total.add(UPDATES[number])
        if not total.exact:
            total = ExactSum(original, [UPDATES[i] for i in sorted(there)])
    now = [UPDATES[i] for i in sorted(there)]
    expected = in_fractions(original, now)
    assert torch.equal(total.on(original), expected)
    assert torch.equal(sum_on(original, now), expected)


def test_a_matrix_is_worked_on_in_parts(monkeypatch):
    original, updates = torch.randn(D_MLP, D_MODEL), UPDATES[:4]
    whole = sum_on(original, updates)
    monkeypatch.setattr(exact_sum, "_AT_A_TIME", 2 * D_MODEL)
    assert torch.equal(sum_on(original, updates), whole)
    assert torch.equal(ExactSum(original, updates).on(original), whole)


def test_what_is_no_number_stays_where_it_is_and_goes_with_its_update():
    original = torch.randn(D_MLP, D_MODEL)
    original[0, 0], original[1, 1], original[2, 2] = float("nan"), float("inf"), -float("inf")
    broken = Dense(0, torch.full((D_MLP, D_MODEL), float("inf")))
    total = ExactSum(original, [UPDATES[0]])
    before = total.on(original)
    assert before[0, 0].isnan()
    assert (before[1, 1], before[2, 2]) == (float("inf"), -float("inf"))
    total.add(broken)
    assert not total.on(original).isfinite().any()
    assert not total.exact
    total = ExactSum(original, [UPDATES[0]])
    assert torch.equal(total.on(original).nan_to_num(), before.nan_to_num())


def test_a_sum_says_when_digits_are_lost():
    """Beside 2^200 a float64 pair holds no digit of numbers around 1."""
    original, small = torch.zeros(D_MLP, D_MODEL, dtype=torch.float64), UPDATES[0]
    large = LowRank(0, torch.full((1, D_MLP), 2.0**100), torch.full((1, D_MODEL), 2.0**100))
    total = ExactSum(original, [small, UPDATES[1]])
    total.remove(UPDATES[1])
    assert total.exact
    assert torch.equal(total.on(original), sum_on(original, [small]))
    total.add(UPDATES[5])
    total.add(large)
    assert not total.exact


def test_matrices_that_are_the_same():
    matrix = torch.randn(4, 3)
    matrix[1, 1] = float("nan")
    assert same(matrix.clone(), matrix)
    assert same(matrix.bfloat16(), matrix)
    assert not same(matrix[:3], matrix)
    assert not same(torch.empty(4, 3, device="meta"), matrix)
    other = matrix.clone()
    other[3, 0] = float("nan")
    assert not same(other, matrix)


def test_updates_say_what_they_are():
    for update in (UPDATES[0], several(6), dense(5)):
        assert update.shape == (D_MLP, D_MODEL)
        keys = torch.randn(2, 4, D_MLP, dtype=torch.float64)
        torch.testing.assert_close(update.gain(keys), keys @ update.rows(slice(None)))
        moved = update.to(torch.device("cpu"), torch.float64)
        assert type(moved) is type(update)
        torch.testing.assert_close(moved.matrix, update.rows(slice(None)))
        assert torch.equal(update.rows(torch.tensor([3, 1])), update.rows(slice(None))[[3, 1]])
    assert [update.rank for update in (UPDATES[0], several(6), dense(5))] == [1, 3, None]
