"""What many facts make of a layer, against plain solutions with whole matrices: one family, several faces.

Random keys K and lacks R, C of text; `λ` as papers have it, of C; the kernel counts it in units of d_mlp.
"""

from functools import cache

import pytest
import torch
from refused import refused

from rome_lens.editing.second_moment.moment import SecondMoment
from rome_lens.editing.together.kernels import NullSpaceKernel, TextKernel
from rome_lens.editing.together.system import System, bytes_to_solve, prefers_directions
from rome_lens.editing.weight_update import Dense, LowRank
from rome_lens.errors import EditError, SettingError

D, D_MODEL, FEW, MANY = 24, 5, 7, 40
LAMBDA = 3.0


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@cache
def second_moment(seed=0):
    keys = random(3 * D, D, seed=100 + seed) * torch.logspace(0, -1, D, dtype=torch.float64)
    return keys.t() @ keys / len(keys)


@cache
def text_kernel(layer=0, *, seed=None, scale=1.0):
    matrix = second_moment(layer if seed is None else seed) * scale
    return TextKernel(SecondMoment.from_matrix(matrix, layer=layer), ridge=0.0)


@cache
def null_space(energy=0.1, *, scale=1.0):
    moment = SecondMoment.from_matrix(second_moment(), layer=0)
    return NullSpaceKernel.of(moment, energy=energy, threshold=None, scale=scale)


def facts(n, *, seed=0):
    return random(n, D, seed=1 + seed), random(n, D_MODEL, seed=1000 + seed)


def system(kernel, keys, residual, penalty, *, known=True):
    """The facts of one layer; without the kernel they are solved by facts, however many they are."""
    return System((kernel.layer,), (keys,), (kernel.weigh(keys),), residual, penalty, (kernel,) if known else None)


def memit(keys, residual, *, number=LAMBDA, moment=None):
    """`λ` as the paper counts it."""
    kernel = text_kernel() if moment is None else TextKernel(SecondMoment.from_matrix(moment, layer=0), ridge=0.0)
    return system(kernel, keys, residual, number / D)


def plain(cost, keys, residual):
    """(M + K Kᵀ)⁻¹ K R by a system of d_mlp equations."""
    return torch.linalg.solve(cost + keys.t() @ keys, keys.t() @ residual)


def close(one, other, *, within=1e-10):
    one, other = torch.as_tensor(one, dtype=torch.float64), torch.as_tensor(other, dtype=torch.float64)
    assert one.shape == other.shape
    assert (one - other).abs().max() <= within * other.abs().max()


def r_rome(key, residual):
    """What ROME's rank one is for a key that is answered exactly."""
    u = torch.linalg.solve(second_moment(), key)
    return torch.outer(u, residual) / (u @ key)


# --- one family -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, FEW, MANY])
def test_memit_is_the_solution_of_its_paper(n):
    keys, residual = facts(n)
    found = memit(keys, residual)
    assert found.by_direction == (n == MANY)
    close(found.matrix(0), plain(LAMBDA * second_moment(), keys, residual))
    weighed = torch.linalg.solve(second_moment(), keys.t())
    inner = keys @ weighed + LAMBDA * torch.eye(n, dtype=torch.float64)
    close(found.matrix(0), weighed @ torch.linalg.solve(inner, residual))


def test_a_ridge_is_added_to_c():
    keys, residual = facts(FEW)
    moment = SecondMoment.from_matrix(second_moment(), layer=0)
    cost = second_moment() + 0.3 * second_moment().diagonal().mean() * torch.eye(D, dtype=torch.float64)
    for many in (FEW, MANY):
        keys, residual = facts(many)
        found = system(TextKernel(moment, ridge=0.3), keys, residual, LAMBDA / D)
        close(found.matrix(0), plain(LAMBDA * cost, keys, residual))


