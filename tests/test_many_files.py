"""Folders of very many chips: what is done for each file before the first batch is little, and stays what it was."""

import hashlib
import os
from pathlib import Path

import numpy as np
import pytest

from datasets.catalogue import list_chips, read_hoss
from datasets.records import Split
from datasets.samplers import draw_identities
from processor.resuming import HEAD, describe_chips
from tests.chip_files import write_chip, write_hoss
from utils.errors import is_text


@pytest.fixture
def many(tmp_path) -> Path:
    """A data set of 4,000 chips, which are links to two files."""
    root = write_hoss(tmp_path / "data", train_ships=0)
    folder = root / "HOSS" / "bounding_box_train"
    folder.mkdir()
    for kind in ("RGB", "SAR"):
        chip = write_chip(tmp_path / f"seed_{kind}.tif")
        for number in range(2000):
            os.link(chip, folder / f"{number // 2:05d}_s{number % 2}c0_{kind}.tif")
    return root


def test_a_listing_asks_the_folder_and_not_each_file(many, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a file was looked at")

    (many / "HOSS" / "bounding_box_train" / "09998_folder_RGB.tif").mkdir()
    (many / "HOSS" / "bounding_box_train" / "09999_loop_RGB.tif").symlink_to("09999_loop_RGB.tif")
    monkeypatch.setattr(Path, "is_file", refuse)
    chips, findings = list_chips(many / "HOSS", Split.TRAIN)
    assert len(chips) == 4000
    assert [finding.files for finding in findings if finding.kind == "name"] == [
        ("bounding_box_train/09998_folder_RGB.tif", "bounding_box_train/09999_loop_RGB.tif")
    ]


def test_the_digest_of_a_data_set_is_that_of_its_files_one_by_one(many):
    chips, total = read_hoss(many, test=False).train, hashlib.sha256()
    (many / "HOSS" / "bounding_box_train" / chips[5].path.name).unlink()
    for chip in chips:
        told = f"{chip.path.name} {chip.ship} {int(chip.modality)} ".encode()
        if chip.path.exists():
            content = chip.path.read_bytes()
            told = hashlib.sha256(told + b"%d " % len(content) + content[:HEAD]).digest()
        total.update(told)
    assert describe_chips(chips) == {"files": 4000, "sha256": total.hexdigest()}


def test_the_batches_of_an_epoch_are_planned_once(monkeypatch):
    labels = np.random.default_rng(0).integers(0, 50, 1000)
    sampler, made = draw_identities(labels, instances=4, batch_size=32, seed=3), []
    plan = sampler.plan
    monkeypatch.setattr(sampler, "plan", lambda generator: made.append(1) or plan(generator))
    for epoch in (1, 2, 1):
        sampler.set_epoch(epoch)
        first = [[draw.index for draw in batch] for batch in sampler]
        assert len(sampler) == len(first)
        assert all(len({labels[index] for index in batch}) == 8 for batch in first)
    assert len(made) == 3


@pytest.mark.parametrize(("name", "text"), [("a", True), ("船", True), ("a\udcff", False), ("\ud83d\ude00", False)])
def test_names_that_are_no_text(name, text):
    assert is_text(name) == text
