"""Tables that say which ship each chip shows, and tasks that say which chips are queries and candidates."""

import csv
import io
import logging
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Any

from datasets.catalogue import IMAGE_SUFFIXES, NAME_WORDS, find_modality
from datasets.curation.ids import unify_ships
from datasets.rasters import read_raster
from datasets.records import DISTRACTOR, Chip, Modality, Split
from utils.errors import DataError, shorten, shown, some
from utils.log import progress
from utils.reading import read_json, read_text

logger = logging.getLogger(__name__)

MODALITY_WORDS = NAME_WORDS | {"eo": Modality.OPTICAL, "visible": Modality.OPTICAL, "0": Modality.OPTICAL, "1": Modality.SAR}
"""What a table may say in its column `modality`, in any case."""

Row = tuple[Path, str, str, Modality]
"""File, image_id, ship and modality of a line."""

COLUMNS = {"image": "image_id", "image_id": "image_id", "path": "path", "ship": "ship_id", "ship_id": "ship_id"} | {
    "modality": "modality"
}
"""What `--column` may name -> the column that it is."""


@dataclass(frozen=True)
class ChipTable:
    """Chips with what a table calls them.

    Attributes:
        chips: in the order of the table; their split is still to be drawn (TRAIN).
        ids: path of a chip -> its image_id, which names it in a task and decides its place in draws.
        ships: path of a chip -> its ship as written there; '' where the ship is not known.
        skipped: of each line that cannot be used, why.
    """

    chips: tuple[Chip, ...]
    ids: dict[Path, str]
    ships: dict[Path, str]
    skipped: tuple[str, ...] = ()


def read_table(
    table: Path,
    images: Path,
    *,
    columns: Mapping[str, str] | None = None,
    labelled: bool = True,
    skip_bad: bool = False,
) -> ChipTable:
    """Read a CSV of images: columns `image_id` or `path` or both, `ship_id`, and `modality` unless names or pixels tell it.

    Separated by commas, semicolons or tabs; UTF-8, with or without byte order mark. A path may have slashes or backslashes. An
    `image_id` without `path` is a path too, to which a suffix may be missing.

    Args:
        table: the CSV file.
        images: the folder that relative paths start from.
        columns: what columns are called in this table: 'image_id', 'path', 'ship_id' or 'modality' -> name.
        labelled: whether `ship_id` is needed.
        skip_bad: leave out lines that cannot be used, instead of refusing the table.

    Raises:
        DataError: a missing column, an image that is not there, cannot be read or is listed twice, an unknown modality; lines
            are named.
    """
    lines = _read_csv(table, columns or {}, labelled)
    if not lines:
        raise DataError(f"{table} lists no image; put one line for each below the names of the columns")
    rows, faults = _read_lines(table, lines, images)
    _report(table, faults, len(lines), skip=skip_bad)
    ships = unify_ships([ship for *_, ship, _ in rows])
    rows = [(path, image_id, ships[ship], modality) for path, image_id, ship, modality in rows]
    _refuse_repeated(table, "image_id", [image_id for _, image_id, *_ in rows])
    _refuse_repeated(table, "file", [str(path) for path, *_ in rows])
    pids = number_ships(ship for *_, ship, _ in rows)
    return ChipTable(
        chips=tuple(Chip(path, pids[ship], modality, Split.TRAIN) for path, _, ship, modality in rows),
        ids={path: image_id for path, image_id, *_ in rows},
        ships={path: ship for path, _, ship, _ in rows},
        skipped=tuple(faults),
    )


def _read_lines(table: Path, lines: Sequence[tuple[int, dict[str, str]]], images: Path) -> tuple[list[Row], list[str]]:
    """What each line says, and what is wrong with those that cannot be used."""
    rows, faults = [], []
    with progress(len(lines), f"reading {table.name}", unit="image") as bar:
        for number, line in lines:
            try:
                rows.append(_read_line(line, images))
            except DataError as error:
                faults.append(f"{table}, line {number}: {error}")
            bar.update()
    return rows, faults


def _report(table: Path, faults: Sequence[str], total: int, *, skip: bool) -> None:
    """Refuse a table with faults, all listed, or go on if some line is left."""
    if len(faults) == 1 and not skip:
        raise DataError(faults[0])
    for fault in faults:
        logger.warning("%s", fault)
    if faults and (not skip or len(faults) == total):
        raise DataError(f"{table}: {len(faults)} of {total} lines cannot be used (listed above); mend them, or add --skip-bad")


def number_ships(ships: Iterable[str]) -> dict[str, int]:
    """Give each ship its pid: its own number where all are numbers, else 1, 2, ... in sorted order; '' is `DISTRACTOR`."""
    names = sorted(set(ships) - {""})
    # Spreadsheets write 12.0 for 12 in a column with empty cells.
    numbers = [re.fullmatch(r"([0-9]{1,18})(?:\.0)?", name, re.ASCII) for name in names]
    if all(numbers):
        pids = {name: int(match[1]) for name, match in zip(names, numbers)}
    else:
        pids = {name: pid for pid, name in enumerate(names, start=1)}
    return pids | {"": DISTRACTOR}


