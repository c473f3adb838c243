"""One picture file as the numbers that it holds: TIFF through GDAL, PNG and JPEG through Pillow. H, W: rows and columns.

What the numbers are taken for is decided in `datasets/chips.py`. Refused here: files of several pages, files that leave open
what their numbers mean, and files that ask for more memory than one ship can need.
"""

import io
import logging
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from PIL import Image
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.io import DatasetReader, MemoryFile
from tifffile import TiffFile

from utils.errors import DataError, shorten
from utils.reading import read_bytes

FORMATS = ("PNG", "JPEG")
"""What Pillow may read, whatever a file's suffix; its other readers are never tried."""

TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
"""First bytes of a TIFF: little-endian, big-endian, and the same of BigTIFF."""

MEMORY_NAME = "chip.tif"
"""What GDAL is told that a file in memory is called."""

MAX_PIXELS = 2**21
"""A chip holds one ship: about 1,450 x 1,450 pixels, three times the longest ship in each direction. A file that declares more
is refused before its pixels are decoded; INPUT.MAX_PIXELS sets another limit."""

PIXEL_BYTES = 128
"""As many bytes a pixel of the limit the decoded picture, and one of its blocks, may take: eight bands of any numbers."""

FILE_BYTES = 2**28
"""A file may be this large."""

TAGS = BITS, PHOTOMETRIC, ORIENTATION, STRIP_SIZES, TILE_SIZES, SAMPLE_FORMAT, NODATA = 258, 262, 274, 279, 325, 339, 42113
"""Numbers of TIFF tags (TIFF 6.0; orientation is the same in EXIF; nodata is GDAL's)."""

PHOTOMETRICS = {0: "MinIsWhite", 4: "a mask", 5: "CMYK", 8: "CIELAB", 9: "ICCLAB", 10: "ITULAB", 32803: "a colour filter array"}
"""Kinds of TIFF that are refused, since readers differ on what their numbers are."""

TAKEN_PHOTOMETRICS = (1, 2, 3, 6)
"""MinIsBlack, RGB, palette and YCbCr, which GDAL turns into RGB."""


@dataclass(frozen=True)
class Raster:
    """A picture as its file has it, turned as its orientation tag says.

    Attributes:
        values: (H, W, C), numbers as stored; of palettes the colours that they stand for.
        valid: (H, W, C) bool: not declared nodata.
        alpha: (H, W), 0 where a mask or an alpha band hides the pixel, 255 where it is opaque; None where nothing can.
        bands: of each band 'grey', 'red', 'green', 'blue' or 'other'; alpha is none of them.
        names: what the file calls each band, such as 'VV'; '' where it says nothing.
        bits: of a number in the file.
        palette: whether the numbers stood for colours of a table.
        texts: of a PNG, its texts.
    """

    values: NDArray
    valid: NDArray[np.bool_]
    alpha: NDArray[np.uint8] | None
    bands: tuple[str, ...]
    names: tuple[str, ...]
    bits: int
    palette: bool = False
    texts: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Header:
    """What the header of a picture file tells.

    Attributes:
        size: (width, height) in pixels, turned as the orientation tag says.
        bits: of a number.
    """

    size: tuple[int, int]
    bits: int


def read_raster(path: Path, *, max_pixels: int = MAX_PIXELS, advice: str | None = None) -> Raster:
    """Read a picture file.

    Args:
        path: of the file.
        max_pixels: that it may have.
        advice: what to do about a file that cannot be read, for the error.

    Raises:
        DataError: the file is missing, empty, damaged, no TIFF, PNG or JPEG, has several pages, or is one of those that leave
            open what their numbers mean (`PHOTOMETRICS`, sample formats, blocks without data).
    """
    with _refusing(path, advice):
        content = _content_of(path, advice)
        if content.startswith(TIFF_STARTS):
            with _open_tiff(content, path, max_pixels) as (dataset, orientation):
                return _read_tiff(dataset, orientation)
        with _open_pillow(content, path, max_pixels) as image:
            return _read_pillow(image, content)


def read_layout(path: Path) -> Header:
    """What the header of a picture file tells; no pixel is decoded, so that their number costs nothing.

    Raises:
        DataError: as `read_raster`, but for damage to pixels.
    """
    with _refusing(path, None):
        content = _content_of(path, None)
        if content.startswith(TIFF_STARTS):
            with _open_tiff(content, path, None) as (dataset, orientation):
                return Header(_turned(dataset.width, dataset.height, orientation), _bits_of_tiff(dataset))
        with _open_pillow(content, path, None) as image:
            bits = _bits_of_pillow(image)
            return Header(_turned(*image.size, _orientation_of_pillow(image, content)), bits)


