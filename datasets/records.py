"""The records that travel between reading, model and evaluation."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from pathlib import Path

import torch
from torch import Tensor

DISTRACTOR = -1
"""The ship of a gallery image that matches no query."""


class Modality(IntEnum):
    """What took the picture; the value indexes the modality embedding and equals the released `camid`."""

    OPTICAL = 0
    SAR = 1


class Split(StrEnum):
    """Which part of a data set a chip is in; the value is what files call it."""

    TRAIN = "train"
    QUERY = "query"
    GALLERY = "gallery"
    VALIDATION_QUERY = "validation/query"
    VALIDATION_GALLERY = "validation/gallery"
    O2S_QUERY = "O2S/query"
    O2S_GALLERY = "O2S/gallery"
    S2O_QUERY = "S2O/query"
    S2O_GALLERY = "S2O/gallery"

    @property
    def side(self) -> str:
        """'query', 'gallery' or 'train'."""
        return self.value.rpartition("/")[2]


@dataclass(frozen=True)
class Chip:
    """One chip on disk, taken by a sensor or generated.

    Attributes:
        path: the image file.
        ship: identity as in the file name; `DISTRACTOR` for an image of no query's ship.
        modality: of the picture in the file.
        split: the part of the data set that it is in.
        size: (width, height) in pixels of the ship's own chip, of which the size triple is made: of a generated picture, its
            source's; of any other, the file's, which reading checks. None: as the file turns out to be.
        rendered: of a SAR chip, whether the file holds a picture of 8 bits already, which is read as it is.
        source: of a generated picture, the optical chip that it was made from.
        origin: of a generated picture, what its file must say of where it comes from; None where no manifest tells.
        saved: (width, height) in pixels of a generated picture's file; None: as its source.
        measured: of a generated picture, whether its size triple is that of its own file, as a SAR chip's.
        upright: whether the picture is turned so that its ship stands upright (`datasets.askew`).
        turned: whether the picture is turned by 180 degrees, bow for stern.
    """

    path: Path
    ship: int
    modality: Modality
    split: Split
    size: tuple[int, int] | None = None
    rendered: bool = False
    source: "Chip | None" = None
    origin: str | None = None
    saved: tuple[int, int] | None = None
    measured: bool = False
    upright: bool = False
    turned: bool = False


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
    """What a network reads. Of pairs, the first half are the optical images, the second half their SAR images in that order.

    Attributes:
        images: (B, 3, H, W) float32: normalised for re-identification, in [-1, 1] for the bridge.
        sizes: (B, 3) float32 size triples (method: ship-size embedding).
        modalities: (B,) int64, values of `Modality`.
        labels: (B,) int64, 0..N-1 over the training ships; None where no ship is learned.
        indices: (B,) int64, place of each image in the data set it came from.
    """

    images: Tensor
    sizes: Tensor
    modalities: Tensor
    labels: Tensor | None
    indices: Tensor

    def to(self, device: torch.device, *, memory_format: torch.memory_format = torch.preserve_format) -> "Batch":
        """Copy to `device`, images in the layout asked for, without waiting where the memory is pinned."""
        batch = self._map(lambda values: values.to(device, non_blocking=True))
        batch.images = batch.images.contiguous(memory_format=memory_format)
        return batch

    def split(self, size: int) -> list["Batch"]:
        """Cut into batches of `size` images, the last one perhaps smaller."""
        starts = range(0, len(self.indices), size)
        return [self._map(lambda values, start=start: values[start : start + size]) for start in starts]

    def first(self, size: int) -> "Batch":
        """The first `size` images; where there are no labels, half of them from the second half, as pairs need it."""
        half = size // 2 if self.labels is None else 0
        places = torch.cat([torch.arange(size - half), len(self.indices) // 2 + torch.arange(half)])
        return self._map(lambda values: values[places.to(values.device)])

    def share(self) -> None:
        """Move every tensor to memory that other processes see."""
        self._map(Tensor.share_memory_)

    def pin_memory(self) -> "Batch":
        """Pin every tensor (called by DataLoader)."""
        return self._map(Tensor.pin_memory)

    def _map(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        return Batch(**{name: values if values is None else change(values) for name, values in vars(self).items()})
