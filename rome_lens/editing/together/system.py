"""The system of equations of a set of facts: one for all layers, solved once, from which all that a set knows follows.

With `G = Σ_l K_l A_l K_lᵀ` over the layers, the coefficients are `c = (G + penalty)⁻¹ R`, and layer l gains
`Σ_j outer(A_l k_lj, c_j)`. What fact j lacks afterwards at its own key is `penalty · c_j`. One layer with more facts
than directions is solved in these directions instead: the same numbers by a smaller matrix. All in float64.
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

# Facts whose rows of the inverse are looked at together.
_AT_A_TIME = 256
# Below this, in units of the largest, the squared diagonal of a Cholesky factor says that keys depend on each other.
_DEPENDENT = 1e-12


@dataclass(frozen=True, eq=False)
class System:
    """Facts that are solved together; they come in an order that depends on the facts alone.

    Attributes:
        layers: the layers, from the lowest.
        keys: [fact, d_mlp] for each layer, float64.
        weighed: [fact, d_mlp] for each layer, `A k`, float64.
        residual: [fact, d_model] what the layers' values lack together, float64.
        penalty: what moving costs, against the facts: 0 answers each key exactly.
        kernels: of each layer; None where they are not known, as of a set that was read from a file.
    """

    layers: tuple[int, ...]
    keys: tuple[Float[Tensor, "fact d_mlp"], ...]
    weighed: tuple[Float[Tensor, "fact d_mlp"], ...]
    residual: Float[Tensor, "fact d_model"]
    penalty: float
    kernels: tuple[Kernel, ...] | None = None

    @property
    def n_facts(self) -> int:
        """How many facts there are."""
        return len(self.residual)

    @property
    def by_direction(self) -> bool:
        """Whether it is solved in the kernel's directions, of which there are fewer than facts."""
        return self.kernels is not None and prefers_directions(self.n_facts, [kernel.width for kernel in self.kernels])

    @cached_property
    def gram(self) -> Float[Tensor, "fact fact"]:
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
    def _features(self) -> Float[Tensor, "fact direction"]:
        return self._kernel.features(self.keys[0])

    @cached_property
    def _moved(self) -> Float[Tensor, "direction d_model"]:
        """The update in the kernel's directions."""
        return torch.cholesky_solve(self._features.t() @ self.residual, self._factor)

    @cached_property
    def coefficients(self) -> Float[Tensor, "fact d_model"]:
        """c: what each fact's weighed key is multiplied by."""
        if not self.by_direction:
            return torch.cholesky_solve(self.residual, self._factor)
        return (self.residual - self._features @ self._moved) / self.penalty

    @property
    def missing(self) -> Float[Tensor, "fact d_model"]:
        """What the value at each fact's own key still lacks with the update in."""
        return self.penalty * self.coefficients

    @cached_property
    def leverage(self) -> Float[Tensor, " fact"]:
        """How much of each fact's own answer is its own doing, from 0 to 1; the sum is at most the layers' width."""
        if self.by_direction:
            half = torch.linalg.solve_triangular(self._factor, self._features.t(), upper=False)
            return half.square().sum(dim=0)
        return 1 - self.penalty * self._inverse_diagonal

    @cached_property
    def _inverse_diagonal(self) -> Float[Tensor, " fact"]:
        """Of `(G + penalty)⁻¹`."""
        if self.by_direction:
            return (1 - self.leverage) / self.penalty
        half = torch.linalg.solve_triangular(self._factor, torch.eye(self.n_facts, dtype=torch.float64), upper=False)
        return half.square().sum(dim=0)

    @cached_property
    def without_itself(self) -> Float[Tensor, "fact d_model"]:
        """What each fact's value would lack if all facts but this one were in."""
        return self.coefficients / self._inverse_diagonal[:, None]

    def _gram_rows(self) -> Iterator[tuple[slice, Float[Tensor, "some fact"]]]:
        """Rows of G, some at a time, so that they need not all be there."""
        for start in range(0, self.n_facts, _AT_A_TIME):
            rows = slice(start, min(start + _AT_A_TIME, self.n_facts))
            yield rows, self._gram_of(rows)

    def _gram_of(self, rows: slice | Int[Tensor, " some"]) -> Float[Tensor, "some fact"]:
        block = self.keys[0][rows] @ self.weighed[0].t()
        for keys, weighed in zip(self.keys[1:], self.weighed[1:], strict=True):
            block += keys[rows] @ weighed.t()
        return block

    def additions(self, facts: Int[Tensor, " some"]) -> Float[Tensor, "some fact"]:
        """How much each fact's part of the update adds to the values at the keys of these: the lengths of `G_ij c_j`.

        Args:
            facts: numbers of facts, a row each.
        """
        return self._gram_of(facts).abs() * self.coefficients.norm(dim=1)

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
            length = self.coefficients.norm(dim=1)
            for rows, block in self._gram_rows():
                added = block.abs() * length
                added[:, rows].diagonal().fill_(-1)
                amount[rows], number[rows] = added.max(dim=1)
        return number, amount

    def overlaps(self, above: float) -> list[tuple[int, int, float]]:
        """Pairs of facts whose keys are nearly one, with `G_ij² / (G_ii G_jj)`, from 0 to 1."""
        own = torch.zeros(self.n_facts, dtype=torch.float64)
        for keys, weighed in zip(self.keys, self.weighed, strict=True):
            own += (keys * weighed).sum(dim=1)
        found = []
        for rows, block in self._gram_rows():
            share = block.square() / (own[rows, None] * own)
            for i, j in (share > above).nonzero().tolist():
                if rows.start + i < j:
                    found.append((rows.start + i, j, share[i, j].item()))
        return found

    def matrix(self, place: int) -> Float[Tensor, "d_mlp d_model"]:
        """What one of the layers gains, by its place among them."""
        if self.by_direction:
            return self._kernel.as_update(self._moved)
        return self.weighed[place].t() @ self.coefficients

    def updates(self, dtype: torch.dtype) -> list[WeightUpdate]:
        """What the layers gain: factors of as many rows as there are facts, or the whole matrix where that is smaller.

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


def _dependent() -> EditError:
    return EditError(
        "the keys of these facts depend on each other, so no update answers each with its value: leave out facts about "
        "the same subject, or preserve more than 0"
    )


def prefers_directions(n_facts: int, widths: Sequence[int]) -> bool:
    """Whether a system is solved in a kernel's directions: of one layer, where these are fewer than the facts.

    Args:
        n_facts: how many facts there are.
        widths: how many directions each layer's kernel has.
    """
    return len(widths) == 1 and n_facts > widths[0]


def bytes_to_solve(n_facts: int, *, widths: Sequence[int], d_mlp: Sequence[int], d_model: int) -> int:
    """How much memory solving takes, in bytes: keys and weighed keys, and the system with its factor."""
    side = widths[0] if prefers_directions(n_facts, widths) else n_facts
    return 8 * (2 * n_facts * (2 * sum(d_mlp) + d_model) + 3 * side * side)
