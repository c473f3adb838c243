"""Write a data set in HOSS layout from a table of images: which file shows which ship, seen by which sensor.

Ships of training, validation and test are different ones. `<output>/HOSS` holds training and test; `<output>/validation/HOSS`
holds the same training chips and the validation ships, so that weights are chosen without a look at the test.
`<output>/images.csv` tells where each file came from. A test without labels goes to `<output>/unlabelled/{query,gallery}`.
"""

import argparse
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from configs.parser import answer_help

WAYS: dict[str, Callable[[Path, Path], object]] = {
    "copy": shutil.copyfile,
    "hardlink": os.link,
    "symlink": os.symlink,
}
"""--files: how a chip comes from (source) to (target)."""


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
    parser.add_argument(
        "--column",
        action="append",
        default=[],
        metavar="OURS=THEIRS",
        help="what a column is called in the tables, such as image=filename or ship=label; again for each",
    )
    parser.add_argument("--query", type=Path, metavar="DIR", help="a test without labels: its queries, a folder or a CSV")
    parser.add_argument("--gallery", type=Path, metavar="DIR", help="and its gallery")
    parser.add_argument("--skip-bad", action="store_true", help="go on without files that cannot be read (exit status 1)")
    parser.add_argument("--task", type=Path, metavar="FILE", help="a JSON with the test's query and candidate lists")
    parser.add_argument("--validation", type=float, default=0.0, metavar="SHARE", help="share of ships for validation (0)")
    parser.add_argument("--test", type=float, default=0.3, metavar="SHARE", help="share of ships for the test (0.3)")
    parser.add_argument("--seed", type=int, default=0, help="another seed, other ships in each part (0)")
    parser.add_argument("--files", choices=WAYS, default="copy", help="how chips come into the data set (copy)")
    return parser


if __name__ == "__main__":
    answer_help(build_parser)

from scipy.stats import binomtest

from datasets.catalogue import KINDS, modality_of_name, parse_name
from datasets.chips import read_chip
from datasets.curation.importing import COLUMNS, ChipTable, read_table, read_task
from datasets.curation.splitting import split_chips
from datasets.folders import gather_chips, refuse_broken
from datasets.records import DISTRACTOR, Chip, Modality, Split
from datasets.sar import render_percentile
from utils.cli import run
from utils.errors import DataError, UsageError
from utils.lock import replacing_folder
from utils.log import progress, setup_logging, table
from utils.tables import write_csv

logger = logging.getLogger(__name__)

WIDEST_INTERVAL = 0.2
"""Width of the interval of a rate from which a validation part is called too small to choose by."""

PLACES = {
    "HOSS/bounding_box_train": Split.TRAIN,
    "HOSS/query": Split.QUERY,
    "HOSS/bounding_box_test": Split.GALLERY,
    "validation/HOSS/bounding_box_train": Split.TRAIN,
    "validation/HOSS/query": Split.VALIDATION_QUERY,
    "validation/HOSS/bounding_box_test": Split.VALIDATION_GALLERY,
}
"""Folder of the output -> the split that it holds; `validation` is there if there are validation ships."""


def plan_files(parts: Mapping[Split, Sequence[Chip]]) -> dict[Path, Chip]:
    """Place and name of every file of the output -> its chip; no two files of the data set have one name."""
    names: dict[Path, str] = {}
    taken: set[str] = set()
    files: dict[Path, Chip] = {}
    for folder, split in PLACES.items():
        if folder.startswith("validation/") and not parts[Split.VALIDATION_QUERY]:
            continue
        for chip in parts[split]:
            if chip.path not in names:
                names[chip.path] = _free_name(chip, taken)
            files[Path(folder, names[chip.path])] = chip
    return files


