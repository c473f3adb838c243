"""Write a procedural data set in HOSS layout: the same ships as optical and as SAR chips.

Training and test ships are different ships. `<output>/spare/{train,test}` holds further SAR views of every optical chip, laid
out as generated samples: perfect pictures for `tools.oracle`, which no split ranks.
"""

import argparse
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import groupby
from pathlib import Path

from configs.parser import answer_help

DIFFICULTY = 0.35
"""The default difficulty; docs/synthetic.md tells what a baseline reaches at it."""


def build_parser() -> argparse.ArgumentParser:
    """Build the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.make_dataset",
        description="Write a procedural data set in HOSS layout.",
        epilog="examples:\n  python -m tools.make_dataset --output data/synthetic\n"
        "  python -m tools.make_dataset --output data/world --size hoss --test-ships 400",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--output", type=Path, required=True, help="folder that will hold HOSS/; new or empty")
    parser.add_argument(
        "--size",
        choices=("tiny", "hoss", "large"),
        default="tiny",
        help="240 and 80 ships, the counts of HOSS, 100,000 chips (tiny)",
    )
    parser.add_argument("--train-ships", type=int, metavar="N", help="other than the size's, at its proportions")
    parser.add_argument("--test-ships", type=int, metavar="N", help="likewise; distractors go with them")
    parser.add_argument("--difficulty", type=float, default=DIFFICULTY, help=f"0 to 1 ({DIFFICULTY:g}; docs/synthetic.md)")
    parser.add_argument("--spare-views", type=int, metavar="K", help="SAR views of each optical chip in spare/ (2; large: 0)")
    parser.add_argument("--seed", type=int, default=0, help="another seed, other ships (0)")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes; the files stay the same (all)")
    return parser


if __name__ == "__main__":
    answer_help(build_parser)

import cv2
from PIL import Image

from datasets.catalogue import FOLDERS
from datasets.generated import sample_name
from datasets.records import Modality, Split
from datasets.ships.counts import SIZES, View, plan_views
from datasets.ships.world import World
from utils.cli import run
from utils.errors import UsageError
from utils.lock import replacing_folder
from utils.log import progress


def write_views(views: Sequence[View], *, world: World, folder: Path, spare_views: int) -> int:
    """Draw some chips and their spare views and write them below `folder`; returns how many chips."""
    cv2.setNumThreads(1)  # processes share the cores already
    for view in sorted(views, key=lambda view: view.scene):  # a visit's plan is drawn once
        Image.fromarray(world.draw(view)).save(folder / "HOSS" / view.chip.path)
        if view.chip.modality is Modality.OPTICAL:
            for k in range(spare_views):
                picture = Image.fromarray(world.draw_spare(view, k)[..., 0])
                picture.save(folder / "spare" / _spare_folder(view) / sample_name(view.chip.path, k))
    return len(views)


def _spare_folder(view: View) -> str:
    return "train" if view.chip.split is Split.TRAIN else "test"


def write_dataset(output: Path, views: Sequence[View], world: World, *, spare_views: int = 1, workers: int = 1) -> None:
    """Write `views` to `output`, which appears when all is written or not at all; its bytes do not depend on `workers`.

    Raises:
        UsageError: `output` is a file or a folder that is not empty.
        OSError: the disk is full or the folder cannot be written to.
    """
    folders = [Path("HOSS", FOLDERS[split]) for split in (Split.TRAIN, Split.QUERY, Split.GALLERY)]
    folders += [Path("spare", name) for name in ("train", "test") if spare_views]
    with replacing_folder(output) as temporary:
        for folder in folders:
            (temporary / folder).mkdir(parents=True)
        ships = [list(group) for _, group in groupby(views, key=lambda view: view.number)]
        write = partial(write_views, world=world, folder=temporary, spare_views=spare_views)
        with progress(len(views), "drawing ships", unit="chip") as bar:
            for count in _each(write, ships, workers):
                bar.update(count)


def _each(write: partial, ships: Sequence[list[View]], workers: int) -> Iterable[int]:
    """The results of `write` on every item, in this process or in several."""
    if workers == 1:
        yield from map(write, ships)
        return
    pool = ProcessPoolExecutor(workers)
    try:
        yield from pool.map(write, ships, chunksize=min(16, len(ships) // workers + 1))
    finally:
        pool.shutdown(cancel_futures=True)  # who is asked to end does not draw the rest first


def main(arguments: Sequence[str]) -> None:
    """Parse `arguments`, check them and write the data set."""
    args = build_parser().parse_args(arguments)
    for name in ("train_ships", "test_ships", "workers"):
        if (value := getattr(args, name)) is not None and value < 1:
            raise UsageError(f"--{name.replace('_', '-')} is {value}; take 1 or more")
    if not 0 <= args.difficulty <= 1:
        raise UsageError(f"--difficulty is {args.difficulty}; take 0 to 1")
    for name in ("spare_views", "seed"):
        if (value := getattr(args, name)) is not None and value < 0:
            raise UsageError(f"--{name.replace('_', '-')} is {value}; take 0 or more")
    size = SIZES[args.size].scaled(args.train_ships, args.test_ships)
    views = list(plan_views(size, args.seed))
    spare_views = size.spare_views if args.spare_views is None else args.spare_views
    world = World(args.seed, args.difficulty, size.scenes)
    write_dataset(args.output.absolute(), views, world, spare_views=spare_views, workers=args.workers)
    ships = size.train.ships + size.test.ships
    print(f"{len(views)} chips of {ships} ships and {sum(size.distractors)} distractors in {args.output}")


if __name__ == "__main__":
    run(main)
