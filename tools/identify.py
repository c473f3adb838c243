"""Which ship is this? For each query the known ship that it shows, how sure that is, and whether it is any of them at all.

Writes answers.csv, answers.json and answers.html, a page on which answers are accepted or rejected; what it saves becomes known
by `--confirmed`.
"""

import argparse
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from configs.parser import answer_help, config_parser


def build_parser() -> argparse.ArgumentParser:
    """Build the command line."""
    parser = config_parser(
        "python -m tools.identify",
        "Which ship is this? The known ship that each query shows, how sure that is, and whether it is any of them.",
        "python -m tools.identify --weights logs/mine/best_model_mAP.pth --known chips/ships --query chips/today \\\n"
        "      --false-alarms 0.05 --output logs/answers",
        weights="TEST.WEIGHT",
    )
    modality = {"choices": ("auto", "optical", "sar"), "default": "auto"}
    parser.add_argument(
        "--known", required=True, metavar="DIR", help="a folder for each ship, a CSV (path, ship_id), or an index"
    )
    parser.add_argument("--query", type=Path, required=True, metavar="DIR", help="what to look for: a folder, or one file")
    parser.add_argument("--query-modality", **modality, help="what took the queries (auto: from the name, else the pixels)")
    parser.add_argument("--known-modality", **modality, help="what took the known chips (auto)")
    parser.add_argument("--false-alarms", type=float, default=0.05, metavar="RATE", help="of unknown ships called known (0.05)")
    parser.add_argument(
        "--confirmed", type=Path, metavar="FILE", help="the CSV that the page saved: accepted answers are known"
    )
    parser.add_argument("--output", type=Path, default=Path("answers"), metavar="DIR", help="folder of the results (answers)")
    parser.add_argument("--skip-bad", action="store_true", help="go on without files that cannot be read (exit status 1)")
    return parser


if __name__ == "__main__":
    answer_help(build_parser)

import jinja2
import numpy as np
import torch
from markupsafe import Markup, escape
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from configs.command import open_command
from datasets.chips import ChipReading
from datasets.folders import Gathered, count_broken
from datasets.known import Sighting, name_ships, read_confirmed, read_sightings
from datasets.loaders import build_chip_reading
from datasets.records import DISTRACTOR, Chip, Split
from processor.chip_index import ChipIndex, Conditions, is_index
from processor.extraction import build_extractor
from processor.feature_store import build_origin, hash_files
from processor.identification import NAMES, Calibration, answer_queries
from processor.report.pictures import chip_uris, jpeg_uri
from tools.calibrate import calibration_path, nearer_end
from utils.cli import run
from utils.errors import DataError, UsageError
from utils.files import write_json, write_text
from utils.lock import own_folder
from utils.reading import read_json
from utils.tables import write_csv

COLLAPSED = 1e-6
"""Variance of normalised features, of all pictures, below which a network tells nothing apart; at most 1."""

NONE, TIED = "not among the known", "tied"
BEST = 5
"""Known chips that are shown for a query."""


@dataclass(frozen=True)
class Answer:
    """What a query shows.

    Attributes:
        query: the query.
        ship: the most probable ship, '' where no known chip can tell.
        probability: that it is the right one.
        verdict: the ship again, `NONE` or `TIED`.
        runner_up: the next ship, '' for none.
        best: known chips of ship and runner-up, nearest first, with their distances.
    """

    query: Sighting
    ship: str
    probability: float
    verdict: str
    runner_up: str
    best: tuple[tuple[Sighting, float], ...]


