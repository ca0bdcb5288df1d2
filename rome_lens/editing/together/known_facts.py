"""What a set of facts knows of each before it is applied: all of it from one system of equations."""

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import plotly.graph_objects as go
import torch
from jaxtyping import Float
from torch import Tensor

from rome_lens.checks import as_real, shown
from rome_lens.editing.edit import Edit
from rome_lens.editing.patch import layer_names
from rome_lens.editing.together.kernels import Kernel
from rome_lens.editing.together.set_fact import SetFact, in_order, stacked
from rome_lens.editing.together.system import System
from rome_lens.editing.together.terms import Terms
from rome_lens.errors import SettingError
from rome_lens.figures.disturbances import DisturbedFact, disturbance_figure, which_facts

if TYPE_CHECKING:
    import pandas as pd

# Keys that have so much in common count as one (`System.overlaps`).
_ONE_KEY = 0.9
# More facts than these are not drawn: their names could not be read.
_DRAWN = 40


@dataclass(frozen=True)
class Conflict:
    """Two facts that want different answers to what is nearly one key.

    Attributes:
        one: a fact.
        other: another.
        overlap: `(k A k')² / ((k A k) (k' A k'))` of their keys, from 0 to 1.
    """

    one: SetFact
    other: SetFact
    overlap: float

    def __str__(self) -> str:
        return f"{self.one.words!r} and {self.other.words!r} (overlap {self.overlap:.2f})"