def upright(values: NDArray, orientation: int) -> NDArray:
    """Turn and mirror stored rows as an orientation tag (TIFF 6.0, 274) says: what it calls row 0 is at the top.

    Args:
        values: (rows, columns, ...), as stored.
        orientation: 1 to 8; anything else is 1, as stored.
    """
    if 5 <= orientation <= 8:
        values = values.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        values = values[::-1]
    if orientation in (2, 3, 6, 7):
        values = values[:, ::-1]
    return np.ascontiguousarray(values)


def _turned(width: int, height: int, orientation: int) -> tuple[int, int]:
    """Width and height after `upright`."""
    return (height, width) if 5 <= orientation <= 8 else (width, height)


@contextmanager
def _refusing(path: Path, advice: str | None) -> Iterator[None]:
    """Turn whatever goes wrong in the block into an error that names the file."""
    try:
        yield
    except DataError:
        raise
    except Image.UnidentifiedImageError as error:
        raise DataError(
            f"{path} is no TIFF, PNG or JPEG image; "
            + (advice or "save it with three 8-bit bands (optical) or one band of values (SAR)")
        ) from error
    except Exception as error:  # GDAL and Pillow raise almost anything (struct.error, SyntaxError...) on damaged files.
        told = re.sub(rf"'?[^\s']*{MEMORY_NAME}'?:? ?", "", " ".join(str(error.__cause__ or error).split()))
        if "missing codec" in told:
            raise DataError(f"{path}: {told.rstrip('.')}; save it compressed by LZW or Deflate, or not at all") from error
        fault = shorten(told, 100)
        raise DataError(f"{path} is damaged, truncated or unreadable ({fault}); {advice or 'copy it again'}") from error


def _content_of(path: Path, advice: str | None) -> bytes:
    """The bytes of a file. Read whole: GDAL then finds no file beside it to believe, and a chip is small."""
    if not path.is_file():
        raise DataError(f"{path} does not exist or is no file; {advice or 'check DATASETS.ROOT_DIR and the links in it'}")
    size = path.stat().st_size
    if size == 0:
        raise DataError(f"{path} is empty (0 bytes); {advice or 'copy it again'}")
    if size > FILE_BYTES:
        raise DataError(f"{path} has {size} bytes, too many for one ship; cut out the ship")
    return read_bytes(path, limit=FILE_BYTES)


def _check_size(path: Path, width: int, height: int, max_pixels: int | None) -> None:
    if max_pixels is not None and width * height > max_pixels:
        raise DataError(
            f"{path} has {width} x {height} pixels, more than the {max_pixels:,} of a ship; cut out the ship, or raise "
            "INPUT.MAX_PIXELS"
        )


# TIFF


@contextmanager
def _open_tiff(content: bytes, path: Path, max_pixels: int | None) -> Iterator[tuple[DatasetReader, int]]:
    """Open a TIFF of one page with its orientation, not yet decoded."""
    tags = read_tags(content)
    _check_tags(tags, path)
    # The loggers say again, by an inner name, what is raised here.
    for library in ("rasterio", "tifffile"):
        logging.getLogger(library).setLevel(logging.CRITICAL)
    with (
        warnings.catch_warnings(),
        rasterio.Env(GDAL_PAM_ENABLED="NO"),
        MemoryFile(content, filename=MEMORY_NAME) as file,
    ):
        warnings.simplefilter("ignore")  # A chip needs no place on the map.
        with file.open(driver="GTiff") as dataset:
            pages = len(dataset.subdatasets)
            if pages > 1:
                raise DataError(f"{path} has {pages} pages; save the one that is meant as a file of its own")
            _check_size(path, dataset.width, dataset.height, max_pixels)
            widest = max(np.prod(shape, dtype=float) for shape in dataset.block_shapes)
            pixels = max(widest, float(dataset.width) * dataset.height)
            # 16: bytes of the largest kind of number
            if max_pixels is not None and pixels * dataset.count * 16 > PIXEL_BYTES * max(max_pixels, MAX_PIXELS):
                raise DataError(f"{path} has {dataset.count} bands or blocks too large for one ship; cut out the ship")
            yield dataset, int(tags.get(ORIENTATION, 1))


def read_tags(content: bytes) -> dict[int, Any]:
    """Those of `TAGS` that the first page has: number -> value. GDAL keeps some of them to itself."""
    with TiffFile(io.BytesIO(content)) as file:
        tags = file.pages.first.tags
        return {number: tags[number].value for number in TAGS if number in tags}


def _check_tags(tags: Mapping[int, Any], path: Path) -> None:
    """Refuse files whose numbers readers take differently, or that lack some."""
    photometric = tags.get(PHOTOMETRIC, 1)
    if photometric not in TAKEN_PHOTOMETRICS:
        kind = PHOTOMETRICS.get(photometric, f"of photometric interpretation {photometric}")
        raise DataError(f"{path} is a TIFF stored as {kind}, which readers take differently; save it as MinIsBlack or RGB")
    if 4 in _numbers(tags.get(SAMPLE_FORMAT, 1)) and max(_numbers(tags.get(BITS, 1))) > 8:
        raise DataError(f"{path} does not say what kind of numbers it holds (sample format 4); save it with a known kind")
    sizes = _numbers(tags.get(STRIP_SIZES, tags.get(TILE_SIZES, 1)))
    if 0 in sizes:
        raise DataError(f"{path} lacks the data of {sizes.count(0)} of its {len(sizes)} blocks; write the file whole")


