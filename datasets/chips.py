"""Reading one chip, and the triple that tells its size. H, W: rows and columns of the chip."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import get_worker_info

from datasets.askew import stand_up
from datasets.rasters import MAX_PIXELS, Raster, read_layout, read_raster
from datasets.records import Chip, Modality
from datasets.sar import SarRendering
from utils.errors import DataError

logger = logging.getLogger(__name__)

ChipReading = Callable[[Chip], NDArray[np.uint8]]
"""Chip -> its picture (H, W, 3)."""

ORIGIN_KEY = "generated"
"""Key of the text in the PNG of a generated picture: `<run> <file name>`."""

MAX_SAR_VALUE = 1e25
"""Beyond it float32 arithmetic on SAR values overflows; no sensor gives such values."""

MIN_SAR_VALUE = 1e-30
"""A chip whose largest magnitude is below it would lose digits, or all of them, in float32."""

LEAST_COLOUR = 0.5
"""Mean distance of the bands from their mean, of 255, from which a picture has colour; optical chips have 3 or more."""

COPOLARISED = ("VV", "HH")
"""Polarisations that send and receive alike, in which a ship is brightest."""

AUTO_BAND = "auto"
"""INPUT.SAR_BAND: of a file that names its polarisations the copolarised band, of any other the first."""

_SAID: set[tuple[str, str]] = set()
"""What `_say_once` has said."""


def read_optical(path: Path, *, max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8]:
    """Read an optical chip.

    Accepted: 8-bit RGB; 8-bit grey and palette images, as the RGB that they show; three bands that the file does not name, as
    RGB; an alpha band if it is opaque everywhere, which is then dropped. Refused: everything else, since a choice would have
    to be made that the reader cannot know (which page, which bands, what range of 16 bits, what lies under transparent
    pixels).

    Returns:
        (H, W, 3) uint8.

    Raises:
        DataError: the file is missing, empty, damaged, no image or one that is refused.
    """
    return _to_rgb(read_raster(path, max_pixels=max_pixels), path)


def read_sar(path: Path, band: str = AUTO_BAND, *, max_pixels: int = MAX_PIXELS) -> NDArray[np.float32]:
    """Read a SAR chip.

    Accepted: one band of floats or integers of any size, taken as values as they are (every rendering is relative to the
    chip's own range, so the unit does not matter); of several polarisations the band asked for; equal bands, as of a grey
    picture saved as RGB or JPEG. Which band was taken of several is logged once. Refused: complex values, other bands,
    half-transparent pixels, several pages, infinite values, no value at all.

    Args:
        path: of the chip.
        band: INPUT.SAR_BAND: 'auto', the number of a band from 1 on, or a polarisation that the file names.
        max_pixels: INPUT.MAX_PIXELS.

    Returns:
        (H, W) float32, within +-`MAX_SAR_VALUE`; NaN where the file holds no value: declared nodata, transparent, NaN.

    Raises:
        DataError: the file is missing, empty, damaged, no image or one that is refused.
    """
    raster = read_raster(path, max_pixels=max_pixels)
    if np.iscomplexobj(raster.values):
        raise DataError(f"{path} holds complex values (SLC); detect it first: save amplitudes or intensities")
    values = _one_band(raster, path, band)
    if raster.alpha is not None:
        if not np.isin(raster.alpha, (0, 255)).all():
            raise DataError(f"{path} has half-transparent pixels; save the SAR chip with one band of values")
        values = np.where(raster.alpha == 0, np.nan, values)
    known = np.abs(values[~np.isnan(values)])
    if not known.size:
        raise DataError(f"{path} holds no value: every pixel is nodata, transparent or NaN; leave the chip out")
    if not known.max() <= MAX_SAR_VALUE:
        raise DataError(f"{path} holds values that are infinite or above {MAX_SAR_VALUE:g}; mask or replace these pixels")
    if 0 < known.max() < MIN_SAR_VALUE:
        raise DataError(f"{path} holds no value above {MIN_SAR_VALUE:g}, which float32 cannot hold; multiply its values")
    return values.astype(np.float32)


def read_chip(
    chip: Chip, render_sar: SarRendering, sar_band: str = AUTO_BAND, *, max_pixels: int = MAX_PIXELS
) -> NDArray[np.uint8]:
    """Read the picture of a chip: RGB of an optical, rendered or generated one, the rendering of any other SAR chip.

    Args:
        chip: which.
        render_sar: SAR values -> picture.
        sar_band: see `read_sar`.
        max_pixels: INPUT.MAX_PIXELS.

    Returns:
        (H, W, 3) uint8.

    Raises:
        DataError: as `read_optical` and `read_sar`; the rendering refuses the values; the chip has another size than is known
            of it; a generated picture is not the one that its manifest tells of.
    """
    if chip.source is not None:
        return read_generated(chip, max_pixels=max_pixels)
    if chip.modality is Modality.OPTICAL or chip.rendered:
        picture = read_optical(chip.path, max_pixels=max_pixels)
    else:
        values = read_sar(chip.path, sar_band, max_pixels=max_pixels)
        try:
            picture = render_sar(values)
        except ValueError as error:
            raise DataError(f"{chip.path} {error}") from error
    if chip.size not in (None, picture.shape[1::-1]):
        (width, height), known = picture.shape[1::-1], " x ".join(map(str, chip.size))
        raise DataError(
            f"{chip.path} has {width} x {height} pixels and should have {known}: it was changed after it was listed, or its "
            "samples were made from another chip; make them again"
        )
    if chip.upright:
        picture = stand_up(picture)
    return np.ascontiguousarray(picture[::-1, ::-1]) if chip.turned else picture


def read_generated(chip: Chip, *, max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8]:
    """Read a generated picture; where a manifest tells of it, it has to be of that run, name and size.

    Returns:
        (H, W, 3) uint8.

    Raises:
        DataError: the file is missing, empty, damaged, no 8-bit RGB picture, or another one than the manifest tells of.
    """
    again = "make this sample again"
    raster = read_raster(chip.path, max_pixels=max_pixels, advice=again)
    if raster.bits != 8 or raster.palette or raster.bands not in (("red", "green", "blue"), ("grey",)):
        raise DataError(f"{chip.path} is no 8-bit RGB picture; {again}")
    picture = _to_rgb(raster, chip.path)
    origin = raster.texts.get(ORIGIN_KEY)
    if chip.origin is not None and origin != chip.origin:
        raise DataError(f"{chip.path} is a picture that the run of the manifest did not make under this name; {again}")
    if chip.origin is not None and picture.shape[1::-1] != (chip.saved or chip.size):
        other = "its manifest tells" if chip.saved else f"its source {chip.source.path.name}"
        raise DataError(f"{chip.path} has another size than {other}; {again}")
    return picture


def read_header(path: Path) -> tuple[tuple[int, int], bool]:
    """Width and height of a chip in pixels, and whether its bands have 8 bits, from its header alone.

    Raises:
        DataError: the file is missing, empty, damaged, no image or one of several pages.
    """
    header = read_layout(path)
    return header.size, header.bits <= 8


def has_colour(picture: NDArray[np.uint8]) -> bool:
    """Whether the bands of a picture (H, W, 3) differ, as those of a SAR picture never do."""
    values = picture.astype(np.float32)
    return bool(np.abs(values - values.mean(axis=2, keepdims=True)).mean() > LEAST_COLOUR)


def modality_of_pixels(path: Path) -> Modality | None:
    """The modality that the pixels of a chip tell: colour is optical, one band of floats or of 16 bits is SAR.

    Returns:
        None for a grey picture of 8 bits, which may be either.

    Raises:
        DataError: the file can be read neither as an optical nor as a SAR chip.
    """
    try:
        return Modality.OPTICAL if has_colour(read_optical(path)) else None
    except DataError as error:
        try:
            read_sar(path)
        except DataError:
            raise error from None
        return Modality.SAR


def size_triple(width: int, height: int, modality: Modality) -> NDArray[np.float64]:
    """Describe the size of a ship by its chip, for the ship-size token (TransOSS, section on the ship-size embedding).

    An optical pixel is 0.75 m, a SAR pixel 1 m; the constants are means and deviations of the training chips.

    Args:
        width: of the chip, in pixels, before any resizing.
        height: of the chip, in pixels, before any resizing.
        modality: of the picture that has this size. A generated pseudo-SAR picture takes the triple of its optical source.

    Returns:
        (3,) float64: normalised width, normalised height, height by width.
    """
    metres = 0.75 if modality is Modality.OPTICAL else 1.0
    return np.array([(metres * width / 93 - 0.434) / 0.031, (metres * height / 427 - 0.461) / 0.031, height / width])


def _to_rgb(raster: Raster, path: Path) -> NDArray[np.uint8]:
    """A raster as (H, W, 3) RGB, if it is one that `read_optical` accepts."""
    if raster.bits > 8:
        raise DataError(f"{path} has more than 8 bits a band; save the optical chip as 8-bit RGB")
    if raster.bits < 8 or raster.values.dtype != np.uint8:
        raise DataError(f"{path} holds {raster.values.dtype} of {raster.bits} bit(s); save the optical chip as 8-bit RGB")
    if sorted(raster.bands) == ["blue", "green", "red"]:
        places = [raster.bands.index(colour) for colour in ("red", "green", "blue")]
    elif raster.bands == ("grey",):
        places = [0, 0, 0]
    elif raster.bands == ("grey", "other", "other"):
        places = [0, 1, 2]
    else:
        bands = ", ".join(raster.bands)
        raise DataError(f"{path} is an image of {len(raster.bands)} band(s) ({bands}); save the optical chip as 8-bit RGB")
    picture = raster.values[..., places]
    # Nodata of 0 is black, as shown; of any other value it would be a colour.
    unknown = ~raster.valid[..., places].any(axis=2) & picture.any(axis=2)
    if unknown.any() or (raster.alpha is not None and raster.alpha.min() < 255):
        raise DataError(f"{path} has transparent pixels; save the optical chip as 8-bit RGB without an alpha band")
    return np.ascontiguousarray(picture)


def _one_band(raster: Raster, path: Path, band: str) -> NDArray:
    """(H, W): the values of the band that is asked for, NaN where they are declared nodata."""
    bands, count = raster.values, len(raster.bands)
    place = _place_of_band(raster.names, path, band)
    if place is None:
        is_picture = bands.dtype == np.uint8 and raster.bits == 8 and count == 3
        if (bands != bands[..., :1]).any() and (not is_picture or has_colour(bands)):
            raise DataError(
                f"{path} has {count} band(s) that differ; save the SAR chip with one band of values, or say by "
                "INPUT.SAR_BAND which one it is"
            )
        _say_once("equal", path, "taken as one band")
        return np.where(raster.valid.all(axis=2), bands.astype(np.float64).mean(axis=2), np.nan)
    if count > 1:
        told = f"band {place + 1} of {count} {raster.names[place]}".rstrip()
        _say_once("several", path, f"{told} is read (INPUT.SAR_BAND {band})")
    return np.where(raster.valid[..., place], bands[..., place], np.nan)


def _place_of_band(names: Sequence[str], path: Path, band: str) -> int | None:
    """Place of the band that INPUT.SAR_BAND means, of bands that the file calls so; None where the choice is open."""
    names = [name.upper() for name in names]
    if band.isdigit():
        if not 1 <= int(band) <= len(names):
            raise DataError(f"{path} has {len(names)} band(s), and INPUT.SAR_BAND is {band}; choose one that it has")
        return int(band) - 1
    if band.lower() == AUTO_BAND:
        named = [name for name in COPOLARISED if name in names]
        return names.index(named[0]) if named else 0 if len(names) <= 2 else None
    if band.upper() in names:
        return names.index(band.upper())
    if names == [""]:
        return 0  # A file of one band without a name holds what its folder says.
    told = ", ".join(filter(None, names)) or "none"
    raise DataError(f"{path} names of its {len(names)} band(s): {told}; INPUT.SAR_BAND is {band}; choose one by its number")


def _say_once(kind: str, path: Path, done: str) -> None:
    """Log what was done with the first of many files of a kind, in the main process or in the first worker of a loader."""
    worker = get_worker_info()
    if (kind, done) not in _SAID and (worker is None or worker.id == 0):
        _SAID.add((kind, done))
        logger.warning("SAR chips of %s bands, such as %s: %s", kind, path, done)