def plan_unlabelled(table: ChipTable, folder: str, taken: set[str]) -> dict[Path, Chip]:
    """Place and name below `unlabelled/<folder>` of every chip of a table without labels -> the chip.

    A name stays as it is where it tells the modality and no other file of the folder has it; `taken` holds those in use.
    """
    files: dict[Path, Chip] = {}
    for chip in table.chips:
        told = modality_of_name(chip.path) is chip.modality
        stem = wanted = chip.path.stem if told else f"{chip.path.stem}_{KINDS[chip.modality]}"
        number = 1
        while f"{folder}/{stem}".lower() in taken:
            number += 1
            stem = f"{number}_{wanted}"
        taken.add(f"{folder}/{stem}".lower())
        files[Path("unlabelled", folder, stem + chip.path.suffix.lower())] = chip
    return files


def read_unlabelled(path: Path, options: Mapping[str, object]) -> ChipTable:
    """The chips of a folder, or of a CSV without ships; `options` go to `read_table`, of which a folder heeds `skip_bad`."""
    if not path.is_dir():
        return read_table(path, path.parent, labelled=False, **options)
    gathered = gather_chips(path, Split.QUERY, "auto", partial(read_chip, render_sar=render_percentile))
    refuse_broken(gathered, skip=bool(options["skip_bad"]))
    chips = tuple(replace(chip, path=chip.path.absolute()) for chip in gathered.chips)
    ids = {path.absolute(): name for path, name in gathered.names.items()}
    return ChipTable(chips, ids, dict.fromkeys(ids, ""), tuple(gathered.broken.values()))


def join_tables(tables: Sequence[ChipTable]) -> ChipTable:
    """One table of several, for what their chips are called."""
    return ChipTable(
        chips=tuple(chip for table in tables for chip in table.chips),
        ids={path: name for table in tables for path, name in table.ids.items()},
        ships={path: ship for table in tables for path, ship in table.ships.items()},
        skipped=tuple(fault for table in tables for fault in table.skipped),
    )


def parse_columns(words: Sequence[str]) -> dict[str, str]:
    """`--column ours=theirs` words -> our name of a column -> its name in the table.

    Raises:
        UsageError: a word of another form, or a column that is none of ours.
    """
    pairs = [word.partition("=") for word in words]
    for ours, sign, theirs in pairs:
        if not sign or not theirs or ours.lower() not in COLUMNS:
            raise UsageError(f"--column {ours}{sign}{theirs}: write one of {', '.join(COLUMNS)}, then = and the table's column")
    return {COLUMNS[ours.lower()]: theirs for ours, _, theirs in pairs}


