"""Finding pictures that are almost the same: a perceptual hash, and the pairs whose hashes nearly agree."""

from collections.abc import Iterator

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.fft import dctn

HASH_SIDE = 16
"""Rows and columns of cosine coefficients that a hash keeps."""

HASH_BITS = HASH_SIDE**2 - 1
"""Bits of a hash; the mean of the picture has none."""

NEAR_BITS = 48
"""Bits by which near-duplicates differ at most.

Of the public sample of HOSS, chips saved again as JPEG, brightened or resized differ from themselves by 4 to 14 bits in the
median and 26 at the 95th percentile, views of different ships by 68 or more and 120 on average; two passes over one ship at
anchor by 34 and more.
"""

_THUMBNAIL_SIDE = 64


def perceptual_hash(picture: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Tell which low-frequency cosine coefficients of a picture lie above their median.

    Size, brightness, contrast and compression hardly change the answer; turning, mirroring and cropping do.

    Args:
        picture: (H, W, 3) uint8.

    Returns:
        (HASH_BITS,) bool; all False for a picture of one value.
    """
    grey = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY).astype(np.float32)
    if grey.min() == grey.max():
        return np.zeros(HASH_BITS, bool)
    thumbnail = cv2.resize(grey, (_THUMBNAIL_SIDE, _THUMBNAIL_SIDE), interpolation=cv2.INTER_AREA)
    coefficients = dctn(thumbnail, norm="ortho")[:HASH_SIDE, :HASH_SIDE].ravel()[1:]
    return coefficients > np.median(coefficients)


def near_pairs(
    first: NDArray[np.bool_], second: NDArray[np.bool_], *, limit: int = NEAR_BITS, memory_bytes: int = 1 << 26
) -> Iterator[tuple[int, int]]:
    """Yield the pairs (i, j) for which `first[i]` and `second[j]` differ in at most `limit` bits, by i and then j.

    Args:
        first: (N, HASH_BITS) hashes.
        second: (M, HASH_BITS) hashes.
        limit: bits.
        memory_bytes: about how much memory a block of distances takes.
    """
    # Of vectors of +1 and -1 the product is the bits that agree less those that differ: exact, and as fast as a product is.
    first_signs, second_signs = (np.where(hashes, 1, -1).astype(np.float32) for hashes in (first, second))
    rows = max(1, memory_bytes // (8 * max(1, len(second))))
    for start in range(0, len(first), rows):
        agreement = first_signs[start : start + rows] @ second_signs.T
        for i, j in np.argwhere(agreement >= HASH_BITS - 2 * limit):
            yield start + int(i), int(j)
