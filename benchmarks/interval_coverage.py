"""How often the intervals of `utils.intervals` hold the true mean, in simulated rankings.

    python -m benchmarks.interval_coverage [--draws 2000] [--seed 0]

Prints a Markdown table. A query's score for each of its 1 to 3 matches is normal around the strength of its ship, for each of
the other images of a gallery of 60 around 0; strengths differ between ships. Test sets are draws of ships from a large
population, whose mean is the true value. The plain percentile bootstrap over ships stands beside, from the same draws.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date

import numpy as np

from utils.intervals import mean_interval, paired_interval

GALLERY = 60
RESAMPLES = 200
QUERIES = (30, 67, 176)
STRENGTHS = ((0.5, 0.5), (2.0, 1.0), (2.7, 1.0), (4.2, 1.2))
"""Mean strength of ships and its deviation: R1 of about 0.12, 0.55, 0.73 and 0.93."""
QUERIES_OF_SHIPS = {"1": [1], "3": [3], "1 to 5": [1, 2, 3, 4, 5], "1, one in ten has 8": [1] * 9 + [8]}
"""Name of a structure -> the numbers of queries that ships have, equally often."""


@dataclass(frozen=True)
class Population:
    """Queries of many ships, each ranked by two models: `hits`, `precision` (2, N), and `starts` of each ship's run."""

    hits: np.ndarray
    precision: np.ndarray
    starts: np.ndarray

    def draw(self, queries: int, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Places of `queries` queries of ships drawn at random, and the ship of each."""
        chosen = random.integers(0, len(self.starts) - 1, queries)
        places = [np.arange(self.starts[ship], self.starts[ship + 1]) for ship in chosen]
        ships = np.repeat(np.arange(queries), [len(place) for place in places])
        return np.concatenate(places)[:queries], ships[:queries]


def make_population(
    strength: float, spread: float, sizes: Sequence[int], *, ships: int, random: np.random.Generator
) -> Population:
    """Rank the queries of `ships` ships; the second model is stronger by 0.3, and errs partly on other queries."""
    size = random.choice(sizes, ships)
    strengths = np.repeat(random.normal(strength, spread, ships), size)
    matches = np.arange(GALLERY) < random.integers(1, 4, len(strengths))[:, None]
    common = random.normal(size=matches.shape)
    hits, precision = [], []
    for gain in (0.0, 0.3):
        noise = 0.9 * common + np.sqrt(1 - 0.9**2) * random.normal(size=matches.shape)
        order = np.argsort(-(noise + matches * (strengths[:, None] + gain)), axis=1)
        found = np.take_along_axis(matches, order, axis=1)
        precision.append((found * found.cumsum(1) / np.arange(1, GALLERY + 1)).sum(1) / matches.sum(1))
        hits.append(found[:, 0].astype(float))
    return Population(np.stack(hits), np.stack(precision), np.concatenate([[0], size.cumsum()]))


def percentile_bootstrap(values: np.ndarray, ships: np.ndarray, random: np.random.Generator) -> tuple[float, float]:
    """The plain 95 % interval: percentiles of the mean over resampled ships."""
    sums, counts = np.bincount(ships, values), np.bincount(ships)
    picks = random.integers(0, len(sums), (RESAMPLES, len(sums)))
    low, high = np.quantile(sums[picks].sum(1) / counts[picks].sum(1), [0.025, 0.975])
    return float(low), float(high)


def coverage(
    population: Population, queries: int, *, draws: int, random: np.random.Generator, plain: bool = True
) -> dict[str, float]:
    """Share of draws whose 95 % interval holds the true value, for each figure; with `plain`, of the plain bootstrap's too."""
    covered: dict[str, int] = {}

    def count(name: str, low: float, high: float, truth: float) -> None:
        covered[name] = covered.get(name, 0) + (low <= truth <= high)

    for _ in range(draws):
        places, ships = population.draw(queries, random)
        for name, values in (("R1", population.hits), ("AP", population.precision)):
            sample, truth = values[:, places], values.mean(axis=1)
            interval = mean_interval(sample[0], ships)
            count(name, interval.low, interval.high, truth[0])
            interval = paired_interval(sample[0], sample[1], ships)
            count(f"{name} difference", interval.low, interval.high, truth[1] - truth[0])
            if plain:
                count(f"{name} plain", *percentile_bootstrap(sample[0], ships, random), truth[0])
                count(
                    f"{name} difference plain", *percentile_bootstrap(sample[1] - sample[0], ships, random), truth[1] - truth[0]
                )
    return {name: number / draws for name, number in covered.items()}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=2000, help="test sets drawn for each row of the table (default 2000)")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    figures = ("R1", "AP", "R1 difference", "AP difference")
    print(f"{arguments.draws} draws a row, seed {arguments.seed}, {date.today()}. In brackets: plain percentile bootstrap.\n")
    print("| queries | queries of a ship | true R1 | true mAP | " + " | ".join(figures) + " |")
    print("|" + " --- |" * (4 + len(figures)))
    rows: dict[int, list[dict[str, float]]] = {queries: [] for queries in QUERIES}
    for structure, (name, sizes) in enumerate(QUERIES_OF_SHIPS.items()):
        for level, (strength, spread) in enumerate(STRENGTHS):
            random = np.random.default_rng([arguments.seed, structure, level])
            population = make_population(strength, spread, sizes, ships=20_000, random=random)
            truth = f"{population.hits[0].mean():.2f} | {population.precision[0].mean():.2f}"
            for queries in QUERIES:
                row = coverage(population, queries, draws=arguments.draws, random=random)
                rows[queries].append(row)
                print(
                    f"| {queries} | {name} | {truth} | " + " | ".join(cell(row, figure) for figure in figures) + " |",
                    flush=True,
                )
    for queries, of_queries in rows.items():
        mean = {name: float(np.mean([row[name] for row in of_queries])) for name in of_queries[0]}
        print(f"| {queries} | **mean** | | | " + " | ".join(cell(mean, figure) for figure in figures) + " |")


def cell(row: dict[str, float], figure: str) -> str:
    """Coverage in percent, with that of the plain bootstrap."""
    return f"{100 * row[figure]:.1f} ({100 * row[figure + ' plain']:.1f})"


if __name__ == "__main__":
    main()
