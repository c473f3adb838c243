"""Chips cut out of scenes: the ship's axis upright, pixels of the size that TransOSS's size token means.

A scene is read window by window through GDAL, never as a whole. All geometry is done in metres around the ship: x to the east
and y to the south of the map, or along columns and rows of a scene without a map.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.enums import ColorInterp
from rasterio.errors import CRSError, RasterioError
from rasterio.io import DatasetReader
from rasterio.transform import from_gcps
from rasterio.warp import transform as between_maps
from rasterio.windows import Window

from datasets.curation.boxes import DEGREES, PIXELS, Box
from datasets.rasters import MAX_PIXELS
from datasets.records import Modality
from utils.errors import DataError

PIXEL = {Modality.OPTICAL: 0.75, Modality.SAR: 1.0}
"""Metres of a chip's pixel, as in HOSS."""

MARGINS = (1.1, 1.25)
"""Length and width of a chip by those of the ship; about those of HOSS, as in `datasets.ships`."""

DEGREE = 111_320.0
"""Metres of a degree of latitude."""

LEAST_INSIDE = 0.5
"""Share of a chip that must lie in the scene."""


@dataclass(frozen=True)
class Placement:
    """Where a ship lies.

    Attributes:
        middle: (2,) column and row of its middle.
        length, beam: metres of its box.
        angle: degrees from the top of the map (north) to its axis, clockwise, 0 up to 180: bow and stern look alike.
        metres: (2, 2), pixels (column, row) of the scene times it are metres (x, y).
    """

    middle: NDArray[np.float64]
    length: float
    beam: float
    angle: float
    metres: NDArray[np.float64]


@contextmanager
def open_scene(path: Path) -> Iterator[DatasetReader]:
    """Open a scene, a GeoTIFF or COG.

    Raises:
        DataError: no such file, or one that GDAL cannot read.
    """
    if not path.is_file():
        raise DataError(f"{path} does not exist or is no file; name a scene (GeoTIFF)")
    try:
        with (
            rasterio.Env(GDAL_DISABLE_READDIR_ON_OPEN="EMPTY_DIR", GDAL_PAM_ENABLED="NO"),
            rasterio.open(path, driver="GTiff") as scene,
        ):
            if np.iscomplexobj(np.zeros(0, scene.dtypes[0] if "complex_int" not in scene.dtypes[0] else complex)):
                raise DataError(f"{path} holds complex values (SLC); detect it first: save amplitudes or intensities")
            yield scene
    except (RasterioError, CRSError) as error:
        raise DataError(f"{path} cannot be read as a scene ({' '.join(str(error).split())}); name a GeoTIFF") from error


def place_box(scene: DatasetReader, box: Box, pixel_size: float | None = None) -> Placement:
    """Where the ship of a box lies in a scene.

    Args:
        scene: open.
        box: in any coordinates.
        pixel_size: metres of the scene's pixels; None: as its map says.

    Raises:
        DataError: coordinates of a map, or a pixel size, that the scene does not tell; a box without area.
    """
    corners = _to_pixels(scene, box)
    metres = metres_of_pixels(scene, corners.mean(axis=0), pixel_size)
    centre = corners.mean(axis=0)  # taken off, as cv2 counts in float32
    (x, y), (width, height), turn = cv2.minAreaRect(((corners - centre) @ metres.T).astype(np.float32))
    if min(width, height) <= 0:
        raise DataError("the box has no area")
    # minAreaRect turns its width clockwise from x; the axis is the longer side.
    across = turn if width >= height else turn + 90
    middle = centre + np.linalg.solve(metres, np.array([x, y], dtype=np.float64))
    return Placement(middle, max(width, height), min(width, height), (across + 90) % 180, metres)


