"""Calibrate the probabilities of tools.identify for a network, on ships that it was not trained on, and tell how good they are.

Half of the ships calibrate; of the other half it is told how far probabilities are from the truth, and how many queries of
known ships are answered rightly at given false-alarm rates. Writes `<weights>.calibration.json`, which tools.identify reads,
and `<weights>.calibration.html`.
"""

import argparse
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from configs.parser import answer_help, config_parser


def build_parser() -> argparse.ArgumentParser:
    """Build the command line."""
    parser = config_parser(
        "python -m tools.calibrate",
        "Calibrate the probabilities of tools.identify on ships that the network was not trained on.",
        "python -m tools.calibrate --weights logs/mine/best_model_mAP.pth --data data/mine/validation",
        weights="TEST.WEIGHT",
    )
    parser.add_argument(
        "--data", type=Path, required=True, metavar="DIR", help="folder that holds HOSS/; its test images are used"
    )
    parser.add_argument(
        "--both-ends", action="store_true", help="of queries turned by 180 degrees too, for chips whose bow nobody knows"
    )
    return parser


if __name__ == "__main__":
    answer_help(build_parser)

import jinja2
import numpy as np
import torch
from markupsafe import Markup
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from configs.command import open_command
from datasets.catalogue import read_hoss
from datasets.records import DISTRACTOR, Chip, Modality
from processor.calibration import (
    RATES,
    Tried,
    calibration_error,
    calibration_interval,
    fit_calibration,
    identification_rates,
    reliability,
    try_answers,
)
from processor.extraction import build_extractor
from processor.feature_store import build_origin
from processor.identification import NAMES, Calibration
from processor.ranking.intervals import METHOD
from processor.ranking.retrieval import squared_distances
from processor.report.charts import Chart, Drawing
from utils.cli import run
from utils.errors import DataError
from utils.files import write_json, write_text
from utils.log import table

LEAST_SHIPS = 20
"""Ships of each half, below which a calibration tells nothing."""

TEST_ROUNDS = 20
CURVE = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.4)
"""False-alarm rates of the open-set curve."""

COLUMNS = [
    "queries by",
    "ships",
    "queries",
    "expected calibration error",
    *(f"right at {rate:.0%} false alarms" for rate in RATES),
]


def calibration_path(weights: str | Path) -> Path:
    """Where the calibration of a weights file lies."""
    return Path(f"{weights}.calibration.json")


