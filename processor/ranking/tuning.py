"""Choosing among settings that were tried on the same queries, and what the choice is worth on queries it did not see."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from datasets.records import Chip, Protocol
from processor.ranking.comparison import METRICS, Comparison, compare_outcomes
from processor.ranking.evaluation import Ranking, rank_protocol, score_protocol
from processor.ranking.results import Outcome, Score


@dataclass(frozen=True)
class Trial:
    """One setting and its figures.

    Attributes:
        setting: what was tried, by name.
        scores: protocol -> figures.
        seconds: that it costs beside what every setting costs.
    """

    setting: Mapping[str, Any]
    scores: Mapping[str, Score]
    seconds: float


def score_features(
    protocols: Mapping[str, Protocol], records: Sequence[Chip], features: Tensor, ranking: Ranking
) -> dict[str, Score]:
    """The figures of every protocol with features (I, D) that are normalised where they should be."""
    return {
        name: score_protocol(protocol, rank_protocol(protocol, features, records, ranking), records)
        for name, protocol in protocols.items()
    }


def choose(trials: Sequence[Trial], *, protocol: str, metric: str, without: Collection[int] = ()) -> Trial:
    """The trial with the highest figure of a protocol, the first of equals, over queries of ships that are not in `without`.

    Args:
        trials: of the same queries.
        protocol: such as 'ALL'.
        metric: 'mAP' or 'R1'.
        without: pids of ships whose queries are not looked at.
    """
    value = METRICS[metric]
    excluded = frozenset(without)

    def figure(trial: Trial) -> float:
        outcomes = trial.scores[protocol].per_query
        return float(np.nanmean([value(outcome) for outcome in outcomes if outcome.ship not in excluded]))

    return max(trials, key=figure)


def choose_on_other_ships(
    trials: Sequence[Trial], *, protocol: str, metric: str, folds: int = 5, seed: int = 0
) -> dict[str, tuple[Outcome, ...]]:
    """Outcomes of each query under the setting that queries of other ships choose: cross-fitting.

    The best of many settings looks good on the queries that chose it, even where all are equal. Here the ships are dealt into
    `folds` parts, and the setting for each part is chosen on the rest.

    Returns:
        Protocol -> outcomes, of every protocol that the trials have.
    """
    counted = {outcome.ship for outcome in trials[0].scores[protocol].per_query if outcome.AP is not None}
    others = {outcome.ship for score in trials[0].scores.values() for outcome in score.per_query} - counted
    ships = np.random.default_rng(seed).permutation(sorted(counted)).tolist()
    found: dict[str, list[Outcome]] = {name: [] for name in trials[0].scores}
    parts = [set(ships[part::folds]) for part in range(min(folds, len(ships)))]
    for number, part in enumerate(parts):
        # The only ship there is can but choose for itself.
        best = choose(trials, protocol=protocol, metric=metric, without=part if len(parts) > 1 else ())
        own = part | others if number == 0 else part
        for name, score in best.scores.items():
            found[name] += [outcome for outcome in score.per_query if outcome.ship in own]
    return {name: tuple(outcomes) for name, outcomes in found.items()}


def compare_choice(
    baseline: Mapping[str, Score], trials: Sequence[Trial], *, protocol: str, metric: str
) -> dict[str, Comparison]:
    """What choosing among the trials gains over the baseline, by protocol, each query under a setting that others chose."""
    chosen = choose_on_other_ships(trials, protocol=protocol, metric=metric)
    return {name: compare_outcomes(baseline[name].per_query, outcomes, metric) for name, outcomes in chosen.items()}
