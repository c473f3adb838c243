"""Known ships: chips with the ship that each shows, when and where: from folders, tables and confirmed answers."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from datasets.catalogue import parse_name
from datasets.chips import ChipReading
from datasets.curation.importing import read_table
from datasets.folders import Gathered, gather_chips, refuse_broken
from datasets.records import DISTRACTOR, Chip, Split
from utils.errors import DataError, some
from utils.reading import read_text
from utils.tables import read_cell

DETAILS = ("time", "longitude", "latitude", "sensor")
"""Columns of `chips.csv` (`tools.cut_chips`) and of a table of known ships that are shown beside a chip."""

SHIP_COLUMNS = ("ship_id", "ship")


@dataclass(frozen=True)
class Sighting:
    """A chip with what is known of it.

    Attributes:
        chip: the picture.
        name: what it is called in answers.
        ship: its ship, '' where it is not known.
        details: of `DETAILS`, those that are known.
    """

    chip: Chip
    name: str
    ship: str = ""
    details: Mapping[str, str] = field(default_factory=dict)


def read_sightings(
    path: Path, split: Split, modality: str, read: ChipReading, *, skip_bad: bool = False
) -> tuple[list[Sighting], Gathered]:
    """The chips of a folder, searched below, of one file, or of a CSV (see `read_table`), with their details.

    Of a folder, the ship is what a `chips.csv` says, if there is one; see `name_ships` for the others.

    Returns:
        The chips, and the files that were skipped.

    Raises:
        DataError: see `gather_chips`, `refuse_broken` and `read_table`.
    """
    if path.suffix.lower() == ".csv" and path.is_file():
        table = read_table(path, path.parent, skip_bad=skip_bad)
        details = read_details(path)
        sightings = [
            replace(with_facts(Sighting(replace(chip, split=split), name), details.get(name, {})), ship=table.ships[chip.path])
            for chip, name in ((chip, table.ids[chip.path]) for chip in table.chips)
        ]
        broken = {Path(f"{path}, {number}"): fault for number, fault in enumerate(table.skipped)}
        return sightings, Gathered(table.chips, table.ids, broken)
    gathered = gather_chips(path, split, modality, read)
    refuse_broken(gathered, skip=skip_bad)
    details = find_details(path)
    told = ((chip, details.get(chip.path, {})) for chip in gathered.chips)
    return [with_facts(Sighting(chip, gathered.names[chip.path]), facts) for chip, facts in told], gathered


def with_facts(sighting: Sighting, facts: Mapping[str, str]) -> Sighting:
    """A chip of a folder with what tables tell of it (`find_details`)."""
    details = {name: value for name, value in facts.items() if name in DETAILS}
    return replace(sighting, ship=facts.get("ship", ""), details=details)


def find_details(path: Path) -> dict[Path, dict[str, str]]:
    """Chip -> what the tables `chips.csv` of a folder and of those below it tell of it: `ship` and those of `DETAILS`."""
    tables = sorted(path.rglob("chips.csv")) if path.is_dir() else []
    return {table.parent / name: told for table in tables for name, told in read_details(table).items()}


def read_details(table: Path) -> dict[str, dict[str, str]]:
    """Name of a chip in a CSV (column chip, path or image_id) -> its `ship` and those of `DETAILS` that the CSV has."""
    try:
        text = read_text(table, encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {table} ({error}); name an existing CSV file in UTF-8") from error
    found = {}
    header = text.partition("\n")[0]
    for row in csv.DictReader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=header.count)):
        cells = {(name or "").strip().lower(): read_cell(cell.strip()) for name, cell in row.items() if isinstance(cell, str)}
        name = next((cells[column] for column in ("image_id", "chip", "path") if cells.get(column)), "")
        found[name] = {column: cells[column] for column in DETAILS if cells.get(column)}
        if ship := next((cells[column] for column in SHIP_COLUMNS if cells.get(column)), ""):
            found[name]["ship"] = ship
    return found


def name_ships(sightings: Sequence[Sighting], path: Path) -> list[Sighting]:
    """Give each chip of a folder its ship: the folder directly below `path` that it lies in, or else the pid of its name.

    Distractors (pid -1) and chips whose ship a table leaves open are left out.

    Raises:
        DataError: chips whose ship neither tells.
    """
    named, unknown = [], []
    for sighting in sightings:
        folder, told = sighting.name.rpartition("/")[0].partition("/")[0], parse_name(sighting.chip.path)
        if sighting.ship:
            named.append(sighting)
        elif path.is_dir() and folder:
            named.append(replace(sighting, ship=folder))
        elif path.is_dir() and told and told[0] != DISTRACTOR:
            named.append(replace(sighting, ship=str(told[0])))
        elif path.is_dir() and not told:
            unknown.append(sighting.name)
    if unknown:
        raise DataError(
            f"{path}: neither a folder nor a name <pid>_..._RGB or _SAR tells the ship of {some(unknown)}; put the chips of "
            "each ship into a folder of its own, or name a CSV with the columns path and ship_id"
        )
    if not named:
        raise DataError(f"{path} holds no chip of a known ship")
    return named


def read_confirmed(table: Path) -> list[tuple[str, str]]:
    """(path of the query, ship) of every line of a CSV of `query, path, ship, decision` whose decision is 'accept'.

    Lines without a ship accept that it is none of the known, and are left out.
    """
    try:
        rows = list(csv.DictReader(io.StringIO(read_text(table, encoding="utf-8-sig"), newline="")))
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {table} ({error}); name the CSV that the page saved") from error
    if not rows or not {"path", "ship", "decision"} <= set(rows[0]):
        raise DataError(f"{table} needs the columns path, ship, decision; name the CSV that the page saved")
    accepted = [(read_cell(row["path"] or ""), read_cell(row["ship"] or "")) for row in rows if row["decision"] == "accept"]
    if not all(path for path, _ in accepted):
        raise DataError(f"{table} accepts an answer without a path; save it again from the page")
    return [(path, ship) for path, ship in accepted if ship]
