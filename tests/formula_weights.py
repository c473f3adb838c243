"""Weights made by rule, for golden vectors that carry none (the two rules of the vectors' own description)."""

from collections.abc import Callable, Collection
from zlib import crc32

import numpy as np
import torch
from torch import Tensor, nn

NormalisationKeys = Collection[str] | Callable[[str], bool]
"""The keys of normalisation weights: a collection of them, or a predicate."""


def fill_formula(module: nn.Module, normalisation_keys: NormalisationKeys) -> None:
    """Fill the state dict: element i of key `k` is 0.02 cos(0.1 i + crc32(k) % 1000), plus 1 for normalisation keys."""

    def values(key: str, tensor: Tensor) -> np.ndarray:
        return 0.02 * np.cos(0.1 * np.arange(tensor.numel(), dtype=np.float64) + crc32(key.encode()) % 1000)

    _fill(module, normalisation_keys, values)


def fill_seeded(module: nn.Module, seed: int, normalisation_keys: NormalisationKeys) -> None:
    """Fill the state dict: key `k` is 0.02 x normal numbers seeded by (crc32(k), seed), plus 1 for normalisation keys."""

    def values(key: str, tensor: Tensor) -> np.ndarray:
        return 0.02 * np.random.default_rng([crc32(key.encode()), seed]).standard_normal(tuple(tensor.shape))

    _fill(module, normalisation_keys, values)


def _fill(module: nn.Module, normalisation_keys: NormalisationKeys, values: Callable[[str, Tensor], np.ndarray]) -> None:
    is_normalisation = normalisation_keys if callable(normalisation_keys) else set(normalisation_keys).__contains__
    with torch.no_grad():
        for key, tensor in module.state_dict().items():
            if key.endswith("num_batches_tracked"):
                continue
            filled = torch.from_numpy(np.asarray(values(key, tensor))).reshape(tensor.shape)
            tensor.copy_(filled + 1 if is_normalisation(key) else filled)
