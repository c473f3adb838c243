"""Filters against speckle: on speckle whose truth is known they smooth, and keep edges and means; odd chips do no harm."""

import numpy as np
import pytest

from datasets.chips import read_chip
from datasets.despeckle import CLAHE_LIMIT, equalise, lee, noise_deviation, non_local_means
from datasets.records import Chip, Modality
from datasets.sar import build_sar_rendering, render_percentile
from tests.chip_files import sar_values, write_chip
from utils.errors import DataError

FILTERS = ("lee", "nlm", "clahe")
SEA, SHIP = 1.0, 8.0
INNER = (slice(16, 64), slice(20, 28))
"""Well inside the ship of `scene`."""

OUTER = (slice(4, 76), slice(3, 11))
"""Well outside it."""


def scene() -> np.ndarray:
    """Intensities without noise: a bright ship with sharp edges on an even sea, (80, 48) float32."""
    values = np.full((80, 48), SEA, np.float32)
    values[8:72, 16:32] = SHIP
    return values


def speckled(values: np.ndarray, *, looks: float = 4.0, seed: int = 0) -> np.ndarray:
    """`values` times gamma noise of mean 1 and variance 1 / looks."""
    noise = np.random.default_rng(seed).gamma(looks, 1 / looks, values.shape)
    return (values * noise).astype(np.float32)


def edge(picture: np.ndarray) -> float:
    """Step of the mean from the last column outside the ship to the first one inside."""
    columns = picture[16:64].astype(float).mean(0)
    return columns[16] - columns[15]


@pytest.mark.parametrize(("despeckle", "brightness"), [(lee, 1.0), (non_local_means, np.exp(-1 / 8))])
def test_speckle_is_smoothed_and_means_and_edges_stay(despeckle, brightness):
    """`brightness`: a mean of logarithms lies below the mean by about half the noise's variance, 1 / 4, everywhere alike."""
    noisy = speckled(scene())
    filtered = despeckle(noisy)
    for place, level in ((INNER, SHIP), (OUTER, SEA)):
        assert filtered[place].var() < 0.35 * noisy[place].var()
        assert filtered[place].mean() == pytest.approx(level * brightness, rel=0.08)
    assert edge(filtered) > 0.75 * edge(noisy) * brightness
    blurred = np.stack([np.convolve(row, np.ones(5) / 5, "same") for row in noisy])
    assert edge(filtered) > 3 * edge(blurred)  # a mean over a window of that size spreads the edge over it


@pytest.mark.parametrize("despeckle", [lee, non_local_means])
def test_despeckling_does_not_depend_on_the_unit(despeckle):
    noisy = speckled(scene())
    for factor in (2.0**-60, 2.0**60):
        scaled = despeckle(noisy * np.float32(factor)) / np.float32(factor)
        np.testing.assert_allclose(scaled, despeckle(noisy), rtol=1e-5)


@pytest.mark.parametrize("despeckle", [lee, non_local_means])
def test_despeckled_values_stay_within_the_range_of_the_chip(despeckle):
    noisy = speckled(scene(), looks=1.0)
    filtered = despeckle(noisy)
    assert filtered.dtype == np.float32
    assert filtered.min() >= 0 and filtered.max() <= noisy.max()


@pytest.mark.parametrize("despeckle", [lee, non_local_means])
def test_pictures_without_noise_stay_as_they_are(despeckle):
    np.testing.assert_allclose(despeckle(scene()), scene(), rtol=1e-6)


def test_noise_is_measured_in_spite_of_edges():
    noisy = 60 + 15 * scene() + np.random.default_rng(0).normal(0, 12, (80, 48))
    assert noise_deviation(np.clip(noisy, 0, 255).astype(np.uint8)) == pytest.approx(12, rel=0.1)
    assert noise_deviation(np.zeros((1, 1), np.uint8)) == 0


def test_equalisation_spreads_dark_levels_without_end():
    dark = speckled(scene() * 4).clip(0, 255).astype(np.uint8)
    bright = equalise(dark)
    for place in (INNER, OUTER):
        assert 1 < bright[place].std() / dark[place].std() < 255  # more contrast in the dark and in the bright part
    assert bright[INNER].mean() > bright[OUTER].mean()
    even = np.full((64, 64), 7, np.uint8)
    assert np.array_equal(equalise(even), even)
    assert CLAHE_LIMIT > 1


@pytest.mark.parametrize("name", FILTERS)
def test_a_rendering_is_grey_and_the_same_each_time(name):
    values = sar_values(3)
    picture = build_sar_rendering(name)(values)
    assert (picture.shape, picture.dtype) == ((*values.shape, 3), np.uint8)
    assert (picture == picture[..., :1]).all()
    assert np.array_equal(build_sar_rendering(name)(values), picture)
    assert not np.array_equal(picture, render_percentile(values))


@pytest.mark.parametrize("name", FILTERS)
def test_percentiles_count_in_every_filtered_rendering(name):
    values = sar_values(3)
    pictures = [build_sar_rendering(name, low=low, high=high)(values) for low, high in ((5, 100), (40, 100), (5, 90))]
    assert not np.array_equal(pictures[0], pictures[1]) and not np.array_equal(pictures[0], pictures[2])


@pytest.mark.parametrize("name", FILTERS)
@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (2, 3), (100, 5)])
def test_small_and_even_chips_do_no_harm(name, shape):
    render = build_sar_rendering(name)
    with np.errstate(all="raise", under="ignore"):
        assert render(sar_values(1, height=shape[0], width=shape[1])).shape == (*shape, 3)
        for level in (0.0, 3.0, 1e25):
            assert not render(np.full(shape, level, np.float32)).any()  # black, as by the percentiles alone


@pytest.mark.parametrize("name", ["lee", "nlm"])
def test_decibels_are_refused_by_the_name_of_the_chip(tmp_path, name):
    record = Chip(write_chip(tmp_path / "1_SAR.tif"), 1, Modality.SAR, "query")
    with pytest.raises(DataError, match=r"1_SAR\.tif has values below 0 \(decibels\?\)"):
        read_chip(record, lambda values: build_sar_rendering(name)(values - 1))
    assert read_chip(record, lambda values: build_sar_rendering("clahe")(values - 1)).any()