def _to_pixels(scene: DatasetReader, box: Box) -> NDArray[np.float64]:
    if box.coordinates == PIXELS:
        return box.corners
    transform, crs = _georeference(scene)
    if transform is None:
        raise DataError(f"{scene.name} has no map, and the boxes are in coordinates of one; give boxes in pixels")
    x, y = box.corners.T
    if box.coordinates == DEGREES and crs:
        x, y = between_maps("EPSG:4326", crs, x.tolist(), y.tolist())
    inverse = np.linalg.inv(np.array(transform).reshape(3, 3))
    return np.column_stack([x, y, np.ones(len(x))]) @ inverse[:2].T


def _georeference(scene: DatasetReader) -> tuple:
    """The affine map from pixels to the scene's map and that map; from control points where it has them only."""
    points, crs = scene.gcps
    if points and scene.transform.is_identity:
        return from_gcps(points), crs
    return (None, None) if scene.transform.is_identity else (scene.transform, scene.crs)


def metres_of_pixels(scene: DatasetReader, place: NDArray[np.float64], pixel_size: float | None) -> NDArray[np.float64]:
    """(2, 2): pixels (column, row) times it are metres (x, y) around `place`, y to the south."""
    transform, crs = _georeference(scene)
    if pixel_size is not None:
        return np.eye(2) * pixel_size
    if transform is None or crs is None:
        raise DataError(f"{scene.name} does not tell the size of its pixels; give it in metres by --pixel-size")
    jacobian = np.array([[transform.a, transform.b], [transform.d, transform.e]])
    if crs.is_geographic:
        latitude = _on_map(transform, place)[1]
        scale = np.array([DEGREE * np.cos(np.deg2rad(latitude)), DEGREE])
    elif crs.is_projected:
        scale = np.full(2, float(crs.linear_units_factor[1]))
    else:
        raise DataError(f"{scene.name} has a map that is neither of degrees nor of metres; give --pixel-size in metres")
    return np.diag([1.0, -1.0]) @ np.diag(scale) @ jacobian


def _on_map(transform: rasterio.Affine, place: NDArray[np.float64]) -> tuple[float, float]:
    """Coordinates on the map of a column and row."""
    x, y = np.array(transform).reshape(3, 3)[:2] @ [*place, 1.0]
    return float(x), float(y)


def lonlat_of(scene: DatasetReader, place: Placement) -> tuple[float, float] | None:
    """Longitude and latitude (WGS 84) of a ship's middle; None in a scene without a map."""
    transform, crs = _georeference(scene)
    if transform is None or crs is None:
        return None
    x, y = _on_map(transform, place.middle)
    (longitude,), (latitude,) = between_maps(crs, "EPSG:4326", [x], [y])
    return longitude, latitude


def cut_chip(
    scene: DatasetReader, place: Placement, modality: Modality, bands: list[int], margins: tuple[float, float] = MARGINS
) -> NDArray[np.float32]:
    """Cut a chip: the ship's axis upright, `PIXEL` metres a pixel.

    Finer scenes are blurred to the new pixel before they are sampled, bilinearly.

    Args:
        scene: open.
        place: of the ship.
        modality: which decides the size of pixels.
        bands: numbers of the bands to read.
        margins: length and width of the chip by those of the ship.

    Returns:
        (H, W, bands) float32; NaN where the scene has no value.

    Raises:
        DataError: less than `LEAST_INSIDE` of the chip lies in the scene, or more pixels than a ship can have.
    """
    pixel = PIXEL[modality]
    height, width = (max(8, round(size * margin / pixel)) for size, margin in zip((place.length, place.beam), margins))
    turn = np.deg2rad(place.angle)
    # Columns of a chip run to the starboard of a bow that is up.
    axes = pixel * np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    to_pixels = np.linalg.inv(place.metres) @ axes
    start = place.middle - to_pixels @ (np.array([width, height]) / 2)
    frame = start + np.array([[0, 0], [width, 0], [width, height], [0, height]]) @ to_pixels.T
    finer = 1 / np.linalg.norm(np.linalg.inv(to_pixels), ord=2)  # pixels of the scene in one of the chip, along the finer side
    reach = int(np.ceil(2 + 2 * max(1.0, finer)))
    low, high = np.floor(frame.min(axis=0)).astype(int) - reach, np.ceil(frame.max(axis=0)).astype(int) + reach
    if np.prod(high - low, dtype=float) * len(bands) > MAX_PIXELS:
        raise DataError(f"the box takes {high[0] - low[0]} x {high[1] - low[1]} pixels, too many for one ship")
    values = _read_window(scene, low, high, bands)
    # Pixels have their middle at a half; cv2 counts from the middle of the first.
    matrix = np.column_stack([to_pixels, start - low + to_pixels @ [0.5, 0.5] - 0.5])
    chip = _resample(values, matrix, (height, width), sigma=0.5 * np.sqrt(max(finer, 1.0) ** 2 - 1))
    if (~np.isnan(chip)).mean() < LEAST_INSIDE:
        raise DataError(f"less than {LEAST_INSIDE:.0%} of the chip lies in the scene or has values")
    return chip


