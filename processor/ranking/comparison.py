"""Two results of the same queries: the paired difference, its interval, and which queries were won and lost."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from processor.ranking.intervals import Interval, measure_interval, paired_interval
from processor.ranking.results import Outcome
from utils.errors import DataError, some

METRICS: Mapping[str, Callable[[Outcome], float]] = {
    "mAP": lambda outcome: np.nan if outcome.AP is None else outcome.AP,
    "R1": lambda outcome: np.nan if outcome.AP is None else float(outcome.first_match == 1),
}
"""Name of a figure -> its value for one query, 0..1; NaN for a query that does not count. The figure is their mean."""


@dataclass(frozen=True)
class Comparison:
    """One figure of two results of the same queries.

    Attributes:
        first, second: the figure, over the queries that count in both, 0..1.
        difference: second less first, with its 95 % interval.
        won, lost: file names of the queries whose value is higher, or lower, in the second, the largest change first.
    """

    first: float
    second: float
    difference: Interval
    won: tuple[str, ...]
    lost: tuple[str, ...]

    @property
    def verdict(self) -> str:
        """'better', 'worse', or 'no difference shown' where the interval holds zero."""
        if self.difference.low > 0:
            return "better"
        return "worse" if self.difference.high < 0 else "no difference shown"


def compare_outcomes(first: Sequence[Outcome], second: Sequence[Outcome], metric: str) -> Comparison:
    """Compare a figure ('mAP' or 'R1') of two results, query by query; their order does not matter.

    Raises:
        DataError: the queries are not the same; the message names some of them.
        ValueError: no query counts in both.
    """
    return compare_repeats([first], [second], metric)


def compare_repeats(first: Sequence[Sequence[Outcome]], second: Sequence[Sequence[Outcome]], metric: str) -> Comparison:
    """Compare the means over repeats, such as the seeds of a training: a query's value is its mean over them.

    Args:
        first, second: outcomes of each repeat, all of the same queries, in any order.
        metric: 'mAP' or 'R1'.

    Raises:
        DataError, ValueError: as `compare_outcomes`.
    """
    first, second = ([sorted(own, key=lambda outcome: outcome.query) for own in side] for side in (first, second))
    for outcomes in (*first[1:], *second):
        _refuse_other_queries(first[0], outcomes)
    before, after = (
        np.mean([[METRICS[metric](outcome) for outcome in own] for own in side], axis=0) for side in (first, second)
    )
    first = first[0]
    difference = paired_interval(before, after, [outcome.ship for outcome in first])
    counted = np.isfinite(before) & np.isfinite(after)
    change = np.where(counted, after - before, 0.0)
    names = [outcome.query for outcome in first]
    order = np.argsort(-np.abs(change), kind="stable")
    return Comparison(
        first=float(before[counted].mean()),
        second=float(after[counted].mean()),
        difference=difference,
        won=tuple(names[place] for place in order if change[place] > 0),
        lost=tuple(names[place] for place in order if change[place] < 0),
    )


def gap_closed(plain: Sequence[Outcome], result: Sequence[Outcome], goal: Sequence[Outcome], metric: str) -> Interval | None:
    """Share of the way from one result to a goal that another one goes: (result - plain) / (goal - plain), of a figure.

    The interval is that of a ratio of means (the delta method: Cochran, "Sampling Techniques", 1977, section 6.4): the mean of
    (result - plain) - share (goal - plain) over queries, clustered by ship, divided by the mean of (goal - plain).

    Args:
        plain, result, goal: outcomes of the same queries, in any order.
        metric: 'mAP' or 'R1'.

    Returns:
        The share, 1 for all of the way; None where the goal is not shown to be better than plain, and there is no way to go.
    """
    if compare_outcomes(plain, goal, metric).verdict != "better":
        return None
    _refuse_other_queries(plain, result)
    sides = [sorted(outcomes, key=lambda outcome: outcome.query) for outcomes in (plain, result, goal)]
    start, reached, end = (np.array([METRICS[metric](outcome) for outcome in outcomes]) for outcomes in sides)
    way = float(np.nanmean(end - start))
    share = float(np.nanmean(reached - start)) / way
    error = measure_interval(reached - start - share * (end - start), [outcome.ship for outcome in sides[0]])
    return replace(error, mean=share, low=share + error.low / way, high=share + error.high / way)


def _refuse_other_queries(first: Sequence[Outcome], second: Sequence[Outcome]) -> None:
    ours, theirs = ({(outcome.query, outcome.ship) for outcome in outcomes} for outcomes in (first, second))
    told = [
        f"only the {which} has {some(sorted(name for name, _ in names), 2)}"
        for which, names in (("first", ours - theirs), ("second", theirs - ours))
        if names
    ]
    if told:
        raise DataError(f"the two results are not of the same queries: {'; '.join(told)}; compare tests of the same data set")
    if len(ours) != len(first) or len(theirs) != len(second):
        raise DataError("a query comes twice in a result, so that the two cannot be paired; test again")
