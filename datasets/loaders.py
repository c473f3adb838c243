"""Records to batches, in this process or in worker processes."""

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from datasets.chips import read_chip, size_triple
from datasets.hoss import HossData
from datasets.pairs import Pair, read_picture
from datasets.records import Batch, Chip, Modality
from datasets.samplers import BatchSampler, IdentitySampler, PairSampler, ShuffledSampler
from datasets.sar import SarRendering, build_sar_rendering
from datasets.transforms import TestTransform, TrainTransform
from utils.errors import DataError

logger = logging.getLogger(__name__)

Transform = Callable[[np.ndarray, np.random.Generator], Tensor]


class Draw(NamedTuple):
    """One place of an epoch's plan: which image, and what its augmentation is drawn from.

    Attributes:
        index: of the image in its data set.
        key: seed of the random choices. It names the place of the plan and not the image, so that an image drawn twice for a
            batch is augmented twice, and results depend neither on the workers nor on the number of ranks.
    """

    index: int
    key: tuple[int, ...] = ()


class KeyedBatches:
    """The batches of a sampler with a key for each place of them; what DataLoader takes as `batch_sampler`.

    Args:
        sampler: draws the batches of this rank.
    """

    def __init__(self, sampler: BatchSampler):
        self.sampler = sampler

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch."""
        self.sampler.set_epoch(epoch)

    def __iter__(self) -> Iterator[list[Draw]]:
        """Yield the draws of each batch."""
        sampler = self.sampler
        columns = sampler.columns().tolist()
        for number, indices in enumerate(sampler):
            first = number * sampler.batch_size
            yield [
                Draw(index, (sampler.seed, sampler.epoch, first + column))
                for index, column in zip(indices, columns, strict=True)
            ]

    def __len__(self) -> int:
        """Batches of this epoch."""
        return len(self.sampler)


class ChipDataset(Dataset):
    """Chips, real or generated, read and transformed one by one.

    Args:
        chips: one for each item.
        labels: of each chip, 0..N-1; None where no ship is learned.
        transform: picture and random generator -> (3, H, W) tensor.
        render_sar: SAR values -> picture.
    """

    def __init__(self, chips: Sequence[Chip], labels: Sequence[int] | None, transform: Transform, render_sar: SarRendering):
        self.chips = chips
        self.labels = labels
        self.transform = transform
        self.render_sar = render_sar

    def __len__(self) -> int:
        """Number of chips."""
        return len(self.chips)

    def __getitem__(self, draw: Draw | int) -> dict[str, Any] | DataError:
        """Read one chip; the items of a batch go to `collate`."""
        draw = draw if isinstance(draw, Draw) else Draw(draw)
        chip = self.chips[draw.index]
        try:
            picture = read_chip(chip, self.render_sar)
        except DataError as error:
            return error  # `ChipLoader` raises it; raised in a worker, its sentence would be lost in a traceback.
        sensor = chip.source.modality if chip.source else chip.modality
        size = size_triple(*(chip.size or picture.shape[1::-1]), sensor)
        label = None if self.labels is None else self.labels[draw.index]
        return _item(self.transform, picture, draw, size=size, modality=chip.modality, label=label)


class PairViews(Dataset):
    """The pictures of pairs as single items: 2 i is the optical one of pair i, 2 i + 1 its SAR one; the label is i.

    Args:
        pairs: to read.
        transform: picture and random generator -> (3, H, W) tensor.
        render_sar: SAR values -> picture.
    """

    def __init__(self, pairs: Sequence[Pair], transform: Transform, render_sar: SarRendering):
        self.pairs = pairs
        self.transform = transform
        self.render_sar = render_sar

    def __len__(self) -> int:
        """Number of pictures, two a pair."""
        return 2 * len(self.pairs)

    def __getitem__(self, draw: Draw | int) -> dict[str, Any] | DataError:
        """Read one picture; as `ChipDataset`."""
        draw = draw if isinstance(draw, Draw) else Draw(draw)
        number, modality = divmod(draw.index, 2)
        try:
            picture = read_picture(self.pairs[number], Modality(modality), self.render_sar)
        except DataError as error:
            return error
        size = size_triple(picture.shape[1], picture.shape[0], Modality(modality))
        return _item(self.transform, picture, draw, size=size, modality=modality, label=number)


class ChipLoader(DataLoader):
    """A DataLoader that raises the DataError of a chip in the main process, as it is."""

    def __iter__(self) -> Iterator[Batch]:
        """Yield batches.

        Raises:
            DataError: a chip of the batch could not be read.
        """
        for batch in super().__iter__():
            if isinstance(batch, DataError):
                raise batch
            yield batch


def collate(items: Sequence[dict[str, Any] | DataError]) -> Batch | DataError:
    """Stack the items of a data set into a batch; the first error among them takes its place."""
    for item in items:
        if isinstance(item, DataError):
            return item
    return Batch(
        images=torch.stack([item["image"] for item in items]),
        sizes=torch.from_numpy(np.stack([item["size"] for item in items]).astype(np.float32)),
        modalities=torch.tensor([item["modality"] for item in items]),
        labels=None if items[0]["label"] is None else torch.tensor([item["label"] for item in items]),
        indices=torch.tensor([item["index"] for item in items]),
    )


def build_train_loader(cfg, data: HossData, *, device_type: str = "cpu", rank: int = 0, world_size: int = 1) -> ChipLoader:
    """Build the loader of augmented training batches; choose the epoch by `loader.batch_sampler.set_epoch`.

    SOLVER.IMS_PER_BATCH counts the images of a batch over all ranks.

    Raises:
        UsageError: a batch that K or the ranks do not divide.
        DataError: too few ships or images for a batch.
    """
    labels = [data.labels[record.ship] for record in data.train]
    sharing = {"batch_size": cfg.SOLVER.IMS_PER_BATCH, "seed": cfg.SOLVER.SEED, "rank": rank, "world_size": world_size}
    if cfg.DATALOADER.SAMPLER == "softmax_triplet":
        sampler = IdentitySampler(labels, instances=cfg.DATALOADER.NUM_INSTANCE, **sharing)
    else:
        sampler = ShuffledSampler(len(labels), **sharing)
    dataset = ChipDataset(data.train, labels, _build_train_transform(cfg), _build_rendering(cfg))
    return ChipLoader(dataset, batch_sampler=KeyedBatches(sampler), **build_loading(cfg, device_type))


def build_pair_loader(
    cfg, pairs: Sequence[Pair], *, device_type: str = "cpu", rank: int = 0, world_size: int = 1
) -> ChipLoader:
    """Build the loader of contrastive pre-training: optical images of SOLVER.IMS_PER_BATCH / 2 pairs, then their SAR images.

    Raises:
        UsageError, DataError: see `PairSampler`.
    """
    sharing = {"batch_size": cfg.SOLVER.IMS_PER_BATCH, "seed": cfg.SOLVER.SEED, "rank": rank, "world_size": world_size}
    dataset = PairViews(pairs, _build_train_transform(cfg), _build_rendering(cfg))
    batches = KeyedBatches(PairSampler(len(pairs), **sharing))
    return ChipLoader(dataset, batch_sampler=batches, **build_loading(cfg, device_type))


def build_test_loader(
    cfg, chips: Sequence[Chip], *, device_type: str = "cpu", rank: int = 0, world_size: int = 1
) -> ChipLoader:
    """Build a loader that reads each chip, real or generated, once: this rank every `world_size`-th, in order.

    TEST.IMS_PER_BATCH counts the images of a batch on each rank; `Batch.indices` tells which of `chips` they are.
    """
    dataset = ChipDataset(chips, None, _build_test_transform(cfg), _build_rendering(cfg))
    indices = range(rank, len(chips), world_size)
    return ChipLoader(dataset, sampler=indices, batch_size=cfg.TEST.IMS_PER_BATCH, **build_loading(cfg, device_type))


def _build_test_transform(cfg) -> TestTransform:
    return TestTransform(cfg.INPUT.SIZE_TEST, cfg.INPUT.PIXEL_MEAN, cfg.INPUT.PIXEL_STD)


def _build_train_transform(cfg) -> TrainTransform:
    return TrainTransform(
        cfg.INPUT.SIZE_TRAIN,
        cfg.INPUT.PIXEL_MEAN,
        cfg.INPUT.PIXEL_STD,
        flip_probability=cfg.INPUT.PROB,
        padding=cfg.INPUT.PADDING,
        erasing_probability=cfg.INPUT.RE_PROB,
    )


def _build_rendering(cfg) -> SarRendering:
    return build_sar_rendering(cfg.INPUT.SAR_DENOISE, low=cfg.INPUT.SAR_LOW_PERCENT, high=cfg.INPUT.SAR_HIGH_PERCENT)


def build_loading(cfg, device_type: str, *, collate_fn: Callable = collate) -> dict[str, Any]:
    """Arguments that every DataLoader shares; `collate_fn` stacks the items of a batch."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    cores = max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))  # torchrun: processes on this machine
    workers = min(cfg.DATALOADER.NUM_WORKERS, cores)
    if workers < cfg.DATALOADER.NUM_WORKERS:
        logger.info("DATALOADER.NUM_WORKERS %d: %d used, one for each core", cfg.DATALOADER.NUM_WORKERS, workers)
    return {
        "collate_fn": collate_fn,
        "num_workers": workers,
        "persistent_workers": workers > 0,
        "pin_memory": device_type == "cuda",
        # Its own generator, or each epoch would draw the workers' seeds from the global one that dropout uses.
        "generator": torch.Generator().manual_seed(cfg.SOLVER.SEED),
    }


def _item(
    transform: Transform, picture: np.ndarray, draw: Draw, *, size: np.ndarray, modality: int, label: int | None
) -> dict[str, Any]:
    """One item: `image` (3, H, W), `size` (3,), `modality`, `label`, `index`."""
    image = transform(picture, np.random.default_rng(draw.key))
    return {"image": image, "size": size, "modality": int(modality), "label": label, "index": draw.index}