def _read_csv(table: Path, columns: Mapping[str, str], labelled: bool) -> list[tuple[int, dict[str, str]]]:
    """Number and fields of each line that is not empty; names of columns in lower case, or as `columns` calls them."""
    try:
        text = io.StringIO(read_text(table, encoding="utf-8-sig"), newline="")
        header = text.readline()
        separator = max(",;\t", key=header.count)
        found = [name.strip().lower() for name in next(csv.reader([header], delimiter=separator), [])]
        rows = csv.reader(text, delimiter=separator)
        lines = [(rows.line_num + 1, [cell.strip() for cell in row]) for row in rows]
    except OSError as error:
        raise DataError(f"cannot read {table}: {error.strerror}; name an existing CSV file") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{table} is not in UTF-8; save it as 'CSV UTF-8'") from error
    except csv.Error as error:
        raise DataError(f"{table} is no CSV file ({error}); save it as 'CSV UTF-8'") from error
    ours = {theirs.strip().lower(): name for name, theirs in columns.items()}
    if missing := sorted(set(ours) - set(found)):
        raise DataError(f"{table} has no column {missing[0]}, which --column names; it has {some(found)}")
    names = [ours.get(name, name) for name in found]
    if (labelled and "ship_id" not in names) or not {"image_id", "path"} & set(names):
        needed = "image_id or path, ship_id, modality" if labelled else "image_id or path, modality"
        raise DataError(
            f"{table} needs a first line with columns {needed}; it has {some(found)}; say which is which by --column"
        )
    return [(number, dict(zip(names, cells))) for number, cells in lines if any(cells)]


def _read_line(line: dict[str, str], images: Path) -> Row:
    """What a line of a table says."""
    written = line.get("path") or line.get("image_id", "")
    if not written:
        raise DataError("neither image_id nor path is given; name the image")
    path = _find_file(written, images)
    word = line.get("modality", "").lower()
    if word and word not in MODALITY_WORDS:
        raise DataError(f"modality {shown(word)} is unknown; write 'optical' or 'sar'")
    modality = MODALITY_WORDS[word] if word else find_modality(path)
    read_raster(path)
    return path, line.get("image_id") or written, line.get("ship_id", ""), modality


def _find_file(written: str, images: Path) -> Path:
    """The chip that a table means by `written`."""
    # A name with a backslash is possible where slashes separate, hence first as it stands.
    candidates = [images / written, images.joinpath(*PureWindowsPath(written).parts)]
    for candidate in candidates:
        if candidate.is_file():
            if candidate.suffix.lower() not in IMAGE_SUFFIXES:
                raise DataError(f"{candidate} has none of the suffixes {', '.join(IMAGE_SUFFIXES)}; convert it")
            return candidate.absolute()
    for candidate in candidates:
        with_suffix = [candidate.parent / (candidate.name + suffix) for suffix in IMAGE_SUFFIXES]
        found = [path for path in with_suffix if path.is_file()]
        if len(found) == 1:
            return found[0].absolute()
    raise DataError(
        f"there is no image {shorten(written, 100)} in {images}; name the folder that paths start from with --images"
    )


def _refuse_repeated(table: Path, what: str, values: Iterable[str]) -> None:
    repeated = [value for value, count in Counter(values).items() if count > 1]
    if repeated:
        raise DataError(f"{table} lists one {what} several times; keep one line of each of: {some(repeated)}")


def read_task(task: Path, table: ChipTable) -> tuple[tuple[Chip, ...], tuple[Chip, ...]]:
    """Read which images are queries and which are candidates: {"query": [image_id, ...], "candidates": [image_id, ...]}.

    `queries` and `gallery` are understood too, and a list of {"query": image_id, "candidates": [image_id, ...]}, of which all
    queries share all candidates, as HOSS layout has one gallery. An image may be named by its image_id or its file name.

    Returns:
        Queries and gallery, each in the order of the table.

    Raises:
        DataError: no such lists, an image that the table does not hold, one that is both, a query of an unknown ship.
    """
    try:
        content = read_json(task, encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"cannot read {task}: {error.strerror}; name an existing JSON file") from error
    except ValueError as error:
        raise DataError(f"{task} is no JSON file in UTF-8 ({error}); write it again") from error
    entries = content if isinstance(content, list) else [content]
    queries = _names(task, entries, ("query", "queries"))
    candidates = _names(task, entries, ("candidates", "gallery"))
    ids = [table.ids[chip.path] for chip in table.chips]
    by_name = {chip.path.name: image_id for chip, image_id in zip(table.chips, ids)} | {image_id: image_id for image_id in ids}
    unknown = sorted((queries | candidates) - set(by_name))
    if unknown:
        raise DataError(f"{task} names {len(unknown)} image(s) that the table does not list, such as {unknown[0]}; add them")
    query_ids, gallery_ids = ({by_name[name] for name in names} for names in (queries, candidates))
    if both := sorted(query_ids & gallery_ids):
        raise DataError(f"{task} names {both[0]} both as query and as candidate; take it out of one of the lists")
    query, gallery = (tuple(chip for chip in table.chips if table.ids[chip.path] in own) for own in (query_ids, gallery_ids))
    if unlabelled := [table.ids[chip.path] for chip in query if chip.ship == DISTRACTOR]:
        raise DataError(
            f"{task}: the ship of the query {unlabelled[0]} is not known; images without ship_id are ranked by tools.rank"
        )
    return query, gallery


def _names(task: Path, entries: list[Any], keys: tuple[str, ...]) -> set[str]:
    """All names that the entries of a task hold under one of `keys`, alone or in lists."""
    names: set[str] = set()
    for entry in entries:
        value = next((entry[key] for key in keys if key in entry), None) if isinstance(entry, dict) else None
        value = [value] if isinstance(value, str) else value
        if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
            raise DataError(f"{task} needs {keys[0]!r}: a list of image ids; see docs/data.md for the form of a task")
        names.update(value)
    if not names:
        raise DataError(f"{task} names no image under {keys[0]!r}; a task needs queries and candidates")
    return names
