"""Chips without labels: finding them in a folder, and telling their modality by name or pixels."""

import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from datasets.chips import IMAGE_SUFFIXES, read_optical, read_sar
from datasets.records import Modality
from utils.errors import DataError

NAME_WORDS = {"rgb": Modality.OPTICAL, "opt": Modality.OPTICAL, "optical": Modality.OPTICAL, "sar": Modality.SAR}
"""Words of a file name that tell the modality."""

LEAST_COLOUR = 0.5
"""Mean distance of the bands from their mean, of 255, from which a picture has colour; optical chips have 3 or more."""


def list_images(path: Path) -> list[Path]:
    """List the chips of a folder by name, hidden files and other suffixes left out; or the one chip that `path` is.

    Raises:
        DataError: no such path, or no chip in it.
    """
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise DataError(f"{path} does not exist; name a folder of chips or a single chip")
    entries = sorted(path.iterdir(), key=lambda entry: entry.name)
    images = [entry for entry in entries if entry.suffix.lower() in IMAGE_SUFFIXES and not entry.name.startswith(".")]
    if not images:
        raise DataError(f"{path} holds no chip ({', '.join(IMAGE_SUFFIXES)}); chips in folders below it are not looked for")
    return images


def has_colour(picture: NDArray[np.uint8]) -> bool:
    """Whether the bands of a picture (H, W, 3) differ, as those of a SAR picture never do."""
    values = picture.astype(np.float32)
    return bool(np.abs(values - values.mean(axis=2, keepdims=True)).mean() > LEAST_COLOUR)


def modality_of_name(name: str) -> Modality | None:
    """The modality that words of a file name tell ('0012_s01_RGB.tif', 'sar-7.png'); None for none or for both."""
    words = re.split(r"[^0-9a-z]+", Path(name).stem.lower())
    found = {NAME_WORDS[word] for word in words if word in NAME_WORDS}
    return found.pop() if len(found) == 1 else None


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


def find_modality(path: Path) -> Modality:
    """The modality of a chip from its name, else from its pixels.

    Raises:
        DataError: neither tells, or the file cannot be read.
    """
    modality = modality_of_name(path.name)
    if modality is None:
        modality = modality_of_pixels(path)
    if modality is None:
        raise DataError(
            f"{path} is grey and its name says neither RGB nor SAR, so its modality is open; say which it is, or rename it"
        )
    return modality