def test_one_fact_is_a_share_of_rome():
    keys, residual = facts(1)
    leverage = keys[0] @ torch.linalg.solve(second_moment(), keys[0])
    for number in (1e-3, LAMBDA, 1e3):
        share = leverage / (leverage + number)
        found = memit(keys, residual, number=number)
        close(found.matrix(0), share * r_rome(keys[0], residual[0]))
        close(found.leverage, share[None])
    close(memit(keys, residual, number=0.0).matrix(0), r_rome(keys[0], residual[0]))


@pytest.mark.parametrize("n", [FEW, MANY])
@pytest.mark.parametrize(("weight", "epsilon"), [(1.0, 0.1), (1000.0, 0.1), (0.3, 7.0)])
def test_emmet_is_memit(n, weight, epsilon):
    keys, residual = facts(n)
    weighed = torch.linalg.solve(weight * second_moment(), keys.t())
    inner = keys @ weighed + epsilon * torch.eye(n, dtype=torch.float64)
    close(memit(keys, residual, number=weight * epsilon).matrix(0), weighed @ torch.linalg.solve(inner, residual))


def test_without_giving_way_each_key_is_answered():
    keys, residual = facts(FEW)
    found = memit(keys, residual, number=0.0)
    close(keys @ found.matrix(0), residual)
    assert not found.missing.any()
    close(found.leverage, torch.ones(FEW, dtype=torch.float64))


@pytest.mark.parametrize("n", [FEW, MANY])
def test_alpha_edit_with_all_directions_is_a_ridge(n):
    keys, residual = facts(n)
    found = system(null_space(1.0), keys, residual, LAMBDA)
    assert found.kernels[0].width == D
    eye = torch.eye(D, dtype=torch.float64)
    close(found.matrix(0), plain(LAMBDA * eye, keys, residual))
    close(found.matrix(0), memit(keys, residual, moment=eye).matrix(0))


@pytest.mark.parametrize("n", [FEW, MANY])
def test_alpha_edit_is_the_solution_of_its_released_code(n):
    keys, residual = facts(n)
    for kernel in (null_space(), null_space(scale=2.5)):
        assert 0 < kernel.width < D
        found = system(kernel, keys, residual, LAMBDA)
        projection, pull = kernel.basis @ kernel.basis.t(), kernel.scale * LAMBDA
        asked = projection @ keys.t()
        expected = torch.linalg.solve(asked @ keys + pull * torch.eye(D, dtype=torch.float64), asked @ residual)
        close(found.matrix(0), expected)
        # Keys of text are in the other directions, and what they are answered with stays.
        others = torch.eye(D, dtype=torch.float64) - projection
        assert (others @ found.matrix(0)).abs().max() < 1e-12 * found.matrix(0).abs().max()


def test_a_null_space_by_energy_or_threshold():
    moment = SecondMoment.from_matrix(second_moment(), layer=3)
    values = torch.linalg.eigvalsh(second_moment())
    kernel = NullSpaceKernel.of(moment, energy=0.2, threshold=None, scale=None)
    assert kernel.share <= 0.2 < values[: kernel.width + 1].sum() / values.sum()
    close(kernel.scale, second_moment().trace())
    assert kernel.layer == 3
    of_threshold = NullSpaceKernel.of(moment, energy=0.2, threshold=float(values[5]) * 1.0001, scale=1.0)
    assert (of_threshold.width, of_threshold.scale) == (6, 1.0)
    assert NullSpaceKernel.of(moment, energy=1.0, threshold=None, scale=1.0).width == D
    for none in ({"energy": 1e-9, "threshold": None}, {"energy": 0.5, "threshold": 1e-9}):
        said = refused(SettingError, lambda none=none: NullSpaceKernel.of(moment, **none, scale=1.0))
        assert "no direction of layer 3" in said
        assert "the smallest eigenvalue" in said


# --- what follows ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [FEW, MANY])
def test_what_is_missing_is_known_before_it_is_applied(n):
    keys, residual = facts(n)
    for kernel, penalty in ((text_kernel(), LAMBDA / D), (null_space(), LAMBDA)):
        found = system(kernel, keys, residual, penalty)
        close(found.missing, residual - keys @ found.matrix(0))


