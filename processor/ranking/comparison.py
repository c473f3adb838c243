"""Two results of the same queries: the paired difference, its interval, and which queries were won and lost."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from processor.ranking.evaluation import Outcome
from processor.ranking.intervals import Interval, paired_interval
from utils.errors import DataError, some

METRICS: Mapping[str, Callable[[Outcome], float]] = {
    "mAP": lambda outcome: np.nan if outcome.AP is None else outcome.AP,
    "R1": lambda outcome: np.nan if outcome.AP is None else float(outcome.first_match == 1),
}
"""Name of a figure -> its value for one query, 0..1; NaN for a query that does not count. The figure is their mean."""

KINDS = ("plain", "fused")


@dataclass(frozen=True)
class Scored:
    """One protocol as a results.json has it: its outcomes and the number of its gallery images."""

    outcomes: tuple[Outcome, ...]
    gallery: int


@dataclass(frozen=True)
class Results:
    """What a comparison needs of a results.json.

    Attributes:
        path: the file.
        scored: (protocol, 'plain' or 'fused') -> its outcomes.
        same_modality: whether gallery images of the query's own modality stayed in.
        images: SHA-256 over the test images.
        content: the whole file.
    """

    path: Path
    scored: Mapping[tuple[str, str], Scored]
    same_modality: bool
    images: str
    content: Mapping[str, Any]


def read_results(path: Path) -> Results:
    """Read a results.json.

    Raises:
        DataError: no such file, or one without the outcome of each query.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        scored = {
            (protocol, kind): Scored(
                tuple(_read_outcome(outcome) for outcome in figures[kind]["per_query"]), int(figures[kind]["gallery"])
            )
            for protocol, figures in content["protocols"].items()
            for kind in KINDS
            if figures[kind] is not None
        }
        own, images = content["counting"]["same_modality_gallery"], content["data"]["sha256"]
        selection = content.get("selection")
        if not isinstance(own, bool) or not isinstance(images, str) or not isinstance(selection, dict | None):
            raise TypeError("counting, data or selection")
        return Results(path, scored, own, images, content)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); give a results.json that test.py wrote") from error
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(
            f"{path} does not tell the outcome of each query; it should be a results.json of this test.py: test again"
        ) from error


def _read_outcome(fields: Mapping[str, Any]) -> Outcome:
    """The outcome of one query. Raises TypeError or ValueError if a field is not what `Outcome` says."""
    found = Outcome(**fields)
    precision = 0.0 if found.AP is None else found.AP
    if not isinstance(found.query, str) or not 0 <= precision <= 1:
        raise ValueError(found.query)
    if not all(type(number) is int for number in (found.ship, found.first_match)):
        raise TypeError(found.query)
    return found


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
    first, second = (sorted(outcomes, key=lambda outcome: outcome.query) for outcomes in (first, second))
    _refuse_other_queries(first, second)
    before, after = (np.array([METRICS[metric](outcome) for outcome in outcomes]) for outcomes in (first, second))
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


def _refuse_other_queries(first: Sequence[Outcome], second: Sequence[Outcome]) -> None:
    ours, theirs = ({(outcome.query, outcome.ship) for outcome in outcomes} for outcomes in (first, second))
    told = [
        f"only the {which} has {some(sorted(name for name, _ in names))}"
        for which, names in (("first", ours - theirs), ("second", theirs - ours))
        if names
    ]
    if told:
        raise DataError(f"the two results are not of the same queries: {'; '.join(told)}; compare tests of the same data set")
    if len(ours) != len(first) or len(theirs) != len(second):
        raise DataError("a query comes twice in a result, so that the two cannot be paired; test again")