def read_calibration(weights: str, sha256: str, settings: dict[str, Any]) -> Calibration:
    """The calibration of a network.

    Raises:
        DataError: there is none, or one of other weights or settings.
    """
    path, make = calibration_path(weights), "python -m tools.calibrate --weights W --data DIR makes it"
    try:
        content = read_json(path)
        names = Calibration.__dataclass_fields__
        found = Calibration(**{name: content[name] for name in names if name in content})
    except OSError as error:
        raise DataError(f"there is no calibration {path}, which probabilities need; {make}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is no calibration ({error}); {make} anew") from error
    if found.weights_sha256 != sha256:
        raise DataError(f"{path} is of other weights; {make} anew")
    theirs = json.loads(json.dumps(settings))
    if differing := sorted(key for key in theirs.keys() | found.settings.keys() if theirs.get(key) != found.settings.get(key)):
        raise DataError(f"{path} was made with other settings ({', '.join(differing[:5])}); {make} anew")
    return found


def refuse_collapsed(features: Tensor) -> None:
    """Refuse features (I, D), normalised, that are all alike.

    Raises:
        DataError: they are.
    """
    variance = float(features.var(dim=0, unbiased=False).sum())
    if not variance > COLLAPSED:
        raise DataError(
            f"the features of all {len(features)} pictures are alike (variance {variance:.1e}): the network tells no ship from "
            "another; take trained weights, and look at the pictures"
        )


def hide_copies(distances: NDArray[np.float32], asked: Sequence[str], shown: Sequence[str]) -> int:
    """Let known files with the content of a query not count for it.

    Args:
        distances: (Q, G), which are made infinite in place.
        asked: (Q,) SHA-256 of the queries' files.
        shown: (G,) of the known ones.

    Returns:
        How many queries have such a copy.
    """
    copies: dict[str, list[int]] = {file: [] for file in asked}
    for place, file in enumerate(shown):
        if file in copies:
            copies[file].append(place)
    for row, file in enumerate(asked):
        distances[row, copies[file]] = np.inf
    return sum(bool(copies[file]) for file in asked)


def make_answers(
    query: Sequence[Sighting],
    known: Sequence[Sighting],
    distances: NDArray[np.float32],
    calibration: Calibration,
    *,
    false_alarms: float,
) -> list[Answer]:
    """Answer every query.

    Args:
        query: (Q,).
        known: (G,) with their ships.
        distances: (Q, G) squared; infinite for known chips that do not count.
        calibration: of the network.
        false_alarms: share of the queries of unknown ships that may be taken for known ones.
    """
    names, ships = np.unique([sighting.ship for sighting in known], return_inverse=True)
    asking, shown = (np.array([int(sighting.chip.modality) for sighting in side]) for side in (query, known))
    found = answer_queries(distances, asking, ships, shown, calibration.directions, calibration.sensors)
    answers = []
    for place, sighting in enumerate(query):
        told = [names[number] if number >= 0 else "" for number in (found.ship[place], found.runner_up[place])]
        is_open = found.probability[place] <= 0
        least = 1.0 if is_open else calibration.threshold(sighting.chip.modality, false_alarms)
        verdict = NONE if is_open or found.probability[place] <= least else TIED if found.tied[place] else told[0]
        wanted = np.isin(ships, [found.ship[place], found.runner_up[place]]) & np.isfinite(distances[place])
        order = [index for index in np.argsort(distances[place], kind="stable") if wanted[index]][:BEST]
        best = tuple((known[index], float(distances[place, index])) for index in order)
        ship = "" if is_open else str(told[0])
        answers.append(Answer(sighting, ship, float(found.probability[place]), str(verdict), str(told[1]), best))
    return answers


def answer_rows(answers: Sequence[Answer]) -> list[list[object]]:
    """Lines of answers.csv: query, path, verdict, ship, probability, runner_up, best chips."""
    rows = []
    for answer in answers:
        best = " | ".join(f"{known.ship}: {known.name}" for known, _ in answer.best)
        told = [answer.verdict, answer.ship, f"{answer.probability:.3f}", answer.runner_up]
        rows.append([answer.query.name, str(answer.query.chip.path.absolute()), *told, best])
    return rows


HEADERS = ["query", "path", "answer", "ship", "probability", "runner_up", "best"]


