"""Checking a data set: counts of good ones, and every fault by its name."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from datasets.catalogue import read_hoss
from datasets.chips import read_chip
from datasets.curation.checks import check_dataset
from datasets.curation.duplicates import HASH_BITS, NEAR_BITS, near_pairs, perceptual_hash
from datasets.records import DISTRACTOR
from datasets.sar import render_percentile
from tests.chip_files import optical_pixels, sar_values, write_chip, write_hoss
from tools import check_dataset as command
from utils.errors import DataError


@pytest.fixture
def root(tmp_path):
    return write_hoss(tmp_path / "data", views=1, distractors=2)


def found(root: Path, kind: str):
    """The findings of a kind."""
    return [finding for finding in check_dataset(root).findings if finding.kind == kind]


def only(root: Path, kind: str):
    (finding,) = found(root, kind)
    return finding


def smooth_pixels(seed: int, height: int = 120, width: int = 40) -> np.ndarray:
    """A random picture with structure of the size of a ship's parts."""
    noise = np.random.default_rng(seed).integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
    return cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)


# Good data sets


def test_a_good_data_set_has_no_findings_and_the_counts_of_the_reader(tmp_path):
    root = write_hoss(tmp_path, train_ships=4, test_ships=3, views=2, distractors=2, subset=True)
    report, data = check_dataset(root), read_hoss(root)
    assert report.findings == ()
    assert report.splits["train"].images == len(data.train) == 16
    assert report.splits["train"].ships == data.num_identities == 4
    assert (report.splits["query"].optical, report.splits["query"].sar) == (3, 3)
    assert (report.splits["gallery"].images, report.splits["gallery"].distractors) == (14, 2)
    assert report.splits["all"].height == (45, 60) and report.splits["all"].width == (18, 24)
    assert (report.training_pairs, report.training_pair_ships) == (4 * 2 * 2, 4)
    for name, protocol in data.protocols.items():
        facts = report.protocols[name]
        assert (facts.queries, facts.with_match, facts.gallery) == (len(protocol.query), facts.queries, len(protocol.gallery))


def test_ranges_are_those_of_the_values(root):
    folder = root / "HOSS" / "query"
    values = sar_values(1)
    values[0, :2] = [-3.0, 250.0]
    Image.fromarray(values).save(folder / "0101_s01c0_SAR.tif")
    facts = check_dataset(root).splits
    assert facts["query"].sar_values == facts["all"].sar_values == (-3.0, 250.0)
    assert only(root, "negative").files == ("query/0101_s01c0_SAR.tif",)


@pytest.mark.real_data
def test_the_real_sample(data_root):
    report = check_dataset(data_root)
    train, query, gallery, everything = (report.splits[name] for name in ("train", "query", "gallery", "all"))
    assert (train.images, train.ships) == (56, 21)
    assert (query.images, query.optical, query.sar) == (31, 18, 13)
    assert (gallery.images, gallery.optical, gallery.sar, gallery.distractors) == (78, 52, 26, 18)
    assert (everything.images, everything.height, everything.width) == (165, (50, 513), (14, 101))
    assert 0 <= everything.sar_values[0] < 0.001 and 11 <= everything.sar_values[1] < 11.1
    assert report.protocols["O2S"].with_match == 16
    assert report.protocols["O2S"].without_match == ("0025_s05c1_RGB.tif", "0142_s04c1_RGB.tif")
    assert report.protocols["S2O"].with_match == report.protocols["S2O"].queries == 13
    assert (report.training_pairs, report.training_pair_ships) == (30, 15)
    assert report.count("error") == 0
    assert sorted(finding.kind for finding in report.findings) == ["near-duplicate", "no match"]
    near = next(finding for finding in report.findings if finding.kind == "near-duplicate")
    for pair in near.files:  # same ship, two views of one pass
        query_name, gallery_name = pair.split(" = ")
        assert Path(query_name).name[:4] == Path(gallery_name).name[:4]


# Every kind of fault


def test_no_hoss_folder_is_said_at_once(tmp_path):
    with pytest.raises(DataError, match=r"HOSS is no folder; give the folder that holds HOSS/"):
        check_dataset(tmp_path)


@pytest.mark.parametrize("folder", ["bounding_box_train", "query", "bounding_box_test"])
def test_missing_and_empty_folders(root, folder):
    for path in (root / "HOSS" / folder).iterdir():
        path.unlink()
    assert folder in only(root, "empty folder").message
    (root / "HOSS" / folder).rmdir()
    finding = only(root, "missing folder")
    assert folder in finding.message and finding.level == "error"


