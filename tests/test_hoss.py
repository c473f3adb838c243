"""Reading a data set in HOSS layout: what is found, how protocols are made, and what is refused."""

import os
from pathlib import Path

import numpy as np
import pytest

from datasets.catalogue import read_hoss
from datasets.records import DISTRACTOR, Chip, Modality, Split
from tests.chip_files import write_chip, write_hoss
from utils.errors import DataError

GOLDEN = Path(__file__).parent / "golden" / "e2e_hoss_sample.npz"
REAL = os.environ.get("MOS_DATA_ROOT")


def rename_suffixes(folder: Path, suffixes: dict[str, str]) -> None:
    for path in list(folder.rglob("*.*")):
        path.rename(path.with_suffix(suffixes[path.stem[-3:]]))


def names(data, protocol: str, side: str) -> list[str]:
    return [data.images[index].path.name for index in getattr(data.protocols[protocol], side)]


def test_a_whole_data_set(tmp_path):
    data = read_hoss(write_hoss(tmp_path, train_ships=4, test_ships=3, views=2, distractors=2))
    assert len(data.train) == 16
    assert data.labels == {1: 0, 2: 1, 3: 2, 4: 3}
    assert data.num_identities == 4
    assert len(data.images) == 6 + 12 + 2
    first = data.train[0]
    assert first == Chip(tmp_path / "HOSS/bounding_box_train/0001_s01c0_RGB.tif", 1, Modality.OPTICAL, Split.TRAIN)
    assert [record.split for record in data.images] == ["query"] * 6 + ["gallery"] * 14
    assert sum(record.ship == DISTRACTOR for record in data.images) == 2
    for split in ("query", "gallery"):
        paths = [record.path.name for record in data.images if record.split == split]
        assert paths == sorted(paths)


def test_labels_follow_sorted_pids_and_not_names(tmp_path):
    folder = tmp_path / "HOSS" / "bounding_box_train"
    for pid in ("10", "9", "0011", "2"):
        write_chip(folder / f"{pid}_a_RGB.tif")
    data = read_hoss(tmp_path, test=False)
    assert data.labels == {2: 0, 9: 1, 10: 2, 11: 3}


def test_protocols_by_modality_where_there_is_no_subset(tmp_path):
    data = read_hoss(write_hoss(tmp_path))
    everything = data.protocols["ALL"]
    assert (everything.query, everything.gallery) == (tuple(range(6)), tuple(range(6, 20)))
    for name, query, gallery in (("O2S", "RGB", "SAR"), ("S2O", "SAR", "RGB")):
        assert len(names(data, name, "query")) == 3
        assert len(names(data, name, "gallery")) == 7, "six of ships and one distractor"
        assert all(query in image for image in names(data, name, "query"))
        assert all(gallery in image for image in names(data, name, "gallery"))


def test_subset_copies_are_the_images_of_the_main_split(tmp_path):
    plain = read_hoss(write_hoss(tmp_path / "plain"))
    data = read_hoss(write_hoss(tmp_path / "subset", subset=True))
    assert [record.path.name for record in data.images] == [record.path.name for record in plain.images]
    assert data.protocols == plain.protocols


def test_subset_decides_and_may_hold_images_of_its_own(tmp_path):
    root = write_hoss(tmp_path, subset=True)
    subset = root / "HOSS" / "subset" / "O2S"
    (subset / "query" / "0102_s01c0_RGB.tif").unlink()
    write_chip(subset / "query" / "0103_s01c0_RGB.tif", seed=999)  # same name, other bytes
    write_chip(subset / "bounding_box_test" / "0104_new_SAR.tif")
    data = read_hoss(root)
    assert len(data.images) == 22
    assert [(record.path.name, record.split) for record in data.images[20:]] == [
        ("0103_s01c0_RGB.tif", "O2S/query"),
        ("0104_new_SAR.tif", "O2S/gallery"),
    ]
    assert names(data, "O2S", "query") == ["0101_s01c0_RGB.tif", "0103_s01c0_RGB.tif"]
    assert data.protocols["O2S"].query[1] == 20
    assert len(data.protocols["ALL"].query) + len(data.protocols["ALL"].gallery) == 20, "ALL is the main split"
    assert len(names(data, "S2O", "query")) == 3


