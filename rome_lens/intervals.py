"""Means with their 95 % intervals, by bootstrap over what is independent: records or facts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

_CONFIDENCE = 0.95
_RESAMPLES = 5000
# Numbers that are resampled at once.
_AT_ONCE = 2**22

Statistic = Callable[..., np.ndarray]
"""What is estimated, of columns of samples, along `axis`."""


@dataclass(frozen=True)
class Estimate:
    """A mean, or another statistic, over records or facts.

    Attributes:
        mean: of those that have the quantity.
        low: lower end of the 95 % interval, by bootstrap over them.
        high: its upper end.
        n: how many they are.
    """

    mean: float
    low: float
    high: float
    n: int


def estimate(columns: Sequence[Sequence[float]], statistic: Statistic, *, seed: int) -> Estimate:
    """A statistic with its percentile interval; all columns of a draw hold the same records.

    Args:
        columns: [column][record].
        statistic: of the columns, along an axis.
        seed: of the draws.
    """
    arrays = [np.array(column, dtype=float) for column in columns]
    exact, low, high = resample(arrays, statistic, seed=seed)
    return Estimate(float(exact), float(low), float(high), len(arrays[0]))


def resample(
    columns: Sequence[np.ndarray], statistic: Statistic, *, seed: int, width: int = 1
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The same for many quantities at once, whose draws are the same.

    Args:
        columns: [..., record] each.
        statistic: of the columns, along the last axis.
        seed: of the draws.
        width: how many numbers the statistic looks up for each that is drawn, where it draws numbers of records.

    Returns:
        The statistic, and the ends of its interval: all the same where there is one record alone.
    """
    from scipy.stats import bootstrap

    exact = np.asarray(statistic(*columns, axis=-1))
    if columns[0].shape[-1] < 2:
        return exact, exact, exact
    # A ruined model's perplexity is so large that the standard error, which is not used, is not finite.
    with np.errstate(over="ignore"):
        found = bootstrap(
            columns,
            statistic,
            paired=True,
            vectorized=True,
            axis=-1,
            n_resamples=_RESAMPLES,
            batch=max(1, _AT_ONCE // (columns[0].size * width)),
            confidence_level=_CONFIDENCE,
            method="percentile",
            rng=seed,
        ).confidence_interval
    return exact, np.asarray(found.low), np.asarray(found.high)


def mean(values: np.ndarray, axis: int) -> np.ndarray:
    """The mean, as `estimate` takes a statistic."""
    return values.mean(axis=axis)
