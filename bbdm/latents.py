"""Latents of the training pairs: kept, so that the frozen first stage sees each picture once; and normalised.

Normalised are the channels, each by its mean and deviation over the training pairs. The four numbers a channel are kept as
buffers beside the network's weights, under their published names, so that every file of weights holds them: `ori` is of SAR
pictures, `cond` of optical ones, each (1, C, 1, 1).
"""

import logging
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch
from torch import Tensor, nn

from datasets.loaders import ChipLoader
from datasets.records import Batch, Modality
from utils import distributed
from utils.log import progress

logger = logging.getLogger(__name__)

SAR, OPTICAL = "ori", "cond"
STATISTICS = tuple(f"{kind}_latent_{what}" for kind in (SAR, OPTICAL) for what in ("mean", "std"))


def keep_statistics(network: nn.Module, channels: int) -> None:
    """Give `network` the buffers of `STATISTICS`: mean 0 and deviation 1 until they are measured or loaded."""
    for name in STATISTICS:
        network.register_buffer(name, torch.full((1, channels, 1, 1), float(name.endswith("std"))))


def statistics_of(network: nn.Module, kind: str) -> tuple[Tensor, Tensor] | None:
    """Mean and deviation of latents of `kind`, SAR or OPTICAL; None for a network whose latents stay as they are."""
    buffers = dict(distributed.unwrap(network).named_buffers(recurse=False))
    return (buffers[f"{kind}_latent_mean"], buffers[f"{kind}_latent_std"]) if STATISTICS[0] in buffers else None


def measure_statistics(network: nn.Module, latents: Iterable[tuple[Tensor, Tensor]]) -> None:
    """Fill the buffers of `network`.

    Args:
        network: has been through `keep_statistics`.
        latents: those of SAR and of optical pictures, each (B, C, h, w), not normalised, of this process's share of the pairs.
    """
    sums = {SAR: 0.0, OPTICAL: 0.0}
    for sar, optical in latents:
        for kind, values in ((SAR, sar.double()), (OPTICAL, optical.double())):
            channels = values.movedim(1, 0).flatten(1)
            count = torch.full_like(channels[:, 0], channels.shape[1])
            sums[kind] = sums[kind] + torch.stack([channels.sum(1), channels.square().sum(1), count]).cpu()
    for kind, own in sums.items():
        total, squares, count = sum(distributed.gather(own))
        mean = total / count
        deviation = (squares / count - mean.square()).clamp(min=1e-12).sqrt()
        for name, value in (("mean", mean), ("std", deviation)):
            network.get_buffer(f"{kind}_latent_{name}").copy_(value.view(1, -1, 1, 1))


class LatentLoader:
    """The batches of a loader of training pairs, with latents in place of pictures.

    The first stage learns nothing and pictures are not cut at random, so a picture has two latents, its own and its mirror's.
    They are made when the first batch is asked for, and kept on `device`: 98 KB a picture of 256 x 256 with vq-f4 and mirrors.

    Args:
        loader: of training batches of pairs; its pictures are not read.
        once: yields each picture of `loader.dataset` once, not mirrored.
        encode: pictures (B, 3, H, W) on `device`, kind (`OPTICAL` or `SAR`) -> latents (B, c, h, w).
        flip: half of the pairs are mirrored.
        device: of the first stage.
    """

    def __init__(
        self, loader: ChipLoader, once: ChipLoader, encode: Callable[[Tensor, str], Tensor], *, flip: bool, device: torch.device
    ):
        self.dataset, self.batch_sampler = loader.dataset, loader.batch_sampler
        self.once, self.encode, self.flip, self.device = once, encode, flip, device
        self.latents: Tensor | None = None

    def __len__(self) -> int:
        """Number of batches."""
        return len(self.batch_sampler)

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches of the epoch; their images, (2 n, c, h, w), are on the device."""
        if self.latents is None:
            self.latents = self._encoded()
        for draws in self.batch_sampler:
            indices = torch.tensor([draw.index for draw in draws])
            mirrored = [self.flip and np.random.default_rng(draw.key).random() < 0.5 for draw in draws]
            modalities = torch.tensor([Modality.OPTICAL, Modality.SAR]).repeat_interleave(len(draws) // 2)
            images = self.latents[torch.tensor(mirrored).long(), indices]
            yield Batch(images, sizes=torch.zeros(len(draws), 3), modalities=modalities, labels=None, indices=indices)

    def _encoded(self) -> Tensor:
        """(1 or 2, N, c, h, w): the latents of all pictures, then those of their mirrors."""
        latents = None
        with progress(len(self.once), "latents", unit="batch") as bar:
            for batch in self.once:
                indices, pictures = batch.indices, batch.to(self.device).images
                for mirror, seen in enumerate([pictures, pictures.flip(-1)] if self.flip else [pictures]):
                    found = torch.cat(
                        [self.encode(half, kind) for half, kind in zip(seen.chunk(2), (OPTICAL, SAR), strict=True)]
                    )
                    if latents is None:
                        latents = found.new_empty(1 + self.flip, len(self.dataset), *found.shape[1:])
                    latents[mirror, indices.to(self.device)] = found
                bar.update()
        logger.info("%d MB of latents are kept: the first stage is not run again", latents.nbytes >> 20)
        return latents
