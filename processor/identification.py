"""Which known ship a picture shows, with a probability, and whether it is any of them.

The nearest chip of each known ship tells its distance. The probability that the nearest ship is right comes from that
distance, from how much farther the next ship is, and from how many ships were looked among, by logistic regression: one for
each direction (sensor of the query, sensor of the known chip), fitted on ships that the network was not trained on. Half of the
queries that it is fitted on show a ship that is not among the known.

Legend: Q queries, G known chips, S known ships.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datasets.records import Modality

NAMES = {Modality.OPTICAL: "optical", Modality.SAR: "sar"}
TIE = 1e-6
"""Squared distances nearer to each other than this are one."""


@dataclass(frozen=True)
class Nearest:
    """What the known chips of one sensor tell of queries.

    Attributes:
        ship: (Q,) the nearest ship.
        runner_up: (Q,) the next one; -1 among one ship.
        distance: (Q,) of the nearest, squared; infinite where no chip counts.
        margin: (Q,) how much farther the next is.
        ships: (Q,) number of ships among which.
    """

    ship: NDArray[np.int64]
    runner_up: NDArray[np.int64]
    distance: NDArray[np.float64]
    margin: NDArray[np.float64]
    ships: NDArray[np.int64]

    def evidence(self) -> NDArray[np.float64]:
        """(Q, 3): what the regression sees."""
        return np.column_stack([self.distance, self.margin, np.log(np.maximum(self.ships, 1))])


def find_nearest(distances: NDArray[np.floating], ships: NDArray[np.int64], count: int) -> Nearest:
    """The nearest ship of each query.

    Args:
        distances: (Q, G) squared; infinite for chips that do not count.
        ships: (G,) ship of each known chip, 0..count-1.
        count: of ships, S.
    """
    nearest = np.full((len(distances), count), np.inf)
    places = np.argsort(ships, kind="stable")
    starts = np.flatnonzero(np.diff(ships[places], prepend=-1))
    nearest[:, ships[places[starts]]] = np.minimum.reduceat(distances[:, places], starts, axis=1)
    order = np.argsort(nearest, axis=1, kind="stable")[:, :2]
    best = np.take_along_axis(nearest, order, axis=1)
    second = best[:, 1] if count > 1 else np.full(len(distances), np.inf)
    # Alone among the known, the distance itself is all that tells; 4 is the largest of normalised features.
    margin = np.where(np.isfinite(second), second, 4.0) - best[:, 0]
    runner_up = np.where(np.isfinite(second), order[:, -1], -1)
    return Nearest(order[:, 0], runner_up, best[:, 0], np.nan_to_num(margin), np.isfinite(nearest).sum(axis=1))


@dataclass(frozen=True)
class Calibration:
    """From distances to probabilities, for one network and its settings.

    Attributes:
        weights_sha256: of the network.
        settings: all else that decides features (`processor.feature_store.build_origin`).
        directions: 'optical->sar' and so on -> intercept and the three weights of `Nearest.evidence`; a direction without
            enough answers is left out.
        sensors: sensor of the query -> intercept and slope that a direction's log-odds get after the surer of the two sensors
            of known chips was taken, which alone would make answers too sure.
        impostors: sensor of the query -> probabilities of answers to queries of unknown ships, at 0, 0.1, .. 100 percent.
        ships: number of ships that it was fitted on.
        both_ends: whether queries are turned by 180 degrees too, and the nearer of the two counts.
    """

    weights_sha256: str
    settings: dict[str, Any]
    directions: dict[str, list[float]]
    sensors: dict[str, list[float]]
    impostors: dict[str, list[float]]
    ships: int
    both_ends: bool = False

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    def threshold(self, modality: Modality, rate: float) -> float:
        """The probability that a share of `rate` of the queries of unknown ships reach."""
        return float(np.interp(1 - rate, np.linspace(0, 1, 1001), self.impostors[NAMES[modality]]))


@dataclass(frozen=True)
class Answers:
    """What queries show.

    Attributes:
        ship: (Q,) the most probable known ship.
        probability: (Q,) that it is the right one.
        runner_up: (Q,) the next ship in the direction that decided; -1 for none.
        sensor: (Q,) modality of the known chips that decided.
        tied: (Q,) whether the two ships are equally near.
    """

    ship: NDArray[np.int64]
    probability: NDArray[np.float64]
    runner_up: NDArray[np.int64]
    sensor: NDArray[np.int64]
    tied: NDArray[np.bool_]


def direction(query: int, known: int) -> str:
    """The name of a direction: 'optical->sar'."""
    return f"{NAMES[Modality(query)]}->{NAMES[Modality(known)]}"


def answer_queries(
    distances: NDArray[np.floating],
    query_modalities: NDArray[np.int64],
    ships: NDArray[np.int64],
    modalities: NDArray[np.int64],
    directions: dict[str, list[float]],
    sensors: dict[str, list[float]] | None = None,
) -> Answers:
    """The most probable ship of each query; of the two sensors of known chips the one that is surer decides.

    Args:
        distances: (Q, G) squared, between normalised features; infinite for chips that do not count.
        query_modalities: (Q,).
        ships: (G,) ship of each known chip, 0..S-1.
        modalities: (G,) of the known chips.
        directions, sensors: of a `Calibration`.
    """
    count, queries = int(ships.max()) + 1, len(distances)
    found = Answers(
        np.zeros(queries, np.int64),
        np.zeros(queries),
        np.full(queries, -1),
        np.zeros(queries, np.int64),
        np.zeros(queries, bool),
    )
    for known in np.unique(modalities):
        nearest = find_nearest(np.where(modalities == known, distances, np.inf), ships, count)
        for asking in np.unique(query_modalities):
            weights = directions.get(direction(asking, known))
            if weights is None:
                continue
            logits = weights[0] + nearest.evidence() @ np.array(weights[1:])
            sure = np.where(np.isfinite(nearest.distance), 1 / (1 + np.exp(-np.clip(logits, -50, 50))), 0)
            surer = (query_modalities == asking) & (sure > found.probability)
            found.ship[surer], found.runner_up[surer] = nearest.ship[surer], nearest.runner_up[surer]
            found.probability[surer], found.sensor[surer] = sure[surer], known
            found.tied[surer] = (nearest.margin < TIE)[surer]
    for asking, (intercept, slope) in ((asking, (sensors or {}).get(NAMES[asking], (0.0, 1.0))) for asking in Modality):
        own = (query_modalities == asking) & (found.probability > 0)
        found.probability[own] = 1 / (1 + np.exp(-intercept - slope * log_odds(found.probability[own])))
    return found


def log_odds(probability: NDArray[np.float64]) -> NDArray[np.float64]:
    """log(p / (1 - p)), of probabilities a little within 0 and 1."""
    sure = np.clip(probability, 1e-15, 1 - 1e-15)
    return np.log(sure) - np.log1p(-sure)
