"""Tables that say which ship each chip shows, and tasks that say which chips are queries and candidates."""

import csv
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Any

from datasets.chips import IMAGE_SUFFIXES
from datasets.modality import NAME_WORDS, find_modality
from datasets.records import Modality
from utils.errors import DataError

MODALITY_WORDS = NAME_WORDS | {"eo": Modality.OPTICAL, "visible": Modality.OPTICAL, "0": Modality.OPTICAL, "1": Modality.SAR}
"""What a table may say in its column `modality`, in any case."""

NO_SHIP = ("", "-1", "-1.0", "nan", "none", "null")
"""What a table says, in any case, where nobody knows the ship: a distractor."""


@dataclass(frozen=True)
class ListedImage:
    """One line of a table.

    Attributes:
        image_id: as written there; it names the image in a task.
        path: the file.
        ship: as written there; '' where the ship is not known.
        modality: optical or SAR.
    """

    image_id: str
    path: Path
    ship: str
    modality: Modality


def read_table(table: Path, images: Path) -> tuple[ListedImage, ...]:
    """Read a CSV of images: columns `image_id` or `path` or both, `ship_id`, and `modality` unless names or pixels tell it.

    Separated by commas, semicolons or tabs; UTF-8, with or without byte order mark. A path may have slashes or backslashes. An
    `image_id` without `path` is a path too, to which a suffix may be missing.

    Args:
        table: the CSV file.
        images: the folder that relative paths start from.

    Raises:
        DataError: a missing column, an image that is not there or is listed twice, an unknown modality; lines are named.
    """
    lines = _read_csv(table)
    if not lines:
        raise DataError(f"{table} lists no image; put one line for each below the names of the columns")
    listed = []
    for number, line in lines:
        try:
            listed.append(_listed_image(line, images))
        except DataError as error:
            raise DataError(f"{table}, line {number}: {error}") from error
    _refuse_repeated(table, "image_id", [image.image_id for image in listed])
    _refuse_repeated(table, "file", [str(image.path) for image in listed])
    return tuple(listed)


def _read_csv(table: Path) -> list[tuple[int, dict[str, str]]]:
    """Number and fields of each line that is not empty; names of columns in lower case."""
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            header = file.readline()
            separator = max(",;\t", key=header.count)
            columns = [name.strip().lower() for name in next(csv.reader([header], delimiter=separator), [])]
            rows = csv.reader(file, delimiter=separator)
            lines = [(rows.line_num + 1, [cell.strip() for cell in row]) for row in rows]
    except OSError as error:
        raise DataError(f"cannot read {table}: {error.strerror}; name an existing CSV file") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{table} is not in UTF-8; save it as 'CSV UTF-8'") from error
    except csv.Error as error:
        raise DataError(f"{table} is no CSV file ({error}); save it as 'CSV UTF-8'") from error
    if "ship_id" not in columns or not {"image_id", "path"} & set(columns):
        raise DataError(f"{table} needs a first line with the columns image_id or path, ship_id, modality; it has {columns}")
    return [(number, dict(zip(columns, cells))) for number, cells in lines if any(cells)]


def _listed_image(line: dict[str, str], images: Path) -> ListedImage:
    written = line.get("path") or line.get("image_id", "")
    if not written:
        raise DataError("neither image_id nor path is given; name the image")
    path = _find_file(written, images)
    word = line.get("modality", "").lower()
    if word and word not in MODALITY_WORDS:
        raise DataError(f"modality {word!r} is unknown; write 'optical' or 'sar'")
    ship = line.get("ship_id", "")
    return ListedImage(
        image_id=line.get("image_id") or written,
        path=path,
        ship="" if ship.lower() in NO_SHIP else ship,
        modality=MODALITY_WORDS[word] if word else find_modality(path),
    )


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
    raise DataError(f"there is no image {written} in {images}; name the folder that paths start from with --images")


def _refuse_repeated(table: Path, what: str, values: Iterable[str]) -> None:
    repeated = [value for value, count in Counter(values).items() if count > 1]
    if repeated:
        more = f" and {len(repeated) - 5} more" if len(repeated) > 5 else ""
        raise DataError(f"{table} lists one {what} several times; keep one line of each of: {', '.join(repeated[:5])}{more}")


def read_task(task: Path, images: Sequence[ListedImage]) -> tuple[tuple[ListedImage, ...], tuple[ListedImage, ...]]:
    """Read which images are queries and which are candidates: {"query": [image_id, ...], "candidates": [image_id, ...]}.

    `queries` and `gallery` are understood too, and a list of {"query": image_id, "candidates": [image_id, ...]}, of which all
    queries share all candidates, as HOSS layout has one gallery. An image may be named by its image_id or its file name.

    Returns:
        Queries and gallery, each in the order of the table.

    Raises:
        DataError: no such lists, an image that the table does not hold, one that is both, a query of an unknown ship.
    """
    try:
        content = json.loads(task.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise DataError(f"cannot read {task}: {error.strerror}; name an existing JSON file") from error
    except ValueError as error:
        raise DataError(f"{task} is no JSON file in UTF-8 ({error}); write it again") from error
    entries = content if isinstance(content, list) else [content]
    queries = _names(task, entries, ("query", "queries"))
    candidates = _names(task, entries, ("candidates", "gallery"))
    by_name = {image.path.name: image.image_id for image in images} | {image.image_id: image.image_id for image in images}
    unknown = sorted((queries | candidates) - set(by_name))
    if unknown:
        raise DataError(f"{task} names {len(unknown)} image(s) that the table does not list, such as {unknown[0]}; add them")
    query_ids, gallery_ids = ({by_name[name] for name in names} for names in (queries, candidates))
    if both := sorted(query_ids & gallery_ids):
        raise DataError(f"{task} names {both[0]} both as query and as candidate; take it out of one of the lists")
    if unlabelled := [image.image_id for image in images if image.image_id in query_ids and not image.ship]:
        raise DataError(
            f"{task}: the ship of the query {unlabelled[0]} is not known; images without ship_id are ranked by tools.rank"
        )
    query, gallery = (tuple(image for image in images if image.image_id in ids) for ids in (query_ids, gallery_ids))
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
