"""Build an index of chips that tools.search and tools.identify look among, or bring it up to date.

Chips that the index holds already are passed over, so a run that was ended goes on where it stood. What tables tell of them
(ship, time, place, sensor) is brought up to date as well.
"""

import argparse
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from configs.parser import answer_help, config_parser


def build_parser() -> argparse.ArgumentParser:
    """Build the command line."""
    parser = config_parser(
        "python -m tools.index",
        "Build an index of chips that tools.search and tools.identify look among, or bring it up to date.",
        "python -m tools.index --weights logs/mine/best_model_mAP.pth --chips chips/archive --index logs/index",
        weights="TEST.WEIGHT",
    )
    modality = {"choices": ("auto", "optical", "sar"), "default": "auto"}
    parser.add_argument(
        "--chips", type=Path, required=True, metavar="DIR", help="a folder, searched below, or a CSV (path; ship_id if known)"
    )
    parser.add_argument("--index", required=True, metavar="DIR", help="folder, or the address of an object store (s3://...)")
    parser.add_argument("--modality", **modality, help="what took the chips (auto: from the name, else the pixels)")
    parser.add_argument("--sensor", default="", metavar="NAME", help="of all chips of which no table tells it")
    parser.add_argument("--known", action="store_true", help="a folder for each ship, as tools.identify --known takes it")
    parser.add_argument("--upright", action="store_true", help="turn ships that lie askew in their chips upright")
    parser.add_argument("--skip-bad", action="store_true", help="go on without files that cannot be read (exit status 1)")
    parser.add_argument("--forget", action="store_true", help="take chips out whose files are gone from the folder")
    parser.add_argument("--batch", type=int, default=1000, metavar="N", help="chips that are written at a time (1000)")
    return parser


if __name__ == "__main__":
    answer_help(build_parser)

from contextlib import nullcontext

import torch
from PIL import Image
from torch.nn import functional

from configs.command import open_command
from datasets.catalogue import find_pictures
from datasets.chips import ChipReading
from datasets.folders import Gathered, count_broken, read_pictures, refuse_broken, warn_of_askew
from datasets.known import Sighting, find_details, name_ships, read_sightings, with_facts
from datasets.loaders import build_chip_reading
from datasets.records import DISTRACTOR, Chip, Modality, Split
from processor.chip_index import FACTS, ChipIndex, IndexedChip, read_time
from processor.extraction import Extractor, build_extractor
from processor.feature_store import build_origin
from processor.report.pictures import thumbnail
from utils.checkpoint import sha256
from utils.cli import run
from utils.errors import DataError, UsageError, some
from utils.lock import own_folder
from utils.log import progress

logger = logging.getLogger("index")


@dataclass
class Tally:
    """What a run did."""

    added: int = 0
    amended: int = 0
    passed: int = 0
    untimed: list[str] = field(default_factory=list)


def list_archive(args: argparse.Namespace, read: ChipReading) -> tuple[list[tuple[Sighting, str]], list[Gathered]]:
    """Every chip that the call names, none of a folder's opened yet, and what took it, 'auto' where pixels are to tell.

    Returns:
        The chips, and what a CSV's lines that cannot be used were skipped as.
    """
    if args.chips.suffix.lower() == ".csv" and args.chips.is_file():
        sightings, gathered = read_sightings(args.chips, Split.GALLERY, args.modality, read, skip_bad=args.skip_bad)
        return [(sighting, sighting.chip.modality.name.lower()) for sighting in sightings], [gathered]
    root = args.chips if args.chips.is_dir() else args.chips.parent
    details, found = find_details(args.chips), []
    for path in find_pictures(args.chips):
        chip = Chip(path, DISTRACTOR, Modality.OPTICAL, Split.GALLERY)  # its modality is told when it is read
        found.append(with_facts(Sighting(chip, path.relative_to(root).as_posix()), details.get(path, {})))
    if args.known:
        ships = {sighting.chip.path: sighting.ship for sighting in name_ships(found, args.chips)}
        found = [replace(sighting, ship=ships.get(sighting.chip.path, "")) for sighting in found]
    return [(sighting, args.modality) for sighting in found], []


def index_line(sighting: Sighting, file: str, args: argparse.Namespace, tally: Tally) -> IndexedChip:
    """The line of a chip."""
    details, place = sighting.details, []
    time = read_time(details.get("time", ""))
    if details.get("time") and time is None:
        tally.untimed.append(f"{sighting.name}: {details['time']}")
    for name, most in (("longitude", 180), ("latitude", 90)):
        try:
            degrees = float(details[name]) if details.get(name) else None
        except ValueError:
            degrees = float("nan")
        if degrees is not None and not abs(degrees) <= most:
            raise DataError(f"{sighting.name}: {name} {details[name]} is no number of degrees; mend the table")
        place.append(degrees)
    facts = {"ship": sighting.ship, "sensor": details.get("sensor", "") or args.sensor, "time": time}
    path = str(sighting.chip.path.absolute())
    modality = sighting.chip.modality
    return IndexedChip(path, sighting.name, file, modality, args.upright, **facts, longitude=place[0], latitude=place[1])


