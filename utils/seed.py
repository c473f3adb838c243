"""Random numbers from one seed."""

import random
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np
import torch


def seed_everything(seed: int, rank: int = 0) -> None:
    """Seed Python, NumPy and torch from (seed, rank), so that every process draws numbers of its own."""
    word = _word(seed, rank)
    random.seed(word)
    np.random.seed(word)
    torch.manual_seed(word)


_SHARED: dict[torch.device | None, Any] = {}
"""Device -> generator that draws alike on every process; under None the word that seeds them."""


def seed_step(seed: int, rank: int, epoch: int, step: int) -> None:
    """Seed torch for one step of a training, which so draws the same numbers whether the run was resumed before it or not.

    `shared_generator` starts anew too, with what one process alone would draw.
    """
    torch.manual_seed(_word(seed, rank, epoch, step))
    _share(_word(seed, 0, epoch, step))


def seed_part(word: int) -> None:
    """Seed torch, and `shared_generator`, for one of several passes of a step."""
    torch.manual_seed(word)
    _share(word)


def _share(word: int) -> None:
    _SHARED.clear()
    _SHARED[None] = word


def shared_generator(device: torch.device) -> torch.Generator:
    """The generator of `device` that has drawn the same numbers on every process since `seed_step`."""
    if device not in _SHARED:
        _SHARED[device] = torch.Generator(device).manual_seed(_SHARED.get(None, 0))
    return _SHARED[device]


def redrawing() -> tuple[AbstractContextManager, AbstractContextManager]:
    """Contexts of a pass and of its repetition (`torch.utils.checkpoint`), which draws from `shared_generator` what that drew.

    What torch's own generators draw, torch repeats itself.
    """
    before = {device: generator.get_state() for device, generator in _SHARED.items() if device is not None}
    word = _SHARED.get(None, 0)

    @contextmanager
    def again() -> Iterator[None]:
        after = dict(_SHARED)
        _share(word)
        for device, state in before.items():
            shared_generator(device).set_state(state)
        try:
            yield
        finally:
            _SHARED.clear()
            _SHARED.update(after)

    return nullcontext(), again()


def _word(*key: int) -> int:
    return int(np.random.SeedSequence(key).generate_state(1)[0])