def test_names_that_do_not_parse(root):
    for name in ("ship_RGB.tif", "0101_s01.tif"):
        (root / "HOSS" / "query" / name).touch()
    (root / "HOSS" / "query" / "0101_folder_RGB.tif").mkdir()
    finding = only(root, "name")
    assert finding.level == "error"
    assert set(finding.files) == {"query/ship_RGB.tif", "query/0101_s01.tif", "query/0101_folder_RGB.tif"}


def test_two_files_of_one_name(root):
    write_chip(root / "HOSS" / "query" / "0101_s01c0_RGB.png", seed=77)
    assert only(root, "name").files == ("query/0101_s01c0_RGB.png", "query/0101_s01c0_RGB.tif")


def test_other_files_are_warned_of_and_hidden_ones_are_not(root):
    for name in ("Thumbs.db", ".DS_Store"):
        (root / "HOSS" / "query" / name).touch()
    finding = only(root, "not a chip")
    assert (finding.level, finding.files) == ("warning", ("query/Thumbs.db",))


@pytest.mark.parametrize("folder", ["bounding_box_train", "query"])
def test_distractors_outside_the_gallery(root, folder):
    write_chip(root / "HOSS" / folder / "-1_a_RGB.tif", seed=99)
    finding = only(root, "distractor")
    assert (finding.level, finding.files) == ("error", (f"{folder}/-1_a_RGB.tif",))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_damaged_chips_are_all_named(root):
    folder = root / "HOSS" / "bounding_box_train"
    whole = (folder / "0001_s01c0_RGB.tif").read_bytes()
    (folder / "0001_s01c0_RGB.tif").write_bytes(whole[: len(whole) // 2])
    (folder / "0002_s01c0_SAR.tif").write_bytes(b"")
    values = sar_values()
    values[3, 3] = np.inf
    Image.fromarray(values).save(folder / "0003_s01c0_SAR.tif")
    Image.fromarray(optical_pixels().astype(np.uint16)[..., 0] * 200).save(folder / "0004_s01c0_SAR.tif")  # 16 bits are fine
    findings = found(root, "unreadable")
    assert {finding.level for finding in findings} == {"error"}
    assert [finding.files[0][-18:-4] for finding in findings] == ["0001_s01c0_RGB", "0002_s01c0_SAR", "0003_s01c0_SAR"]


def test_names_that_the_pixels_contradict(root):
    query = root / "HOSS" / "query"
    Image.fromarray(optical_pixels(5)).save(query / "0101_s01c0_SAR.tif")
    Image.fromarray(sar_values(5)).save(query / "0102_s01c0_RGB.tif")
    findings = found(root, "modality")
    assert {(finding.level, finding.files) for finding in findings} == {
        ("error", ("query/0101_s01c0_SAR.tif",)),
        ("error", ("query/0102_s01c0_RGB.tif",)),
    }
    assert not found(root, "unreadable")


def test_optical_without_colour_is_warned_of(root):
    grey = np.repeat(optical_pixels(6)[..., :1], 3, axis=2)
    Image.fromarray(grey).save(root / "HOSS" / "query" / "0101_s01c0_RGB.tif")
    finding = only(root, "modality")
    assert (finding.level, finding.files) == ("warning", ("query/0101_s01c0_RGB.tif",))


def test_odd_chips(root):
    query = root / "HOSS" / "query"
    write_chip(query / "0101_s01c0_RGB.tif", seed=500, height=20, width=90)
    write_chip(query / "0102_s01c0_SAR.tif", seed=501, height=20, width=4)
    Image.new("RGB", (20, 50), "black").save(query / "0103_s01c0_RGB.tif")
    assert only(root, "lying").files == ("query/0101_s01c0_RGB.tif",)
    assert only(root, "odd chip").files == ("query/0102_s01c0_SAR.tif",)
    assert only(root, "blank").files == ("query/0103_s01c0_RGB.tif",)


def test_ships_in_training_and_test(root):
    write_chip(root / "HOSS" / "bounding_box_train" / "0102_x_SAR.tif", seed=321)
    finding = only(root, "shared ship")
    assert finding.level == "error" and "102" in finding.message
    assert set(finding.files) == {
        f"{folder}/0102_s01c{view}_{kind}.tif"
        for folder, view in (("query", 0), ("bounding_box_test", 1))
        for kind in ("RGB", "SAR")
    }


@pytest.mark.parametrize("suffix", [".tif", ".png"])
def test_copies_in_several_splits(root, suffix):
    hoss = root / "HOSS"
    with Image.open(hoss / "query" / "0101_s01c0_RGB.tif") as image:
        image.save(hoss / "bounding_box_train" / f"0009_copy_RGB{suffix}")
    finding = only(root, "copy")
    assert finding.level == "error"
    assert finding.files == (f"bounding_box_train/0009_copy_RGB{suffix} = query/0101_s01c0_RGB.tif",)
    assert not found(root, "near-duplicate")


def test_copies_of_one_ship_in_one_split_are_warned_of(root):
    folder = root / "HOSS" / "bounding_box_train"
    shutil.copy(folder / "0001_s01c0_RGB.tif", folder / "0001_again_RGB.tif")
    assert only(root, "copy").level == "warning"
    (folder / "0001_again_RGB.tif").rename(folder / "0002_again_RGB.tif")
    assert only(root, "copy").level == "error"


def test_near_duplicates_across_splits(root):
    hoss, pixels = root / "HOSS", smooth_pixels(3)
    Image.fromarray(pixels).save(hoss / "bounding_box_train" / "0009_a_RGB.tif")
    Image.fromarray(cv2.resize(pixels, (50, 150))).save(hoss / "bounding_box_test" / "-1_b_RGB.jpg", quality=80)
    finding = only(root, "near-duplicate")
    assert finding.level == "warning"
    assert finding.files == ("bounding_box_train/0009_a_RGB.tif = bounding_box_test/-1_b_RGB.jpg",)


def test_queries_without_a_match(root):
    hoss = root / "HOSS"
    (hoss / "bounding_box_test" / "0101_s01c1_SAR.tif").unlink()
    finding = only(root, "no match")
    assert (finding.level, finding.files) == ("warning", ("0101_s01c0_RGB.tif",)) and "O2S" in finding.message
    for pid in (102, 103):
        (hoss / "bounding_box_test" / f"{pid:04d}_s01c1_SAR.tif").unlink()
    finding = only(root, "no match")  # the distractor of the SAR gallery matches nobody
    assert finding.level == "error" and len(finding.files) == 3
    (hoss / "bounding_box_test" / "-1_0001_SAR.tif").unlink()
    finding = only(root, "no match")
    assert finding.level == "warning" and "left out" in finding.message


def test_subsets_that_differ_from_the_main_split(tmp_path):
    root = write_hoss(tmp_path, subset=True)
    queries = root / "HOSS" / "subset" / "O2S" / "query"
    write_chip(queries / "0101_s01c0_RGB.tif", seed=9999)
    write_chip(queries / "0101_s01c0_SAR.tif", seed=10100)
    findings = found(root, "subset")
    assert [(finding.level, finding.files) for finding in findings] == [
        ("error", ("subset/O2S/query/0101_s01c0_SAR.tif",)),
        ("warning", ("subset/O2S/query/0101_s01c0_RGB.tif",)),
    ]
    assert check_dataset(root).protocols["O2S"].queries == 3


# The hash


@pytest.mark.parametrize("seed", range(5))
def test_the_hash_survives_what_keeps_a_picture(seed, tmp_path):
    pixels = smooth_pixels(seed)
    Image.fromarray(pixels).save(tmp_path / "a.jpg", quality=60)
    others = [
        np.array(Image.open(tmp_path / "a.jpg")),
        cv2.resize(pixels, (60, 200), interpolation=cv2.INTER_LINEAR),
        (pixels * 0.6 + 20).astype(np.uint8),
    ]
    for other in others:
        assert (perceptual_hash(pixels) != perceptual_hash(other)).sum() <= NEAR_BITS
    assert (perceptual_hash(pixels) != perceptual_hash(smooth_pixels(seed + 100))).sum() > 1.5 * NEAR_BITS


@pytest.mark.parametrize("size", [(8, 3), (10, 4), (4, 4), (12, 5)])
def test_small_chips_of_different_ships_look_different(size):
    """A bright middle under speckle: nearly all that a chip of a few pixels shows."""
    rows, columns = np.mgrid[-1 : 1 : size[0] * 1j, -1 : 1 : size[1] * 1j]
    mean = 0.15 + np.exp(-2 * rows**2 - 4 * columns**2)
    chips = [(mean * np.random.default_rng(seed).exponential(size=size)).astype(np.float32) for seed in range(60)]
    hashes = np.stack([perceptual_hash(render_percentile(chip)) for chip in chips])
    assert sum(i < j for i, j in near_pairs(hashes, hashes)) <= 2  # of 1770 pairs


@pytest.mark.real_data
def test_views_of_different_real_ships_look_different(data_root):
    data = read_hoss(data_root)
    chips = [chip for chip in (*data.train, *data.images) if chip.ship != DISTRACTOR]
    hashes = np.stack([perceptual_hash(read_chip(chip, render_percentile)) for chip in chips])
    found = [(chips[i], chips[j]) for i, j in near_pairs(hashes, hashes)]
    assert len(found) > len(chips) and {a.ship == b.ship for a, b in found} == {True}


def test_a_blank_picture_has_no_hash():
    assert not perceptual_hash(np.full((30, 10, 3), 7, np.uint8)).any()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 7), st.integers(0, 7), st.integers(0, HASH_BITS), st.integers(1, 4000), st.integers(0, 99))