def is_same(line: IndexedChip, kept: IndexedChip | None, modality: str) -> bool:
    """Whether the index holds this picture, read in this way."""
    if kept is None or (line.file, line.upright) != (kept.file, kept.upright):
        return False
    return modality in ("auto", kept.modality.name.lower())


def add_batch(
    index: ChipIndex, batch: Sequence[tuple[Sighting, str, IndexedChip]], extractor: Extractor, read: ChipReading, skip: bool
) -> Gathered:
    """Read new chips, make their vectors and write them; returns what could not be read."""
    thumbnails, sides = {}, []

    def keep(chip: Chip):
        picture = read(chip)
        thumbnails[chip.path] = thumbnail(Image.fromarray(picture))
        return picture

    for modality in sorted({modality for _, modality, _ in batch}):
        paths = [sighting.chip.path for sighting, own, _ in batch if own == modality]
        upright = batch[0][2].upright
        sides.append(read_pictures(paths, None, Split.GALLERY, modality, keep, upright=upright))
    chips = [chip for side in sides for chip in side.chips]
    names = {sighting.chip.path: sighting.name for sighting, *_ in batch}
    askew = {path: angle for side in sides for path, angle in side.askew.items()}
    told = Gathered(tuple(chips), names, {path: fault for side in sides for path, fault in side.broken.items()}, askew)
    if skip and not chips:
        for fault in told.broken.values():
            logger.warning("%s", fault)
        return told
    refuse_broken(told, skip=skip)
    warn_of_askew(told, upright=batch[0][2].upright)
    vectors = functional.normalize(extractor.features(chips)).numpy()
    lines = {sighting.chip.path: line for sighting, _, line in batch}
    index.put([replace(lines[c.path], modality=c.modality, thumbnail=thumbnails[c.path]) for c in chips], vectors)
    return told


def bring_up_to_date(
    index: ChipIndex, listed: Sequence[tuple[Sighting, str]], extractor: Extractor, read: ChipReading, args: argparse.Namespace
) -> tuple[Tally, list[Gathered]]:
    """Write what the index does not hold yet, batch by batch; returns what was done, and what could not be read."""
    kept, tally, sides = index.listing(), Tally(), []
    with progress(len(listed), "indexing", unit="chip") as bar:
        for start in range(0, len(listed), args.batch):
            fresh, changed = [], []
            part = listed[start : start + args.batch]
            for sighting, modality in part:
                line = index_line(sighting, sha256(sighting.chip.path), args, tally)
                old = kept.get(line.path)
                if not is_same(line, old, modality):
                    fresh.append((sighting, modality, line))
                elif any(getattr(line, name) != getattr(old, name) for name in FACTS):
                    changed.append(line)
            if changed:
                index.amend(changed)
            if fresh:
                sides.append(add_batch(index, fresh, extractor, read, args.skip_bad))
                tally.added += len(sides[-1].chips)
            tally.amended, tally.passed = tally.amended + len(changed), tally.passed + len(part) - len(fresh) - len(changed)
            bar.update(len(part))
    return tally, sides


def forget_missing(index: ChipIndex, args: argparse.Namespace) -> str:
    """Count chips below the folder whose files are gone, and take them out if the call says so."""
    root = str(args.chips.absolute())
    gone = [path for path in index.listing() if Path(path).is_relative_to(root) and not Path(path).exists()]
    if not gone:
        return ""
    if args.forget:
        index.remove(gone)
    return f", {len(gone)} of files that are gone {'taken out' if args.forget else 'left in (--forget takes them out)'}"


def main(arguments: Sequence[str]) -> None:
    """Parse `arguments`, index and count."""
    with open_command(build_parser(), arguments, needs={"TEST.WEIGHT": "the checkpoint, as --weights FILE"}) as command:
        args, cfg, device = command.args, command.cfg, command.device
        if args.batch < 1:
            raise UsageError(f"--batch is {args.batch}; take 1 or more")
        if cfg.TEST.COMMON_SPACE != "off":
            raise UsageError("TEST.COMMON_SPACE is for ranking: an index keeps the network's own features; leave it off")
        read = build_chip_reading(cfg)
        listed, sides = list_archive(args, read)
        extractor = build_extractor(cfg, device, weights=cfg.TEST.WEIGHT)
        origin = build_origin(cfg, weights_sha256=extractor.weights_sha256, device=device)
        local = "://" not in args.index
        if local:
            Path(args.index).mkdir(parents=True, exist_ok=True)
        with own_folder(Path(args.index)) if local else nullcontext():
            index = ChipIndex.open_or_create(args.index, origin, extractor.width)
            index.refuse_stale(origin)
            with torch.inference_mode():
                tally, broken = bring_up_to_date(index, listed, extractor, read, args)
            gone = forget_missing(index, args)
            index.organise()
        if tally.untimed:
            print(f"times that are no ISO 8601, left out: {some(tally.untimed)}")
        told = f"{tally.added} chips added, {tally.amended} amended, {tally.passed} as they were"
        print(f"{args.index}: {told}{gone}; {len(index)} in all")
        count_broken(*sides, *broken)


if __name__ == "__main__":
    run(main)