def _numbers(value: int | tuple[int, ...]) -> tuple[int, ...]:
    return value if isinstance(value, tuple) else (value,)


def _bits_of_tiff(dataset: DatasetReader) -> int:
    """Bits of a number in the file; a palette's numbers stand for colours of 8."""
    if dataset.colorinterp[0] is ColorInterp.palette:
        return 8
    stored = dataset.tags(1, ns="IMAGE_STRUCTURE").get("NBITS")
    return int(stored) if stored else {"int8": 8, "uint8": 8}.get(dataset.dtypes[0], 16)


def _read_tiff(dataset: DatasetReader, orientation: int) -> Raster:
    flags, colours = dataset.mask_flag_enums, dataset.colorinterp
    numbers = [number for number, colour in enumerate(colours, 1) if colour is not ColorInterp.alpha]
    values = np.moveaxis(dataset.read(numbers), 0, -1)
    valid = np.ones(values.shape, bool)
    for place, number in enumerate(numbers):
        if MaskFlags.nodata in flags[number - 1]:
            valid[..., place] = dataset.read_masks(number) > 0
    alpha = upright(dataset.read_masks(numbers[0]), orientation) if MaskFlags.per_dataset in flags[0] else None
    bands = tuple(_MEANINGS.get(colours[number - 1], "other") for number in numbers)
    names = tuple(dataset.descriptions[number - 1] or "" for number in numbers)
    has_palette = colours[0] is ColorInterp.palette
    if has_palette:
        palette = dataset.colormap(1)
        table = np.zeros((max(palette) + 1, 3), np.uint8)
        for number, colour in palette.items():
            table[number] = colour[:3]
        values, valid = table[values[..., 0]], np.repeat(valid[..., :1], 3, axis=2)
        bands, names = ("red", "green", "blue"), ("", "", "")
    values, valid = upright(values, orientation), upright(valid, orientation)
    return Raster(values, valid, alpha, bands, names, _bits_of_tiff(dataset), has_palette)


_MEANINGS = {
    ColorInterp.gray: "grey",
    ColorInterp.red: "red",
    ColorInterp.green: "green",
    ColorInterp.blue: "blue",
}


# PNG and JPEG


@contextmanager
def _open_pillow(content: bytes, path: Path, max_pixels: int | None) -> Iterator[Image.Image]:
    """Open a PNG or JPEG of one page, not yet decoded."""
    with Image.open(io.BytesIO(content), formats=FORMATS) as image:
        pages = getattr(image, "n_frames", 1)
        if pages != 1:
            raise DataError(f"{path} has {pages} pages; save the one that is meant as a file of its own")
        _check_size(path, *image.size, max_pixels)
        yield image


def _orientation_of_pillow(image: Image.Image, content: bytes) -> int:
    """The orientation tag. Pillow decodes a PNG that has no EXIF part to look for one behind its pixels."""
    has_part = image.format != "PNG" or b"eXIf" in content or b"Raw profile type" in content
    return image.getexif().get(ORIENTATION, 1) if has_part else 1


def _bits_of_pillow(image: Image.Image) -> int:
    """Bits of a number in the file, to be asked before it is decoded; Pillow cuts 16-bit colour to 8 without a word."""
    if image.mode == "1":
        return 1
    return 16 if image.mode.startswith("I") or ";16" in str(image.tile) else 8


def _read_pillow(image: Image.Image, content: bytes) -> Raster:
    bits, has_palette = _bits_of_pillow(image), image.mode == "P"
    orientation = _orientation_of_pillow(image, content)
    if image.has_transparency_data:
        image = image.convert("LA" if image.mode in ("L", "LA") else "RGBA")
    elif image.mode == "P":
        image = image.convert("RGB")
    values = np.array(image)
    values = upright(values.reshape(*values.shape[:2], -1), orientation)
    alpha = values[..., -1] if image.mode in ("LA", "RGBA") else None
    if image.mode in ("RGB", "RGBA"):
        bands, values = ("red", "green", "blue"), values[..., :3]
    elif image.mode in ("CMYK", "YCbCr"):
        bands = ("other",) * values.shape[2]
    else:
        bands, values = ("grey",), values[..., :1]
    texts = {key: text for key, text in image.info.items() if isinstance(text, str)}
    return Raster(values, np.ones(values.shape, bool), alpha, bands, ("",) * len(bands), bits, has_palette, texts)
