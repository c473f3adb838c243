"""Random numbers from one seed."""

import random

import numpy as np
import torch


def seed_everything(seed: int, rank: int = 0) -> None:
    """Seed Python, NumPy and torch from (seed, rank), so that every process draws numbers of its own."""
    word = _word(seed, rank)
    random.seed(word)
    np.random.seed(word)
    torch.manual_seed(word)


def seed_step(seed: int, rank: int, epoch: int, step: int) -> None:
    """Seed torch for one step of a training, which so draws the same numbers whether the run was resumed before it or not."""
    torch.manual_seed(_word(seed, rank, epoch, step))


def _word(*key: int) -> int:
    return int(np.random.SeedSequence(key).generate_state(1)[0])
