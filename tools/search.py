"""Search an index of chips: for each query the nearest chips, among those of given sensors, times and places.

Writes found.csv, found.json and found.html, a page with the pictures that the index keeps.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from configs.parser import answer_help, config_parser


def build_parser() -> argparse.ArgumentParser:
    """Build the command line."""
    parser = config_parser(
        "python -m tools.search",
        "Search an index of chips: for each query the nearest chips, among those of given sensors, times and places.",
        "python -m tools.search --weights logs/mine/best_model_mAP.pth --index logs/index --query chips/today \\\n"
        "      --modality sar --after 2026-01-01 --box 3.0 51.0 5.0 53.0 --output logs/found",
        weights="TEST.WEIGHT",
    )
    parser.add_argument("--index", required=True, metavar="DIR", help="as tools.index made it")
    parser.add_argument("--query", type=Path, required=True, metavar="DIR", help="what to look for: a folder, or one file")
    modality = {"choices": ("auto", "optical", "sar"), "default": "auto"}
    parser.add_argument("--query-modality", **modality, help="what took the queries (auto: from the name, else the pixels)")
    parser.add_argument("--top-k", type=int, default=10, metavar="K", help="chips for each query (10)")
    parser.add_argument("--modality", choices=("optical", "sar"), help="look among chips of this kind only")
    parser.add_argument("--sensor", action="append", default=[], metavar="NAME", help="and of this sensor, or of several")
    parser.add_argument("--ship", action="append", default=[], metavar="NAME", help="and of this known ship, or of several")
    parser.add_argument("--after", default="", metavar="TIME", help="and taken at this time or later (2026-01-31T12:00)")
    parser.add_argument("--before", default="", metavar="TIME", help="and taken at this time or earlier")
    box = ("WEST", "SOUTH", "EAST", "NORTH")
    parser.add_argument("--box", type=float, nargs=4, metavar=box, help="and in this area, in degrees")
    parser.add_argument("--exact", action="store_true", help="compare every vector, one by one: the reference")
    parser.add_argument(
        "--both-ends", action="store_true", help="ask with each query turned by 180 degrees too; the nearer counts"
    )
    parser.add_argument("--upright", action="store_true", help="turn ships that lie askew in their chips upright")
    parser.add_argument("--output", type=Path, default=Path("found"), metavar="DIR", help="folder of the results (found)")
    parser.add_argument("--skip-bad", action="store_true", help="go on without files that cannot be read (exit status 1)")
    return parser


if __name__ == "__main__":
    answer_help(build_parser)

from datetime import UTC, datetime

import jinja2
import numpy as np
from markupsafe import Markup
from torch.nn import functional

from configs.command import open_command
from datasets.chips import ChipReading
from datasets.folders import MODALITY_CHOICES, count_broken, gather_chips, refuse_broken, warn_of_askew
from datasets.loaders import build_chip_reading
from datasets.records import Chip, Split
from processor.chip_index import ChipIndex, Conditions, IndexedChip, read_time, write_time
from processor.extraction import build_extractor
from processor.feature_store import build_origin
from processor.report.pictures import chip_uris, jpeg_uri
from utils.cli import run
from utils.errors import UsageError
from utils.files import write_json, write_text
from utils.lock import own_folder
from utils.tables import write_csv

HEADERS = ["query", "rank", "chip", "path", "distance", "ship", "modality", "sensor", "time", "longitude", "latitude"]


@dataclass(frozen=True)
class FoundList:
    """What a query found.

    Attributes:
        query: the query.
        name: what it is called.
        found: chips of the index with their squared distances, nearest first.
    """

    query: Chip
    name: str
    found: tuple[tuple[IndexedChip, float], ...]


def read_conditions(args: argparse.Namespace) -> Conditions:
    """The conditions of a call.

    Raises:
        UsageError: a time or an area that is none.
    """
    times: dict[str, datetime | None] = {"after": None, "before": None}
    for name in times:
        text = getattr(args, name)
        times[name] = read_time(text) if text else None
        if text and times[name] is None:
            raise UsageError(f"--{name} {text} is no time; write it as 2026-01-31 or 2026-01-31T12:00")
        if name == "before" and times[name] and len(text.strip()) == len("2026-01-31"):  # a day ends at midnight
            times[name] = times[name].replace(hour=23, minute=59, second=59, microsecond=999_999, tzinfo=UTC)
    if args.box:
        west, south, east, north = args.box
        if not (abs(west) <= 180 and abs(east) <= 180 and -90 <= south < north <= 90):
            raise UsageError("--box is west, south, east, north in degrees, such as 3 51 5 53")
    modality = MODALITY_CHOICES.get(args.modality)
    box = tuple(args.box) if args.box else None
    return Conditions(modality, tuple(args.sensor), **times, box=box, ships=tuple(args.ship))


def join_ends(one: Sequence[tuple[IndexedChip, float]], other: Sequence[tuple[IndexedChip, float]]) -> list:
    """What both ends of a query found, each chip once at the nearer distance, as many as one end found."""
    nearest: dict[str, tuple[IndexedChip, float]] = {}
    for chip, distance in sorted([*one, *other], key=lambda found: found[1]):
        nearest.setdefault(chip.path, (chip, distance))
    return list(nearest.values())[: max(len(one), len(other))]


def found_rows(lists: Sequence[FoundList]) -> list[list[object]]:
    """Lines of found.csv, see `HEADERS`."""
    rows = []
    for asked in lists:
        for rank, (chip, distance) in enumerate(asked.found, start=1):
            place = ["" if degrees is None else degrees for degrees in (chip.longitude, chip.latitude)]
            told = [chip.ship, chip.modality.name.lower(), chip.sensor, write_time(chip.time), *place]
            rows.append([asked.name, rank, chip.name, chip.path, f"{distance:.6g}", *told])
    return rows


def render_found(lists: Sequence[FoundList], read: ChipReading, headlines: Sequence[str]) -> str:
    """The page of a search."""
    asked = chip_uris({each.name: each.query for each in lists}, read)
    shown = []
    for each in lists:
        chips = []
        for chip, distance in each.found:
            told = chip.details()
            facts = [chip.modality.name.lower(), *(told[name] for name in ("sensor", "time") if name in told)]
            own = {"name": chip.name, "ship": chip.ship, "distance": f"{distance:.3f}", "facts": ", ".join(facts)}
            if "longitude" in told and "latitude" in told:
                latitude, longitude = told["latitude"], told["longitude"]
                own["place"] = f"{latitude}, {longitude}"
                own["map"] = f"https://www.openstreetmap.org/?mlat={latitude}&mlon={longitude}#map=12/{latitude}/{longitude}"
            chips.append(own | {"picture": jpeg_uri(chip.thumbnail)})
        query = {"name": each.name, "picture": asked.get(each.name, "data:,")}
        shown.append(query | {"facts": each.query.modality.name.lower(), "found": chips})
    here = Path(__file__).parent
    style = (here.parent / "processor" / "report" / "page.css").read_text(encoding="utf-8")
    template = jinja2.Environment(autoescape=True).from_string((here / "search.html.j2").read_text(encoding="utf-8"))
    return template.render(title="What the index holds of it", style=Markup(style), lists=shown, headlines=headlines)


def main(arguments: Sequence[str]) -> None:
    """Parse `arguments`, search and write."""
    with open_command(build_parser(), arguments, needs={"TEST.WEIGHT": "the checkpoint, as --weights FILE"}) as command:
        args, cfg, device = command.args, command.cfg, command.device
        if args.top_k < 1:
            raise UsageError(f"--top-k is {args.top_k}; take 1 or more")
        conditions, index = read_conditions(args), ChipIndex.open(args.index)
        read = build_chip_reading(cfg)
        gathered = gather_chips(args.query, Split.QUERY, args.query_modality, read, upright=args.upright)
        refuse_broken(gathered, skip=args.skip_bad)
        warn_of_askew(gathered, upright=args.upright)
        extractor = build_extractor(cfg, device, weights=cfg.TEST.WEIGHT)
        index.refuse_stale(build_origin(cfg, weights_sha256=extractor.weights_sha256, device=device))
        chips = [*gathered.chips, *(replace(chip, turned=True) for chip in gathered.chips if args.both_ends)]
        vectors = functional.normalize(extractor.features(chips, description="features")).numpy().astype(np.float32)
        found = index.search(vectors, conditions, args.top_k, exact=args.exact)
        if args.both_ends:
            found = [join_ends(*ends) for ends in zip(found[: len(gathered.chips)], found[len(gathered.chips) :])]
        lists = [FoundList(c, gathered.names[c.path], tuple(own)) for c, own in zip(gathered.chips, found)]
        among = f"{index.count(conditions)} of {len(index)} chips of {args.index}"
        lines = [f"{len(lists)} queries among {among}{', every vector compared' if args.exact else ''}"]
        rows = found_rows(lists)
        with own_folder(args.output):
            write_csv(args.output / "found.csv", HEADERS, rows)
            write_json(args.output / "found.json", [dict(zip(HEADERS, row)) for row in rows])
            write_text(args.output / "found.html", render_found(lists, read, lines))
        print("\n".join([*lines, f"{args.output}: found.csv, found.json, found.html"]))
        count_broken(gathered)


if __name__ == "__main__":
    run(main)
