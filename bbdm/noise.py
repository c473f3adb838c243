"""Normal noise that a sample's seed alone decides: the same for any batch size, order, device or number of processes."""

import hashlib
import math
from collections.abc import Sequence

import torch
from torch import Tensor


def sample_seed(seed: int, name: str, k: int) -> int:
    """Seed of sample k of the picture with file name `name`, under the global `seed`: -2^63 .. 2^63 - 1."""
    digest = hashlib.sha256(f"{seed}/{name}/{k}".encode()).digest()
    return int.from_bytes(digest[:8], "little", signed=True)


def seeded_normal(seeds: Tensor, step: int, shape: Sequence[int]) -> Tensor:
    """Standard normal noise for one step of every sample of a batch.

    Each number is a hash (splitmix64, Steele et al. 2014) of (seed, step, place), turned normal by Box and Muller. There is no
    state, so nothing depends on what was drawn before.

    Args:
        seeds: (B,) int64, on the device that is to compute.
        step: 0, 1, ...
        shape: (C, H, W) of a sample.

    Returns:
        (B, C, H, W) float32.
    """
    count = math.prod(shape)
    place = torch.arange(2 * count, dtype=torch.int64, device=seeds.device)
    streams = _mix(seeds[:, None] + _signed(0xD1342543DE82EF95 * (step + 1)))
    bits = _mix(streams + place * _signed(0x9E3779B97F4A7C15))
    uniform = (_shift(bits, 11).double() + 0.5) * 2.0**-53  # in (0, 1)
    radius, angle = uniform[:, :count].log().mul(-2.0).sqrt(), uniform[:, count:].mul(2.0 * math.pi)
    return (radius * angle.cos()).float().view(-1, *shape)


def _mix(z: Tensor) -> Tensor:
    z = (z ^ _shift(z, 30)) * _signed(0xBF58476D1CE4E5B9)
    z = (z ^ _shift(z, 27)) * _signed(0x94D049BB133111EB)
    return z ^ _shift(z, 31)


def _shift(z: Tensor, bits: int) -> Tensor:
    """Shift to the right as if unsigned."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def _signed(word: int) -> int:
    """A 64-bit word as torch's int64 spells it."""
    word &= (1 << 64) - 1
    return word - (1 << 64) if word >> 63 else word
