"""Chips to batches, in this process or in worker processes."""

import atexit
import logging
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from datasets.catalogue import HossData
from datasets.chips import ChipReading, read_chip, size_triple
from datasets.decoded import DecodedChips
from datasets.pairs import Pair, chips_of
from datasets.records import Batch, Chip
from datasets.samplers import BatchSampler, Draw, draw_identities, shuffle_images, shuffle_pairs, take_in_order
from datasets.sar import build_sar_rendering
from datasets.transforms import augment, prepare
from utils.errors import DataError, UsageError
from utils.signals import ignore

logger = logging.getLogger(__name__)

Transform = Callable[[np.ndarray, np.random.Generator], Tensor]
"""Picture (H, W, 3) uint8 and random generator -> (3, rows, columns); a ValueError says what is wrong with the picture."""


class ChipDataset(Dataset):
    """Chips, real or generated, read and transformed one by one.

    Args:
        chips: one for each item.
        labels: of each chip, 0..N-1; None where no ship is learned.
        transform: picture and random generator -> (3, H, W) tensor.
        read: chip -> picture.
        decoded: where chips that were read before are found, resized as `transform` would; None: each is read anew.
    """

    def __init__(
        self,
        chips: Sequence[Chip],
        labels: Sequence[int] | None,
        transform: Transform,
        read: ChipReading,
        decoded: DecodedChips | None = None,
    ):
        self.chips = chips
        self.decoded = decoded
        self.labels = labels
        self.transform = transform
        self.read = read

    def __len__(self) -> int:
        """Number of chips."""
        return len(self.chips)

    def __getitem__(self, draw: Draw) -> dict[str, Any] | DataError:
        """Read one chip: `image` (3, H, W), `size` (3,), `modality`, `label`, `index`; items of a batch go to `collate`."""
        chip = self.chips[draw.index]
        try:
            if self.decoded is None:
                picture = self.read(chip)
                own = picture.shape[1::-1]
            else:
                picture, own = self.decoded.read(draw.index, partial(self.read, chip))
            image = self.transform(picture, np.random.default_rng(draw.key))
        except DataError as error:
            return error  # `ChipLoader` raises it; raised in a worker, its sentence would be lost in a traceback.
        except ValueError as error:
            return DataError(f"{chip.path} {error}")
        return {
            "image": image,
            "size": _triple_of(chip, own),
            "modality": int(chip.modality),
            "label": None if self.labels is None else self.labels[draw.index],
            "index": draw.index,
        }


def _triple_of(chip: Chip, own: tuple[int, int]) -> NDArray[np.float64]:
    """The size triple of a chip of `own` (width, height); of a generated one that is not measured, its source's."""
    sensor = chip.modality if chip.measured or chip.source is None else chip.source.modality
    return size_triple(*(own if chip.measured else chip.size or own), sensor)


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
    batch = Batch(
        images=torch.stack([item["image"] for item in items]),
        sizes=torch.from_numpy(np.stack([item["size"] for item in items]).astype(np.float32)),
        modalities=torch.tensor([item["modality"] for item in items]),
        labels=None if items[0]["label"] is None else torch.tensor([item["label"] for item in items]),
        indices=torch.tensor([item["index"] for item in items]),
    )
    return batch if get_worker_info() is None else _shared(batch)


def _shared(batch: Batch) -> Batch | DataError:
    """The batch where the main process sees it: left to a worker's queue, a failure would let both wait for ever."""
    try:
        batch.share()
    except RuntimeError as error:
        if "Too many open files" in str(error):
            return DataError("a process may open no more files; lower DATALOADER.NUM_WORKERS, or raise ulimit -n")
        return DataError(
            f"shared memory (/dev/shm) does not take a batch ({str(error).rpartition(': ')[2]}); set DATALOADER.NUM_WORKERS 0, "
            "lower SOLVER.IMS_PER_BATCH, or give it more (docker run --shm-size 2g)"
        )
    return batch


def build_train_loader(cfg, data: HossData, *, device_type: str = "cpu", rank: int = 0, world_size: int = 1) -> ChipLoader:
    """Build the loader of augmented training batches; choose the epoch by `loader.batch_sampler.set_epoch`.

    SOLVER.IMS_PER_BATCH counts the images of a batch over all ranks.

    Raises:
        UsageError: a batch that K or the ranks do not divide.
        DataError: too few ships or images for a batch.
    """
    labels = [data.labels[chip.ship] for chip in data.train]
    sharing = {"batch_size": cfg.SOLVER.IMS_PER_BATCH, "seed": cfg.SOLVER.SEED, "rank": rank, "world_size": world_size}
    if cfg.DATALOADER.SAMPLER == "softmax_triplet":
        batches = draw_identities(labels, instances=cfg.DATALOADER.NUM_INSTANCE, **sharing)
    else:
        batches = shuffle_images(len(labels), **sharing)
    return build_loader(cfg, build_training_chips(cfg, data.train, labels), batches, device_type=device_type)


