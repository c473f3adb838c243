"""From distances to probabilities: what `processor.identification` needs is fitted here, and judged, on ships of its own.

Chips of ships that the network was not trained on are drawn again and again as known ones and as queries, half of which show a
ship that is not among the known.

Legend: Q queries, G known chips, I chips, N answers.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from datasets.records import Modality
from processor.identification import NAMES, Calibration, answer_queries, direction, find_nearest, log_odds
from processor.ranking.intervals import Interval, mean_interval

ROUNDS = 40
"""Draws of known ships that a calibration is fitted on."""

LEAST_ANSWERS = 30
"""Right and wrong answers of a direction, each, below which nothing is fitted to them."""

RATES = (0.01, 0.05, 0.1)
"""False-alarm rates at which identification is told."""

BINS = 10
"""Of equal counts, for the expected calibration error."""


@dataclass(frozen=True)
class Lineup:
    """A draw of known ships and of what is asked of them.

    Attributes:
        known: indices of the known chips.
        queries: indices of the queries.
        ships: (G,) ship of each known chip, 0..S-1.
        right: (Q,) that number of each query's ship; -1 where it is not among the known.
    """

    known: NDArray[np.int64]
    queries: NDArray[np.int64]
    ships: NDArray[np.int64]
    right: NDArray[np.int64]


def draw_lineups(identities: NDArray[np.int64], *, rounds: int, seed: int) -> Iterator[Lineup]:
    """Draw which ships are known, a tenth to nine tenths of them, and by which of their chips; all other chips are queries."""
    rng = np.random.default_rng(seed)
    names = np.unique(identities)
    for _ in range(rounds):
        known_ships = rng.choice(names, max(2, int(len(names) * rng.uniform(0.1, 0.9))), replace=False)
        is_known = np.zeros(len(identities), bool)
        for ship in known_ships:
            own = rng.permutation(np.flatnonzero(identities == ship))
            is_known[own[: rng.integers(1, max(2, len(own)))]] = True
        known, queries = np.flatnonzero(is_known), np.flatnonzero(~is_known)
        order = np.unique(identities[known])
        ships = np.searchsorted(order, identities[known])
        places = np.minimum(np.searchsorted(order, identities[queries]), len(order) - 1)
        yield Lineup(known, queries, ships, np.where(order[places] == identities[queries], places, -1))


def fit_directions(
    distances: NDArray[np.floating], identities: NDArray[np.int64], modalities: NDArray[np.int64], *, seed: int
) -> dict[str, list[float]]:
    """Fit the regression of every direction that has enough answers.

    Args:
        distances: (I, I) squared, between all chips of the calibration's ships.
        identities: (I,) ship of each.
        modalities: (I,) sensor of each.
        seed: of the draws.
    """
    seen: dict[str, list[tuple[NDArray, NDArray, NDArray]]] = {}
    for lineup in draw_lineups(identities, rounds=ROUNDS, seed=seed):
        count = int(lineup.ships.max()) + 1
        for known in np.unique(modalities[lineup.known]):
            own = modalities[lineup.known] == known
            part = np.where(own, distances[np.ix_(lineup.queries, lineup.known)], np.inf)
            nearest = find_nearest(part, lineup.ships, count)
            here = np.isin(np.arange(count), lineup.ships[own])
            for asking in np.unique(modalities[lineup.queries]):
                mine = (modalities[lineup.queries] == asking) & np.isfinite(nearest.distance)
                right = lineup.right[mine]
                # A ship known by the other sensor only is not among the known of this one.
                is_there = (right >= 0) & here[np.maximum(right, 0)]
                told = (nearest.evidence()[mine], nearest.ship[mine] == right, is_there)
                seen.setdefault(direction(asking, known), []).append(told)
    fitted = {}
    for name, parts in seen.items():
        evidence, right, is_there = (np.concatenate(values) for values in zip(*parts))
        if min(right.sum(), (~right).sum()) >= LEAST_ANSWERS:
            weights = np.where(is_there, 0.5 / max(is_there.mean(), 1e-9), 0.5 / max((~is_there).mean(), 1e-9))
            fitted[name] = _logistic(evidence, right, weights)
    return fitted


def _logistic(evidence: NDArray, right: NDArray, weights: NDArray) -> list[float]:
    """Intercept and weights of a regression on what was seen, standardised while it is fitted."""
    middle, spread = evidence.mean(axis=0), evidence.std(axis=0) + 1e-12
    model = LogisticRegression(C=100.0).fit((evidence - middle) / spread, right, sample_weight=weights)
    slopes = model.coef_[0] / spread
    return [float(model.intercept_[0] - slopes @ middle), *map(float, slopes)]


@dataclass(frozen=True)
class Tried:
    """Answers to queries of which the ship is known, for figures.

    Attributes:
        probability: (N,) that the answer is right.
        right: (N,) whether it is.
        is_known: (N,) whether the query's ship was among the known.
        modality: (N,) of the query.
        identity: (N,) ship of the query.
    """

    probability: NDArray[np.float64]
    right: NDArray[np.bool_]
    is_known: NDArray[np.bool_]
    modality: NDArray[np.int64]
    identity: NDArray[np.int64]


def try_answers(
    distances: NDArray[np.floating],
    identities: NDArray[np.int64],
    modalities: NDArray[np.int64],
    directions: dict[str, list[float]],
    sensors: dict[str, list[float]] | None = None,
    *,
    rounds: int,
    seed: int,
) -> Tried:
    """Ask in draws of known ships; see `draw_lineups`."""
    rows = []
    for lineup in draw_lineups(identities, rounds=rounds, seed=seed):
        part = distances[np.ix_(lineup.queries, lineup.known)]
        told = answer_queries(part, modalities[lineup.queries], lineup.ships, modalities[lineup.known], directions, sensors)
        right = (told.ship == lineup.right) & (told.probability > 0)
        rows.append((told.probability, right, lineup.right >= 0, modalities[lineup.queries], identities[lineup.queries]))
    return Tried(*(np.concatenate(values) for values in zip(*rows)))


def fit_sensors(tried: Tried) -> dict[str, list[float]]:
    """Fit what the log-odds of each sensor's queries get, on answers that were made without it."""
    fitted, weights = {}, balance(tried)
    for modality in Modality:
        own = (tried.modality == modality) & (tried.probability > 0)
        if min((tried.right & own).sum(), (~tried.right & own).sum()) >= LEAST_ANSWERS:
            evidence = log_odds(tried.probability[own])[:, None]
            fitted[NAMES[modality]] = _logistic(evidence, tried.right[own], weights[own])
    return fitted