def test_near_pairs_are_those_that_differ_little(rows, columns, limit, memory, seed):
    generator = np.random.default_rng(seed)
    first, second = generator.random((rows, HASH_BITS)) < 0.5, generator.random((columns, HASH_BITS)) < 0.5
    expected = [(i, j) for i, a in enumerate(first) for j, b in enumerate(second) if (a != b).sum() <= limit]
    assert list(near_pairs(first, second, limit=limit, memory_bytes=memory)) == expected


# The command


def test_the_command_prints_a_table_and_writes_json(root, tmp_path, capsys):
    command.main([str(root), "--json", str(tmp_path / "out" / "report.json")])
    out = capsys.readouterr().out
    assert "optical x SAR training pairs: 4 of 4 ships" in out and "errors: 0, warnings: 0" in out
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["splits"]["query"]["images"] == 6
    assert report["protocols"]["S2O"] == {"queries": 3, "with_match": 3, "gallery": 4, "without_match": []}


def test_errors_end_with_status_1_and_json_alone_on_the_output(root):
    (root / "HOSS" / "query" / "0101_s01c0_RGB.tif").write_bytes(b"nothing")
    call = [sys.executable, "-m", "tools.check_dataset", str(root), "--json"]
    done = subprocess.run(call, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert done.returncode == 1
    (finding,) = json.loads(done.stdout)["findings"]
    assert (finding["kind"], finding["files"]) == ("unreadable", ["query/0101_s01c0_RGB.tif"])
    assert "error: " in done.stderr and "Traceback" not in done.stderr


def write_registered(root: Path, names: str) -> None:
    for name in names.split():
        path = root / "OptiSar_Pair" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4)).save(path)