def test_a_request_twice_is_one_of_double_weight():
    keys, residual = facts(1)
    twice = memit(keys.repeat(2, 1), residual.repeat(2, 1))
    close(twice.matrix(0), memit(keys, residual, number=LAMBDA / 2).matrix(0))
    assert not torch.allclose(twice.matrix(0), memit(keys, residual).matrix(0))
    for n in (0, 1):
        close(twice.coefficients[n], twice.coefficients[0])


def test_two_values_for_one_key_are_averaged():
    keys, residual = facts(2)
    same = keys[:1].repeat(2, 1)
    found = memit(same, residual, number=1e-6)
    close(keys[:1] @ found.matrix(0), residual.mean(dim=0)[None], within=1e-6)
    assert found.overlaps(0.99) == [(0, 1, pytest.approx(1.0))]
    number, amount = found.disturbance
    assert number.tolist() == [1, 0]
    # Each undoes what the other does.
    assert (amount > found.residual.norm(dim=1)).all()


def test_keys_that_depend_on_each_other_cannot_all_be_answered():
    keys, residual = facts(FEW)
    same = torch.cat([keys, keys[:1]])
    lacking = torch.cat([residual, residual[:1]])
    with_text = [memit(same, lacking, number=0.0), memit(*facts(D + 1), number=0.0), memit(*facts(MANY), number=0.0)]
    in_null_space = [system(null_space(), *facts(null_space().width + 1), 0.0)]
    for found in (*with_text, *in_null_space):
        for what in ("coefficients", "leverage"):
            said = refused(EditError, getattr, found, what)
            assert said.startswith("the keys of these facts depend on each other")
        assert "depend on each other" in refused(EditError, found.matrix, 0)
    # As many as there are directions are answered.
    keys, residual = facts(D)
    close(keys @ memit(keys, residual, number=0.0).matrix(0), residual, within=1e-8)


def test_other_units_change_nothing():
    keys, residual = facts(FEW)
    once = memit(keys, residual)
    close(memit(keys, residual, number=LAMBDA / 4, moment=4 * second_moment()).matrix(0), once.matrix(0))
    # Keys of twice the length over weights of half: the same function.
    close(memit(2 * keys, residual, moment=4 * second_moment()).matrix(0), once.matrix(0) / 2)


def test_keys_that_have_nothing_in_common_are_edits_of_their_own():
    basis = torch.linalg.cholesky(second_moment())
    directions = torch.linalg.qr(random(D, D))[0][:FEW]
    keys, residual = directions @ basis.t() * torch.arange(1, FEW + 1)[:, None], facts(FEW)[1]
    together = memit(keys, residual)
    alone = sum(memit(keys[n : n + 1], residual[n : n + 1]).matrix(0) for n in range(FEW))
    close(together.matrix(0), alone)
    close(together.missing, LAMBDA / D * residual / (together.gram.diagonal() + LAMBDA / D)[:, None])
    assert together.overlaps(1e-9) == []
    assert together.disturbance[1].max() < 1e-9


@pytest.mark.parametrize("n", [1, FEW, MANY])
def test_leverage(n):
    keys, residual = facts(n)
    for kernel, penalty in ((text_kernel(), LAMBDA / D), (null_space(), LAMBDA)):
        found = system(kernel, keys, residual, penalty)
        hat = found.gram @ torch.linalg.inv(found.gram + penalty * torch.eye(n, dtype=torch.float64))
        close(found.leverage, hat.diagonal())
        assert found.leverage.sum() < min(kernel.width, n)
        nearly_all = system(kernel, keys, residual, penalty * 1e-9).leverage.sum()
        assert nearly_all == pytest.approx(min(kernel.width, n), rel=1e-4)


@pytest.mark.parametrize("n", [FEW, MANY])
def test_the_cost_needs_no_whole_matrix(n):
    keys, residual = facts(n)
    found = memit(keys, residual)
    change, c = found.matrix(0), found.coefficients
    energy = (change.t() @ second_moment() @ change).trace()
    close((c.t() @ found.gram @ c).trace() / D, energy)
    close(text_kernel().text_energy(change), energy)
    for kernel in (null_space(), null_space(1.0)):
        change = system(kernel, keys, residual, LAMBDA).matrix(0)
        close(kernel.text_energy(change), (change.t() @ second_moment() @ change).trace())