@dataclass(frozen=True, eq=False, repr=False)
class KnownFacts(Edit):
    """Facts that were solved together, with what is known of each; `EditSet` makes other sets of them.

    Attributes:
        facts: the facts, in the order in which they came.
        terms: on what terms they are solved.
        kernels: how keys are weighed, a layer each; None for a set from a file that needs none.
    """

    facts: tuple[SetFact, ...] = ()
    terms: Terms = field(kw_only=True)
    kernels: tuple[Kernel, ...] | None = field(default=None, kw_only=True)

    @cached_property
    def system(self) -> System:
        """The system of equations, its facts in their own order (`order`).

        Raises:
            SettingError: the layers were solved one after the other, each by a system of its own.
        """
        if self.terms.spread == "released":
            raise SettingError(
                "layers that gain one after the other (spread='released') have no system in common; shortfall, "
                "leverage and conflicts are known for spread='joint'"
            )
        return stacked(self.facts, self.terms.numbers, self.terms.penalty, self.kernels)

    @cached_property
    def order(self) -> list[int]:
        """The numbers of the facts in the order of the system's rows."""
        return in_order(self.facts)

    def _in_facts_order(self, rows: Tensor) -> Tensor:
        placed = torch.empty_like(rows)
        placed[self.order] = rows
        return placed

    @cached_property
    def shortfall(self) -> Float[Tensor, " fact"]:
        """What each fact will lack of its value, as a share of what was missing: 0 is answered in full, 1 not."""
        system = self.system
        return self._in_facts_order(system.lengths(system.missing) / _asked(system))

    @cached_property
    def leverage(self) -> Float[Tensor, " fact"]:
        """How much of the layers each fact takes for itself, from 0 to 1 a key. The sum is at most `capacity`."""
        return self._in_facts_order(self.system.leverage)

    @cached_property
    def capacity(self) -> int:
        """What the leverages can add up to: `d_mlp`, or what a null space has of it, over all layers."""
        return sum(here.width for here in self.terms.layers)

    @property
    def load(self) -> float:
        """The share of the capacity that is taken."""
        return self.leverage.sum().item() / self.capacity

    @cached_property
    def alone(self) -> Float[Tensor, " fact"]:
        """What each fact would lack if all others were in and it were not, as a share of what was missing.

        Near 0 the fact is redundant: the others say it already.
        """
        system = self.system
        return self._in_facts_order(system.lengths(system.without_itself) / _asked(system))

    @cached_property
    def disturbed_by(self) -> tuple[tuple[int | None, float], ...]:
        """For each fact the number of the one that adds most to the value at its key, and how much, as such a share."""
        number, amount = self.system.disturbance
        amount = self._in_facts_order(amount / _asked(self.system)).tolist()
        numbers = self._in_facts_order(number).tolist()
        return tuple(
            (None if other < 0 else self.order[other], how_much if other >= 0 else 0.0)
            for other, how_much in zip(numbers, amount, strict=True)
        )

    @cached_property
    def drift(self) -> float | None:
        """How much of what the layers say over text will be different: `tr(ΔᵀCΔ) / tr(WᵀCW)`, summed over the layers.

        The mean squared change of their values over that of the values. None for a set that was read from a file
        without the second moment.
        """
        if self.kernels is None:
            return None
        moved = [
            kernel.text_energy(here.update.matrix.double())
            for kernel, here in zip(self.kernels, self.layers, strict=True)
        ]
        return sum(moved) / sum(here.text_energy for here in self.terms.layers)

    def conflicts(self, *, above: float = _ONE_KEY) -> list[Conflict]:
        """Pairs of facts with other targets and nearly one key, those with most in common first: each spoils the other.

        Args:
            above: how much keys have in common that count as one, from 0 to 1.

        Raises:
            SettingError: it is no share.
        """
        share = as_real(above)
        if share is None or not 0 <= share <= 1:
            raise SettingError(f"above is {shown(above)}; expected a share from 0 to 1")
        found = []
        for i, j, overlap in self.system.overlaps(share):
            one, other = sorted((self.order[i], self.order[j]))
            if self.facts[one].request.target_new.strip() != self.facts[other].request.target_new.strip():
                found.append((-overlap, one, other))
        return [Conflict(self.facts[one], self.facts[other], -overlap) for overlap, one, other in sorted(found)]

    def figure(self) -> go.Figure:
        """Who disturbs whom, as an interactive plotly figure: of many facts the 40 that are in it most.

        A row for each fact, a column for each that adds to the value at its key, as a share of what was missing there;
        beside it what each falls short by. The most disturbed comes first, and behind it what disturbs it.

        Raises:
            SettingError: the layers were solved one after the other.
        """
        drawn, layers = self.disturbed_facts(), layer_names(self)
        return disturbance_figure(
            drawn,
            title=f"Who disturbs whom · {self.fingerprint.model_name}, {self.variant}, {layers}",
            subtitle=which_facts(len(drawn), len(self.facts)),
        )

    def disturbed_facts(self) -> list[DisturbedFact]:
        """What `figure` draws: the facts that are in it most, with what each adds to the others' values.

        Raises:
            SettingError: the layers were solved one after the other.
        """
        drawn = self._most_in_it()
        row_of = {number: row for row, number in enumerate(self.order)}
        rows = torch.tensor([row_of[number] for number in drawn])
        added = self.system.additions(rows)[:, rows] / _asked(self.system)[rows, None]
        return [
            DisturbedFact(
                number,
                f"{self.facts[number].request.subject} → {self.facts[number].request.target_new.strip()}",
                self.facts[number].words,
                self.shortfall[number].item(),
                shares.tolist(),
            )
            for number, shares in zip(drawn, added, strict=True)
        ]

    def _most_in_it(self) -> list[int]:
        """Numbers of facts, the most disturbed first and each followed by the one that disturbs it, up to a bound."""
        worst = sorted(range(len(self.facts)), key=lambda number: (-self.disturbed_by[number][1], number))
        drawn: dict[int, None] = {}
        for number in worst:
            other = self.disturbed_by[number][0]
            drawn |= dict.fromkeys([number] if other is None else [number, other])
        return list(drawn)[:_DRAWN]

    def to_dataframe(self) -> "pd.DataFrame":
        """A fact a row: what was asked, probabilities before and after, and what the set knows of it.

        Columns: `prompt`, `subject`, `target`, `old_answer`; `before`, `after` (probability of the target), `reached`;
        and for layers that are solved together `shortfall`, `leverage`, `alone`, `disturbed_by` (the other fact's
        words) and `disturbance`. What was not measured is missing.
        """
        import pandas as pd

        rows = []
        for fact in self.facts:
            after = fact.outcome.after
            rows.append(
                {
                    "prompt": fact.request.text,
                    "subject": fact.request.subject,
                    "target": fact.request.target_new.strip(),
                    "old_answer": fact.outcome.old_answer.strip(),
                    "before": fact.outcome.before.target,
                    "after": None if after is None else after.target,
                    "reached": None if after is None else after.reached,
                }
            )
        table = pd.DataFrame(rows).astype({"after": "float64", "reached": "boolean"})
        if self.terms.spread == "joint":
            others = [number for number, _ in self.disturbed_by]
            table = table.assign(
                shortfall=self.shortfall.tolist(),
                leverage=self.leverage.tolist(),
                alone=self.alone.tolist(),
                disturbed_by=[None if number is None else self.facts[number].words for number in others],
                disturbance=[amount for _, amount in self.disturbed_by],
            )
        return table


def _asked(system: System) -> Float[Tensor, " fact"]:
    """How much is missing of each fact, to divide by."""
    return system.lengths(system.residual).clamp(min=torch.finfo(system.residual.dtype).tiny)
