"""Write a procedural data set in HOSS layout: the same ships as optical and as SAR chips.

Training and test ships are different ships. Every test ship has one query a sensor, its other views are in the gallery together
with distractors (pid -1) that match nothing. As in HOSS, some ships are seen by one sensor only.
"""

import argparse
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from datasets.catalogue import FOLDERS, KINDS
from datasets.records import DISTRACTOR, Chip, Modality, Split
from datasets.ships.designs import draw_ship
from datasets.ships.rendering import render_optical, render_sar
from utils.cli import run
from utils.errors import UsageError
from utils.log import progress

ONE_SENSOR_EVERY = 12
"""Of so many ships in a row, one is seen by the optical sensor only and one by the SAR only."""

_RENDER = {Modality.OPTICAL: render_optical, Modality.SAR: render_sar}

View = tuple[Chip, int, int]
"""One file to write: the chip, its path relative to HOSS/; the number of the ship to draw, which no two distractors
share; and which view of it by this sensor it is (1, 2, ...)."""


def plan_views(*, ships: int, test_ships: int, views: int, distractors: int) -> Iterator[View]:
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
                test_split = Split.QUERY if view == 1 else Split.GALLERY
                split = Split.TRAIN if pid <= ships - test_ships else test_split
                yield _plan_chip(f"{pid:04d}_s01c{view}", pid, modality, split), pid, view
    for number in range(ships + 1, ships + distractors + 1):
        modality = Modality((number - ships) % 2)
        yield _plan_chip(f"{DISTRACTOR}_{number:04d}", DISTRACTOR, modality, Split.GALLERY), number, 1


def _plan_chip(stem: str, pid: int, modality: Modality, split: Split) -> Chip:
    return Chip(Path(FOLDERS[split], f"{stem}_{KINDS[modality]}.tif"), pid, modality, split)


def _sensors(pid: int) -> list[Modality]:
    """Which sensors saw a ship."""
    one_sensor = {0: [Modality.OPTICAL], ONE_SENSOR_EVERY // 2: [Modality.SAR]}
    return one_sensor.get(pid % ONE_SENSOR_EVERY, list(Modality))


def write_view(view: View, root: Path, seed: int) -> None:
    """Draw one chip and write it below `root`; the same view and seed give the same file."""
    chip, number, turn = view
    ship = draw_ship(np.random.default_rng([seed, number]))
    picture = _RENDER[chip.modality](ship, np.random.default_rng([seed, number, turn, chip.modality]))
    Image.fromarray(picture).save(root / chip.path)


def write_dataset(output: Path, views: Sequence[View], seed: int) -> None:
    """Write `views` to `output`/HOSS, which appears when all is written or not at all.

    Raises:
        UsageError: `output` is a file or a folder that is not empty.
        OSError: the disk is full or the folder cannot be written to.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UsageError(f"{output} exists and is not an empty folder; name a new folder with --output, or delete it first")
    temporary = output.with_name(f".{output.name}.{os.getpid()}.tmp")
    try:
        for split in (Split.TRAIN, Split.QUERY, Split.GALLERY):
            (temporary / "HOSS" / FOLDERS[split]).mkdir(parents=True)
        with progress(len(views), "drawing ships", unit="chip") as bar:
            for view in views:
                write_view(view, temporary / "HOSS", seed)
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
    views = list(plan_views(ships=args.ships, test_ships=args.test_ships, views=args.views, distractors=args.distractors))
    write_dataset(args.output.absolute(), views, args.seed)
    print(f"{len(views)} chips of {args.ships} ships and {args.distractors} distractors in {args.output}")


if __name__ == "__main__":
    run(main)