def _resample(
    values: NDArray[np.float32], matrix: NDArray[np.float64], size: tuple[int, int], *, sigma: float
) -> NDArray[np.float32]:
    """Blur (rows, columns, bands) by `sigma` pixels and sample it at `matrix` times each place of a chip of `size`.

    Pixels without a value (NaN) have no weight; NaN where more than half of the weight lacks.
    """
    known = ~np.isnan(values)
    sampled = []
    for part in (np.where(known, values, 0), known.astype(np.float32)):
        part = cv2.GaussianBlur(part, (0, 0), sigma) if sigma > 0 else part
        part = cv2.warpAffine(part, matrix, size[::-1], flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)
        sampled.append(part.reshape(*size, -1))
    total, weights = sampled
    return np.where(weights > 0.5, total / np.maximum(weights, 1e-6), np.nan).astype(np.float32)


def _read_window(scene: DatasetReader, low: NDArray[np.int_], high: NDArray[np.int_], bands: list[int]) -> NDArray[np.float32]:
    """(rows, columns, bands) of a window that may reach beyond the scene; NaN there and where the scene has no value."""
    width, height = (int(size) for size in high - low)
    values = np.full((height, width, len(bands)), np.nan, np.float32)
    left, top = (max(0, int(place)) for place in low)
    right, bottom = (min(int(place), size) for place, size in zip(high, (scene.width, scene.height)))
    if right > left and bottom > top:
        part = scene.read(bands, window=Window(left, top, right - left, bottom - top), masked=True)
        part = np.moveaxis(part.astype(np.float32).filled(np.nan), 0, -1)
        values[top - low[1] : bottom - low[1], left - low[0] : right - low[0]] = part
    return values


def colour_bands(scene: DatasetReader) -> list[int]:
    """Numbers of the red, green and blue band: those that the scene calls so, else the first three.

    Raises:
        DataError: fewer than three bands.
    """
    wanted = (ColorInterp.red, ColorInterp.green, ColorInterp.blue)
    if all(colour in scene.colorinterp for colour in wanted):
        return [scene.colorinterp.index(colour) + 1 for colour in wanted]
    if scene.count < 3:
        raise DataError(f"{scene.name} has {scene.count} band(s), too few for an optical chip; say --sensor sar")
    return [1, 2, 3]


def stretch_of(scene: DatasetReader, bands: list[int]) -> tuple[float, float] | None:
    """Values of a scene that become 0 and 255: of 8 bits as they are (None), else its 0.1 and 99.95 percent, coarsely read."""
    if scene.dtypes[0] == "uint8":
        return None
    shape = tuple(max(1, min(size, 1024)) for size in (scene.height, scene.width))
    sample = scene.read(bands, out_shape=(len(bands), *shape), masked=True).astype(np.float32).filled(np.nan)
    low, high = np.nanpercentile(sample, [0.1, 99.95])
    return float(low), float(high)
