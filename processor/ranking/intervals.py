"""Confidence intervals for means over queries, where the queries of one ship are not independent.

The plain bootstrap, resampling ships, covers too seldom with few ships or with rates near 0 or 1, and is empty at either end.
So the interval of a rate is a Wilson score interval for as many independent queries as tell as much as these do:

* queries / design effect (Kish, "Survey Sampling", 1965, chapter 5); the effect comes from the intraclass correlation, that of
  two queries of a ship over all such pairs, and is 1 where every ship has one query;
* the critical value is Student's t, on the degrees of freedom of what is estimated beside the mean (Satterthwaite, 1946): the
  design effect and, unless all values are 0 or 1, their variance. With hits of one query a ship that is Wilson's own interval;
* a variance below that of hits and misses of the same mean, as average precisions have, is drawn toward that, with the weight
  of two ships: a few ships may be alike by chance.

`benchmarks/interval_coverage.py` measures how often it covers.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import stdtrit

METHOD = "Wilson score interval, queries counted by Kish's design effect of ships, Student's t"
"""What `mean_interval` computes, in words for a table."""

PAIRED_METHOD = "Bonett-Price interval, queries counted by Kish's design effect of ships, Student's t"
"""What `paired_interval` computes, in words for a table."""

MEASURE_METHOD = "Student's t, values counted by Kish's design effect of their groups"
"""What `measure_interval` computes, in words for a report."""

_PRIOR_SHIPS = 2.0
_NO_VARIANCE = 1e-12


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

    @property
    def ends(self) -> list[float]:
        """Both ends, for JSON."""
        return [self.low, self.high]

    def percent(self) -> str:
        """Both ends as a text in percent, for a table."""
        return f"{100 * self.low:.1f}-{100 * self.high:.1f}"


def _spread(values: np.ndarray, identities: np.ndarray, *, variance_is_known: bool) -> tuple[float, float, float]:
    """What values over queries tell of the error of their mean.

    Returns:
        Variance of a query's value; design effect: variance of the mean over that of as many independent queries, 1 to their
        number; degrees of freedom of the two, as one number, infinite where neither is estimated.
    """
    deviations = values - values.mean()
    _, ship, sizes = np.unique(identities, return_inverse=True, return_counts=True)
    queries, variance = len(values), float(np.square(deviations).mean())
    largest = float(np.square(sizes).sum()) / queries  # the design effect of ships whose queries are all alike
    if len(sizes) == 1 or variance < _NO_VARIANCE:
        correlation = 1.0
    elif len(sizes) == queries:
        correlation = 0.0
    else:
        between = float(np.square(np.bincount(ship, deviations)).sum()) / (1 - largest / queries)
        within = variance * queries / (1 - 1 / queries)
        correlation = min(1.0, max(0.0, (between / within - 1) / (largest - 1)))
    effect = 1 + correlation * (largest - 1)
    # Half the variance of the pairs' products, in units of the effect, for normal values that correlate so within a ship.
    noise = (np.square((sizes - 1) * (1 + (sizes - 1) * correlation)) + (sizes - 1) * (1 - correlation) ** 2).sum()
    noise = float(noise) / queries**2
    if not variance_is_known:
        noise += effect**2 / max(1, queries - 1)
    return variance, effect, (1 - 1 / len(sizes)) * effect**2 / noise if noise else np.inf


def _critical_value(degrees: float, level: float) -> float:
    """Two-sided, of Student's t."""
    return float(stdtrit(max(1.0, degrees), (1 + level) / 2))


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
    mean, ships = float(values.mean()), len(np.unique(identities))
    variance, effect, degrees = _spread(values, identities, variance_is_known=bool(np.isin(values, (0, 1)).all()))
    hits = mean * (1 - mean)
    weight = _PRIOR_SHIPS / (ships + _PRIOR_SHIPS)
    variance = (1 - weight) * variance + weight * hits
    # At a mean of 0 or 1 both variances are zero, and every query counts as a hit or a miss.
    count = len(values) / effect * (hits / variance if variance > _NO_VARIANCE else 1)
    squared = _critical_value(degrees, level) ** 2 / count
    centre = (mean + squared / 2) / (1 + squared)
    half = np.sqrt(squared * hits + squared**2 / 4) / (1 + squared)
    low, high = max(0.0, float(centre - half)), min(1.0, float(centre + half))
    return Interval(mean, min(low, mean), max(high, mean), level, len(values), ships)


def measure_interval(values: ArrayLike, groups: ArrayLike, *, lowest: float = -np.inf, level: float = 0.95) -> Interval:
    """Interval of the mean of `values` without an upper limit, such as distances of pictures, where those of a group are alike.

    The variance of the mean is v e / (n - e), of n values with the variance v (over n) and the design effect e: that of n
    independent values for e = 1, and that of the groups' means where all values of a group are equal.

    Args:
        values: (N,) at least `lowest`; NaN for those that do not count.
        groups: (N,) such as ship or place; an `Interval` names them queries and ships.
        lowest: limit of the values, and so of the interval.
        level: probability that the interval holds the true mean.

    Returns:
        The interval. One group says nothing of how groups differ, so its interval goes from `lowest` to infinity.

    Raises:
        ValueError: no value counts, or the lengths differ.
    """
    values, groups = _counted(values, groups, level=level)
    mean, count, number = float(values.mean()), len(values), len(np.unique(groups))
    if number == 1:
        return Interval(mean, lowest, np.inf, level, count, number)
    variance, effect, degrees = _spread(values, groups, variance_is_known=False)
    half = _critical_value(degrees, level) * float(np.sqrt(variance * effect / (count - effect)))
    return Interval(mean, max(lowest, mean - half), mean + half, level, count, number)


def paired_interval(first: ArrayLike, second: ArrayLike, identities: ArrayLike, *, level: float = 0.95) -> Interval:
    """Interval of the mean of `second - first`, two results of the same queries.

    Two more ships of one query are added, one won and one lost, so that few differences, or none, do not look like certainty
    (Bonett and Price, "Adjusted Wald confidence interval for a difference of binomial proportions based on paired data", 2012;
    here with the design effect of ships). They differ by the size of the differences that matter: the root of the mean of their
    squares, weighted by these squares; 1 for hits. `mean` is that of the queries.

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
    size = np.sqrt((changed**4).sum() / (changed**2).sum()) if len(changed) else 1.0
    _, ship = np.unique(identities, return_inverse=True)
    ships = int(ship.max()) + 1
    padded = np.append(differences, [size, -size])
    known = bool(np.isin(differences, (-1, 0, 1)).all())
    variance, effect, degrees = _spread(padded, np.append(ship, [ships, ships + 1]), variance_is_known=known)
    half = _critical_value(degrees, level) * np.sqrt(variance * effect / len(padded))
    mean = float(differences.mean())
    low, high = max(-1.0, float(padded.mean() - half)), min(1.0, float(padded.mean() + half))
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
