"""The closed form against whole systems as the papers write them, for one key and for many; its identities."""

import pytest
import torch
from closed_form_oracle import exact, least_squares
from refused import refused

from rome_lens.editing.closed_form import solve
from rome_lens.editing.keys import VARIANTS, Keys, KeysAndValues
from rome_lens.editing.second_moment.moment import SecondMoment
from rome_lens.errors import EditError

D_MLP, D_MODEL = 24, 9
PRESERVE = (1e-3, 1.0, 50.0, 1e4)


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture(scope="module")
def c():
    keys = random(5 * D_MLP, D_MLP, seed=1) * torch.logspace(0, -1, D_MLP, dtype=torch.float64)
    return keys.t() @ keys / len(keys)


def asked(n, seed=2):
    keys = random(n, D_MLP, seed=seed)
    return Keys(keys, keys), random(n, D_MODEL, seed=seed + 1)


def weighed_by(c):
    return lambda keys: torch.linalg.solve(c, keys.t()).t()


def solved(c, n, **settings):
    """What is asked for n keys of layer 0, and the update that gives it."""
    keys, residual = asked(n)
    return keys, residual, solve(0, keys, residual, weighed_by(c), **settings)


def matrix(update):
    return update.left.t() @ update.right


def assert_close(found, expected, rtol=1e-10):
    assert (found - expected).norm() <= rtol * expected.norm()
    assert expected.norm() > 0


@pytest.mark.parametrize("preserve", PRESERVE)
@pytest.mark.parametrize("n", [1, 2, 7, D_MLP, 2 * D_MLP])
def test_with_a_share_for_text_it_is_memits_whole_system(c, n, preserve):
    keys, residual = asked(n)
    update = solve(3, keys, residual, weighed_by(c), preserve=preserve)
    assert (update.layer, update.rank, update.shape) == (3, n, (D_MLP, D_MODEL))
    # The smaller the share, the worse conditioned the whole system is.
    assert_close(matrix(update), least_squares(c, keys.read, residual, preserve), rtol=1e-8 if preserve < 1 else 1e-10)


@pytest.mark.parametrize("n", [1, 2, 7])
def test_without_one_every_key_is_answered_at_the_smallest_cost(c, n):
    keys, residual, update = solved(c, n)
    assert_close(keys.answered @ matrix(update), residual)
    assert_close(matrix(update), exact(c, keys.read, residual))
    # The other way ends there: less and less is kept for text.
    assert_close(matrix(solved(c, n, preserve=1e-9)[2]), matrix(update), rtol=1e-6)


@pytest.mark.parametrize("preserve", PRESERVE)
def test_of_one_key_the_share_takes_a_part_away_and_no_direction(c, preserve):
    keys, _, exactly = solved(c, 1)
    s = (keys.read @ torch.linalg.solve(c, keys.read[0])).item()
    assert_close(matrix(solved(c, 1, preserve=preserve)[2]), s / (s + preserve) * matrix(exactly))


@pytest.mark.parametrize("preserve", [0.0, 1.0])
@pytest.mark.parametrize("n", [1, 5])
def test_the_left_factors_are_weighed_keys_of_length_one(c, n, preserve):
    keys, _, update = solved(c, n, preserve=preserve)
    weighed = torch.linalg.solve(c, keys.read.t()).t()
    assert_close(update.left, weighed / weighed.norm(dim=1, keepdim=True))


def test_what_a_key_lacks_is_what_its_factor_says(c):
    keys, residual, update = solved(c, 5, preserve=2.0)
    lengths = torch.linalg.solve(c, keys.read.t()).norm(dim=0)
    assert_close(residual - keys.read @ matrix(update), 2.0 * update.right / lengths[:, None])


@pytest.mark.parametrize("variant", VARIANTS)
def test_romes_variants_are_its_cases_of_one_key(c, variant):
    mean, bare, says, bare_says, goal = (random(1, d, seed=s) for s, d in enumerate((24, 24, 9, 9, 9)))
    keys, value = KeysAndValues(mean, says, bare, bare_says).of(variant)
    reading, answered, before = {
        "r-rome": (mean, mean, says),
        "rome": (mean, bare, bare_says),
        "p-rome": (bare, bare, bare_says),
    }[variant]
    update = solve(0, keys, goal - value, SecondMoment.from_matrix(c, layer=0).solve)
    u = torch.linalg.solve(c, reading[0])
    expected = torch.outer(u, (goal - before)[0]) / (u @ answered[0])
    assert_close(matrix(update), expected, rtol=1e-4)  # the second moment has a ridge
    assert_close(answered @ matrix(update), goal - before)
    assert keys.are_one == (variant != "rome")


@pytest.mark.parametrize("preserve", [0.0, 1.0])
def test_requests_in_another_order_give_the_same(c, preserve):
    keys, residual, update = solved(c, 7, preserve=preserve)
    order = torch.randperm(7, generator=torch.Generator().manual_seed(0))
    moved = Keys(keys.read[order], keys.read[order])
    found = solve(0, moved, residual[order], weighed_by(c), preserve=preserve)
    assert_close(matrix(found), matrix(update))


def test_keys_that_depend_on_each_other(c):
    keys, residual = asked(3)
    twice = keys.read[[0, 1, 2, 1]]
    assert refused(EditError, solve, 0, Keys(twice, twice), residual[[0, 1, 2, 0]], weighed_by(c)) == (
        "the keys of these requests depend on each other, so no update answers each with its value; leave out those "
        "that ask about the same subject, or preserve more"
    )
    # With a share for text there is a best answer, between the two.
    found = solve(0, Keys(twice, twice), residual[[0, 1, 2, 0]], weighed_by(c), preserve=1e-3)
    assert_close(twice[1] @ matrix(found), (residual[0] + residual[1]) / 2, rtol=1e-2)