@pytest.mark.parametrize("n", [FEW, 18, MANY])
def test_without_itself(n):
    keys, residual = facts(n)
    for kernel, penalty in ((text_kernel(), LAMBDA / D), (null_space(), LAMBDA)):
        found = system(kernel, keys, residual, penalty)
        for j in range(n):
            others = [i for i in range(n) if i != j]
            fewer = system(kernel, keys[others], residual[others], penalty)
            close(found.without_itself[j], residual[j] - keys[j] @ fewer.matrix(0), within=1e-9)


def test_the_more_text_is_kept_the_less_is_answered():
    keys, residual = facts(FEW)
    moved, misfit = [], []
    for number in torch.logspace(-4, 6, 21).tolist():
        found = memit(keys, residual, number=number)
        moved.append(text_kernel().text_energy(found.matrix(0)))
        misfit.append(found.missing.square().sum().item())
    assert moved == sorted(moved, reverse=True)
    assert misfit == sorted(misfit)
    huge = memit(keys, residual, number=1e10).matrix(0) * 1e10
    close(huge, torch.linalg.solve(second_moment(), keys.t() @ residual), within=1e-6)


# --- sequences ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [(1, 1, 1, 1, 1, 1, 1), (3, 4), (2, 4, 1), (7,)], ids=str)
def test_a_sequence_that_keeps_its_history_is_one_edit(sizes):
    """With absolute targets, on the weights as they have become: whatever the batches and their order."""
    keys, residual = facts(FEW)
    before = random(D, D_MODEL, seed=9)
    values, cost = residual + keys @ before, LAMBDA * second_moment()
    for order in (range(FEW), [3, 1, 6, 0, 2, 5, 4]):
        weights, history, start = before.clone(), cost.clone(), 0
        for size in sizes:
            now = list(order)[start : start + size]
            start += size
            history = history + keys[now].t() @ keys[now]
            lacking = values[now] - keys[now] @ weights
            weights = weights + torch.linalg.solve(history, keys[now].t() @ lacking)
        close(weights - before, memit(keys, residual).matrix(0))


def test_a_sequence_without_history_is_another_edit():
    keys, residual = facts(FEW)
    change = torch.zeros(D, D_MODEL, dtype=torch.float64)
    for now in (slice(0, 4), slice(4, FEW)):
        change = change + memit(keys[now], residual[now] - keys[now] @ change).matrix(0)
    together = memit(keys, residual).matrix(0)
    assert (change - together).norm() > 0.05 * together.norm()


def test_a_fact_that_is_taken_out_and_put_in():
    """The quick ways by the inverse, in weights and in coefficients, give what is solved afresh."""
    keys, residual = facts(FEW)
    p = LAMBDA / D
    all_in, j = memit(keys, residual), 2
    others = [i for i in range(FEW) if i != j]
    fewer = memit(keys[others], residual[others])
    # In the weights: W' = W - A'⁻¹ K_S E_S, E_S what the fact lacks with all in.
    left = LAMBDA * second_moment() + keys[others].t() @ keys[others]
    lacking = residual[j] - keys[j] @ all_in.matrix(0)
    close(all_in.matrix(0) - torch.outer(torch.linalg.solve(left, keys[j]), lacking), fewer.matrix(0))
    # In the coefficients.
    inverse = torch.linalg.inv(all_in.gram + p * torch.eye(FEW, dtype=torch.float64))
    c = all_in.coefficients - torch.outer(inverse[:, j] / inverse[j, j], all_in.coefficients[j])
    close(c[others], fewer.coefficients)
    assert c[j].abs().max() < 1e-12
    # Put in again, by the bordered inverse.
    g = all_in.gram[others, j]
    inverse = torch.linalg.inv(fewer.gram + p * torch.eye(FEW - 1, dtype=torch.float64))
    new = (residual[j] - g @ fewer.coefficients) / (p + all_in.gram[j, j] - g @ inverse @ g)
    close(new, all_in.coefficients[j])
    close(fewer.coefficients - torch.outer(inverse @ g, new), all_in.coefficients[others])


