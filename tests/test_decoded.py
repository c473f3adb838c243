"""Chips that are decoded once: the batches are those of chips read every time."""

import pickle

import numpy as np
import pytest
import torch

from datasets.catalogue import read_hoss
from datasets.decoded import DecodedChips
from datasets.loaders import build_train_loader
from tests.chip_files import write_hoss
from tests.commands import tiny_cfg


def batches(root, megabytes: int, workers: int = 0):
    """Two epochs of training batches, and the loader."""
    loader = build_train_loader(tiny_cfg(DATALOADER__CACHE_MB=megabytes, DATALOADER__NUM_WORKERS=workers), read_hoss(root))
    found = []
    for epoch in (1, 2):
        loader.batch_sampler.set_epoch(epoch)
        found += list(loader)
    return found, loader


@pytest.mark.parametrize("workers", [0, 1])
def test_batches_are_those_of_chips_read_every_time(tmp_path, workers):
    root = write_hoss(tmp_path)
    plain, without = batches(root, 0)
    kept, loader = batches(root, 1, workers)
    assert without.dataset.decoded is None
    assert loader.dataset.decoded.heads[:, 0].all()  # what a worker decodes is there for all
    assert len(plain) == len(kept) > 2
    for one, other in zip(plain, kept, strict=True):
        assert all(torch.equal(getattr(one, name), getattr(other, name)) for name in vars(one))


def test_a_chip_is_decoded_once_where_it_has_a_place_and_every_time_where_not():
    side, decoded = 512, []
    chips = DecodedChips(3, (side, side), 2)  # two pictures of 0.75 MB
    picture = np.random.default_rng(0).integers(0, 256, (20, 10, 3), np.uint8)

    def decode():
        decoded.append(1)
        return picture

    assert chips.places == 2
    first, own = chips.read(1, decode)
    again, known = chips.read(1, decode)
    assert own == known == (10, 20)
    assert np.array_equal(first, again)
    assert len(decoded) == 1
    again[:] = 0  # a caller may change what it got
    assert np.array_equal(chips.read(1, decode)[0], first)
    chips.read(2, decode)
    chips.read(2, decode)
    assert len(decoded) == 3


def test_a_picture_that_is_half_written_is_decoded_again():
    chips, picture = DecodedChips(1, (8, 8), 1), np.full((8, 8, 3), 7, np.uint8)
    chips.read(0, lambda: picture)
    chips.pictures[0, 4:] = 0
    assert np.array_equal(chips.read(0, lambda: picture)[0], picture)
    assert np.array_equal(chips.pictures[0], picture)


def test_a_process_that_starts_afresh_fills_places_of_its_own():
    chips = DecodedChips(1, (8, 8), 1)
    chips.read(0, lambda: np.ones((8, 8, 3), np.uint8))
    other = pickle.loads(pickle.dumps(chips))
    assert (other.size, other.places) == (chips.size, chips.places)
    assert not other.heads.any()
    assert other.read(0, lambda: np.full((8, 8, 3), 2, np.uint8))[0][0, 0, 0] == 2


def test_what_cannot_be_read_takes_no_place():
    def fail():
        raise ValueError("is no chip")

    chips = DecodedChips(1, (8, 8), 1)
    with pytest.raises(ValueError, match="no chip"):
        chips.read(0, fail)
    assert not chips.heads.any()
