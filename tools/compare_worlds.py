"""How near procedural chips are to real ones: side by side in a picture, in statistics, to a classifier, and to a network.

    python -m tools.compare_worlds --real data/hoss --output logs/worlds DATASETS.ROOT_DIR data/world

With TEST.WEIGHT, of a network that was trained on procedural ships, the real test chips are also ranked by it, by the same
network untrained, and by plain pixels. Intervals count ships, not chips.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from configs.parser import answer_help, config_parser


def build_parser() -> argparse.ArgumentParser:
    """Build the command line."""
    parser = config_parser(
        "python -m tools.compare_worlds",
        "How near the procedural chips of DATASETS.ROOT_DIR are to real ones.",
        "python -m tools.compare_worlds --real data/hoss --output logs/worlds DATASETS.ROOT_DIR data/world",
    )
    parser.add_argument("--real", type=Path, required=True, metavar="DIR", help="folder that holds HOSS/ of real chips")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="for worlds.png and worlds.json")
    parser.add_argument("--chips", type=int, default=600, metavar="N", help="most rendered chips of a sensor to read (600)")
    return parser


if __name__ == "__main__":
    answer_help(build_parser)

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from configs.command import open_command
from datasets.catalogue import HossData, read_hoss
from datasets.loaders import ChipReading, build_chip_reading
from datasets.records import DISTRACTOR, Chip, Modality
from datasets.ships.appearance import describe_picture, mean_distances, pixel_features, tell_apart
from model.build import build_model
from processor.extraction import build_extractor
from processor.ranking.evaluation import build_ranking
from processor.ranking.intervals import MEASURE_METHOD, METHOD, Interval, mean_interval, measure_interval
from processor.ranking.results import Score
from processor.ranking.tuning import score_features
from utils.cli import run
from utils.errors import DataError, UsageError
from utils.files import replacing, write_json
from utils.log import progress, table

Side = list[tuple[Chip, NDArray[np.uint8]]]
"""Chips of one sensor and one world, and their pictures (H, W, 3)."""

SHEET_COLUMNS, SHEET_HEIGHT = 24, 520


def read_sides(real: HossData, rendered: HossData, read: ChipReading, *, most: int) -> dict[Modality, tuple[Side, Side]]:
    """Real and rendered chips of each sensor; of the rendered ones `most` at most, spread over the whole list."""
    found = {}
    for modality in Modality:
        sides = []
        for data in (real, rendered):
            chips = [chip for chip in (*data.train, *data.images) if chip.modality is modality]
            if data is rendered and len(chips) > most:
                chips = [chips[place] for place in np.linspace(0, len(chips) - 1, most).round().astype(int)]
            if len(chips) < 10:
                raise DataError(f"{len(chips)} chips by {modality.name} are too few to compare; take a larger data set")
            with progress(len(chips), f"reading {modality.name}", unit="chip") as bar:
                sides.append([])
                for chip in chips:
                    sides[-1].append((chip, read(chip)))
                    bar.update()
        found[modality] = tuple(sides)
    return found


def ships_of(side: Side) -> list[str]:
    """A name of the ship of each chip; every distractor is a ship of its own."""
    return [chip.path.name if chip.ship == DISTRACTOR else str(chip.ship) for chip, _ in side]


def compare_statistics(sides: tuple[Side, Side], modality: Modality) -> list[dict[str, Any]]:
    """Each statistic of both sides with its interval, and their difference in standard deviations of the real chips."""
    described = [[describe_picture(picture, modality) for _, picture in side] for side in sides]
    rows = {name: [np.array([own[name] for own in side]) for side in described] for name in described[0][0]}
    distances = [mean_distances(pixel_features([picture for _, picture in side]), ships_of(side)) for side in sides]
    rows |= {f"distance {name}": [side[name] for side in distances] for name in distances[0]}
    report = []
    for name, values in rows.items():
        entry: dict[str, Any] = {"statistic": name}
        for world, side, own in zip(("real", "rendered"), sides, values):
            if np.isnan(own).all():
                entry[world] = entry[f"{world}_interval"] = None
            else:
                found = measure_interval(own, ships_of(side))
                entry |= {world: found.mean, f"{world}_interval": found.ends}
        apart = None if None in (entry["real"], entry["rendered"]) else entry["rendered"] - entry["real"]
        entry["difference_in_deviations"] = None if apart is None else apart / max(float(np.nanstd(values[0])), 1e-9)
        report.append(entry)
    return report


def classify(sides: tuple[Side, Side], modality: Modality) -> Interval:
    """Share of chips that a classifier of their statistics puts into the right world, both worlds counting alike."""
    values = [[list(describe_picture(picture, modality).values()) for _, picture in side] for side in sides]
    groups = [f"{world} {ship}" for world, side in enumerate(sides) for ship in ships_of(side)]
    labels = np.repeat([False, True], [len(side) for side in sides])
    right = tell_apart(np.concatenate(values), labels, groups).astype(float)
    # Take as many chips of the larger side as the smaller has, at even steps, so that chance is a half.
    kept = np.concatenate(
        [_thin(np.flatnonzero(labels == own), int(min(labels.sum(), (~labels).sum()))) for own in (False, True)]
    )
    return mean_interval(right[kept], np.array(groups)[kept])


def _thin(places: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    return places[np.linspace(0, len(places) - 1, count).round().astype(int)]


def transfer(cfg, device: torch.device, real: HossData) -> dict[str, dict[str, Score]]:
    """Figures on the real test chips: by plain pixels, by the network as it starts, and by TEST.WEIGHT."""
    ranking, read = build_ranking(cfg, device), build_chip_reading(cfg)
    features = {"pixels": torch.from_numpy(pixel_features([read(chip) for chip in real.images]))}
    torch.manual_seed(cfg.SOLVER.SEED)
    untrained = build_extractor(cfg, device, model=build_model(cfg).to(device))
    trained = build_extractor(cfg, device, weights=cfg.TEST.WEIGHT)
    for name, extractor in (("untrained network", untrained), ("trained on rendered ships", trained)):
        own = extractor.features(real.images, description=name)
        features[name] = torch.nn.functional.normalize(own) if ranking.normalise else own
    return {name: score_features(real.protocols, real.images, own, ranking) for name, own in features.items()}


def draw_sheet_of_worlds(sides: Mapping[Modality, tuple[Side, Side]]) -> Image.Image:
    """Real chips above rendered ones, for each sensor, at one scale."""
    strips = []
    for modality in Modality:
        for side in sides[modality]:
            count = min(SHEET_COLUMNS, len(side))
            chosen = [side[place][1] for place in np.linspace(0, len(side) - 1, count).round().astype(int)]
            strip = np.full((SHEET_HEIGHT, sum(picture.shape[1] + 4 for picture in chosen), 3), 64, np.uint8)
            left = 0
            for picture in chosen:
                height, width = picture.shape[:2]
                strip[: min(height, SHEET_HEIGHT), left : left + width] = picture[:SHEET_HEIGHT]
                left += width + 4
            strips.append(strip)
    widest = max(strip.shape[1] for strip in strips)
    padded = [np.pad(strip, ((0, 6), (0, widest - strip.shape[1]), (0, 0)), constant_values=64) for strip in strips]
    return Image.fromarray(np.concatenate(padded))


def format_statistics(report: Sequence[Mapping[str, Any]], modality: Modality) -> str:
    """The table of a sensor."""

    def told(entry: Mapping[str, Any], world: str) -> str:
        if entry[world] is None:
            return "-"
        low, high = entry[f"{world}_interval"]
        return f"{entry[world]:.3g} [{low:.3g}, {high:.3g}]"

    rows = []
    for entry in report:
        apart = entry["difference_in_deviations"]
        rows.append(
            [entry["statistic"], told(entry, "real"), told(entry, "rendered"), "-" if apart is None else f"{apart:+.1f}"]
        )
    return table([modality.name, "real", "rendered", "difference, sd"], rows)


def format_transfer(scores: Mapping[str, Mapping[str, Score]]) -> str:
    """The table of what ranks the real test chips."""
    protocols = list(next(iter(scores.values())))
    rows = []
    for name, own in scores.items():
        cells = [name]
        for score in own.values():
            cells.append(f"{100 * score.mAP:.1f} ({score.mAP_interval.percent()}) / {100 * score.R1:.1f}")
        rows.append(cells)
    counts = ["queries", *(str(score.queries_counted) for score in next(iter(scores.values())).values())]
    return table(["mAP (95 %) / R1", *protocols], [*rows, counts])


def _figures(score: Score) -> dict[str, Any]:
    return {"mAP": score.mAP, "mAP_interval": score.mAP_interval.ends, "R1": score.R1, "queries": score.queries_counted}


def main(arguments: Sequence[str]) -> None:
    """Parse `arguments`, compare, print and write."""
    with open_command(build_parser(), arguments) as command:
        args, cfg = command.args, command.cfg
        if args.chips < 10:
            raise UsageError(f"--chips is {args.chips}; take 10 or more")
        real, rendered = read_hoss(args.real), read_hoss(cfg.DATASETS.ROOT_DIR)
        sides = read_sides(real, rendered, build_chip_reading(cfg), most=args.chips)
        args.output.mkdir(parents=True, exist_ok=True)
        with replacing(args.output / "worlds.png") as temporary:
            draw_sheet_of_worlds(sides).save(temporary, format="PNG")
        report: dict[str, Any] = {"statistics": {}, "classifier": {}}
        print(f"95 %: {MEASURE_METHOD}; of the classifier and of mAP: {METHOD}")
        for modality, own in sides.items():
            report["statistics"][modality.name] = compare_statistics(own, modality)
            found = classify(own, modality)
            report["classifier"][modality.name] = {"right": found.mean, "interval": found.ends, "chips": found.queries}
            print(f"\n{format_statistics(report['statistics'][modality.name], modality)}")
            print(f"a classifier of these statistics is right on {100 * found.mean:.0f} % [{found.percent()}]; chance is 50 %")
        if cfg.TEST.WEIGHT:
            scores = transfer(cfg, command.device, real)
            report["transfer"] = {name: {key: _figures(own) for key, own in by.items()} for name, by in scores.items()}
            print(f"\n{format_transfer(scores)}")
        write_json(args.output / "worlds.json", report)
        print(f"\n{args.output / 'worlds.png'}: real above rendered chips; all figures: {args.output / 'worlds.json'}")


if __name__ == "__main__":
    run(main)