# --- several layers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [FEW, MANY])
def test_several_layers_by_one_system(n):
    """Of all ways to share what is missing it is the cheapest: the solution of one problem over all layers' weights."""
    keys, residual = [facts(n, seed=10 * layer)[0] for layer in range(3)], facts(n)[1]
    kernels = [text_kernel(layer) for layer in range(3)]
    weighed = tuple(kernel.weigh(key) for kernel, key in zip(kernels, keys, strict=True))
    found = System((0, 1, 2), tuple(keys), weighed, residual, LAMBDA / D, tuple(kernels))
    assert not found.by_direction
    stacked = torch.cat(keys, dim=1)
    cost = LAMBDA * torch.block_diag(*(second_moment(layer) for layer in range(3)))
    expected = plain(cost, stacked, residual).split(D)
    for layer in range(3):
        close(found.matrix(layer), expected[layer])
    said = sum(keys[layer] @ found.matrix(layer) for layer in range(3))
    close(found.missing, residual - said)
    assert found.leverage.sum() < min(n, 3 * D)
    hat = found.gram @ torch.linalg.inv(found.gram + LAMBDA / D * torch.eye(n, dtype=torch.float64))
    close(found.leverage, hat.diagonal())
    _check_pairs(found)


def test_equal_layers_are_one_at_a_lower_price():
    keys, residual = facts(FEW)
    weighed = text_kernel().weigh(keys)
    both = System((0, 1), (keys, keys), (weighed, weighed), residual, LAMBDA / D, (text_kernel(), text_kernel()))
    for place in (0, 1):
        close(both.matrix(place), memit(keys, residual, number=LAMBDA / 2).matrix(0) / 2)


# --- several keys a fact --------------------------------------------------------------------------------------------


def several_keys(kernel, n, *, known=True):
    """Facts of three keys each, with shares of their own, as (system, keys, residual, shares); a fact a row."""
    keys, residual, shares = random(n, 3, D, seed=31), random(n, D_MODEL, seed=32), random(n, 3, seed=33).softmax(dim=1)
    return of_several(kernel, keys, residual, shares, known=known), keys, residual, shares


def of_several(kernel, keys, residual, shares, *, known=True):
    root = shares.sqrt()[:, :, None]
    rows = (keys * root).flatten(0, 1)
    lacks = (residual[:, None] * root).flatten(0, 1)
    kernels = (kernel,) if known else None
    return System((kernel.layer,), (rows,), (kernel.weigh(rows),), lacks, LAMBDA / D, kernels, shares)


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("n", [1, 5, 12])
def test_several_keys_share_a_fact(n, known):
    """The squared misfit of a fact is the mean over its keys, by their shares: one weighted least squares problem."""
    found, keys, residual, shares = several_keys(text_kernel(), n, known=known)
    assert (found.n_facts, found.n_keys, found.by_direction) == (n, 3, known and n == 12)
    system = LAMBDA * second_moment()
    wanted = torch.zeros(D, D_MODEL, dtype=torch.float64)
    for i in range(n):
        for j in range(3):
            system = system + shares[i, j] * torch.outer(keys[i, j], keys[i, j])
            wanted += shares[i, j] * torch.outer(keys[i, j], residual[i])
    change = torch.linalg.solve(system, wanted)
    close(found.matrix(0), change)
    for i in range(n):
        misfit = sum(shares[i, j] * (residual[i] - keys[i, j] @ change).square().sum() for j in range(3))
        close(found.lengths(found.missing)[i], misfit.sqrt())
        close(found.lengths(found.residual)[i], residual[i].norm())
        others = [other for other in range(n) if other != i]
        if not others:
            continue
        without = of_several(text_kernel(), keys[others], residual[others], shares[others], known=known).matrix(0)
        misfit = sum(shares[i, j] * (residual[i] - keys[i, j] @ without).square().sum() for j in range(3))
        close(found.lengths(found.without_itself)[i], misfit.sqrt())