def _facts(sighting: Sighting) -> dict[str, str]:
    """What the page says beside a picture: sensor and time, and a link to a map."""
    modality, sensor, time = NAMES[sighting.chip.modality], *(sighting.details.get(name, "") for name in ("sensor", "time"))
    told = {"facts": ", ".join(filter(None, [modality, sensor if sensor != modality else "", time]))}
    longitude, latitude = (sighting.details.get(name) for name in ("longitude", "latitude"))
    if longitude and latitude:
        told["place"] = f"{latitude}, {longitude}"
        told["map"] = f"https://www.openstreetmap.org/?mlat={latitude}&mlon={longitude}#map=12/{latitude}/{longitude}"
    return told


def render_page(
    answers: Sequence[Answer], read: ChipReading, headlines: Sequence[str], kept: Mapping[str, str] | None = None
) -> str:
    """The HTML page of answers; `kept` are pictures, by path, of which no file is read."""
    kept = kept or {}
    sightings = {str(s.chip.path): s.chip for answer in answers for s in (answer.query, *(known for known, _ in answer.best))}
    pictures = chip_uris({path: chip for path, chip in sightings.items() if path not in kept}, read) | dict(kept)
    shown = []
    for answer in answers:
        best = [
            {"name": s.name, "ship": s.ship, "picture": pictures.get(str(s.chip.path), "data:,"), **_facts(s)}
            for s, _ in answer.best
        ]
        percent = round(100 * answer.probability) if answer.ship else None
        told = {"query": answer.query.name, "path": str(answer.query.chip.path.absolute()), "ship": answer.ship}
        told |= {
            "named": answer.verdict == answer.ship != "",
            "headline": answer.verdict,
            "percent": percent,
            "runner_up": answer.runner_up,
            "best": best,
        }
        shown.append(told | {"picture": pictures.get(str(answer.query.chip.path), "data:,")} | _facts(answer.query))
    here = Path(__file__).parent
    style = (here.parent / "processor" / "report" / "page.css").read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True)
    environment.filters["breakable"] = lambda name: Markup(re.sub(r"([/_.-])", r"\1<wbr>", str(escape(name))))
    template = environment.from_string((here / "identify.html.j2").read_text(encoding="utf-8"))
    return template.render(title="Which ship is this?", style=Markup(style), answers=shown, headlines=headlines)


def read_known(args: argparse.Namespace, read: ChipReading) -> tuple[list[Sighting], list[Gathered]]:
    """The known chips of files with their ships, those of `--confirmed` too, and what was skipped."""
    known, sides = [], []
    if not is_index(args.known):
        path = Path(args.known)
        known, gathered = read_sightings(path, Split.GALLERY, args.known_modality, read, skip_bad=args.skip_bad)
        known, sides = name_ships(known, path), [gathered]
    for path, ship in read_confirmed(args.confirmed) if args.confirmed else []:
        found, gathered = read_sightings(Path(path), Split.GALLERY, args.known_modality, read, skip_bad=args.skip_bad)
        known += [replace(sighting, ship=ship) for sighting in found]
        sides.append(gathered)
    return known, sides


@dataclass(frozen=True)
class IndexedShips:
    """Known chips of an index.

    Attributes:
        index: where they are; None without an index.
        sightings: (G,) the chips with their ships.
        vectors: (G, D) float32, normalised.
        files: (G,) SHA-256 of the files.
    """

    index: ChipIndex | None
    sightings: list[Sighting]
    vectors: NDArray[np.float32]
    files: list[str]

    def pictures(self, answers: Sequence[Answer]) -> dict[str, str]:
        """Path -> picture of the chips that answers show."""
        paths = {str(known.chip.path) for answer in answers for known, _ in answer.best}
        own = paths & {str(sighting.chip.path) for sighting in self.sightings}
        return {path: jpeg_uri(chip.thumbnail) for path, chip in self.index.chips(own).items()} if own else {}


