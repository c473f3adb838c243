"""How often a command opens the files that it reads: once for one use."""

import os
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import test
from bbdm import evaluate, sample
from bbdm.embedding import train_embedding
from bbdm.model import build_network
from configs import load_cfg
from datasets.catalogue import read_hoss
from datasets.chips import read_header
from datasets.generated import SamplingRun, open_store, sample_of, write_sample
from datasets.records import Modality
from model.build import build_model
from tests.chip_files import write_hoss
from tests.commands import call, settings, tiny_cfg
from tools import check_dataset
from utils.checkpoint import save

WRITTEN = os.O_WRONLY | os.O_RDWR
RECORDS: list[Counter] = []
"""Counters of the calls that are being watched; an audit hook cannot be taken back."""


def record(event: str, arguments: tuple) -> None:
    if RECORDS and event == "open" and isinstance(arguments[0], str | os.PathLike) and not arguments[2] & WRITTEN:
        path = Path(arguments[0])
        if path.suffix in (".tif", ".png"):
            RECORDS[-1][path.name] += 1


sys.addaudithook(record)


def count_opened(main: Callable, *words: object) -> Counter:
    """Name of a picture -> how often the command opened it to read."""
    RECORDS.append(Counter())
    try:
        ended = call(main, *words)
    finally:
        counter = RECORDS.pop()
    assert ended.status == 0, ended.err
    return counter


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Test chips, weights, and samples of the optical queries: a store with a manifest, and the same in a plain folder."""
    root = tmp_path_factory.mktemp("root")
    write_hoss(root / "data", train_ships=1, test_ships=3)
    torch.manual_seed(0)
    save(root / "weights.pth", build_model(tiny_cfg(), 3).state_dict())
    chips = [chip for chip in read_hoss(root / "data", train=False).images if chip.modality is Modality.OPTICAL]
    sources = [replace(chip, size=read_header(chip.path)[0]) for chip in chips if chip.split == "query"]
    run = SamplingRun(samples_per_image=2, sampler="released", steps=5, eta=1.0, seed=1, weights_sha256="ab")
    open_store(root / "store", run, sources, config={})
    (root / "plain").mkdir()
    for number, source in enumerate(sources):
        for k in range(2):
            picture = np.random.default_rng([number, k]).integers(0, 256, (*source.size[::-1], 3), dtype=np.uint8)
            write_sample(sample_of(source, k, root / "store", run), picture)
            Image.fromarray(picture).save(root / "plain" / f"{source.path.stem}_{k}.png")
    return root


@pytest.mark.parametrize(("samples", "header"), [("store", 0), ("plain", 1)])
def test_testing_with_samples_opens_a_chip_to_read_and_to_hash_it_and_a_sample_to_read_it(root, tmp_path, samples, header):
    values = {"DATASETS__ROOT_DIR": root / "data", "TEST__WEIGHT": root / "weights.pth", "OUTPUT_DIR": tmp_path / "out"}
    words = settings(**values, DATASETS__QUERY_ADD_DIR=root / samples)
    opened = count_opened(test.main, *words)
    images = read_hoss(root / "data", train=False).images
    sources = [chip for chip in images if chip.split == "query" and chip.modality is Modality.OPTICAL]
    assert len(sources) == 3
    expected = {chip.path.name: 2 + (header if chip in sources else 0) for chip in images}
    expected |= {f"{chip.path.stem}_{k}.png": 1 for chip in sources for k in range(2)}
    assert opened == expected


def test_checking_a_data_set_opens_each_chip_once(root):
    opened = count_opened(check_dataset.main, root / "data")
    assert opened == {path.name: 1 for path in (root / "data").rglob("*.tif")}


BRIDGE = {
    "BBDM.WIDTH": 32,
    "BBDM.MULTIPLIERS": "[1, 1]",
    "BBDM.BLOCKS": 1,
    "BBDM.HEAD_WIDTH": 32,
    "BBDM.IMAGE_SIZE": "[16, 16]",
    "BBDM.SAMPLE_NUM": 3,
    "BBDM.SAMPLE_STEP": 3,
    "DATALOADER.NUM_WORKERS": 0,
    "MODEL.DEVICE": "cpu",
}


@pytest.fixture
def bridge_words(tmp_path):
    """Settings of a small bridge with its weights."""
    words = [str(word) for item in BRIDGE.items() for word in item]
    save(tmp_path / "bridge.pth", build_network(load_cfg(None, words)).state_dict())
    return [*words, "BBDM.WEIGHT", tmp_path / "bridge.pth", "OUTPUT_DIR", tmp_path / "out"]


def test_sampling_opens_a_chip_for_its_size_and_for_its_pixels_and_no_sample_again(root, bridge_words):
    words = [*bridge_words, "DATASETS.ROOT_DIR", root / "data", "BBDM.SPLITS", "['query']"]
    opened = count_opened(sample.main, *words)
    sources = [path.name for path in (root / "data" / "HOSS" / "query").glob("*_RGB.tif")]
    assert opened == dict.fromkeys(sources, 2)
    again = {f"{Path(name).stem}_{k}.png": 1 for name in sources for k in range(3)}
    assert count_opened(sample.main, *words) == dict.fromkeys(sources, 1) | again, "to see that all is there"


def test_evaluating_opens_a_picture_for_its_size_and_for_its_pixels(bridge_words, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate, "train_embedding", lambda pictures, seed: train_embedding(pictures, seed=seed, steps=1))
    for place in range(4):
        pixels = np.random.default_rng(place).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        for sensor, picture in (("opt", pixels), ("sar", pixels[..., 0])):
            (tmp_path / "pairs" / f"{sensor}_256").mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(tmp_path / "pairs" / f"{sensor}_256" / f"{place}.png")
    opened = count_opened(evaluate.main, *bridge_words, "BBDM.PAIRS_DIR", tmp_path / "pairs", "BBDM.HOLD_OUT_EVERY", 2)
    assert opened == {f"{place}.png": 2 * 2 for place in range(4)}, "two pictures of a name, by both sensors"
