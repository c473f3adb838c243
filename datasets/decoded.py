"""Chips as they were read and resized, kept in memory that processes share, so that a training decodes each of them once."""

import mmap
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from datasets.transforms import resize

Sized = tuple[NDArray[np.uint8], tuple[int, int]]
"""A picture (rows, columns, 3) and the (width, height) that it had before it was resized."""


class DecodedChips:
    """Places for as many chips as a limit allows; a chip without a place is read every time.

    Memory is anonymous and shared: it is taken when a place is filled, forked processes see what others filled, and /dev/shm is
    not asked. Where processes are not forked but start afresh, each fills its own. The files must not change meanwhile.

    Args:
        count: chips of the data set.
        size: (rows, columns) that they are resized to, bicubically, as for training.
        megabytes: limit, of 2^20 bytes; 0: no place at all.
    """

    def __init__(self, count: int, size: tuple[int, int], megabytes: int):
        self.size = size
        self.places = min(count, megabytes * 2**20 // (3 * size[0] * size[1]))
        self._allocate()

    def _allocate(self) -> None:
        shape = (self.places, *self.size, 3)
        self.heads = self._shared((self.places, 3), np.uint32)
        self.pictures = self._shared(shape, np.uint8)

    @staticmethod
    def _shared(shape: tuple[int, ...], kind: type) -> NDArray:
        length = int(np.prod(shape)) * np.dtype(kind).itemsize
        return np.frombuffer(mmap.mmap(-1, max(1, length)), kind, count=int(np.prod(shape))).reshape(shape)

    def __getstate__(self) -> dict[str, Any]:
        """Without the memory, which no pipe carries."""
        return {"size": self.size, "places": self.places}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
        self._allocate()

    def read(self, index: int, decode: Callable[[], NDArray[np.uint8]]) -> Sized:
        """The chip `index`, from its place or by `decode`, which gives a picture (H, W, 3) and may raise."""
        if index < self.places:
            width, height, checksum = (int(number) for number in self.heads[index])
            if width:
                picture = self.pictures[index].copy()
                # Another process may be about to write it: the head can be there before the last pixel is.
                if zlib.adler32(picture) == checksum:
                    return picture, (width, height)
        original = decode()
        own = original.shape[1::-1]
        picture = resize(original, self.size, Image.Resampling.BICUBIC)
        if index < self.places:
            self.pictures[index] = picture
            self.heads[index] = (*own, zlib.adler32(np.ascontiguousarray(picture)))
        return picture, own
