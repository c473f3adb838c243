"""Boxes around ships in a scene: DOTA text, GeoJSON and CSV, oriented or upright.

Legend: corners (N, 2) in x, y: columns and rows of pixels, or coordinates of a map.
"""

import csv
import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from utils.errors import DataError, some
from utils.reading import read_json, read_text

PIXELS, DEGREES, MAP = "pixel", "lonlat", "map"
"""What coordinates are: columns and rows, longitude and latitude (WGS 84), or those of the scene's own map."""

_CORNERS = [f"{axis}{number}" for number in range(1, 5) for axis in "xy"]
_UPRIGHT = ["xmin", "ymin", "xmax", "ymax"]
_TURNED = ["cx", "cy", "w", "h", "angle"]


@dataclass(frozen=True)
class Box:
    """A box around a ship.

    Attributes:
        corners: (N, 2), at least three.
        coordinates: `PIXELS`, `DEGREES` or `MAP`.
        ship: as the file calls the ship, '' where it does not.
        time: as the file has it, '' where it does not.
    """

    corners: NDArray[np.float64]
    coordinates: str
    ship: str = ""
    time: str = ""


def read_boxes(path: Path, coordinates: str = "auto") -> list[Box]:
    """Read the boxes of a file, by its suffix: .txt (DOTA), .json or .geojson, .csv.

    DOTA's lines are `x1 y1 x2 y2 x3 y3 x4 y4 category difficult`, in pixels. GeoJSON has polygons in longitude and latitude,
    with properties `ship` and `time` if known. A CSV has columns x1, y1 .. x4, y4, or xmin, ymin, xmax, ymax, or cx, cy, w, h,
    angle (degrees, clockwise as seen in the picture), and `ship` and `time` if known.

    Args:
        path: of the file.
        coordinates: 'auto' (DOTA and CSV pixels, GeoJSON degrees), or what they are.

    Raises:
        DataError: another suffix, no box, or a line that is none; its number is named.
    """
    readers = {".txt": _read_dota, ".json": _read_geojson, ".geojson": _read_geojson, ".csv": _read_csv}
    if path.suffix.lower() not in readers:
        raise DataError(f"{path} has none of the suffixes {', '.join(readers)} of files of boxes")
    try:
        found = list(readers[path.suffix.lower()](path))
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}; name an existing file of boxes") from error
    except ValueError as error:
        raise DataError(f"{path} is no file of boxes: {error}") from error
    if not found:
        raise DataError(f"{path} holds no box")
    usual = DEGREES if path.suffix.lower() in (".json", ".geojson") else PIXELS
    kind = usual if coordinates == "auto" else coordinates
    boxes = []
    for place, numbers, ship, time in found:
        corners = np.asarray(numbers, dtype=np.float64).reshape(-1, 2)
        if len(corners) < 3 or not np.isfinite(corners).all():
            raise DataError(f"{path}, {place}: the box needs three corners or more, of finite numbers")
        boxes.append(Box(corners, kind, ship, time))
    return boxes


Found = Iterable[tuple[str, Any, str, str]]
"""Place in the file, corners, ship and time of each box."""


def _read_dota(path: Path) -> Found:
    for number, line in enumerate(read_text(path, encoding="utf-8-sig").splitlines(), 1):
        words = line.replace(",", " ").split()
        if not words or words[0].lower().startswith(("imagesource", "gsd", "#")):
            continue
        if len(words) < 8:
            raise ValueError(f"line {number} has {len(words)} words; write x1 y1 .. x4 y4 category")
        yield f"line {number}", [_number(word, number) for word in words[:8]], "", ""


def _read_geojson(path: Path) -> Found:
    content = read_json(path, encoding="utf-8-sig")
    features = content.get("features") if isinstance(content, Mapping) else None
    if not isinstance(features, list):
        raise ValueError("it has no list 'features'; save a FeatureCollection")
    for number, feature in enumerate(features, 1):
        geometry = feature.get("geometry") if isinstance(feature, Mapping) else None
        rings = geometry.get("coordinates") if isinstance(geometry, Mapping) else None
        if not rings or geometry.get("type") != "Polygon":
            raise ValueError(f"feature {number} is no Polygon")
        properties = feature.get("properties") or {}
        try:
            corners = [[float(x), float(y)] for x, y, *_ in rings[0]]
        except (TypeError, ValueError, IndexError) as error:
            raise ValueError(f"feature {number} has corners that are no pairs of numbers") from error
        yield f"feature {number}", corners, str(properties.get("ship") or ""), str(properties.get("time") or "")


def _read_csv(path: Path) -> Found:
    rows = csv.DictReader(io.StringIO(read_text(path, encoding="utf-8-sig"), newline=""))
    columns = [name.strip().lower() for name in rows.fieldnames or []]
    kinds = [kind for kind in (_CORNERS, _UPRIGHT, _TURNED) if set(kind) <= set(columns)]
    if not kinds:
        raise ValueError(
            f"it needs columns x1,y1..x4,y4 or {','.join(_UPRIGHT)} or {','.join(_TURNED)}; it has {some(columns)}"
        )
    for number, row in enumerate(rows, 2):
        line = {(name or "").strip().lower(): (value or "").strip() for name, value in row.items() if isinstance(value, str)}
        values = [_number(line.get(name, ""), number) for name in kinds[0]]
        corners = {id(_CORNERS): lambda v: v, id(_UPRIGHT): _upright_corners, id(_TURNED): _turned_corners}[id(kinds[0])](
            values
        )
        yield f"line {number}", corners, line.get("ship", line.get("ship_id", "")), line.get("time", "")


def _number(word: str, line: int) -> float:
    try:
        return float(word)
    except ValueError as error:
        raise ValueError(f"line {line}: {word[:40]!r} is no number") from error


def _upright_corners(values: list[float]) -> list[float]:
    left, top, right, bottom = values
    return [left, top, right, top, right, bottom, left, bottom]


def _turned_corners(values: list[float]) -> NDArray[np.float64]:
    x, y, width, height, angle = values
    turn = np.deg2rad(angle)
    across, along = np.array([np.cos(turn), np.sin(turn)]) * width / 2, np.array([-np.sin(turn), np.cos(turn)]) * height / 2
    return np.array([x, y]) + np.array([-across - along, across - along, across + along, along - across])
