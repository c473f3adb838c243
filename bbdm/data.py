"""Pairs of an optical and a SAR picture: which there are, and reading them in batches.

Legend: B batch, H x W pixels of the network's pictures, in [-1, 1].
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from datasets.hoss import read_hoss
from datasets.loaders import ChipLoader, Draw, KeyedBatches, build_loading
from datasets.pairs import Pair, PairLists, Picture, pair_ship_views, read_picture, read_registered_pairs
from datasets.records import Modality
from datasets.samplers import ShuffledSampler
from datasets.sar import SarRendering, build_sar_rendering
from datasets.transforms import resize
from datasets.validation import build_validation_data
from utils.errors import DataError, UsageError

logger = logging.getLogger(__name__)


@dataclass
class PairBatch:
    """What the bridge trains on.

    Attributes:
        optical: (B, 3, H, W) float32 in [-1, 1].
        sar: likewise.
        indices: (B,) int64, place of each pair in its list; stays on the CPU.
    """

    optical: Tensor
    sar: Tensor
    indices: Tensor

    def to(self, device: torch.device) -> "PairBatch":
        """Copy the pictures to `device`, on CUDA in the layout that its convolutions like, without waiting."""
        layout = torch.channels_last if device.type == "cuda" else torch.contiguous_format
        optical, sar = (
            picture.to(device, non_blocking=True).contiguous(memory_format=layout) for picture in (self.optical, self.sar)
        )
        return PairBatch(optical, sar, self.indices)

    def pin_memory(self) -> "PairBatch":
        """Pin the pictures (called by DataLoader)."""
        return PairBatch(self.optical.pin_memory(), self.sar.pin_memory(), self.indices)


class PairDataset(Dataset):
    """Pairs as tensors; both pictures of a pair are cut and flipped alike.

    Args:
        pairs: to read.
        size: (rows, columns) of the tensors.
        render_sar: SAR values -> picture.
        crop: cut `size` out of registered pairs at random instead of resizing them.
        flip: flip left and right at random.
    """

    def __init__(
        self, pairs: Sequence[Pair], size: Sequence[int], render_sar: SarRendering, *, crop: bool = False, flip: bool = False
    ):
        self.pairs, self.size, self.render_sar = pairs, (int(size[0]), int(size[1])), render_sar
        self.crop, self.flip = crop, flip

    def __len__(self) -> int:
        """Number of pairs."""
        return len(self.pairs)

    def __getitem__(self, draw: Draw | int) -> tuple[Tensor, int] | DataError:
        """Optical over SAR, (2, 3, H, W), and the index; an error is returned, for `ChipLoader` to raise."""
        draw = draw if isinstance(draw, Draw) else Draw(draw, (draw,))
        generator = np.random.default_rng(draw.key)
        pair = self.pairs[draw.index]
        try:
            pictures = [read_picture(pair, modality, self.render_sar) for modality in Modality]
            if self.crop and pair.registered:
                pictures = _crop(pair, pictures, self.size, generator)
        except DataError as error:
            return error
        stacked = np.stack([resize(picture, self.size, Image.Resampling.BILINEAR) for picture in pictures])
        if self.flip and generator.random() < 0.5:
            stacked = stacked[:, :, ::-1]
        return to_tensor(stacked), draw.index


def _crop(pair: Pair, pictures: list[Picture], size: tuple[int, int], generator: np.random.Generator) -> list[Picture]:
    room = [have - want for have, want in zip(pictures[0].shape, size)]
    if min(room) < 0:
        height, width = pictures[0].shape[:2]
        raise DataError(
            f"{pair.optical} is {height} x {width}, too small to cut BBDM.IMAGE_SIZE {list(size)}; set BBDM.CROP False"
        )
    top, left = (int(generator.integers(0, free, endpoint=True)) for free in room)
    return [picture[top : top + size[0], left : left + size[1]] for picture in pictures]


def to_tensor(pictures: NDArray[np.uint8]) -> Tensor:
    """(..., H, W, 3) uint8 -> (..., 3, H, W) float32 in [-1, 1]."""
    tensor = torch.from_numpy(np.ascontiguousarray(pictures)).movedim(-1, -3)
    return tensor.to(torch.float32).div(127.5).sub(1.0).contiguous()


def to_picture(tensor: Tensor) -> NDArray[np.uint8]:
    """(..., 3, H, W) in [-1, 1] -> (..., H, W, 3) uint8, rounded; what lies outside is clipped."""
    scaled = tensor.float().add(1.0).mul(127.5).round().clamp(0, 255).to(torch.uint8)
    return scaled.movedim(-3, -1).cpu().numpy()


def collate(items: Sequence[tuple[Tensor, int] | DataError]) -> PairBatch | DataError:
    """Stack pairs into a batch; the first error among them takes its place."""
    for item in items:
        if isinstance(item, DataError):
            return item
    both = torch.stack([pictures for pictures, _ in items])
    return PairBatch(both[:, 0].contiguous(), both[:, 1].contiguous(), torch.tensor([index for _, index in items]))


def build_pairs(cfg) -> PairLists:
    """The pairs that BBDM.PAIRS names."""
    every = cfg.BBDM.HOLD_OUT_EVERY
    if every < 0 or every == 1:
        raise UsageError(f"BBDM.HOLD_OUT_EVERY is {every}; it is 0 (none) or at least 2")
    if cfg.BBDM.PAIRS == "hoss":
        # Ships that validate re-identification stay unseen here too, or samples of them would flatter the choice.
        data = build_validation_data(cfg) if cfg.DATASETS.VAL_FRACTION else read_hoss(cfg.DATASETS.ROOT_DIR, test=False)
        return pair_ship_views(data.train, hold_out_every=every)
    if not cfg.BBDM.PAIRS_DIR:
        raise UsageError("BBDM.PAIRS_DIR is empty; name the folder that holds the registered pairs")
    return read_registered_pairs(cfg.BBDM.PAIRS_DIR, hold_out_every=every)


def build_rendering(cfg) -> SarRendering:
    """The rendering of INPUT.SAR_*."""
    return build_sar_rendering(cfg.INPUT.SAR_DENOISE, low=cfg.INPUT.SAR_LOW_PERCENT, high=cfg.INPUT.SAR_HIGH_PERCENT)


def build_train_loader(cfg, pairs: Sequence[Pair], *, device_type: str, rank: int = 0, world_size: int = 1) -> ChipLoader:
    """Batches of SOLVER.IMS_PER_BATCH pairs over all ranks; choose the epoch by `loader.batch_sampler.set_epoch`."""
    dataset = PairDataset(pairs, cfg.BBDM.IMAGE_SIZE, build_rendering(cfg), crop=cfg.BBDM.CROP, flip=cfg.BBDM.FLIP)
    sharing = {"batch_size": cfg.SOLVER.IMS_PER_BATCH, "seed": cfg.SOLVER.SEED, "rank": rank, "world_size": world_size}
    sampler = ShuffledSampler(len(pairs), unit="pairs", **sharing)
    return ChipLoader(dataset, batch_sampler=KeyedBatches(sampler), **build_loading(cfg, device_type, collate_fn=collate))


def build_validation_loader(cfg, pairs: Sequence[Pair], *, device_type: str, rank: int = 0, world_size: int = 1) -> ChipLoader:
    """Each pair once, cut at a place of its own but never flipped; this rank every `world_size`-th."""
    dataset = PairDataset(pairs, cfg.BBDM.IMAGE_SIZE, build_rendering(cfg), crop=cfg.BBDM.CROP)
    indices = range(rank, len(pairs), world_size)
    loading = build_loading(cfg, device_type, collate_fn=collate)
    return ChipLoader(dataset, sampler=indices, batch_size=max(cfg.SOLVER.IMS_PER_BATCH // world_size, 1), **loading)
