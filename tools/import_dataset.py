"""Write a data set in HOSS layout from a table of images: which file shows which ship, seen by which sensor.

Ships of training, validation and test are different ones. `<output>/HOSS` holds training and test; `<output>/validation/HOSS`
holds the same training chips and the validation ships, so that weights are chosen without a look at the test.
`<output>/images.csv` tells where each file came from.
"""

import argparse
import csv
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from datasets.curation.importing import ListedImage, read_table, read_task
from datasets.curation.splitting import Parts, number_ships, split_images
from datasets.hoss import CHIP_NAME, MODALITIES
from datasets.records import DISTRACTOR
from utils.cli import run
from utils.errors import DataError, UsageError
from utils.log import progress, setup_logging, table

WAYS: dict[str, Callable[[Path, Path], object]] = {
    "copy": shutil.copyfile,
    "hardlink": os.link,
    "symlink": os.symlink,
}
"""--files: how a chip comes from (source) to (target)."""

KINDS = {modality: kind for kind, modality in MODALITIES.items()}


@dataclass(frozen=True)
class PlannedFile:
    """One file to write.

    Attributes:
        image: what it shows.
        pid: of the ship.
        place: relative to the output folder.
    """

    image: ListedImage
    pid: int
    place: Path


def plan_files(parts: Parts) -> list[PlannedFile]:
    """Give every image its place and name; no two files of the data set have one name."""
    folders = {
        "HOSS/bounding_box_train": parts.train,
        "HOSS/query": parts.query,
        "HOSS/bounding_box_test": parts.gallery,
    }
    if parts.validation_query:
        folders |= {
            "validation/HOSS/bounding_box_train": parts.train,
            "validation/HOSS/query": parts.validation_query,
            "validation/HOSS/bounding_box_test": parts.validation_gallery,
        }
    images = [image for group in folders.values() for image in group]
    pids = number_ships(images)
    names: dict[ListedImage, str] = {}
    taken: set[str] = set()
    for image in images:
        if image not in names:
            names[image] = _free_name(image, pids[image.ship], taken)
    return [
        PlannedFile(image, pids[image.ship], Path(folder, names[image])) for folder, group in folders.items() for image in group
    ]


def _free_name(image: ListedImage, pid: int, taken: set[str]) -> str:
    """A name by the rules of HOSS, which keeps as much of the old one as it can; noted in `taken` without suffix and case."""
    kind = KINDS[image.modality]
    match = CHIP_NAME.fullmatch(image.path.stem)
    if match and int(match[1]) == pid and match[2].upper() == kind:
        stem = image.path.stem
    else:
        who = str(DISTRACTOR) if pid == DISTRACTOR else f"{pid:04d}"
        words = re.sub(r"[^\w.-]+", "-", image.path.stem)
        stem = f"{who}_{words}_{kind}"
    wanted, number = stem.rpartition("_")[0], 1
    while stem.lower() in taken:
        number += 1
        stem = f"{wanted}_{number}_{kind}"
    taken.add(stem.lower())
    return stem + image.path.suffix.lower()


def write_dataset(output: Path, files: Sequence[PlannedFile], *, way: str) -> None:
    """Write `files` to `output`, which appears when all is written or not at all.

    Args:
        output: new, or an empty folder.
        files: from `plan_files`.
        way: a key of `WAYS`.

    Raises:
        UsageError: `output` is a file or a folder that is not empty.
        DataError: links are not possible there.
        OSError: the disk is full or the folder cannot be written to.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UsageError(f"{output} exists and is not an empty folder; name a new folder with --output, or delete it first")
    temporary = output.with_name(f".{output.name}.{os.getpid()}.tmp")
    try:
        for folder in {file.place.parent for file in files}:
            (temporary / folder).mkdir(parents=True)
        with progress(len(files), "writing chips", unit="chip") as bar:
            for file in files:
                _bring(file.image.path, temporary / file.place, way)
                bar.update()
        _write_origins(temporary / "images.csv", files)
        if output.exists():
            output.rmdir()  # empty, as was seen above; not every system renames onto it
        temporary.rename(output)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _bring(source: Path, target: Path, way: str) -> None:
    try:
        WAYS[way](source, target)
    except OSError as error:
        if way == "copy":
            raise
        raise DataError(f"{source} cannot be linked into the output folder ({error.strerror}); take --files copy") from error


def _write_origins(path: Path, files: Sequence[PlannedFile]) -> None:
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["file", "pid", "image_id", "ship_id", "modality", "source"])
        for file in files:
            image = file.image
            kind = image.modality.name.lower()
            writer.writerow([file.place.as_posix(), file.pid, image.image_id, image.ship, kind, image.path])


def summary_rows(parts: Parts) -> Iterator[list[object]]:
    """Yield name, ships, images, optical, SAR and distractor images of each part."""
    for name, images in vars(parts).items():
        ships = {image.ship for image in images} - {""}
        kinds = [KINDS[image.modality] for image in images]
        yield [
            name.replace("_", " "),
            len(ships),
            len(images),
            kinds.count("RGB"),
            kinds.count("SAR"),
            sum(not i.ship for i in images),
        ]


def build_parser() -> argparse.ArgumentParser:
    """Build the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.import_dataset",
        description="Write a data set in HOSS layout from a CSV with the columns image_id or path, ship_id and modality.",
        epilog="example:\n  python -m tools.import_dataset --csv ships.csv --images chips --output data/mine --validation 0.1",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--csv", type=Path, required=True, metavar="FILE", help="the table; see docs/data.md")
    parser.add_argument("--images", type=Path, metavar="DIR", help="folder that paths start from (that of the table)")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder that will hold HOSS/; new or empty")
    parser.add_argument("--task", type=Path, metavar="FILE", help="a JSON with the test's query and candidate lists")
    parser.add_argument("--validation", type=float, default=0.0, metavar="SHARE", help="share of ships for validation (0)")
    parser.add_argument("--test", type=float, default=0.3, metavar="SHARE", help="share of ships for the test (0.3)")
    parser.add_argument("--seed", type=int, default=0, help="another seed, other ships in each part (0)")
    parser.add_argument("--files", choices=WAYS, default="copy", help="how chips come into the data set (copy)")
    return parser


def main(arguments: Sequence[str]) -> None:
    """Parse `arguments`, check them and write the data set."""
    setup_logging()
    args = build_parser().parse_args(arguments)
    test = 0.0 if args.task else args.test
    if not (0 <= args.validation < 1 and (args.task or 0 < test < 1) and args.validation + test < 1):
        raise UsageError(
            f"--validation {args.validation:g} --test {args.test:g}: take shares of 0 to 1, a test above 0, together below 1"
        )
    if args.seed < 0:
        raise UsageError("--seed must not be negative")
    images = read_table(args.csv, args.images or args.csv.parent)
    task = read_task(args.task, images) if args.task else None
    parts = split_images(images, validation=args.validation, test=test, seed=args.seed, task=task)
    files = plan_files(parts)
    write_dataset(args.output.absolute(), files, way=args.files)
    print(table(["part", "ships", "images", "optical", "SAR", "distractors"], list(summary_rows(parts))))
    left_out = len(images) - len({file.image for file in files})
    print(f"{args.output} holds the data set; {left_out} image(s) of the table are in no part")
    print(f"see what is in it: python -m tools.check_dataset {args.output}")


if __name__ == "__main__":
    run(main)
