"""tools.compare_worlds: statistics by hand, distances, a classifier that must and must not find a difference, the command."""

import json

import numpy as np
import pytest
from PIL import Image

from datasets.catalogue import read_hoss
from datasets.records import Modality
from datasets.sar import render_percentile
from datasets.ships.appearance import (
    describe_picture,
    grey_values,
    mean_distances,
    pixel_features,
    spectrum_slope,
    tell_apart,
)
from model.build import build_model
from tests.commands import call, settings, tiny_cfg
from tools import compare_worlds, make_dataset
from utils.checkpoint import save


def draws(seed=0):
    return np.random.default_rng(seed)


# Statistics


def test_statistics_of_a_chip_by_hand():
    picture = np.zeros((40, 20, 3), np.uint8)
    picture[10, 10] = 255
    picture[30, 5] = (255, 255, 255)
    picture[30, 15] = 100  # below half of the brightest
    found = describe_picture(picture, Modality.SAR)
    assert (found["length, m"], found["width, m"]) == (40, 20)
    assert found["mean grey"] == pytest.approx((2 * 255 + 100) / 255 / 800)
    assert found["bright points in 1,000 m2"] == pytest.approx(2 / 0.8)
    assert found["median grey"] == found["10 % of pixels above"] == 0
    assert "saturation" not in found
    optical = describe_picture(picture, Modality.OPTICAL)
    assert (optical["length, m"], optical["width, m"]) == (30, 15)


def test_colour_is_told_of_optical_chips():
    picture = np.full((60, 20, 3), (200, 100, 50), np.uint8)
    found = describe_picture(picture, Modality.OPTICAL)
    assert found["saturation"] == pytest.approx(0.75)
    assert found["blue / red"] == pytest.approx(0.25)
    assert grey_values(np.full((2, 2, 3), 255, np.uint8)) == pytest.approx(1)


@pytest.mark.parametrize("slope", [0.0, -2.0])
def test_the_slope_of_a_spectrum_is_found(slope):
    frequency = np.fft.rfftfreq(400)
    amplitude = np.where(frequency > 0, np.maximum(frequency, 1e-3) ** (slope / 2), 0)[:, None]
    phases = np.exp(2j * np.pi * draws().random((len(frequency), 200)))
    noise = np.fft.irfft(amplitude * phases, 400, axis=0).astype(np.float32)
    assert spectrum_slope(noise) == pytest.approx(slope, abs=0.1)


def test_distances_within_and_between_ships():
    features = np.eye(4, dtype=np.float32)[[0, 0, 1, 2]]
    found = mean_distances(features, ["a", "a", "b", "c"])
    np.testing.assert_allclose(found["within ships"], [0, 0, np.nan, np.nan])
    np.testing.assert_allclose(found["between ships"], 1)


def test_pixel_features_are_correlations():
    picture = draws().integers(0, 256, (128, 32, 3), dtype=np.uint8)
    first, brighter, negative = pixel_features([picture, picture // 2 + 60, 255 - picture])
    assert first @ brighter == pytest.approx(1, abs=0.01)
    assert first @ negative == pytest.approx(-1, abs=0.01)


# The classifier


def test_a_classifier_finds_a_difference_and_none_where_there_is_none():
    values = draws(1).normal(size=(200, 3))
    labels = np.arange(200) % 2 == 0
    groups = np.arange(200) // 2
    assert 0.35 < tell_apart(values, labels, groups).mean() < 0.65
    assert tell_apart(values + np.where(labels, 3, 0)[:, None] * [0, 1, 0], labels, groups).mean() > 0.85


def test_a_ship_is_not_recognised_from_its_other_chips():
    """Each ship is told by its own statistic only: without folds of ships a classifier would be right throughout."""
    ships = np.repeat(np.arange(40), 5)
    values = np.eye(40)[ships] * 3
    labels = draws(2).random(40)[ships] < 0.5
    assert tell_apart(values, labels, ships).mean() < 0.7


def test_worlds_of_unequal_size_leave_chance_at_a_half():
    labels = np.arange(300) < 40
    right = tell_apart(draws(3).normal(size=(300, 2)), labels, np.arange(300))
    assert 0.3 < (right[labels].mean() + right[~labels].mean()) / 2 < 0.7


# The command


@pytest.fixture(scope="module")
def worlds(tmp_path_factory):
    root = tmp_path_factory.mktemp("worlds")
    for name, seed in (("first", "1"), ("second", "2")):
        words = ["--train-ships", "8", "--test-ships", "5", "--seed", seed, "--workers", "1", "--spare-views", "0"]
        make_dataset.main(["--output", str(root / name), *words])
    cfg = tiny_cfg()
    save(root / "weights.pth", build_model(cfg).state_dict())
    return root


def compared(worlds, tmp_path, *options, **changes):
    words = ("--real", worlds / "first", "--output", tmp_path / "out", *options)
    ended = call(compare_worlds.main, *words, *settings(DATASETS__ROOT_DIR=worlds / "second", **changes))
    return ended, json.loads((tmp_path / "out" / "worlds.json").read_text()) if ended.status == 0 else None


def test_everything_is_told_and_drawn(worlds, tmp_path):
    ended, report = compared(worlds, tmp_path, TEST__WEIGHT=worlds / "weights.pth")
    assert ended.status == 0, ended.err
    for modality in Modality:
        rows = {row["statistic"]: row for row in report["statistics"][modality.name]}
        chips = [chip for chip in read_hoss(worlds / "first").train if chip.modality is modality]
        assert len(chips) > 10
        for row in rows.values():
            low, high = row["real_interval"]
            assert low <= row["real"] <= high
        assert rows["distance within ships"]["real"] < rows["distance between ships"]["real"]
        assert 0 < report["classifier"][modality.name]["right"] <= 1
    assert list(report["transfer"]) == ["pixels", "untrained network", "trained on rendered ships"]
    assert list(report["transfer"]["pixels"]) == ["ALL", "O2S", "S2O"]
    assert "a classifier of these statistics is right on" in ended.out and "queries" in ended.out
    sheet = Image.open(tmp_path / "out" / "worlds.png")
    assert sheet.mode == "RGB" and sheet.height == 4 * (compare_worlds.SHEET_HEIGHT + 6)


def test_statistics_are_those_of_the_chips(worlds, tmp_path):
    _, report = compared(worlds, tmp_path)
    data = read_hoss(worlds / "first")
    sar = [np.asarray(Image.open(chip.path)) for chip in (*data.train, *data.images) if chip.modality is Modality.SAR]
    rows = {row["statistic"]: row for row in report["statistics"]["SAR"]}
    assert rows["length, m"]["real"] == pytest.approx(np.mean([len(values) for values in sar]))
    grey = np.mean([render_percentile(values)[..., 0].mean() / 255 for values in sar])
    assert rows["mean grey"]["real"] == pytest.approx(grey, abs=1e-4)
    assert "transfer" not in report


@pytest.mark.parametrize(
    ("options", "status", "words"), [(("--chips", "3"), 2, "--chips"), (("--real", "nowhere"), 1, "nowhere")]
)
def test_wrong_calls_of_the_comparison_end_in_a_sentence(worlds, tmp_path, options, status, words):
    ended, _ = compared(worlds, tmp_path, *options)
    assert ended.status == status
    assert words in ended.sentence
