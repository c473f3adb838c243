"""A trained network in three lines, for notebooks and scripts.

    reid = load_reid("logs/hoss_transoss/best_model_mAP.pth")
    features = reid.embed(["chips/a_RGB.tif", "chips/b_SAR.tif"])
    order, distances = reid.rank(features[:1], features[1:])

Legend: N pictures, Q queries, G gallery pictures, K of them in a list, D feature width.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from configs.described import load_described
from datasets.chips import ChipReading
from datasets.folders import MODALITY_CHOICES, find_modality
from datasets.loaders import ChipDataset, Transform, build_chip_reading, collate
from datasets.records import DISTRACTOR, Batch, Chip, Modality, Split
from datasets.samplers import Draw
from datasets.sar import SarRendering, build_sar_rendering
from datasets.transforms import prepare
from processor.common_space import CommonSpace, build_common_space
from processor.extraction import Extractor, build_extractor
from processor.ranking.retrieval import squared_distances
from utils.device import build_device
from utils.errors import DataError, UsageError

Picture = str | Path | NDArray
"""A file, or pixels: (H, W, 3) uint8 of an optical chip, (H, W) numbers of a SAR one."""

BATCH = 64
"""Pictures that are read at a time."""


@dataclass(frozen=True)
class ReID:
    """A trained network and how its pictures are read.

    Attributes:
        extractor: gives features of chips.
        space: the common space of TEST.COMMON_SPACE; None for features as they are.
        normalise: whether features are L2-normalised (TEST.FEAT_NORM).
        read: chip -> picture.
        render_sar: SAR values -> picture.
        transform: picture -> what the network sees.
    """

    extractor: Extractor
    space: CommonSpace | None
    normalise: bool
    read: ChipReading
    render_sar: SarRendering
    transform: Transform

    def features(self, chips: Sequence[Chip], *, description: str = "") -> Tensor:
        """(N, D) float32 on the CPU, in the common space if there is one, not normalised; what commands rank by.

        Args:
            chips: (N,) as `datasets.folders.gather_chips` finds them.
            description: of the progress bar; empty for none.
        """
        return self._placed(self.extractor.features(chips, description=description), chips)

    def embed(self, pictures: Sequence[Picture], modality: str = "auto") -> Tensor:
        """Features of files or pixels: (N, D) float32 on the CPU, L2-normalised unless TEST.FEAT_NORM is 'no'.

        Args:
            pictures: (N,) files of `*_RGB` and `*_SAR` chips, or arrays, mixed as you like. A chip shows one ship, upright, at
                HOSS's pixel sizes (0.75 m optical, 1 m SAR), since its size in pixels is part of what the network sees.
            modality: 'optical' or 'sar' of all of them; 'auto' tells a file by its name, else its pixels, and an array by its
                shape.

        Raises:
            DataError: a file or an array that is no chip; the sentence names the file, or the array by its place.
        """
        if modality not in ("auto", *MODALITY_CHOICES):
            raise UsageError(f"modality cannot be {modality!r}; it is auto, optical or sar")
        if not len(pictures):
            raise DataError("there are no pictures; give a list of files or arrays")
        arrays = {Path(f"array {place}"): own for place, own in enumerate(pictures) if not isinstance(own, str | Path)}
        names = [own if isinstance(own, str | Path) else f"array {place}" for place, own in enumerate(pictures)]
        chips = [_chip_of(Path(name), arrays.get(Path(name)), modality) for name in names]
        batches = self._batches(chips, lambda chip: self._picture(chip, arrays.get(chip.path)))
        features = self._placed(self.extractor.extract(batches, count=len(chips)), chips)
        return functional.normalize(features) if self.normalise else features

    def rank(self, query: Tensor, gallery: Tensor, *, top_k: int = 0) -> tuple[Tensor, Tensor]:
        """The gallery in the order of its distance from each query; of equals the first comes first.

        Args:
            query: (Q, D) of `embed`.
            gallery: (G, D) likewise.
            top_k: K, the length of a list; 0 for the whole gallery.

        Returns:
            (Q, K) int64 places in the gallery, nearest first, and (Q, K) float32 squared Euclidean distances: from 0, the
            same, to 4, the opposite, of features that are normalised.
        """
        nearest = squared_distances(query, gallery).sort(dim=1, stable=True)
        return nearest.indices[:, : top_k or None], nearest.values[:, : top_k or None]

    def _placed(self, features: Tensor, chips: Sequence[Chip]) -> Tensor:
        return self.space.map_images(features, [chip.modality for chip in chips]) if self.space else features

    def _batches(self, chips: Sequence[Chip], read: Callable[[Chip], NDArray[np.uint8]]) -> Iterator[Batch]:
        dataset = ChipDataset(chips, None, self.transform, read)
        for start in range(0, len(chips), BATCH):
            places: Iterable[int] = range(start, min(start + BATCH, len(chips)))
            batch = collate([dataset[Draw(place, (0,))] for place in places])
            if isinstance(batch, DataError):
                raise batch
            yield batch

    def _picture(self, chip: Chip, array: NDArray | None) -> NDArray[np.uint8]:
        if array is None:
            return self.read(chip)
        return array if chip.modality is Modality.OPTICAL else self.render_sar(np.asarray(array, np.float32))


def _chip_of(path: Path, array: NDArray | None, modality: str) -> Chip:
    """The chip of a file or an array, whose ship is not known."""
    told = MODALITY_CHOICES.get(modality)
    if array is None:
        return Chip(path, DISTRACTOR, find_modality(path) if told is None else told, Split.QUERY)
    array = np.asarray(array)
    fits = Modality.OPTICAL if array.ndim == 3 and array.shape[2] == 3 and array.dtype == np.uint8 else None
    fits = Modality.SAR if array.ndim == 2 and array.dtype.kind in "fiu" else fits
    if fits is None or not array.size or told not in (None, fits):
        shape = " x ".join(map(str, array.shape))
        raise DataError(f"{path} is {array.dtype} of {shape}; an optical chip is (H, W, 3) uint8, a SAR chip (H, W) numbers")
    return Chip(path, DISTRACTOR, fits, Split.QUERY)


def load_reid(weights: str | Path, *overrides: str, config_file: str | Path | None = None) -> ReID:
    """The network of a weights file, ready to embed pictures.

    Args:
        weights: a file of this program, which says what it is; another one needs a configuration.
        overrides: KEY, VALUE, KEY, VALUE ... as on the command line, such as "MODEL.DEVICE", "cpu".
        config_file: a .yml.

    Raises:
        UsageError, CheckpointError: as `python test.py --weights` would say.
    """
    settings, _ = load_described(config_file, [*overrides, "TEST.WEIGHT", str(weights)], "TEST.WEIGHT")
    return build_reid(settings, build_device(settings))


def build_reid(cfg, device: torch.device) -> ReID:
    """The network of TEST.WEIGHT and how TEST.* and INPUT.* have its pictures read."""
    extractor = build_extractor(cfg, device, weights=cfg.TEST.WEIGHT)
    return ReID(
        extractor=extractor,
        space=build_common_space(cfg, extractor),
        normalise=cfg.TEST.FEAT_NORM == "yes",
        read=build_chip_reading(cfg),
        render_sar=build_sar_rendering(cfg.INPUT.SAR_DENOISE, low=cfg.INPUT.SAR_LOW_PERCENT, high=cfg.INPUT.SAR_HIGH_PERCENT),
        transform=partial(prepare, size=tuple(cfg.INPUT.SIZE_TEST), mean=cfg.INPUT.PIXEL_MEAN, std=cfg.INPUT.PIXEL_STD),
    )