def split_ships(chips: Sequence[Chip], seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Indices of the chips of one half of the ships, and of the other.

    Raises:
        DataError: too few ships.
    """
    ships = np.array([chip.ship for chip in chips])
    names = np.random.default_rng(seed).permutation(np.unique(ships[ships != DISTRACTOR]))
    half = len(names) // 2
    if half < LEAST_SHIPS:
        raise DataError(f"{len(names)} ships are too few to calibrate on, half of them; it takes {2 * LEAST_SHIPS} or more")
    return tuple(np.flatnonzero(np.isin(ships, part)) for part in (names[:half], names[half:]))


def nearer_end(asked: Sequence[Tensor], shown: Tensor) -> NDArray[np.float32]:
    """(Q, G) squared distances of queries, (Q, D) for each end that is asked with, to (G, D): the smaller of the ends'."""
    return torch.stack([squared_distances(end, shown) for end in asked]).amin(dim=0).numpy()


def figures_of(tested: Tried) -> Iterable[list[object]]:
    """Rows of `COLUMNS`: of all queries, and of each sensor's."""
    parts = {"both sensors": np.ones(len(tested.right), bool)}
    parts |= {NAMES[modality]: tested.modality == modality for modality in Modality}
    for name, own in parts.items():
        if own.sum() and (tested.is_known & own).any() and (~tested.is_known & own).any():
            part = Tried(*(value[own] for value in vars(tested).values()))
            low, high = calibration_interval(part)
            rates = [f"{100 * i.mean:.1f} % ({i.percent()})" for _, i in identification_rates(part)]
            error = f"{calibration_error(part):.3f} ({low:.3f}-{high:.3f})"
            yield [name, len(np.unique(part.identity)), int(own.sum()), error, *rates]


def draw_calibration(tested: Tried) -> list[Chart]:
    """The reliability diagram and the open-set curve."""
    with (diagram := Drawing("Reliability", "calibration", "dots on the line: of answers with 70 %, 70 % are right")) as axes:
        rows = reliability(tested)
        axes.plot([0, 1], [0, 1], linewidth=0.8, linestyle="--")
        axes.plot(rows[:, 0], rows[:, 1], marker="o")
        axes.set_xlabel("probability told")
        axes.set_ylabel("share of right answers")
    with (curve := Drawing("Open set", "calibration", "share of queries of known ships that are answered rightly")) as axes:
        rates = identification_rates(tested, CURVE)
        axes.plot(CURVE, [interval.mean for _, interval in rates], marker="o")
        axes.fill_between(CURVE, [i.low for _, i in rates], [i.high for _, i in rates], alpha=0.2)
        axes.set_xscale("log")
        axes.set_xlabel("false-alarm rate: unknown ships taken for known ones")
    return [diagram.chart, curve.chart]


def write_page(path: Path, tested: Tried, calibration: Calibration, rows: Sequence[Sequence[object]]) -> None:
    """The HTML page of a calibration."""
    here = Path(__file__).parent
    style = (here.parent / "processor" / "report" / "page.css").read_text(encoding="utf-8")
    page = jinja2.Environment(autoescape=True).from_string((here / "calibrate.html.j2").read_text(encoding="utf-8"))
    markup = [{"svg": Markup(chart.svg), "note": chart.note} for chart in draw_calibration(tested)]
    headline = f"fitted on {calibration.ships} ships, told of {len(np.unique(tested.identity))} others, in {TEST_ROUNDS} draws"
    note = f"Half of the queries count as of unknown ships. Errors: bootstrap of ships; rates: {METHOD}, 95 %."
    text = page.render(
        title=f"How sure answers are: {path.name.removesuffix('.calibration.html')}",
        style=Markup(style),
        headline=headline,
        charts=markup,
        columns=COLUMNS,
        rows=rows,
        note=note,
    )
    write_text(path, text)


def main(arguments: Sequence[str]) -> None:
    """Parse `arguments`, calibrate and write."""
    with open_command(build_parser(), arguments, needs={"TEST.WEIGHT": "the checkpoint, as --weights FILE"}) as command:
        args, cfg, device = command.args, command.cfg, command.device
        chips = [chip for chip in read_hoss(args.data, train=False).images if chip.ship != DISTRACTOR]
        halves = split_ships(chips, cfg.SOLVER.SEED)
        extractor = build_extractor(cfg, device, weights=cfg.TEST.WEIGHT)
        features = functional.normalize(extractor.features(chips, description="features"))
        asked = [features]
        if args.both_ends:
            turned = [replace(chip, turned=True) for chip in chips]
            asked.append(functional.normalize(extractor.features(turned, description="features, turned")))
        ships, modalities = (np.array([getattr(chip, name) for chip in chips], np.int64) for name in ("ship", "modality"))
        (near, own), (far, others) = ((nearer_end([side[h] for side in asked], features[h]), h) for h in halves)
        origin = build_origin(cfg, weights_sha256=extractor.weights_sha256, device=device)
        told = {"weights_sha256": extractor.weights_sha256, "settings": origin["settings"], "seed": cfg.SOLVER.SEED}
        told["both_ends"] = args.both_ends
        calibration = fit_calibration(near, ships[own], modalities[own], **told)
        options = {"rounds": TEST_ROUNDS, "seed": cfg.SOLVER.SEED + 3}
        tested = try_answers(far, ships[others], modalities[others], calibration.directions, calibration.sensors, **options)
        rows = list(figures_of(tested))
        path = calibration_path(cfg.TEST.WEIGHT)
        write_json(path, calibration.as_json() | {"figures": [dict(zip(COLUMNS, map(str, row))) for row in rows]})
        write_page(path.with_suffix(".html"), tested, calibration, rows)
        print(table(COLUMNS, rows))
        print(f"{path} and {path.with_suffix('.html').name}: calibrated {', '.join(sorted(calibration.directions))}")


if __name__ == "__main__":
    run(main)