@pytest.mark.parametrize("known", [True, False])
def test_what_facts_of_several_keys_do_to_each_other(known):
    n = 12
    found, keys, _, shares = several_keys(text_kernel(), n, known=known)
    hat = found.gram @ torch.linalg.inv(found.gram + LAMBDA / D * torch.eye(3 * n, dtype=torch.float64))
    close(found.leverage, hat.diagonal().unflatten(0, (n, 3)).sum(dim=1))
    assert found.leverage.sum() < D
    parts = found.coefficients.unflatten(0, (n, 3))
    weighed = found.weighed[0].unflatten(0, (n, 3))
    added, overlap = torch.zeros(n, n, dtype=torch.float64), torch.zeros(n, n, dtype=torch.float64)
    means = (keys * shares[:, :, None]).sum(dim=1)
    cost = torch.linalg.inv(second_moment())
    for i in range(n):
        for j in range(n):
            at_keys = keys[i] @ sum(torch.outer(weighed[j, b], parts[j, b]) for b in range(3))
            added[i, j] = (shares[i] * at_keys.square().sum(dim=1)).sum().sqrt()
            overlap[i, j] = (means[i] @ cost @ means[j]) ** 2
    overlap = overlap / (overlap.diagonal()[:, None] * overlap.diagonal()).sqrt()
    close(found.additions(torch.tensor([4, 0, 11])), added[[4, 0, 11]])
    others = added.clone().fill_diagonal_(-1)
    numbers, amounts = found.disturbance
    close(amounts, others.max(dim=1).values)
    assert torch.equal(numbers, others.argmax(dim=1))
    pairs = {(i, j): overlap[i, j].item() for i in range(n) for j in range(i + 1, n) if overlap[i, j] > 0.1}
    assert pairs
    assert {(i, j): share for i, j, share in found.overlaps(0.1)} == pytest.approx(pairs)


def test_one_key_of_the_whole_share_is_a_fact_of_one_key():
    keys, residual = facts(FEW)
    one, plainly = (
        of_several(text_kernel(), keys[:, None], residual, torch.ones(FEW, 1, dtype=torch.float64)),
        memit(keys, residual),
    )
    assert torch.equal(one.matrix(0), plainly.matrix(0))
    for what in ("leverage", "coefficients", "without_itself"):
        close(getattr(one, what), getattr(plainly, what))
    thirds = torch.full((FEW, 3), 1 / 3, dtype=torch.float64)
    same = of_several(text_kernel(), keys[:, None].repeat(1, 3, 1), residual, thirds)
    close(same.matrix(0), plainly.matrix(0))
    close(same.lengths(same.missing), plainly.lengths(plainly.missing))


# --- the two ways to solve ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", [text_kernel(), null_space(), null_space(scale=0.5)], ids=lambda k: k.name)
@pytest.mark.parametrize("extra", [1, 2, 300])
def test_by_direction_or_by_fact(kernel, extra):
    n = kernel.width + extra
    keys, residual = facts(n)
    by_direction = system(kernel, keys, residual, 0.7)
    by_fact = system(kernel, keys, residual, 0.7, known=False)
    assert (by_direction.by_direction, by_fact.by_direction) == (True, False)
    for what in ("coefficients", "missing", "leverage", "without_itself"):
        close(getattr(by_direction, what), getattr(by_fact, what))
    close(by_direction.matrix(0), by_fact.matrix(0))
    close(by_direction.disturbance[1], by_fact.disturbance[1])
    assert torch.equal(by_direction.disturbance[0], by_fact.disturbance[0])
    (one,), (other,) = by_direction.updates(torch.float64), by_fact.updates(torch.float64)
    assert type(one) is type(other) is Dense
    close(one.matrix, other.matrix)
    _check_pairs(by_direction)


