"""How much choosing the epoch on the test split flatters, at the size of HOSS: over seeds and over draws of test ships.

    python -m tools.repeat --config_file configs/demo_reid.yml --seeds 0-3 SOLVER.EVAL_PERIOD 36 SOLVER.CHECKPOINT_PERIOD 4 \
        DATASETS.ROOT_DIR data/tiny OUTPUT_DIR logs/epochs
    python -m benchmarks.flattery --data data/many --runs logs/epochs/seed_* [KEY VALUE ...]

The test ships of `--data` are dealt into sets as large as HOSS's (88 ships, and their share of the distractors). For each set
and run the epoch is chosen once on the set itself, as the released programs do, and once on all other sets; the flattery is
the difference of the two figures, both of the set. Prints a Markdown table.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from configs import load_cfg
from datasets.catalogue import HossData, read_hoss
from datasets.records import DISTRACTOR, Protocol
from processor.extraction import build_extractor
from processor.ranking.evaluation import Ranking
from processor.ranking.intervals import MEASURE_METHOD, measure_interval
from processor.ranking.tuning import score_features
from utils.cli import run
from utils.errors import UsageError
from utils.log import progress, setup_logging, table

SHIPS = 88
"""Test ships of HOSS."""

RATES = ("mAP", "R1")


def deal_ships(data: HossData, *, seed: int) -> list[dict[str, Protocol]]:
    """Protocols of disjoint sets of `SHIPS` ships; distractors are dealt out too.

    Raises:
        UsageError: fewer ships than make two sets.
    """
    random = np.random.default_rng(seed)
    ships = random.permutation(sorted({chip.ship for chip in data.images} - {DISTRACTOR}))
    count = len(ships) // SHIPS
    if count < 2:
        raise UsageError(f"the data set has {len(ships)} test ships, and two sets take {2 * SHIPS}; draw more (--test-ships)")
    of_ship = {ship: place // SHIPS for place, ship in enumerate(ships.tolist())}
    names = sorted({chip.path.name for chip in data.images if chip.ship == DISTRACTOR})
    of_distractor = dict(zip(names, (random.permutation(len(names)) % (len(ships) / SHIPS)).astype(int).tolist()))

    def member(index: int) -> int:
        chip = data.images[index]
        return of_distractor[chip.path.name] if chip.ship == DISTRACTOR else of_ship[chip.ship]

    def part(protocol: Protocol, own: int) -> Protocol:
        kept = [tuple(index for index in side if member(index) == own) for side in (protocol.query, protocol.gallery)]
        return replace(protocol, query=kept[0], gallery=kept[1])

    return [{name: part(protocol, own) for name, protocol in data.protocols.items()} for own in range(count)]


def flatteries(figures: NDArray[np.float64]) -> NDArray[np.float64]:
    """What the choice on each set gains there over the choice on all others.

    Args:
        figures: (E, S) of each epoch and set.

    Returns:
        (S,).
    """
    total = figures.sum(axis=1, keepdims=True)
    of_others = (total - figures).argmax(axis=0)
    return figures.max(axis=0) - figures[of_others, np.arange(figures.shape[1])]


def score_run(cfg, weights: Sequence[Path], data: HossData, sets: Sequence[Mapping[str, Protocol]]) -> dict[str, NDArray]:
    """Figures of ALL, (E, S) for each of `RATES`, of the weights of E epochs on S sets."""
    figures: dict[str, list[list[float]]] = {rate: [] for rate in RATES}
    for path in weights:
        features = functional.normalize(build_extractor(cfg, torch.device("cpu"), weights=path).features(data.images))
        scores = [score_features({"ALL": own["ALL"]}, data.images, features, Ranking())["ALL"] for own in sets]
        for rate, rows in figures.items():
            rows.append([getattr(score, rate) for score in scores])
    return {rate: np.array(rows) for rate, rows in figures.items()}


def main(arguments: Sequence[str]) -> None:
    """Score every epoch of every run on every set."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.flattery", description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="a data set with many test ships")
    parser.add_argument("--runs", type=Path, nargs="+", required=True, help="folders with <NAME>_<epoch>.pth, one a seed")
    args = parser.parse_args(arguments)
    setup_logging()
    data = read_hoss(args.data, train=False)
    sets, found = deal_ships(data, seed=0), {rate: [] for rate in RATES}
    with progress(len(args.runs), "runs", unit="run") as bar:
        for folder in args.runs:
            cfg = load_cfg(str(folder / "config.yml"), ["MODEL.DEVICE", "cpu"])
            weights = sorted(folder.glob(f"{cfg.MODEL.NAME}_*.pth"), key=lambda path: int(path.stem.rpartition("_")[2]))
            for rate, figures in score_run(cfg, weights, data, sets).items():
                found[rate].append(flatteries(figures))
            bar.update()
    lines = []
    for rate, of_runs in found.items():
        values = np.array(of_runs)
        interval = measure_interval(values.ravel(), np.repeat(np.arange(len(values)), values.shape[1]), lowest=0.0)
        low, high = (100 * end for end in interval.ends)
        shares = [f"{100 * interval.mean:.2f}", f"{low:.2f} .. {high:.2f}", f"{100 * values.max():.1f}"]
        lines.append([f"{rate} of ALL", len(weights), len(values), values.shape[1], *shares])
    print(f"{date.today()}; sets of {SHIPS} ships; 95 % over runs: {MEASURE_METHOD}\n")
    print(table(["chosen by", "epochs", "runs", "sets", "flattery, points", "95 %", "largest"], lines, "pipe"))


if __name__ == "__main__":
    run(main)
