"""How often the intervals of `processor.ranking.intervals` hold the true mean, in simulated rankings.

    python -m benchmarks.interval_coverage [--draws 2000] [--seed 0] [--processes 2]

Prints a Markdown table. A query's score for each of its 1 to 3 matches is normal around the strength of its ship, for each of
the other images of a gallery of 60 around 0; strengths differ between ships. Test sets are draws of ships from a large
population, whose mean is the true value. One population is made for each of ten mean strengths, so that the true R1 runs from
0.1 to 0.95: hits are coarse, and the coverage at a single true value jumps with it. The plain percentile bootstrap over ships
stands beside, from the same draws.
"""

import argparse
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import date
from functools import partial

import numpy as np

from processor.ranking.intervals import mean_interval, paired_interval
from utils.log import table

GALLERY = 60
RESAMPLES = 200
QUERIES = (30, 67, 176)
STRENGTHS = tuple((0.4 + 0.45 * step, min(1.2, 0.5 + 0.1 * step)) for step in range(10))
"""Mean strength of ships and its deviation between them."""
QUERIES_OF_SHIPS = {"1": [1], "3": [3], "1 to 5": [1, 2, 3, 4, 5], "1, one in ten has 8": [1] * 9 + [8]}
"""Name of a structure -> the numbers of queries that ships have, equally often."""
FIGURES = ("R1", "AP", "R1 difference", "AP difference", "R1 gain", "AP gain")
"""Figures of one model, their difference to another's, and to the better of both for each query, which loses none."""


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
        for name, (first, second) in (("R1", population.hits), ("AP", population.precision)):
            interval = mean_interval(first[places], ships)
            count(name, interval.low, interval.high, first.mean())
            if plain:
                count(f"{name} plain", *percentile_bootstrap(first[places], ships, random), first.mean())
            for kind, other in (("difference", second), ("gain", np.maximum(first, second))):
                change = other - first
                interval = paired_interval(first[places], other[places], ships)
                count(f"{name} {kind}", interval.low, interval.high, change.mean())
                if plain:
                    count(f"{name} {kind} plain", *percentile_bootstrap(change[places], ships, random), change.mean())
    return {name: number / draws for name, number in covered.items()}


def coverage_of_strength(case: tuple[int, int], *, draws: int, seed: int) -> dict[int, dict[str, float]]:
    """Number of queries -> `coverage`, for the structure and the strength whose places `case` gives."""
    structure, strength = case
    random = np.random.default_rng([seed, structure, strength])
    sizes = list(QUERIES_OF_SHIPS.values())[structure]
    population = make_population(*STRENGTHS[strength], sizes, ships=20_000, random=random)
    return {queries: coverage(population, queries, draws=draws, random=random) for queries in QUERIES}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=2000, help="test sets drawn of each population (default 2000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=2)
    arguments = parser.parse_args()
    print(f"{arguments.draws} draws of each population, seed {arguments.seed}, {date.today()}\n")
    rows = []
    of_queries: dict[int, list[dict[str, float]]] = {queries: [] for queries in QUERIES}
    measure = partial(coverage_of_strength, draws=arguments.draws, seed=arguments.seed)
    with ProcessPoolExecutor(arguments.processes) as pool:
        for structure, name in enumerate(QUERIES_OF_SHIPS):
            strengths = list(pool.map(measure, [(structure, strength) for strength in range(len(STRENGTHS))]))
            for queries in QUERIES:
                cells = [strength[queries] for strength in strengths]
                of_queries[queries] += cells
                rows.append(row(str(queries), name, cells))
    for queries, cells in of_queries.items():
        rows.append(row(str(queries), "**all**", cells))
    print(table(["queries", "queries of a ship", *FIGURES], rows, "pipe"))


def row(queries: str, structure: str, cells: Sequence[dict[str, float]]) -> list[str]:
    """A line of the table: mean coverage in percent over the true values, its range, and the plain bootstrap's mean."""

    def text(figure: str) -> str:
        shares = [100 * cell[figure] for cell in cells]
        plain = np.mean([100 * cell[f"{figure} plain"] for cell in cells])
        return f"{np.mean(shares):.1f} [{min(shares):.1f}, {max(shares):.1f}] ({plain:.1f})"

    return [queries, structure, *map(text, FIGURES)]


if __name__ == "__main__":
    main()
