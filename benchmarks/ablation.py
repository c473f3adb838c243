"""The paper's four rows over several seeds, on procedural ships, with paired intervals: what every step brings.

    python -m tools.make_dataset --output data/many --train-ships 240 --test-ships 560
    python -m benchmarks.ablation --data data/many --output logs/ablation [--seeds 0-4] [--epochs 36]

Network and bridge are the demo's. A fifth of the training ships validates, another fifth for each seed: they choose the epoch,
tau, and kind and settings of a common space; the bridge never sees them. The oracle joins a spare SAR view of the same ship.
Started again, it goes on where it stopped. `ablation.json` and `ablation.md` in the output folder hold the figures.
"""

import argparse
import itertools
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path

import numpy as np
import torch

from configs import load_cfg
from datasets.catalogue import HossData, read_hoss
from datasets.validation import build_validation_data
from processor.extraction import build_extractor
from processor.fusion import find_samples
from processor.ranking.comparison import METRICS
from processor.ranking.evaluation import build_ranking
from processor.ranking.intervals import PAIRED_METHOD, paired_interval
from processor.ranking.results import Outcome, read_results
from processor.ranking.tuning import Trial
from processor.stand_ins import find_spare_views
from tools.oracle import ORACLE, PLAIN, RELEASED_TAU, Candidate, build_space_rows, settle_rows, try_rows
from tools.repeat import parse_seeds
from utils.children import run_child
from utils.cli import run
from utils.errors import TrainingError
from utils.files import write_json, write_text
from utils.log import describe_environment, setup_logging, table

REID, BRIDGE, FRACTION = "configs/demo_reid.yml", "configs/demo_bbdm.yml", "0.2"
TRAINED = {
    "baseline": ["INPUT.SAR_DENOISE", "max", "MODEL.MODALITY_LOSS_WEIGHT", "0.0"],
    "+ denoising": ["INPUT.SAR_DENOISE", "percentile", "MODEL.MODALITY_LOSS_WEIGHT", "0.0"],
    "+ alignment": ["INPUT.SAR_DENOISE", "percentile", "MODEL.MODALITY_LOSS_WEIGHT", "2.0"],
}
"""Rows of which each trains a network of its own -> their settings."""

RELEASED, TUNED, SPACE, BOTH = "+ fusion, tau 0.02", "+ fusion, tau tuned", "+ common space", "+ common space and fusion"
AGAINST = {
    "+ denoising": "baseline",
    "+ alignment": "+ denoising",
    **dict.fromkeys((RELEASED, TUNED, SPACE, BOTH, ORACLE), "+ alignment"),
}
"""Row -> the one that it is compared with."""