def fit_calibration(
    distances: NDArray[np.floating],
    identities: NDArray[np.int64],
    modalities: NDArray[np.int64],
    *,
    weights_sha256: str,
    settings: dict[str, Any],
    seed: int = 0,
    both_ends: bool = False,
) -> Calibration:
    """Fit everything that turns distances into answers.

    Args:
        distances, identities, modalities: see `fit_directions`.
        weights_sha256, settings, both_ends: see `Calibration`.
        seed: of the draws.
    """
    directions = fit_directions(distances, identities, modalities, seed=seed)
    sensors = fit_sensors(try_answers(distances, identities, modalities, directions, rounds=ROUNDS, seed=seed + 1))
    tested = try_answers(distances, identities, modalities, directions, sensors, rounds=ROUNDS, seed=seed + 2)
    impostors = {}
    for modality in np.unique(modalities):
        own = tested.probability[(tested.modality == modality) & ~tested.is_known]
        impostors[NAMES[Modality(modality)]] = [float(f"{v:.6g}") for v in np.quantile(own, np.linspace(0, 1, 1001))]
    return Calibration(weights_sha256, settings, directions, sensors, impostors, len(np.unique(identities)), both_ends)


# Figures


def balance(tested: Tried) -> NDArray[np.float64]:
    """(N,) weights by which known and unknown ships count half each, as in the fit."""
    share = tested.is_known.mean()
    return np.where(tested.is_known, 0.5 / max(share, 1e-9), 0.5 / max(1 - share, 1e-9))


def reliability(tested: Tried) -> NDArray[np.float64]:
    """(bins, 3): mean probability, share of right answers and weight, in `BINS` bins of equal weight."""
    weights = balance(tested)
    order = np.argsort(tested.probability, kind="stable")
    bins = np.minimum((np.cumsum(weights[order]) / weights.sum() * BINS).astype(int), BINS - 1)
    rows = []
    for number in np.unique(bins):
        own = order[bins == number]
        mass = weights[own].sum()
        rows.append([np.average(v[own], weights=weights[own]) for v in (tested.probability, tested.right)] + [mass])
    return np.array(rows)


def calibration_error(tested: Tried) -> float:
    """The expected calibration error (Guo et al. 2017): mean difference of probability and share of right answers."""
    rows = reliability(tested)
    return float(np.average(np.abs(rows[:, 0] - rows[:, 1]), weights=rows[:, 2]))


def calibration_interval(tested: Tried, *, draws: int = 200, seed: int = 0, level: float = 0.95) -> tuple[float, float]:
    """Percentile bootstrap of `calibration_error` over ships. Few ships make it too large, never too small: noise adds."""
    rng = np.random.default_rng(seed)
    names, places = np.unique(tested.identity, return_inverse=True)
    rows = [np.flatnonzero(places == number) for number in range(len(names))]
    errors = []
    for _ in range(draws):
        chosen = np.concatenate([rows[number] for number in rng.integers(len(names), size=len(names))])
        errors.append(calibration_error(Tried(*(value[chosen] for value in vars(tested).values()))))
    low, high = np.quantile(errors, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def identification_rates(tested: Tried, rates: Sequence[float] = RATES) -> list[tuple[float, Interval]]:
    """Detection and identification rate: of queries of known ships, the share answered rightly above the probability that a
    share `rate` of the queries of unknown ships reach (Phillips et al. 2011), with its interval.
    """
    known = tested.is_known
    found = []
    for rate in rates:
        least = np.quantile(tested.probability[~known], 1 - rate)
        hits = (tested.right & (tested.probability > least))[known]
        found.append((rate, mean_interval(hits.astype(float), tested.identity[known])))
    return found