def warn_of_small_validation(parts: Mapping[Split, Sequence[Chip]]) -> None:
    """Say how little a small validation part tells: the 95 % interval (Wilson) of a rank-1 of one half."""
    queries = len(parts[Split.VALIDATION_QUERY])
    if not queries:
        return
    interval = binomtest(queries // 2, queries).proportion_ci(method="wilson")
    if interval.high - interval.low > WIDEST_INTERVAL:
        logger.warning(
            "the validation part has %d queries, too few to choose by: where half of them find their ship first, the true rate "
            "is anywhere from %.0f to %.0f %% (95 %% interval); raise --validation",
            queries,
            100 * interval.low,
            100 * interval.high,
        )


def _free_name(chip: Chip, taken: set[str]) -> str:
    """A name by the rules of HOSS, which keeps as much of the old one as it can; noted in `taken` without suffix and case."""
    kind = KINDS[chip.modality]
    if parse_name(chip.path) == (chip.ship, chip.modality):
        stem = chip.path.stem
    else:
        who = str(DISTRACTOR) if chip.ship == DISTRACTOR else f"{chip.ship:04d}"
        words = re.sub(r"[^\w.-]+", "-", chip.path.stem)
        stem = f"{who}_{words}_{kind}"
    wanted, number = stem.rpartition("_")[0], 1
    while stem.lower() in taken:
        number += 1
        stem = f"{wanted}_{number}_{kind}"
    taken.add(stem.lower())
    return stem + chip.path.suffix.lower()


def write_parts(output: Path, files: Mapping[Path, Chip], table: ChipTable, *, way: str) -> None:
    """Write `files` to `output`, which appears when all is written or not at all.

    Args:
        output: new, or an empty folder.
        files: from `plan_files`.
        table: what the chips were called, for images.csv.
        way: a key of `WAYS`.

    Raises:
        UsageError: `output` is a file or a folder that is not empty.
        DataError: links are not possible there.
        OSError: the disk is full or the folder cannot be written to.
    """
    with replacing_folder(output) as temporary:
        for folder in {place.parent for place in files}:
            (temporary / folder).mkdir(parents=True)
        with progress(len(files), "writing chips", unit="chip") as bar:
            for place, chip in files.items():
                _bring(chip.path, temporary / place, way)
                bar.update()
        _write_origins(temporary / "images.csv", files, table)


def _bring(source: Path, target: Path, way: str) -> None:
    try:
        WAYS[way](source, target)
    except OSError as error:
        if way == "copy":
            raise
        raise DataError(f"{source} cannot be linked into the output folder ({error.strerror}); take --files copy") from error


def _write_origins(path: Path, files: Mapping[Path, Chip], table: ChipTable) -> None:
    rows = []
    for place, chip in files.items():
        own = [table.ids[chip.path], table.ships[chip.path], chip.modality.name.lower(), str(chip.path)]
        rows.append([place.as_posix(), chip.ship, *own])
    write_csv(path, ["file", "pid", "image_id", "ship_id", "modality", "source"], rows)


def summary_rows(parts: Mapping[Split, Sequence[Chip]]) -> Iterator[list[object]]:
    """Yield name, ships, images, optical, SAR and distractor images of each part."""
    for split, chips in parts.items():
        ships = [chip.ship for chip in chips]
        kinds = [chip.modality for chip in chips]
        counts = [kinds.count(modality) for modality in Modality]
        yield [split.replace("/", " "), len(set(ships) - {DISTRACTOR}), len(chips), *counts, ships.count(DISTRACTOR)]


def main(arguments: Sequence[str]) -> None:
    """Parse `arguments`, check them and write the data set."""
    setup_logging()
    args = build_parser().parse_args(arguments)
    given = args.task or args.query
    test = 0.0 if given else args.test
    if bool(args.query) != bool(args.gallery) or (args.task and args.query):
        raise UsageError("a test without labels is given by --query and --gallery together, and without --task")
    if not (0 <= args.validation < 1 and (given or 0 < test < 1) and args.validation + test < 1):
        raise UsageError(
            f"--validation {args.validation:g} --test {args.test:g}: take shares of 0 to 1, a test above 0, together below 1"
        )
    if args.seed < 0:
        raise UsageError("--seed must not be negative")
    options = {"columns": parse_columns(args.column), "skip_bad": args.skip_bad}
    listed = read_table(args.csv, args.images or args.csv.parent, **options)
    tests = [read_unlabelled(path, options) for path in (args.query, args.gallery) if path]
    task = read_task(args.task, listed) if args.task else ((), ()) if tests else None
    parts = split_chips(listed, validation=args.validation, test=test, seed=args.seed, task=task)
    warn_of_small_validation(parts)
    files, taken = plan_files(parts), set()
    left_out = len(listed.chips) - len({chip.path for chip in files.values()})
    for folder, chips in zip(("query", "gallery"), tests):
        files |= plan_unlabelled(chips, folder, taken)
    everything = join_tables([*tests, listed])
    write_parts(args.output.absolute(), files, everything, way=args.files)
    print(table(["part", "ships", "images", "optical", "SAR", "distractors"], list(summary_rows(parts))))
    for folder, chips in zip(("query", "gallery"), tests):
        print(f"{args.output}/unlabelled/{folder} holds {len(chips.chips)} image(s); rank them by tools.rank")
    print(f"{args.output} holds the data set; {left_out} image(s) of the table are in no part")
    print(f"see what is in it: python -m tools.check_dataset {args.output}")
    if skipped := len(everything.skipped):
        raise DataError(f"{skipped} file(s) were skipped (listed above); everything else was done")


if __name__ == "__main__":
    run(main)