TAUS = (0.0, RELEASED_TAU, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
SHRINKAGES, DIMENSIONS = (0.001, 0.003, 0.01, 0.03, 0.1), (32, 64, 128)

Outcomes = Mapping[str, Sequence[Outcome]]
"""Protocol -> the outcome of each of its queries."""


@dataclass(frozen=True)
class Figure:
    """A figure of a row over the seeds, all numbers in 0..1.

    Attributes:
        protocol, row, metric: which.
        values: of each seed.
        against: the row that it is compared with; empty for the first.
        gain, low, high: mean difference to that row and its 95 % interval: each query's value is its mean over the seeds.
        seeds_ahead: seeds in which this row is the higher one.
    """

    protocol: str
    row: str
    metric: str
    values: tuple[float, ...]
    against: str = ""
    gain: float | None = None
    low: float | None = None
    high: float | None = None
    seeds_ahead: int | None = None


def run_command(*arguments: object) -> None:
    """Run a command of the project in a process of its own."""
    if status := run_child([str(argument) for argument in arguments], folder=Path(__file__).parent.parent):
        raise TrainingError(f"{arguments[1]} ended with status {status}; start again to go on from there")


def train_rows(data: Path, output: Path, seeds: str, options: Sequence[str]) -> None:
    """Train and test the networks of `TRAINED`."""
    for number, settings in enumerate(TRAINED.values(), start=1):
        common = ["DATASETS.ROOT_DIR", data, "DATASETS.VAL_FRACTION", FRACTION, "TEST.REPORT", "False"]
        folder = ["OUTPUT_DIR", output / f"row_{number}"]
        run_command("-m", "tools.repeat", "--config_file", REID, "--seeds", seeds, *common, *settings, *options, *folder)


def sample_pictures_of(data: Path, output: Path, seed: int) -> None:
    """Train the bridge of a seed and draw one picture of every optical test and validation chip."""
    common = ["--config_file", BRIDGE, "DATASETS.ROOT_DIR", data, "DATASETS.VAL_FRACTION", FRACTION, "SOLVER.SEED", seed]
    bridge = output / "bridge" / f"seed_{seed}"
    run_command("-m", "bbdm.train", *common, "SOLVER.RESUME", "auto", "OUTPUT_DIR", bridge)
    common += ["BBDM.WEIGHT", bridge / f"bridge_{load_cfg(BRIDGE, []).SOLVER.MAX_EPOCHS}.pth", "BBDM.SAMPLE_NUM", 1]
    splits = ["BBDM.SPLITS", "['validation/query', 'validation/gallery']"]
    run_command("-m", "bbdm.sample", *common, "OUTPUT_DIR", output / "samples" / f"seed_{seed}")
    run_command("-m", "bbdm.sample", *common, *splits, "OUTPUT_DIR", output / "samples_validation" / f"seed_{seed}")


def build_trials_of(cfg, extractor, data: HossData, spare: Path, store: Path) -> dict[str, list[Trial]]:
    """Every setting of every row that needs no training, on some images."""
    ranking, views = build_ranking(cfg, torch.device("cpu")), find_spare_views(spare, data)
    samples = find_samples(data.images, query_dir=str(store), gallery_dir=str(store))
    features = extractor.features(data.images)
    fused = Candidate(features, samples.sources, extractor.samples(samples)[0])
    grid = Namespace(kinds=["lda", "cca"], shrinkages=SHRINKAGES, dimensions=DIMENSIONS)
    spaces = build_space_rows(cfg, extractor, data, fused, grid)
    rows = {
        PLAIN: [Candidate(features)],
        TUNED: [fused],
        SPACE: [own for name, row in spaces.items() if not name.endswith("fused") for own in row],
        BOTH: [own for name, row in spaces.items() if name.endswith("fused") for own in row],
        ORACLE: [Candidate(features, views.sources, extractor.samples(views)[0][:, :1])],
    }
    return try_rows(data, rows, ranking, TAUS) | try_rows(data, {RELEASED: [fused]}, ranking, [RELEASED_TAU])


def build_rows_of_seed(data: Path, output: Path, seed: int) -> tuple[dict[str, Outcomes], dict[str, dict]]:
    """Outcomes of each row of a seed, and the settings that the validation ships chose: row -> protocol -> setting."""
    weights = output / "row_3" / f"seed_{seed}" / "best_model_mAP.pth"
    cfg = load_cfg(REID, ["DATASETS.ROOT_DIR", str(data), "DATASETS.VAL_FRACTION", FRACTION, "SOLVER.SEED", str(seed)])
    extractor = build_extractor(cfg, torch.device("cpu"), weights=weights, store=str(output / "features"))
    store = {name: output / folder / f"seed_{seed}" for name, folder in (("test", "samples"), ("train", "samples_validation"))}
    parts = {"test": read_hoss(data, train=False), "train": build_validation_data(cfg)}
    trials = {name: build_trials_of(cfg, extractor, part, data / "spare" / name, store[name]) for name, part in parts.items()}
    rows: dict[str, Outcomes] = {}
    for number, name in enumerate(TRAINED, start=1):
        tested = read_results(output / f"row_{number}" / f"seed_{seed}" / "results.json").scores
        rows[name] = {protocol: score.per_query for (protocol, kind), score in tested.items() if kind == "plain"}
    chosen: dict[str, dict] = {}
    for protocol in rows["baseline"]:
        settled = settle_rows(trials["test"], trials["train"], protocol, "mAP")
        for name in (RELEASED, TUNED, SPACE, BOTH, ORACLE):
            setting, outcomes = settled[name]
            rows.setdefault(name, {})[protocol] = outcomes
            chosen.setdefault(name, {})[protocol] = dict(setting)
    return rows, chosen


def summarise_rows(seeds: Sequence[Mapping[str, Outcomes]]) -> list[Figure]:
    """The figures of every row over the seeds, beside those of the row that it is compared with."""
    figures = []
    for protocol, row, metric in itertools.product(next(iter(seeds[0].values())), seeds[0], METRICS):

        def values(name: str, protocol: str = protocol, metric: str = metric) -> np.ndarray:
            ordered = [sorted(seed[name][protocol], key=lambda outcome: outcome.query) for seed in seeds]
            return np.array([[METRICS[metric](outcome) for outcome in own] for own in ordered])

        own = values(row)
        figure = {"protocol": protocol, "row": row, "metric": metric, "values": tuple(np.nanmean(own, axis=1).tolist())}
        if against := AGAINST.get(row):
            other = values(against)
            ships = [outcome.ship for outcome in sorted(seeds[0][row][protocol], key=lambda outcome: outcome.query)]
            found = paired_interval(other.mean(0), own.mean(0), ships)
            ahead = int((np.nanmean(own, axis=1) > np.nanmean(other, axis=1)).sum())
            figure |= {"against": against, "gain": found.mean, "low": found.low, "high": found.high, "seeds_ahead": ahead}
        figures.append(Figure(**figure))
    return figures


def format_figures(figures: Sequence[Figure], protocol: str) -> str:
    """The table of a protocol, in percent."""
    lines = []
    for figure in (own for own in figures if own.protocol == protocol):
        mean, deviation = 100 * np.mean(figure.values), 100 * np.std(figure.values, ddof=1) if len(figure.values) > 1 else 0.0
        compared = [""] * 4
        if figure.against:
            interval = f"{100 * figure.low:+.1f} .. {100 * figure.high:+.1f}"
            ahead = f"{figure.seeds_ahead} of {len(figure.values)}"
            compared = [figure.against, f"{100 * figure.gain:+.1f}", interval, ahead]
        lines.append([figure.row, figure.metric, f"{mean:.1f}", f"{deviation:.1f}", *compared])
    return table([protocol, "", "mean", "deviation", "against", "gain", "95 %", "seeds ahead"], lines, "pipe")


def main(arguments: Sequence[str]) -> None:
    """Train, draw, choose, and write the tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ablation", description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="of tools.make_dataset, with spare views")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seeds", default="0-4", metavar="LIST", help="such as 0-4 (0-4)")
    parser.add_argument("--epochs", type=int, default=36, help="of each network (36, as the demo)")
    args = parser.parse_args(arguments)
    setup_logging()
    options = ["SOLVER.MAX_EPOCHS", str(args.epochs), "SOLVER.EVAL_PERIOD", "4", "SOLVER.CHECKPOINT_PERIOD", str(args.epochs)]
    train_rows(args.data, args.output, args.seeds, options)
    rows, chosen = [], {}
    for seed in parse_seeds(args.seeds):
        sample_pictures_of(args.data, args.output, seed)
        own, chosen[seed] = build_rows_of_seed(args.data, args.output, seed)
        rows.append(own)
    figures = summarise_rows(rows)
    facts = describe_environment(seed=0, device=torch.device("cpu"))
    about = f"{date.today()}, {facts['device_name']}, commit {facts['commit']}, seeds {args.seeds}, {args.epochs} epochs. "
    about += f"95 %: {PAIRED_METHOD}; each query's value is its mean over the seeds."
    text = "\n\n".join([about, *(format_figures(figures, protocol) for protocol in rows[0]["baseline"])])
    write_json(args.output / "ablation.json", {"figures": [asdict(own) for own in figures], "chosen": chosen, **facts})
    write_text(args.output / "ablation.md", text + "\n")
    print(text)


if __name__ == "__main__":
    run(main)
