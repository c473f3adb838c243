"""Batches are what they were: their content to the bit, for given seeds, epochs and processes."""

import hashlib

import numpy as np
import pytest
import torch
from PIL import Image

from bbdm import data as bridge
from configs import load_cfg
from datasets.catalogue import read_hoss
from datasets.loaders import build_pair_loader, build_train_loader
from datasets.pairs import pair_ship_views, read_registered_pairs
from tests.chip_files import write_hoss

SETTINGS = {
    "INPUT.SIZE_TRAIN": [32, 16],
    "INPUT.SIZE_TEST": [32, 16],
    "INPUT.PADDING": 3,
    "INPUT.RE_PROB": 0.5,
    "DATALOADER.NUM_INSTANCE": 4,
    "DATALOADER.NUM_WORKERS": 0,
    "SOLVER.IMS_PER_BATCH": 8,
    "BBDM.IMAGE_SIZE": [24, 16],
}


def cfg_of(**changes):
    values = SETTINGS | {key.replace("__", "."): value for key, value in changes.items()}
    return load_cfg(None, [str(part) for item in values.items() for part in item])


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return read_hoss(write_hoss(tmp_path_factory.mktemp("data"), train_ships=5, views=3))


@pytest.fixture(scope="module")
def pairs(data, tmp_path_factory):
    """Registered pairs, every third of them with SAR values, and pairs of views of ships."""
    root, generator = tmp_path_factory.mktemp("pairs"), np.random.default_rng(0)
    for number in range(9):
        for folder in ("opt", "sar"):
            (root / folder).mkdir(exist_ok=True)
            pixels = generator.integers(0, 256, (40, 36, 3), dtype=np.uint8)
            if folder == "opt":
                Image.fromarray(pixels).save(root / folder / f"{number:03d}_a.png")
            elif number % 3:
                Image.fromarray(pixels[..., 0]).save(root / folder / f"{number:03d}_a.png")
            else:
                Image.fromarray(pixels[..., 0].astype(np.float32) * 3).save(root / folder / f"{number:03d}_a.tif")
    return {"registered": read_registered_pairs(root).train, "views": pair_ship_views(data.train).train}


def digest(tensors) -> str:
    found = hashlib.sha256()
    for tensor in tensors:
        found.update(tensor.contiguous().numpy().tobytes())
    return found.hexdigest()[:16]


def epochs_of(loader, *epochs):
    for epoch in epochs:
        loader.batch_sampler.set_epoch(epoch)
        yield from loader


@pytest.mark.parametrize(
    ("sampler", "sharing", "expected"),
    [
        ("softmax_triplet", {}, "4a3550f4743f5be8"),
        ("softmax", {}, "c62fe4f082cc4803"),
        ("softmax_triplet", {"rank": 1, "world_size": 2}, "7e91636c58acb5b3"),
    ],
)
def test_batches_of_re_identification(data, sampler, sharing, expected):
    batches = epochs_of(build_train_loader(cfg_of(DATALOADER__SAMPLER=sampler), data, **sharing), 1, 2)
    assert digest(v for b in batches for v in (b.images, b.sizes, b.modalities, b.labels, b.indices)) == expected


@pytest.mark.parametrize(
    ("kind", "sharing", "expected"),
    [
        ("registered", {}, "a8d3307476346725"),
        ("registered", {"rank": 1, "world_size": 2}, "be29ed2317f356d9"),
        ("views", {}, "8c3dd52c0d12a83e"),
    ],
)
def test_batches_of_contrastive_pre_training(pairs, kind, sharing, expected):
    batches = epochs_of(build_pair_loader(cfg_of(), pairs[kind], **sharing), 1, 2)
    assert digest(v for b in batches for v in (b.images, b.sizes, b.modalities, b.indices)) == expected


def pictures_and_pairs(batches):
    for batch in batches:
        optical, sar = batch.indices.chunk(2)
        assert torch.equal(optical + 1, sar)
        yield from (batch.images, optical // 2)


@pytest.mark.parametrize(
    ("crop", "flip", "registered", "views"),
    [
        (True, True, "ab8e289f59edf565", "13b5ce71bf910900"),
        (True, False, "a30b82901408b6d4", "72c3936f486fc004"),
        (False, True, "d9352a5a46caa11e", "13b5ce71bf910900"),
        (False, False, "2fce6f1f2a5b6463", "72c3936f486fc004"),
    ],
)
def test_batches_of_the_bridge(pairs, crop, flip, registered, views):
    cfg = cfg_of(SOLVER__IMS_PER_BATCH=4, BBDM__CROP=crop, BBDM__FLIP=flip)
    for kind, expected in (("registered", registered), ("views", views)):
        loader = bridge.build_bridge_loader(cfg, pairs[kind], device_type="cpu")
        assert digest(pictures_and_pairs(epochs_of(loader, 0, 1))) == expected


def test_batches_of_the_bridge_in_the_second_of_two_processes(pairs):
    cfg, sharing = cfg_of(SOLVER__IMS_PER_BATCH=4, BBDM__CROP=True, BBDM__FLIP=True), {"rank": 1, "world_size": 2}
    loader = bridge.build_bridge_loader(cfg, pairs["registered"], device_type="cpu", **sharing)
    assert digest(pictures_and_pairs(epochs_of(loader, 0, 1))) == "dcfb785e5a205a14"
    loader = bridge.build_validation_loader(cfg, pairs["registered"], device_type="cpu", **sharing)
    assert digest(pictures_and_pairs(loader)) == "9606df9dd0fc56b8"


@pytest.mark.parametrize(("kind", "expected"), [("registered", "67b4d2b99fe7fc96"), ("views", "21fb28a65c543969")])
def test_batches_that_validate_the_bridge(pairs, kind, expected):
    cfg = cfg_of(SOLVER__IMS_PER_BATCH=4, BBDM__CROP=True, BBDM__FLIP=True)
    assert digest(pictures_and_pairs(bridge.build_validation_loader(cfg, pairs[kind], device_type="cpu"))) == expected