@pytest.mark.parametrize(
    ("names", "facts", "told"),
    [
        ("a/x_1_RGB a/x_1_SAR b/x_1_RGB b/x_1_SAR", (2, 2, 2, 1, 2, 4, "folder"), "joined by folder and id, one to one"),
        ("a/x_1_RGB b/x_1_SAR b/y_1_SAR", (1, 2, 2, 1, 0, 2, "id"), "joined by id over all folders, many to many"),
        ("a/x_1_RGB a/x_1_SAR a/x_2_RGB", (2, 1, 1, 2, 1, 1, ""), "joined not as they are"),
    ],
)
def test_how_pictures_for_pre_training_are_joined_is_told(tmp_path, capsys, names, facts, told):
    write_registered(tmp_path, names)
    report = check_dataset(tmp_path)
    assert tuple(report.registered_pairs.values()) == facts
    text = command.format_report(report)
    assert text.startswith(f"OptiSar_Pair: {facts[0]} optical and {facts[1]} SAR pictures in {facts[2]} folder(s), ")
    assert told in text and "protocol" not in text
    assert report.count("error") == (not facts[-1])
    assert [finding.kind for finding in report.findings] == ([] if facts[-1] else ["pairs"])


def test_pictures_for_pre_training_beside_a_data_set(root):
    assert "OptiSar_Pair" not in command.format_report(check_dataset(root))
    write_registered(root, "a/x_1_RGB a/x_1_SAR a/odd")
    report = check_dataset(root)
    assert report.splits["all"].images and not report.registered_pairs
    assert "not named *_<id>_*_RGB" in only(root, "pairs").message


def test_long_lists_are_cut_in_the_table_only(root):
    for number in range(8):
        (root / "HOSS" / "query" / f"ship{number}.tif").touch()
    text = command.format_report(check_dataset(root))
    assert "ship4.tif" in text and "ship5.tif" not in text and "and 3 more" in text
    assert len(only(root, "name").files) == 8
