"""Pairs of an optical and a SAR picture as the bridge reads them.

A batch of n pairs holds the optical pictures of all of them, then their SAR pictures in the same order: (2 n, 3, H, W), H x W
pixels of the network's pictures, in [-1, 1].
"""

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from datasets.catalogue import read_hoss
from datasets.loaders import ChipDataset, ChipLoader, build_chip_reading, build_loader
from datasets.pairs import Pair, PairLists, chips_of, pair_ship_views, read_registered_pairs
from datasets.samplers import shuffle_pairs, take_pairs_in_order
from datasets.transforms import resize
from datasets.validation import build_validation_data
from utils.device import Precision
from utils.errors import UsageError


def cut_or_resize(
    picture: NDArray[np.uint8], generator: np.random.Generator, *, size: tuple[int, int], crop: bool, flip: bool
) -> Tensor:
    """A picture as the bridge reads it; pictures of one size and generators of one key are cut and flipped alike.

    Args:
        picture: (H, W, 3) uint8.
        generator: place of the cut and the flip are drawn from it.
        size: (rows, columns) of the output.
        crop: cut `size` out at random instead of resizing.
        flip: flip left and right at random.

    Returns:
        (3, rows, columns) float32 in [-1, 1].

    Raises:
        ValueError: the picture is too small to cut.
    """
    if crop:
        (height, width), (rows, columns) = picture.shape[:2], size
        if height < rows or width < columns:
            raise ValueError(f"is {height} x {width}, too small to cut BBDM.IMAGE_SIZE {list(size)}; set BBDM.CROP False")
        top, left = (int(generator.integers(0, free, endpoint=True)) for free in (height - rows, width - columns))
        picture = picture[top : top + rows, left : left + columns]
    pixels = resize(picture, size, Image.Resampling.BILINEAR)
    if flip and generator.random() < 0.5:
        pixels = pixels[:, ::-1]
    return to_tensor(pixels)


def layout_of(precision: Precision) -> torch.memory_format:
    """The layout of pictures: channels last for half precision on a GPU; float32 was no faster so (benchmarks/gpu.md)."""
    half = precision.device_type == "cuda" and precision.dtype is not None
    return torch.channels_last if half else torch.contiguous_format


def to_tensor(pictures: NDArray[np.uint8]) -> Tensor:
    """(..., H, W, 3) uint8 -> (..., 3, H, W) float32 in [-1, 1]."""
    tensor = torch.from_numpy(np.array(pictures, order="C")).movedim(-1, -3)
    return tensor.to(torch.float32).div(127.5).sub(1.0).contiguous()


def to_picture(tensor: Tensor) -> NDArray[np.uint8]:
    """(..., 3, H, W) in [-1, 1] -> (..., H, W, 3) uint8, rounded; what lies outside is clipped."""
    scaled = tensor.float().add(1.0).mul(127.5).round().clamp(0, 255).to(torch.uint8)
    return scaled.movedim(-3, -1).cpu().numpy()


def build_bridge_pairs(cfg) -> PairLists:
    """The pairs that BBDM.PAIRS names."""
    every = cfg.BBDM.HOLD_OUT_EVERY
    if every == 1:
        raise UsageError(f"BBDM.HOLD_OUT_EVERY is {every}; it is 0 (none) or at least 2")
    if cfg.BBDM.PAIRS == "hoss":
        # Ships that validate re-identification stay unseen here too, or samples of them would flatter the choice.
        data = build_validation_data(cfg) if cfg.DATASETS.VAL_FRACTION else read_hoss(cfg.DATASETS.ROOT_DIR, test=False)
        return pair_ship_views(data.train, hold_out_every=every)
    if not cfg.BBDM.PAIRS_DIR:
        raise UsageError("BBDM.PAIRS_DIR is empty; name the folder that holds the registered pairs")
    return read_registered_pairs(cfg.BBDM.PAIRS_DIR, hold_out_every=every)


def build_bridge_loader(cfg, pairs: Sequence[Pair], *, device_type: str, rank: int = 0, world_size: int = 1) -> ChipLoader:
    """Batches of SOLVER.IMS_PER_BATCH pairs over all ranks; choose the epoch by `loader.batch_sampler.set_epoch`."""
    sharing = {"seed": cfg.SOLVER.SEED, "rank": rank, "world_size": world_size}
    batches = shuffle_pairs(len(pairs), pairs=cfg.SOLVER.IMS_PER_BATCH, alike=True, **sharing)
    return build_loader(cfg, build_dataset(cfg, pairs, flip=cfg.BBDM.FLIP), batches, device_type=device_type)


def build_validation_loader(cfg, pairs: Sequence[Pair], *, device_type: str, rank: int = 0, world_size: int = 1) -> ChipLoader:
    """Each pair once, cut at a place of its own but never flipped; this rank every `world_size`-th batch."""
    batches = take_pairs_in_order(len(pairs), pairs=cfg.SOLVER.IMS_PER_BATCH, rank=rank, world_size=world_size)
    return build_loader(cfg, build_dataset(cfg, pairs, flip=False), batches, device_type=device_type)


def build_dataset(cfg, pairs: Sequence[Pair], *, flip: bool) -> ChipDataset:
    """The chips of pairs; BBDM.CROP cuts registered pairs, whose pictures show the same ground in one size."""
    crop = cfg.BBDM.CROP and all(pair.registered for pair in pairs)
    transform = partial(cut_or_resize, size=tuple(cfg.BBDM.IMAGE_SIZE), crop=crop, flip=flip)
    return ChipDataset(chips_of(pairs), None, transform, build_chip_reading(cfg))
