"""Normalised latents: each channel by its mean and deviation over the training pairs.

The four numbers a channel are kept as buffers beside the network's weights, under their published names, so that every file of
weights holds them: `ori` is of SAR pictures, `cond` of optical ones, each (1, C, 1, 1).
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from utils import distributed

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
