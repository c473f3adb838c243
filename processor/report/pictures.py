"""The pictures of a page: chips as small JPEGs, and where a network looked at them."""

import base64
import io
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from datasets.chips import ChipReading
from datasets.loaders import build_test_loader
from datasets.records import Chip
from model.attention import attention_rollout
from model.build import build_model
from model.contents import read_contents
from model.pretrained import fit_model
from model.transoss import TransOSS
from utils.errors import DataError

logger = logging.getLogger(__name__)

CELL = (96, 120)
"""Largest width and height of a picture on a page, in pixels."""


def thumbnail(picture: Image.Image, limit: tuple[int, int] = CELL) -> bytes:
    """A picture as a JPEG, made no larger than `limit` (width, height)."""
    scale = min(1.0, *(most / side for most, side in zip(limit, picture.size)))
    size = tuple(max(1, round(side * scale)) for side in picture.size)
    stream = io.BytesIO()
    picture.convert("RGB").resize(size, Image.Resampling.LANCZOS).save(stream, "JPEG", quality=72, optimize=True)
    return stream.getvalue()


def jpeg_uri(jpeg: bytes) -> str:
    """A JPEG as the address of a picture that the page itself holds."""
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"


def picture_uri(picture: Image.Image, limit: tuple[int, int] = CELL) -> str:
    """A picture as `jpeg_uri` of its thumbnail."""
    return jpeg_uri(thumbnail(picture, limit))


def chip_uris(chips: Mapping[str, Chip], read: ChipReading) -> dict[str, str]:
    """Key -> picture of each chip as the network sees it before resizing; those that cannot be read are left out and told."""
    found, lost = {}, []
    for key, chip in chips.items():
        try:
            found[key] = picture_uri(Image.fromarray(read(chip)))
        except (DataError, OSError):
            lost.append(chip.path)
    if lost:
        logger.warning("%d of %d pictures of the page cannot be read, such as %s", len(lost), len(chips), lost[0])
    return found


def file_uris(paths: Iterable[str], limit: tuple[int, int] = CELL) -> dict[str, str]:
    """Path -> picture of each file that Pillow reads; others are left out."""
    found = {}
    for path in paths:
        try:
            with Image.open(path) as image:
                found[path] = picture_uri(image, limit)
        except OSError:
            logger.debug("no picture in %s", path)
    return found


def build_rollouts(cfg, weights: Path, chips: Sequence[Chip]) -> list[dict[str, object]]:
    """Where the network of a test looked at each chip: rows, columns, and a byte a patch in base64.

    Args:
        cfg: of the test.
        weights: its checkpoint.
        chips: to look at.

    Returns:
        One for each chip, stretched from its least to its greatest value; nothing for a network without attention.

    Raises:
        CheckpointError: the weights cannot be read, or are of another network.
    """
    model = build_model(cfg)
    if not isinstance(model.base, TransOSS):
        return []
    fit_model(read_contents(weights), model, classifier=False)
    model.eval()
    found = []
    for batch in build_test_loader(cfg, chips):
        for grid in attention_rollout(model.base, batch.images, batch.modalities, batch.sizes).numpy():
            values = np.round(255 * (grid - grid.min()) / max(1e-9, float(np.ptp(grid)))).astype(np.uint8)
            found.append({"rows": values.shape[0], "columns": values.shape[1], "bytes": base64.b64encode(values).decode()})
    return found