def read_indexed(where: str, origin: Mapping[str, Any], width: int) -> IndexedShips:
    """All chips of an index whose ship is known; none where `where` is no index.

    Raises:
        DataError: another network made the index, or it knows no ship.
    """
    if not is_index(where):
        return IndexedShips(None, [], np.empty((0, width), np.float32), [])
    index = ChipIndex.open(where)
    index.refuse_stale(origin)
    blocks = list(index.vectors(Conditions(known=True)))
    if not blocks:
        raise DataError(f"{where} knows no ship; name ships by tools.index --known, or by a column ship_id of a CSV")
    chips = [chip for own, _ in blocks for chip in own]
    sightings = [
        Sighting(Chip(Path(c.path), DISTRACTOR, c.modality, Split.GALLERY, upright=False), c.name, c.ship, c.details())
        for c in chips
    ]
    return IndexedShips(index, sightings, np.concatenate([vectors for _, vectors in blocks]), [chip.file for chip in chips])


def main(arguments: Sequence[str]) -> None:
    """Parse `arguments`, identify and write."""
    with open_command(build_parser(), arguments, needs={"TEST.WEIGHT": "the checkpoint, as --weights FILE"}) as command:
        args, cfg, device = command.args, command.cfg, command.device
        if not 0 < args.false_alarms < 1:
            raise UsageError(f"--false-alarms is {args.false_alarms}; it lies between 0 and 1")
        read = build_chip_reading(cfg)
        known, sides = read_known(args, read)
        query, gathered = read_sightings(args.query, Split.QUERY, args.query_modality, read, skip_bad=args.skip_bad)
        extractor = build_extractor(cfg, device, weights=cfg.TEST.WEIGHT)
        origin = build_origin(cfg, weights_sha256=extractor.weights_sha256, device=device)
        calibration = read_calibration(cfg.TEST.WEIGHT, extractor.weights_sha256, origin["settings"])
        indexed = read_indexed(args.known, origin, extractor.width)
        chips = [s.chip for s in (*known, *query)]
        chips += [replace(s.chip, turned=True) for s in query if calibration.both_ends]
        features = functional.normalize(extractor.features(chips, description="features"))
        shown = torch.cat([features[: len(known)], torch.from_numpy(indexed.vectors)])
        asked = features[len(known) :].split(len(query))
        refuse_collapsed(torch.cat([*asked, shown]))
        known, files = [*known, *indexed.sightings], [*hash_files([s.chip.path for s in known]), *indexed.files]
        distances = nearer_end(asked, shown)
        copies = hide_copies(distances, hash_files([s.chip.path for s in query]), files)
        answers = make_answers(query, known, distances, calibration, false_alarms=args.false_alarms)
        lines = summary(answers, known, copies, args.false_alarms)
        with own_folder(args.output):
            write_csv(args.output / "answers.csv", HEADERS, answer_rows(answers))
            write_json(args.output / "answers.json", [dict(zip(HEADERS, row)) for row in answer_rows(answers)])
            write_text(args.output / "answers.html", render_page(answers, read, lines, indexed.pictures(answers)))
        print("\n".join([*lines, f"{args.output}: answers.csv, answers.json, answers.html"]))
        count_broken(*sides, gathered)


def summary(answers: Sequence[Answer], known: Sequence[Sighting], copies: int, false_alarms: float) -> list[str]:
    """What to know of all answers, in sentences."""
    ships, open_set = len({sighting.ship for sighting in known}), sum(answer.verdict == NONE for answer in answers)
    queries = f"{len(answers)} {'query' if len(answers) == 1 else 'queries'}"
    lines = [f"{queries} among {len(known)} chips of {ships} known ships, {false_alarms:.0%} false alarms allowed"]
    lines.append(f"{len(answers) - open_set} answered, {open_set} {NONE}")
    if tied := sum(answer.verdict == TIED for answer in answers):
        lines.append(f"{tied} tied: two ships are equally near, so neither is told")
    if copies:
        lines.append(f"{copies} queries have a copy of the same content among the known, which did not count")
    lines.append(
        "probabilities hold where half of all queries show a known ship; unknown ones are rarer or more frequent elsewhere"
    )
    return lines


if __name__ == "__main__":
    run(main)
