"""Write a procedural data set in HOSS layout: the same ships as optical and as SAR chips.

Training and test ships are different ships. Every test ship has one query a sensor, its other views are in the gallery together
with distractors (pid -1) that match nothing. As in HOSS, some ships are seen by one sensor only.
"""

import argparse
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from datasets.records import DISTRACTOR, Modality
from datasets.ships.designs import draw_ship
from datasets.ships.rendering import render_optical, render_sar
from utils.cli import run
from utils.errors import UsageError
from utils.log import progress

ONE_SENSOR_EVERY = 12
"""Of so many ships in a row, one is seen by the optical sensor only and one by the SAR only."""

_SUFFIX = {Modality.OPTICAL: "RGB", Modality.SAR: "SAR"}
_RENDER = {Modality.OPTICAL: render_optical, Modality.SAR: render_sar}


@dataclass(frozen=True)
class PlannedChip:
    """One file to write.

    Attributes:
        folder: a folder of HOSS.
        pid: identity in the file name; `DISTRACTOR` for one that matches nothing.
        ship: number of the ship that is drawn, unlike `pid` different for each distractor.
        view: 1, 2, ...
        modality: optical or SAR.
    """

    folder: str
    pid: int
    ship: int
    view: int
    modality: Modality

    @property
    def name(self) -> str:
        """File name by the rules of HOSS."""
        who = f"{DISTRACTOR}_{self.ship:04d}" if self.pid == DISTRACTOR else f"{self.pid:04d}_s01c{self.view}"
        return f"{who}_{_SUFFIX[self.modality]}.tif"


def plan_chips(*, ships: int, test_ships: int, views: int, distractors: int) -> Iterator[PlannedChip]:
    """List the files of a data set: training ships first, then test ships, then distractors.

    Args:
        ships: identities, from 1 on; the last `test_ships` of them are for testing.
        test_ships: identities in query and gallery.
        views: chips of a ship by each sensor that sees it.
        distractors: single chips of further ships, in the gallery, half of them optical.
    """
    for pid in range(1, ships + 1):
        for modality in _sensors(pid):
            for view in range(1, views + 1):
                test_folder = "query" if view == 1 else "bounding_box_test"
                yield PlannedChip("bounding_box_train" if pid <= ships - test_ships else test_folder, pid, pid, view, modality)
    for number in range(1, distractors + 1):
        yield PlannedChip("bounding_box_test", DISTRACTOR, ships + number, 1, Modality(number % 2))


def _sensors(pid: int) -> list[Modality]:
    """Which sensors saw a ship."""
    one_sensor = {0: [Modality.OPTICAL], ONE_SENSOR_EVERY // 2: [Modality.SAR]}
    return one_sensor.get(pid % ONE_SENSOR_EVERY, list(Modality))


def write_chip(chip: PlannedChip, root: Path, seed: int) -> None:
    """Draw one chip and write it below `root`; the same chip and seed give the same file."""
    ship = draw_ship(np.random.default_rng([seed, chip.ship]))
    view = np.random.default_rng([seed, chip.ship, chip.view, chip.modality])
    Image.fromarray(_RENDER[chip.modality](ship, view)).save(root / chip.folder / chip.name)


def write_dataset(output: Path, chips: Sequence[PlannedChip], seed: int) -> None:
    """Write `chips` to `output`/HOSS, which appears when all is written or not at all.

    Raises:
        UsageError: `output` is a file or a folder that is not empty.
        OSError: the disk is full or the folder cannot be written to.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UsageError(f"{output} exists and is not an empty folder; name a new folder with --output, or delete it first")
    temporary = output.with_name(f".{output.name}.{os.getpid()}.tmp")
    try:
        for folder in ("bounding_box_train", "query", "bounding_box_test"):
            (temporary / "HOSS" / folder).mkdir(parents=True)
        with progress(len(chips), "drawing ships", unit="chip") as bar:
            for chip in chips:
                write_chip(chip, temporary / "HOSS", seed)
                bar.update()
        if output.exists():
            output.rmdir()  # empty, as was seen above; not every system renames onto it
        temporary.rename(output)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def build_parser() -> argparse.ArgumentParser:
    """Build the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.make_dataset",
        description="Write a procedural data set in HOSS layout.",
        epilog="example:\n  python -m tools.make_dataset --output data/synthetic --ships 320 --test-ships 80 --views 3",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--output", type=Path, required=True, help="folder that will hold HOSS/; new or empty")
    parser.add_argument("--ships", type=int, default=320, help="identities, training and test together (320)")
    parser.add_argument("--test-ships", type=int, default=80, help="how many of them are for testing (80)")
    parser.add_argument("--views", type=int, default=3, help="chips of a ship by each sensor, 2 or more (3)")
    parser.add_argument("--distractors", type=int, default=40, help="gallery chips that match nothing (40)")
    parser.add_argument("--seed", type=int, default=0, help="another seed, other ships (0)")
    return parser


def main(arguments: Sequence[str]) -> None:
    """Parse `arguments`, check them and write the data set."""
    args = build_parser().parse_args(arguments)
    if args.views < 2:
        raise UsageError(f"--views is {args.views}; take 2 or more, so that a query has a match in the gallery")
    if not 0 < args.test_ships < args.ships < 10000:
        raise UsageError(f"--ships {args.ships} --test-ships {args.test_ships}: take 0 < test ships < ships < 10000")
    if args.distractors < 0 or args.seed < 0:
        raise UsageError("--distractors and --seed must not be negative")
    chips = list(plan_chips(ships=args.ships, test_ships=args.test_ships, views=args.views, distractors=args.distractors))
    write_dataset(args.output.absolute(), chips, args.seed)
    print(f"{len(chips)} chips of {args.ships} ships and {args.distractors} distractors in {args.output}")


if __name__ == "__main__":
    run(main)