def test_a_subset_of_one_direction_leaves_the_other_to_be_derived(tmp_path):
    root = write_hoss(tmp_path, subset=True)
    for path in sorted((root / "HOSS" / "subset" / "S2O").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    (root / "HOSS" / "subset" / "S2O").rmdir()
    assert len(names(read_hoss(root), "S2O", "gallery")) == 7


def test_an_image_that_is_query_and_gallery_is_joined_with_its_own_side(tmp_path):
    root = write_hoss(tmp_path, subset=True)
    query = root / "HOSS" / "query" / "0101_s01c0_SAR.tif"
    for folder in ("bounding_box_test", "subset/O2S/bounding_box_test"):
        (root / "HOSS" / folder / query.name).write_bytes(query.read_bytes())
    data = read_hoss(root)
    assert {data.images[index].split for index in data.protocols["O2S"].gallery} == {"gallery"}
    assert {data.images[index].split for index in data.protocols["S2O"].query} == {"query"}


def test_suffixes_in_any_case_and_kind(tmp_path):
    root = write_hoss(tmp_path, suffix=".png")
    rename_suffixes(root / "HOSS" / "query", {"RGB": ".JPG", "SAR": ".Tiff"})
    rename_suffixes(root / "HOSS" / "bounding_box_train", {"RGB": ".TIF", "SAR": ".jpeg"})
    data = read_hoss(root)
    assert (len(data.train), len(data.images)) == (16, 20)
    optical = [record for record in data.images if record.path.suffix == ".JPG"]
    assert optical
    assert all(record.modality is Modality.OPTICAL for record in optical)


def test_only_what_is_asked_for_is_needed(tmp_path):
    root = write_hoss(tmp_path)
    (root / "HOSS" / "bounding_box_train").rename(tmp_path / "elsewhere")
    data = read_hoss(root, train=False)
    assert (data.train, data.num_identities, len(data.images)) == ((), 0, 20)
    with pytest.raises(DataError, match="bounding_box_train"):
        read_hoss(root)
    (tmp_path / "elsewhere").rename(root / "HOSS" / "bounding_box_train")
    (root / "HOSS" / "query").rename(tmp_path / "elsewhere")
    data = read_hoss(root, test=False)
    assert (len(data.train), data.images, data.protocols) == (16, (), {})


def test_hidden_files_are_passed_over_and_others_named(tmp_path, caplog):
    root = write_hoss(tmp_path)
    for name in ("Thumbs.db", ".DS_Store", "._0101_s01c0_RGB.tif", "chips.bmp"):
        (root / "HOSS" / "query" / name).write_text("no chip")
    assert len(read_hoss(root).images) == 20
    assert "Thumbs.db, chips.bmp" in caplog.text
    assert "DS_Store" not in caplog.text


def test_ships_of_one_sensor_only(tmp_path, caplog):
    root = write_hoss(tmp_path)
    for folder in ("query", "bounding_box_test"):
        for path in (root / "HOSS" / folder).glob("*_SAR.tif"):
            path.unlink()
    data = read_hoss(root)
    assert list(data.protocols) == ["ALL"]
    assert "no O2S protocol" in caplog.text
    assert "no S2O protocol" in caplog.text


@pytest.mark.parametrize("folder", ["", "bounding_box_train", "query", "bounding_box_test"])
def test_missing_folders_are_named(tmp_path, folder):
    root = write_hoss(tmp_path)
    (root / "HOSS" / folder).rename(tmp_path / "elsewhere")
    with pytest.raises(DataError, match=rf"{folder or 'HOSS'} is no folder.*DATASETS\.ROOT_DIR"):
        read_hoss(root)


@pytest.mark.parametrize("folder", ["bounding_box_train", "query", "bounding_box_test", "subset/O2S/query"])
def test_empty_folders_are_named(tmp_path, folder):
    root = write_hoss(tmp_path, subset=True)
    for path in (root / "HOSS" / folder).iterdir():
        path.unlink()
    (root / "HOSS" / folder / "readme.txt").touch()
    with pytest.raises(DataError, match=f"{folder} holds no chip") as caught:
        read_hoss(root)
    assert caught.value.exit_status == 1


@pytest.mark.parametrize(
    "name",
    [
        "ship_RGB.tif",
        "0001_s01.tif",
        "0001.tif",
        "-2_a_SAR.tif",
        "_0001_RGB.tif",
        "12a_c_RGB.png",
        "0001_RGB_c1.tif",
        "٣_a_RGB.tif",
    ],
)
def test_names_without_pid_or_modality_are_listed(tmp_path, name):
    root = write_hoss(tmp_path)
    (root / "HOSS" / "query" / name).touch()
    with pytest.raises(DataError, match=r"query holds chips .* not named") as caught:
        read_hoss(root)
    assert name in str(caught.value)


def test_long_lists_of_names_are_cut(tmp_path):
    root = write_hoss(tmp_path)
    for number in range(8):
        (root / "HOSS" / "query" / f"ship{number}.tif").touch()
    with pytest.raises(DataError, match=r"ship0\.tif, ship1\.tif, .*ship4\.tif and 3 more$"):
        read_hoss(root)


def test_links_that_lead_nowhere_and_folders_are_no_chips(tmp_path):
    folder = write_hoss(tmp_path) / "HOSS" / "query"
    (folder / "0101_folder_RGB.tif").mkdir()
    with pytest.raises(DataError, match="0101_folder_RGB"):
        read_hoss(tmp_path)
    (folder / "0101_folder_RGB.tif").rmdir()
    (folder / "0101_link_RGB.tif").symlink_to(tmp_path / "nowhere.tif")
    with pytest.raises(DataError, match="0101_link_RGB"):
        read_hoss(tmp_path)


def test_two_files_of_one_name_are_refused(tmp_path):
    folder = write_hoss(tmp_path) / "HOSS" / "query"
    write_chip(folder / "0101_S01c0_rgb.PNG")
    with pytest.raises(DataError, match=r"several files of one name.*0101_S01c0_rgb\.PNG, 0101_s01c0_RGB\.tif"):
        read_hoss(tmp_path)


@pytest.mark.parametrize("folder", ["bounding_box_train", "query"])
def test_distractors_belong_in_the_gallery(tmp_path, folder):
    write_chip(write_hoss(tmp_path) / "HOSS" / folder / "-1_a_RGB.tif")
    with pytest.raises(DataError, match=r"distractors.*-1_a_RGB\.tif"):
        read_hoss(tmp_path)


def test_the_summary_counts_every_part(tmp_path):
    lines = read_hoss(write_hoss(tmp_path)).summary().splitlines()
    rows = {tuple(line.split()[:-5]): [int(number) for number in line.split()[-5:]] for line in lines[1:]}
    assert rows[("train",)] == [4, 16, 8, 8, 0]
    assert rows[("ALL", "gallery")] == [3, 14, 7, 7, 2]
    assert rows[("O2S", "query")] == [3, 3, 3, 0, 0]


@pytest.mark.real_data
@pytest.mark.skipif(not REAL, reason="MOS_DATA_ROOT names no folder of real chips")
def test_the_real_sample_is_listed_as_by_the_released_program():
    data = read_hoss(REAL)
    with np.load(GOLDEN, allow_pickle=False) as golden:
        assert [record.path.name for record in data.images] == golden["names"].tolist()
        assert [record.ship for record in data.images] == golden["pids"].tolist()
        assert [int(record.modality) for record in data.images] == golden["camids"].tolist()
        assert len(data.protocols["ALL"].query) == golden["num_query"]
    assert data.num_identities == 21


def test_protocols_without_a_match_are_left_out_before_any_network_runs(tmp_path, caplog):
    root = write_hoss(tmp_path)
    gallery = root / "HOSS" / "bounding_box_test"
    for path in gallery.glob("*_RGB.tif"):
        path.rename(path.with_name(path.name.replace(path.name.split("_")[0], "9999", 1)))
    data = read_hoss(root)
    assert list(data.protocols) == ["ALL", "O2S"]
    assert "no S2O protocol, since none of its" in caplog.text
    for path in gallery.glob("*_SAR.tif"):
        path.unlink()
    with pytest.raises(DataError, match=r"none of the .* queries has a match among the"):
        read_hoss(root)
