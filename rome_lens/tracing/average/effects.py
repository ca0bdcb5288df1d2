"""Effects of many facts by role and layer, and the curves and peaks of their averages."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from rome_lens.intervals import Estimate, mean, resample
from rome_lens.tracing.roles import roles_of


@dataclass(frozen=True)
class Curve:
    """An average effect by layer, over the facts that have the role.

    Attributes:
        mean: [layer], the average indirect effect (AIE).
        low: [layer], lower ends of the 95 % intervals, by bootstrap over facts.
        high: [layer], their upper ends.
        n: how many facts have the role.
    """

    mean: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    n: int


@dataclass(frozen=True)
class Peak:
    """Where a curve is highest.

    Attributes:
        layer: the layer; for a window, its centre.
        first: lower end of the 95 % interval of that layer: draws of other facts peak elsewhere.
        last: its upper end.
        effect: the effect there.
    """

    layer: int
    first: int
    last: int
    effect: Estimate


@dataclass(frozen=True, eq=False)
class Effects:
    """The effects of facts that have a role, and what they amount to.

    Attributes:
        values: [layer, fact].
        seed: of the intervals.
    """

    values: np.ndarray
    seed: int

    @cached_property
    def curve(self) -> Curve:
        """Their average, with intervals."""
        means, low, high = (tuple(map(float, ends)) for ends in resample([self.values], mean, seed=self.seed))
        return Curve(means, low, high, self.values.shape[1])

    @cached_property
    def peak(self) -> Peak:
        """Where the curve is highest, and where it is in draws of other facts."""

        def top(index: np.ndarray, axis: int) -> np.ndarray:
            return self.values[:, index].mean(axis=-1).argmax(axis=0).astype(float)

        facts, curve = np.arange(self.values.shape[1]), self.curve
        layer, first, last = resample([facts], top, seed=self.seed, width=len(self.values))
        at = int(layer)
        effect = Estimate(curve.mean[at], curve.low[at], curve.high[at], curve.n)
        return Peak(at, round(float(first)), round(float(last)), effect)


def effects_by_role(
    facts: Sequence[Mapping[str, Any]], stream: str, severed: str | None, *, seed: int
) -> dict[str, Effects]:
    """The effects of one stream by role: of the facts that have the role, and were traced so.

    Args:
        facts: the records of known facts.
        stream: what was restored.
        severed: what was severed meanwhile; None for nothing.
        seed: of the intervals.
    """
    found: dict[str, list[np.ndarray]] = {}
    for fact in facts:
        if severed is not None and severed not in fact["severed"]:
            continue
        grid = np.array(fact["scores"][stream] if severed is None else fact["severed"][severed])
        at = {pos: column for column, pos in enumerate(fact["severed_at"])}
        for role, positions in roles_of(tuple(fact["subject_span"]), len(fact["tokens"])).items():
            columns = [pos if severed is None else at.get(pos, -1) for pos in positions]
            if -1 not in columns:
                found.setdefault(role, []).append(grid[:, columns].mean(axis=1) - fact["low"])
    return {role: Effects(np.stack(several, axis=1), seed) for role, several in found.items()}