def build_pair_loader(
    cfg, pairs: Sequence[Pair], *, device_type: str = "cpu", rank: int = 0, world_size: int = 1
) -> ChipLoader:
    """Build the loader of contrastive pre-training: optical images of SOLVER.IMS_PER_BATCH / 2 pairs, then their SAR images.

    Raises:
        UsageError: an odd number of images; otherwise see `shuffle_pairs`.
        DataError: see `shuffle_pairs`.
    """
    images = cfg.SOLVER.IMS_PER_BATCH
    if images % 2:
        raise UsageError(f"SOLVER.IMS_PER_BATCH {images} is no whole number of pairs; make it even")
    batches = shuffle_pairs(len(pairs), pairs=images // 2, seed=cfg.SOLVER.SEED, rank=rank, world_size=world_size)
    return build_loader(cfg, build_training_chips(cfg, chips_of(pairs), None), batches, device_type=device_type)


def build_training_chips(cfg, chips: Sequence[Chip], labels: Sequence[int] | None) -> ChipDataset:
    """Augmented chips, each decoded once as far as DATALOADER.CACHE_MB reaches."""
    decoded = DecodedChips(len(chips), tuple(cfg.INPUT.SIZE_TRAIN), cfg.DATALOADER.CACHE_MB)
    return ChipDataset(chips, labels, build_augmentation(cfg), build_chip_reading(cfg), decoded if decoded.places else None)


def build_test_loader(
    cfg, chips: Sequence[Chip], *, device_type: str = "cpu", rank: int = 0, world_size: int = 1
) -> ChipLoader:
    """Build a loader that reads each chip, real or generated, once, in order: this rank every `world_size`-th batch.

    TEST.IMS_PER_BATCH counts the images of a batch on each rank; `Batch.indices` tells which of `chips` they are.
    """
    transform = partial(prepare, size=tuple(cfg.INPUT.SIZE_TEST), mean=cfg.INPUT.PIXEL_MEAN, std=cfg.INPUT.PIXEL_STD)
    batches = take_in_order(len(chips), batch_size=cfg.TEST.IMS_PER_BATCH, rank=rank, world_size=world_size)
    return build_loader(cfg, ChipDataset(chips, None, transform, build_chip_reading(cfg)), batches, device_type=device_type)


def build_chip_reading(cfg) -> ChipReading:
    """How chips are read, by INPUT.SAR_* and INPUT.MAX_PIXELS."""
    render = build_sar_rendering(cfg.INPUT.SAR_DENOISE, low=cfg.INPUT.SAR_LOW_PERCENT, high=cfg.INPUT.SAR_HIGH_PERCENT)
    return partial(read_chip, render_sar=render, sar_band=cfg.INPUT.SAR_BAND, max_pixels=cfg.INPUT.MAX_PIXELS)


def build_augmentation(cfg) -> Transform:
    """The augmentation of INPUT.*: random flips, colours, shifts and erasing."""
    return partial(
        augment,
        size=tuple(cfg.INPUT.SIZE_TRAIN),
        mean=cfg.INPUT.PIXEL_MEAN,
        std=cfg.INPUT.PIXEL_STD,
        flip_probability=cfg.INPUT.PROB,
        padding=cfg.INPUT.PADDING,
        erasing_probability=cfg.INPUT.RE_PROB,
        jitter=cfg.INPUT.COLOR_JITTER,
    )


def _begin_worker(number: int) -> None:
    """Leave it to the main process to end a worker: a terminal, and Slurm, ask all processes at once."""
    ignore()


@cache
def _end_workers_at_exit() -> None:
    """See that workers end with this process although they ignore what multiprocessing ends them by."""

    def end() -> None:
        if hasattr(signal, "SIGCHLD"):
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch would raise an error for each
        for worker in multiprocessing.active_children():
            worker.kill()

    atexit.register(end)


def build_loader(
    cfg, dataset: ChipDataset, batches: BatchSampler | Sequence[Sequence[Draw]], *, device_type: str
) -> ChipLoader:
    """Build a loader of these batches with DATALOADER.NUM_WORKERS processes, one for each core at most."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    cores = max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))  # torchrun: processes on this machine
    workers = min(cfg.DATALOADER.NUM_WORKERS, cores)
    if workers:
        _end_workers_at_exit()
    if workers < cfg.DATALOADER.NUM_WORKERS:
        logger.info("DATALOADER.NUM_WORKERS %d: %d used, one for each core", cfg.DATALOADER.NUM_WORKERS, workers)
    return ChipLoader(
        dataset,
        batch_sampler=batches,
        collate_fn=collate,
        num_workers=workers,
        persistent_workers=workers > 0,
        worker_init_fn=_begin_worker,
        pin_memory=device_type == "cuda",
        # Its own generator, or each epoch would draw the workers' seeds from the global one that dropout uses.
        generator=torch.Generator().manual_seed(cfg.SOLVER.SEED),
    )
