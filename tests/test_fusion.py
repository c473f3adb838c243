"""Which samples are fused: the first K of each image, of its own side's folder, as many on both sides."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

from datasets.records import Chip, Modality, Protocol, Split
from processor.fusion import build_samples, count_movable, find_samples, fuse, largest_move
from tests.chip_files import write_chip
from tests.commands import tiny_cfg
from utils.errors import DataError


@pytest.fixture
def images(tmp_path):
    """An optical query of each protocol and an optical gallery image, and a SAR one."""
    optical, sar = Modality.OPTICAL, Modality.SAR
    kinds = {"1_RGB": Split.QUERY, "2_RGB": Split.O2S_QUERY, "3_RGB": Split.GALLERY, "4_SAR": Split.GALLERY}
    paths = [write_chip(tmp_path / "chips" / f"{name}.tif") for name in kinds]
    sensors = (optical, optical, optical, sar)
    return [Chip(path, int(path.name[0]), sensor, split) for path, sensor, split in zip(paths, sensors, kinds.values())]


def write_samples(folder: Path, images, count: int) -> str:
    folder.mkdir()
    for image in images:
        for k in range(count):
            Image.fromarray(np.full((60, 24, 3), 10 * k, np.uint8)).save(folder / f"{image.path.stem}_{k}.png")
    return str(folder)


def test_the_first_samples_are_taken_in_order(images, tmp_path):
    folder = write_samples(tmp_path / "all", images[:3], 12)
    found = find_samples(images, query_dir=folder, gallery_dir=folder, count=3)
    assert found.per_image == 3
    assert [[chip.path.stem[-2:] for chip in own] for own in found.chips] == [["_0", "_1", "_2"]] * 3
    assert found.sources == (0, 1, 2)
    assert [len(own) for own in find_samples(images, query_dir=folder, gallery_dir=folder).chips] == [12] * 3
    with pytest.raises(DataError, match=r"fewer than TEST\.FUSION_SAMPLES 13"):
        find_samples(images, query_dir=folder, gallery_dir=folder, count=13)


def test_queries_of_every_protocol_have_the_samples_of_the_query_side(images, tmp_path):
    query, gallery = write_samples(tmp_path / "q", images[:2], 2), write_samples(tmp_path / "g", images[2:3], 2)
    found = find_samples(images, query_dir=query, gallery_dir=gallery)
    assert [{chip.path.parent.name for chip in own} for own in found.chips] == [{"q"}, {"q"}, {"g"}]
    assert find_samples(images, query_dir="", gallery_dir=gallery).sources == (2,)
    assert find_samples(images, query_dir=query, gallery_dir="").sources == (0, 1)


def test_sides_of_unequal_numbers_are_refused(images, tmp_path):
    query, gallery = write_samples(tmp_path / "q", images[:2], 2), write_samples(tmp_path / "g", images[2:3], 3)
    with pytest.raises(DataError, match=r"2 samples of an image in .*q and 3 samples of an image in .*g; both sides need"):
        find_samples(images, query_dir=query, gallery_dir=gallery)


def test_a_folder_without_a_manifest_does_not_tell_its_steps(images, tmp_path):
    folder = write_samples(tmp_path / "all", images[:3], 1)
    assert find_samples(images, query_dir=folder, gallery_dir=folder).steps == (None,)


def test_the_configuration_names_folders_and_number(images, tmp_path):
    query, gallery = write_samples(tmp_path / "q", images[:2], 2), write_samples(tmp_path / "g", images[2:3], 2)
    changes = {"DATASETS__QUERY_ADD_DIR": query, "DATASETS__GALLERY_ADD_DIR": gallery, "TEST__FUSION_SAMPLES": 1}
    found = build_samples(tiny_cfg(**changes), images)
    assert found.per_image == 1
    assert not any(chip.measured for own in found.chips for chip in own)
    released = build_samples(tiny_cfg(**changes, TEST__GENERATED_SIZE="file"), images)
    assert all(chip.measured for own in released.chips for chip in own)
    assert [own[0].path.parent.name for own in found.chips] == ["q", "q", "g"]


def test_no_picture_moves_a_feature_further_than_the_bound():
    draws = torch.Generator().manual_seed(0)
    features = functional.normalize(torch.randn(200, 3, generator=draws, dtype=torch.float64))
    for tau in (0.02, 0.2, 0.45):
        moved = fuse(features, torch.randn(200, 1, 3, generator=draws, dtype=torch.float64), tau=tau)
        reached = (moved - features).norm(dim=1).max().item()
        assert 0.95 * largest_move(tau) < reached <= largest_move(tau) + 1e-12
    assert largest_move(0) == 0 and largest_move(0.5) == largest_move(0.9) == 2


def test_queries_near_a_change_of_their_first_rank_are_counted():
    """A query of ship 1 at angle 0; its match at `near`, another ship at 0.5; the bound of tau 0.1 is 0.111 an end."""
    optical, sar = Modality.OPTICAL, Modality.SAR

    def count(near, sources, tau=0.1):
        angles = torch.tensor([0.0, near, 0.5])
        ships = (1, 1, 2)
        images = [Chip(Path(str(n)), ship, sar if n else optical, Split.QUERY) for n, ship in enumerate(ships)]
        features = torch.stack([angles.cos(), angles.sin()], dim=1)
        return count_movable(Protocol("O2S", (0,), (1, 2)), images, features, sources, tau)

    assert count(0.4, (0,)) == 1 and count(0.6, (0,)) == 1  # nearer than 2 * 0.111 to each other
    assert count(0.2, (0,)) == 0 and count(0.8, (0,)) == 0
    assert count(0.2, (0, 1, 2)) == 1  # every end moves
    assert count(0.2, ()) == 0 and count(0.4, (0,), tau=0.0) == 0
    lone = [Chip(Path("a"), 3, optical, Split.QUERY), Chip(Path("b"), 2, sar, Split.QUERY)]
    assert count_movable(Protocol("O2S", (0,), (1,)), lone, torch.eye(2), (0,), 0.9) == 0  # it does not count