def test_where_the_ways_part():
    assert [prefers_directions(n, [D]) for n in (1, D, D + 1)] == [False, False, True]
    assert not prefers_directions(1000, [D, D])
    assert bytes_to_solve(10, widths=[24], d_mlp=[24], d_model=5) == 8 * (20 * 53 + 300)
    assert bytes_to_solve(100, widths=[24], d_mlp=[24], d_model=5) == 8 * (200 * 53 + 3 * 24 * 24)
    assert bytes_to_solve(100, widths=[24, 24], d_mlp=[24, 24], d_model=5) == 8 * (200 * 101 + 30_000)


def _check_pairs(found):
    """What facts do to each other, pair by pair."""
    gram = sum(k @ w.t() for k, w in zip(found.keys, found.weighed, strict=True)).numpy()
    length = found.coefficients.norm(dim=1).tolist()
    numbers, amounts = found.disturbance
    everybody, pairs = range(found.n_facts), {}
    for i in everybody:
        added = [-1.0 if i == j else abs(gram[i][j]) * length[j] for j in everybody]
        assert amounts[i].item() == pytest.approx(max(added), rel=1e-10)
        assert added[numbers[i]] == pytest.approx(max(added), rel=1e-10)
        shares = {(i, j): gram[i][j] ** 2 / (gram[i][i] * gram[j][j]) for j in everybody[i + 1 :]}
        pairs |= {pair: share for pair, share in shares.items() if share > 0.3}
    overlaps = found.overlaps(0.3)
    assert {(i, j): share for i, j, share in overlaps} == pytest.approx(pairs)
    assert len(overlaps) == len(pairs)


def test_one_fact_is_disturbed_by_nobody():
    number, amount = memit(*facts(1)).disturbance
    assert (number.tolist(), amount.tolist()) == ([-1], [0.0])
    assert memit(*facts(1)).overlaps(0.0) == []


def test_a_key_that_weighs_nothing_overlaps_with_none():
    keys, residual = facts(3)
    keys[1] = 0
    found = memit(keys, residual)
    assert all(1 not in pair[:2] for pair in found.overlaps(0.0))
    (update,) = found.updates(torch.float64)
    assert update.matrix.isfinite().all()


# --- bits -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", [text_kernel(), null_space()], ids=lambda k: k.name)
def test_a_weighed_key_does_not_depend_on_its_place_or_company(kernel):
    keys, _ = facts(100)
    alone = torch.cat([kernel.weigh(key[None]) for key in keys])
    for order in (range(100), reversed(range(100)), torch.randperm(100).tolist()):
        order = list(order)
        assert torch.equal(kernel.weigh(keys[order]), alone[order])
    for n in (1, 2, 31, 32, 33, 65):
        assert torch.equal(kernel.weigh(keys[7 : 7 + n]), alone[7 : 7 + n])
    close(kernel.weigh(keys.float()), kernel.weigh(keys.float().double()), within=0)


@pytest.mark.parametrize("n", [2, FEW, MANY])
def test_updates_have_factors_of_length_one_or_are_whole(n):
    found = memit(*facts(n))
    (update,) = found.updates(torch.float32)
    assert update.layer == 0
    if n * (D + D_MODEL) < D * D_MODEL:
        assert isinstance(update, LowRank)
        assert update.rank == n
        close(update.left.double().norm(dim=1), torch.ones(n), within=1e-6)
    else:
        assert isinstance(update, Dense)
    assert update.matrix.dtype == torch.float32
    close(update.matrix, found.matrix(0), within=1e-5)


def test_kernels_are_told_apart():
    ones = [
        text_kernel(),
        text_kernel(1),
        text_kernel(1, seed=0),
        text_kernel(scale=2.0),
        TextKernel(text_kernel().moment, ridge=None),
        null_space(),
        null_space(0.2),
        null_space(scale=2.0),
    ]
    assert len({one.id for one in ones}) == len(ones)
    assert TextKernel(SecondMoment.from_matrix(second_moment(), layer=0), ridge=0.0).id == text_kernel().id
