"""The system of equations of a set of facts: one for all layers, solved once, from which all that a set knows follows.

With `G = Σ_l K_l A_l K_lᵀ` over the layers, the coefficients are `c = (G + penalty)⁻¹ R`, and layer l gains
`Σ_j outer(A_l k_lj, c_j)`. What fact j lacks afterwards at its own key is `penalty · c_j`. One layer with more keys
than directions is solved in these directions instead: the same numbers by a smaller matrix. All in float64.

A fact may have several keys, each with a share of it; a key and what is missing at it are rows, times the root of the
share, so that the squared misfit of a fact is the mean over its keys.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rome_lens.editing.together.kernels import Kernel
from rome_lens.editing.weight_update import Dense, LowRank, WeightUpdate
from rome_lens.errors import EditError

# Rows of G that are looked at together.
_AT_A_TIME = 256
# Below this, in units of the largest, the squared diagonal of a Cholesky factor says that keys depend on each other.
_DEPENDENT = 1e-12


@dataclass(frozen=True, eq=False)
class System:
    """Facts that are solved together; they come in an order that depends on the facts alone.

    Attributes:
        layers: the layers, from the lowest.
        keys: [row, d_mlp] for each layer, float64; a fact's rows stand together.
        weighed: [row, d_mlp] for each layer, `A k`, float64.
        residual: [row, d_model] what the layers' values lack together, float64.
        penalty: what moving costs, against the facts: 0 answers each key exactly.
        kernels: of each layer; None where they are not known, as of a set that was read from a file.
        shares: [fact, key] of each fact's keys, with the roots of which rows are multiplied; None is one key a fact.
    """

    layers: tuple[int, ...]
    keys: tuple[Float[Tensor, "row d_mlp"], ...]
    weighed: tuple[Float[Tensor, "row d_mlp"], ...]
    residual: Float[Tensor, "row d_model"]
    penalty: float
    kernels: tuple[Kernel, ...] | None = None
    shares: Float[Tensor, "fact key"] | None = None

    @property
    def n_rows(self) -> int:
        """How many keys there are."""
        return len(self.residual)

    @property
    def n_keys(self) -> int:
        """How many keys a fact has."""
        return 1 if self.shares is None else self.shares.shape[1]

    @property
    def n_facts(self) -> int:
        """How many facts there are."""
        return self.n_rows // self.n_keys

    @property
    def by_direction(self) -> bool:
        """Whether it is solved in the kernel's directions, of which there are fewer than keys."""
        return self.kernels is not None and prefers_directions(self.n_rows, [kernel.width for kernel in self.kernels])

    @cached_property
    def gram(self) -> Float[Tensor, "row row"]:
        """G: what each key has in common with each."""
        return self._gram_of(slice(None))

    @cached_property
    def _factor(self) -> Tensor:
        """Lower Cholesky factor: of `G + penalty`, or of `penalty · M + ΦᵀΦ` in the kernel's directions.

        Raises:
            EditError: nothing is given way to, and keys depend on each other.
        """
        if self.by_direction and not self.penalty:
            raise _dependent()  # more keys than directions
        if self.by_direction:
            system = self._kernel.metric.mul_(self.penalty)
            system.addmm_(self._features.t(), self._features)
        else:
            system = self.gram.clone()
            system.diagonal().add_(self.penalty)
        largest = system.diagonal().max()
        factor, failed = torch.linalg.cholesky_ex(system)
        if failed or (not self.penalty and factor.diagonal().square().min() < _DEPENDENT * largest):
            raise _dependent()
        return factor

    @property
    def _kernel(self) -> Kernel:
        assert self.kernels is not None
        return self.kernels[0]

    @cached_property
    def _features(self) -> Float[Tensor, "row direction"]:
        return self._kernel.features(self.keys[0])

    @cached_property
    def _moved(self) -> Float[Tensor, "direction d_model"]:
        """The update in the kernel's directions."""
        return torch.cholesky_solve(self._features.t() @ self.residual, self._factor)

    @cached_property
    def coefficients(self) -> Float[Tensor, "row d_model"]:
        """c: what each weighed key is multiplied by."""
        if not self.by_direction:
            return torch.cholesky_solve(self.residual, self._factor)
        return (self.residual - self._features @ self._moved) / self.penalty

    @property
    def missing(self) -> Float[Tensor, "row d_model"]:
        """What the value at each key still lacks with the update in."""
        return self.penalty * self.coefficients

    @cached_property
    def leverage(self) -> Float[Tensor, " fact"]:
        """How much of each fact's answer is its own doing, from 0 to 1 a key; in sum at most the layers' width."""
        return self._leverages.diagonal(dim1=1, dim2=2).sum(dim=1)

    @cached_property
    def _leverages(self) -> Float[Tensor, "fact key key"]:
        """Of `1 - penalty (G + penalty)⁻¹` what stands at each fact's own keys."""
        if self.by_direction:
            return self._own_squares(torch.linalg.solve_triangular(self._factor, self._features.t(), upper=False))
        return torch.eye(self.n_keys, dtype=torch.float64) - self.penalty * self._inverses

    @cached_property
    def _inverses(self) -> Float[Tensor, "fact key key"]:
        """Of `(G + penalty)⁻¹` what stands at each fact's own keys."""
        one = torch.eye(self.n_keys, dtype=torch.float64)
        if self.by_direction:
            return (one - self._leverages) / self.penalty
        every = torch.eye(self.n_rows, dtype=torch.float64)
        return self._own_squares(torch.linalg.solve_triangular(self._factor, every, upper=False))

    def _own_squares(self, half: Float[Tensor, "any row"]) -> Float[Tensor, "fact key key"]:
        """Of `halfᵀ half` what stands at each fact's own keys."""
        return _squares(self._by_fact(half.t()))

    @cached_property
    def without_itself(self) -> Float[Tensor, "row d_model"]:
        """What the value at each key would lack if all facts but its own were in."""
        return torch.linalg.solve(self._inverses, self._by_fact(self.coefficients)).flatten(0, 1)

    def lengths(self, rows: Float[Tensor, "row d_model"]) -> Float[Tensor, " fact"]:
        """The length of each fact's rows together, such as of what it lacks."""
        return self._by_fact(rows).norm(dim=(1, 2))

    def _by_fact(self, rows: Float[Tensor, "row any"]) -> Float[Tensor, "fact key any"]:
        return rows.unflatten(0, (self.n_facts, self.n_keys))

    def _gram_of(self, rows: slice | Int[Tensor, " some"]) -> Float[Tensor, "some row"]:
        block = self.keys[0][rows] @ self.weighed[0].t()
        for keys, weighed in zip(self.keys[1:], self.weighed[1:], strict=True):
            block += keys[rows] @ weighed.t()
        return block

    def additions(self, facts: Int[Tensor, " some"]) -> Float[Tensor, "some fact"]:
        """How much each fact's part of the update adds to the values at the keys of these: the lengths of `G_ij c_j`.

        Args:
            facts: numbers of facts, a row each.
        """
        rows = (facts[:, None] * self.n_keys + torch.arange(self.n_keys)).flatten()
        # |Σ_b G_ab c_b|² of the keys b of a fact, by the products of their coefficients.
        block = self._gram_of(rows).unflatten(1, (self.n_facts, self.n_keys))
        squares = torch.einsum("afb,fbc,afc->af", block, self._coefficient_squares, block)
        return squares.clamp(min=0).unflatten(0, (len(facts), self.n_keys)).sum(dim=1).sqrt()

    @cached_property
    def _coefficient_squares(self) -> Float[Tensor, "fact key key"]:
        return _squares(self._by_fact(self.coefficients))

    def _some_facts(self) -> Iterator[Int[Tensor, " some"]]:
        """Numbers of facts, some at a time, so that not all of G need be there."""
        yield from torch.arange(self.n_facts).split(max(1, _AT_A_TIME // self.n_keys))

    @cached_property
    def disturbance(self) -> tuple[Int[Tensor, " fact"], Float[Tensor, " fact"]]:
        """Which other fact's part of the update adds most to the value at each fact's own key, and how much.

        What the update adds there is `Σ_j G_ij c_j`; of two facts on nearly the same key each undoes the other's part.

        Returns:
            The number of that fact, -1 where there is no other; the length of what it adds, in the values' units.
        """
        number = torch.full((self.n_facts,), -1)
        amount = torch.zeros(self.n_facts, dtype=torch.float64)
        if self.n_facts > 1:
            for facts in self._some_facts():
                added = self.additions(facts)
                added[torch.arange(len(facts)), facts] = -1
                amount[facts], number[facts] = added.max(dim=1)
        return number, amount

    def overlaps(self, above: float) -> list[tuple[int, int, float]]:
        """Pairs of facts whose mean keys are nearly one, with `G_ij² / (G_ii G_jj)`, from 0 to 1."""
        keys, weighed = (torch.cat(list(map(self._means, each)), dim=1) for each in (self.keys, self.weighed))
        own = (keys * weighed).sum(dim=1)
        found = []
        for facts in self._some_facts():
            block = keys[facts] @ weighed.t()
            share = block.square() / (own[facts, None] * own)
            for i, j in (share > above).nonzero().tolist():
                if facts[0] + i < j:
                    found.append((int(facts[0]) + i, j, share[i, j].item()))
        return found

    def _means(self, rows: Float[Tensor, "row d_mlp"]) -> Float[Tensor, "fact d_mlp"]:
        """Of each fact's keys by their shares; rows hold the roots of these."""
        if self.shares is None:
            return rows
        return (self._by_fact(rows) * self.shares.sqrt()[:, :, None]).sum(dim=1)

    def matrix(self, place: int) -> Float[Tensor, "d_mlp d_model"]:
        """What one of the layers gains, by its place among them."""
        if self.by_direction:
            return self._kernel.as_update(self._moved)
        return self.weighed[place].t() @ self.coefficients

    def updates(self, dtype: torch.dtype) -> list[WeightUpdate]:
        """What the layers gain: factors of as many rows as there are keys, or the whole matrix where that is smaller.

        Args:
            dtype: of their tensors.
        """
        found: list[WeightUpdate] = []
        for place, layer in enumerate(self.layers):
            n, d_mlp = self.keys[place].shape
            d_model = self.residual.shape[1]
            if n * (d_mlp + d_model) >= d_mlp * d_model:
                found.append(Dense(layer, self.matrix(place).to(dtype).contiguous()))
                continue
            length = torch.stack([row.norm() for row in self.weighed[place]])
            length = torch.where(length > 0, length, 1.0)
            left, right = self.weighed[place] / length[:, None], self.coefficients * length[:, None]
            # Row by row, as they come from a file: the bits of a product depend on how its factors lie.
            found.append(LowRank(layer, left.to(dtype).contiguous(), right.to(dtype).contiguous()))
        return found


def _squares(by_fact: Float[Tensor, "fact key any"]) -> Float[Tensor, "fact key key"]:
    """What each fact's keys have in common with one another."""
    return by_fact @ by_fact.mT


def _dependent() -> EditError:
    return EditError(
        "the keys of these facts depend on each other, so no update answers each with its value: leave out facts about "
        "the same subject, or preserve more than 0"
    )


def prefers_directions(n_rows: int, widths: Sequence[int]) -> bool:
    """Whether a system is solved in a kernel's directions: of one layer, where these are fewer than the keys.

    Args:
        n_rows: how many keys there are, of all facts.
        widths: how many directions each layer's kernel has.
    """
    return len(widths) == 1 and n_rows > widths[0]


def bytes_to_solve(n_rows: int, *, widths: Sequence[int], d_mlp: Sequence[int], d_model: int) -> int:
    """How much memory solving takes, in bytes: keys and weighed keys, and the system with its factor."""
    side = widths[0] if prefers_directions(n_rows, widths) else n_rows
    return 8 * (2 * n_rows * (2 * sum(d_mlp) + d_model) + 3 * side * side)
