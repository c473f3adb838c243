"""Reading one chip, and the triple that tells its size. H, W: rows and columns of the chip."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from datasets.records import Chip, Modality
from datasets.sar import SarRendering
from utils.errors import DataError

FORMATS = ("TIFF", "PNG", "JPEG")
"""What a chip may be inside, whatever its suffix; Pillow's other readers are never tried."""

ORIGIN_KEY = "generated"
"""Key of the text in the PNG of a generated picture: `<run> <file name>`."""

MAX_PIXELS = 2**26
"""A chip holds one ship; a file that declares more is refused before its pixels are decoded."""

MAX_SAR_VALUE = 1e25
"""Beyond it float32 arithmetic on SAR values overflows; no sensor gives such values."""

LEAST_COLOUR = 0.5
"""Mean distance of the bands from their mean, of 255, from which a picture has colour; optical chips have 3 or more."""

SAR_MODES = ("F", "L", "I", "I;16", "I;16L", "I;16B", "I;16N")
"""Pillow's names of one-band images."""


def read_optical(path: Path) -> NDArray[np.uint8]:
    """Read an optical chip.

    Accepted: 8-bit RGB; 8-bit grey and palette images, as the RGB that they show; an alpha band if it is opaque everywhere,
    which is then dropped. Refused: everything else, since a choice would have to be made that the reader cannot know (which
    page, which bands, what range of 16 bits, what lies under transparent pixels).

    Returns:
        (H, W, 3) uint8.

    Raises:
        DataError: the file is missing, empty, damaged, no image or one that is refused.
    """
    with _open_chip(path) as image:
        return _to_rgb(image, path)


def read_sar(path: Path) -> NDArray[np.float32]:
    """Read a SAR chip.

    Accepted: one band of floats or of 8-, 16- or 32-bit integers, taken as values as they are (every rendering is relative to
    the chip's own range, so the unit does not matter). Refused: more bands, alpha, several pages, values that are not finite.

    Returns:
        (H, W) float32, every value finite and within +-`MAX_SAR_VALUE`.

    Raises:
        DataError: the file is missing, empty, damaged, no image or one that is refused.
    """
    with _open_chip(path) as image:
        if image.mode not in SAR_MODES or _bands(image) != 1:
            raise DataError(
                f"{path} is a {image.mode} image of {_bands(image)} band(s); save the SAR chip with one band of values"
            )
        values = np.array(image, dtype=np.float32)
    # Written so that NaN, which compares false with everything, is refused too.
    if not np.abs(values).max() <= MAX_SAR_VALUE:
        raise DataError(f"{path} holds values that are NaN, infinite or above {MAX_SAR_VALUE:g}; mask or replace these pixels")
    return values


def read_chip(chip: Chip, render_sar: SarRendering) -> NDArray[np.uint8]:
    """Read the picture of a chip: RGB of an optical, rendered or generated one, the rendering of any other SAR chip.

    Returns:
        (H, W, 3) uint8.

    Raises:
        DataError: as `read_optical` and `read_sar`; the rendering refuses the values; the chip has another size than is known
            of it; a generated picture is not the one that its manifest tells of.
    """
    if chip.source is not None:
        return read_generated(chip)
    if chip.modality is Modality.OPTICAL or chip.rendered:
        picture = read_optical(chip.path)
    else:
        values = read_sar(chip.path)
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
    return picture


def read_generated(chip: Chip) -> NDArray[np.uint8]:
    """Read a generated picture; where a manifest tells of it, it has to be of that run, name and size.

    Returns:
        (H, W, 3) uint8.

    Raises:
        DataError: the file is missing, empty, damaged, no 8-bit RGB picture, or another one than the manifest tells of.
    """
    again = "make this sample again"
    with _open_chip(chip.path, advice=again) as image:
        if image.mode not in ("RGB", "L"):
            raise DataError(f"{chip.path} is no 8-bit RGB picture; {again}")
        picture = _to_rgb(image, chip.path)
        origin = image.info.get(ORIGIN_KEY)
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
    with _open_chip(path) as image:
        return image.size, image.mode == "L" or image.mode not in SAR_MODES


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


@contextmanager
def _open_chip(path: Path, *, advice: str | None = None) -> Iterator[Image.Image]:
    """Open an image of one page, not yet decoded; whatever goes wrong until the block ends is refused by the file's name."""
    if not path.is_file():
        raise DataError(f"{path} does not exist or is no file; {advice or 'check DATASETS.ROOT_DIR and the links in it'}")
    if path.stat().st_size == 0:
        raise DataError(f"{path} is empty (0 bytes); {advice or 'copy it again'}")
    try:
        with Image.open(path, formats=FORMATS) as image:
            pages = getattr(image, "n_frames", 1)
            if pages != 1:
                raise DataError(f"{path} has {pages} pages; save the one that is meant as a file of its own")
            if image.width * image.height > MAX_PIXELS:
                raise DataError(f"{path} has {image.width} x {image.height} pixels, too many for one ship; cut out the ship")
            yield image
    except DataError:
        raise
    except Image.UnidentifiedImageError as error:
        raise DataError(
            f"{path} is no TIFF, PNG or JPEG image, or has a kind of bands that Pillow cannot read; "
            + (advice or "save it with three 8-bit bands (optical) or one band of values (SAR)")
        ) from error
    except Exception as error:  # Pillow's parsers raise almost anything (struct.error, SyntaxError...) on damaged files.
        raise DataError(f"{path} is damaged, truncated or unreadable ({error}); {advice or 'copy it again'}") from error


def _to_rgb(image: Image.Image, path: Path) -> NDArray[np.uint8]:
    """An image that was just opened as (H, W, 3) RGB, if it is one that `read_optical` accepts."""
    if _bits(image) > 8:
        raise DataError(f"{path} has more than 8 bits a band; save the optical chip as 8-bit RGB")
    if image.mode not in ("RGB", "L", "P", "RGBA", "LA") or _bands(image) > len(image.getbands()):
        raise DataError(f"{path} is a {image.mode} image of {_bands(image)} band(s); save the optical chip as 8-bit RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        if image.getextrema()[3][0] < 255:
            raise DataError(f"{path} has transparent pixels; save the optical chip as 8-bit RGB without an alpha band")
    return np.array(image.convert("RGB"))


def _bits(image: Image.Image) -> int:
    """Bits of a band in the file. Pillow cuts 16-bit colour to 8 without a word, so its mode does not tell.

    To be asked before the image is decoded: the layout of the file is forgotten then.
    """
    if image.format == "TIFF":
        return max(image.tag_v2.get(258, (1,)))
    return 16 if image.mode.startswith("I") or ";16" in str(image.tile) else 8


def _bands(image: Image.Image) -> int:
    """Bands in the file. Pillow drops a fourth band of unknown meaning without a word, so its mode does not tell."""
    return image.tag_v2.get(277, 1) if image.format == "TIFF" else len(image.getbands())
