"""Confidence intervals for means over queries, where the queries of one ship are not independent.

The plain bootstrap, resampling ships, covers too seldom with few ships or with rates near 0 or 1, and is empty at either end.
So the interval of a rate is a Wilson score interval for as many independent queries as tell as much as these do:

* the variance of the mean is that between ships (Kish, "Survey Sampling", 1965, section 6.3; what resampling ships estimates),
  not less than that of independent queries;
* the critical value is Student's t, on the effective number of ships: (sum n_s)^2 / sum n_s^2 for n_s queries of ship s;
* a variance below that of hits and misses of the same mean, as average precisions have, is drawn toward that, with the weight
  of two ships: a few ships may be alike by chance.

`benchmarks/interval_coverage.py` measures how often it covers.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import stdtrit

METHOD = "Wilson score interval, variance between ships, Student's t on the effective number of ships"
"""What `mean_interval` computes, in words for a table."""

PAIRED_METHOD = "Bonett-Price interval, variance between ships, Student's t on the effective number of ships"
"""What `paired_interval` computes, in words for a table."""

_PRIOR_SHIPS = 2.0


@dataclass(frozen=True)
class Interval:
    """A mean over queries and the range that holds its true value with probability `level`.

    Attributes:
        mean: over the queries that count.
        low: lower end.
        high: upper end.
        level: such as 0.95.
        queries: number of queries that count.
        ships: number of their identities.
    """

    mean: float
    low: float
    high: float
    level: float
    queries: int
    ships: int


@dataclass(frozen=True)
class _Moments:
    """Mean over queries, its variance between ships, and how many equal ships would be as informative."""

    mean: float
    variance: float
    queries: int
    ships: int
    effective_ships: float

    @classmethod
    def of(cls, values: np.ndarray, identities: np.ndarray) -> "_Moments":
        mean = values.mean()
        _, ship, sizes = np.unique(identities, return_inverse=True, return_counts=True)
        deviations = np.bincount(ship, values - mean)
        ships, queries = len(sizes), len(values)
        variance = ships / max(1, ships - 1) * np.square(deviations).sum() / queries**2
        return cls(float(mean), float(variance), queries, ships, queries**2 / float(np.square(sizes).sum()))

    def critical_value(self, level: float) -> float:
        """Two-sided, of Student's t."""
        return float(stdtrit(max(1.0, self.effective_ships - 1), (1 + level) / 2))


def mean_interval(values: ArrayLike, identities: ArrayLike, *, level: float = 0.95) -> Interval:
    """Interval of the mean of `values` over queries: of R1 from `RetrievalResult.hits(1)`, of mAP from `average_precision`.

    It has a width at 0 and 1 too. One ship says nothing of how ships differ, so its interval is nearly the whole range.

    Args:
        values: (Q,) in 0..1; NaN for queries that do not count.
        identities: (Q,) ship of each query.
        level: probability that the interval holds the true mean.

    Raises:
        ValueError: no query counts, a value lies outside 0..1, or the lengths differ.
    """
    values, identities = _counted(values, identities, level=level)
    if values.min() < 0 or values.max() > 1:
        raise ValueError("the values of a rate lie in 0..1")
    moments = _Moments.of(values, identities)
    mean, critical = moments.mean, moments.critical_value(level)
    hits = mean * (1 - mean)
    independent = values.var() / moments.queries
    variance = max(moments.variance, independent)
    if variance < hits / moments.queries:
        weight = _PRIOR_SHIPS / (moments.effective_ships + _PRIOR_SHIPS)
        variance = (1 - weight) * variance + weight * hits / moments.queries
    # Values that are all alike show no variance; each ship is then taken as one query.
    count = hits / variance if independent > 1e-12 else moments.effective_ships
    squared = critical**2 / count
    centre = (mean + squared / 2) / (1 + squared)
    half = np.sqrt(squared * hits + squared**2 / 4) / (1 + squared)
    low, high = max(0.0, float(centre - half)), min(1.0, float(centre + half))
    return Interval(mean, min(low, mean), max(high, mean), level, moments.queries, moments.ships)


def paired_interval(first: ArrayLike, second: ArrayLike, identities: ArrayLike, *, level: float = 0.95) -> Interval:
    """Interval of the mean of `second - first`, two results of the same queries.

    Two more ships of one query are added, one won and one lost by the typical (root mean square) size of a difference, so that
    few differences, or none, do not look like certainty (Bonett and Price, "Adjusted Wald confidence interval for a difference
    of binomial proportions based on paired data", 2012; here with the variance between ships). `mean` is that of the queries.

    Args:
        first: (Q,) in 0..1; NaN for queries that do not count.
        second: (Q,) likewise.
        identities: (Q,) ship of each query.
        level: probability that the interval holds the true mean difference.

    Raises:
        ValueError: no query counts in both, or the lengths differ.
    """
    differences = np.asarray(second, dtype=np.float64) - np.asarray(first, dtype=np.float64)
    differences, identities = _counted(differences, identities, level=level)
    changed = differences[differences != 0]
    size = np.sqrt(np.square(changed).mean()) if len(changed) else 1.0
    _, ship = np.unique(identities, return_inverse=True)
    ships = int(ship.max()) + 1
    padded = _Moments.of(np.append(differences, [size, -size]), np.append(ship, [ships, ships + 1]))
    half = padded.critical_value(level) * np.sqrt(padded.variance)
    mean = float(differences.mean())
    low, high = max(-1.0, float(padded.mean - half)), min(1.0, float(padded.mean + half))
    return Interval(mean, min(low, mean), max(high, mean), level, len(differences), ships)


def _counted(values: ArrayLike, identities: ArrayLike, *, level: float) -> tuple[np.ndarray, np.ndarray]:
    """The values and identities of the queries that count."""
    values, identities = np.asarray(values, dtype=np.float64), np.asarray(identities)
    if values.ndim != 1 or values.shape != identities.shape:
        raise ValueError(f"one value and one identity for each query, not {values.shape} and {identities.shape}")
    if not 0 < level < 1:
        raise ValueError(f"the level of an interval lies between 0 and 1, not at {level}")
    counted = ~np.isnan(values)
    if not counted.any():
        raise ValueError("no query counts")
    return values[counted], identities[counted]
