"""The records that travel between reading, model and evaluation."""

from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

import torch
from torch import Tensor

DISTRACTOR = -1
"""The ship of a gallery image that matches no query."""


class Modality(IntEnum):
    """What took the picture; the value indexes the modality embedding and equals the released `camid`."""

    OPTICAL = 0
    SAR = 1


@dataclass(frozen=True)
class Chip:
    """One chip on disk.

    Attributes:
        path: the image file.
        ship: identity as in the file name; `DISTRACTOR` for an image of no query's ship.
        modality: optical or SAR, from the file name.
        split: 'train', 'query', 'gallery' or a subset split such as 'O2S/query'.
    """

    path: Path
    ship: int
    modality: Modality
    split: str


@dataclass(frozen=True)
class Protocol:
    """Which images are queries and which are the gallery, as indices into one list of images.

    Attributes:
        name: 'ALL', 'O2S' (optical queries, SAR gallery) or 'S2O' (the reverse).
        query: indices of the query images.
        gallery: indices of the gallery images.
    """

    name: str
    query: tuple[int, ...]
    gallery: tuple[int, ...]


@dataclass
class Batch:
    """What the model reads.

    Attributes:
        images: (B, 3, H, W) float32, normalised.
        sizes: (B, 3) float32 size triples (method: ship-size embedding).
        modalities: (B,) int64, values of `Modality`.
        labels: (B,) int64; training: 0..N-1; elsewhere the pid.
        indices: (B,) int64, place of each image in the data set it came from.
    """

    images: Tensor
    sizes: Tensor
    modalities: Tensor
    labels: Tensor
    indices: Tensor

    def to(self, device: torch.device) -> "Batch":
        """Copy to `device`, without waiting where the memory is pinned."""
        return Batch(**{name: value.to(device, non_blocking=True) for name, value in vars(self).items()})

    def split(self, size: int) -> list["Batch"]:
        """Cut into batches of `size` images, the last one perhaps smaller."""
        parts = {name: value.split(size) for name, value in vars(self).items()}
        return [Batch(**{name: values[number] for name, values in parts.items()}) for number in range(len(parts["labels"]))]

    def pin_memory(self) -> "Batch":
        """Pin every tensor (called by DataLoader)."""
        return Batch(**{name: value.pin_memory() for name, value in vars(self).items()})
