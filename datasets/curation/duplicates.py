"""Finding pictures that are almost the same: a perceptual hash, and the pairs whose hashes nearly agree."""

from collections.abc import Iterator

import imagehash
import numpy as np
from numpy.typing import NDArray
from PIL import Image

HASH_SIDE = 12
"""Rows and columns of cosine coefficients that a hash keeps."""

HASH_BITS = HASH_SIDE**2

NEAR_BITS = 27
"""Bits by which near-duplicates differ at most; side and limit are measured in docs/data.md."""


def perceptual_hash(picture: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Tell which low-frequency cosine coefficients of a picture lie above their median (ImageHash's `phash`).

    Size, brightness, contrast and compression hardly change the answer; turning, mirroring and cropping do.

    Args:
        picture: (H, W, 3) uint8.

    Returns:
        (HASH_BITS,) bool; all False for a picture of one value.
    """
    if picture.min() == picture.max():
        return np.zeros(HASH_BITS, bool)
    return imagehash.phash(Image.fromarray(picture), hash_size=HASH_SIDE).hash.ravel()


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
