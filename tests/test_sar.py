"""SAR renderings: the released pictures to the bit, and what they do with odd values."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from datasets.sar import build_sar_rendering, render_max, render_percentile
from utils.errors import UsageError

GOLDEN = Path(__file__).parent / "golden" / "sar_to_rgb.npz"


@pytest.mark.parametrize("case", ["0", "1", "2", "_const"])
def test_percentile_rendering_is_the_released_one_to_the_bit(case):
    with np.load(GOLDEN, allow_pickle=False) as golden:
        np.testing.assert_array_equal(render_percentile(golden["in" + case]), golden["mos" + case], strict=True)


@pytest.mark.parametrize("case", ["0", "1", "2"])
def test_max_rendering_is_the_released_one_to_the_bit(case):
    with np.load(GOLDEN, allow_pickle=False) as golden:
        np.testing.assert_array_equal(render_max(golden["in" + case]), golden["transoss" + case], strict=True)


def test_percentiles_worked_by_hand():
    values = np.arange(101, dtype=np.float32).reshape(1, 101)
    picture = render_percentile(values, low=10, high=60)
    assert picture[0, 10].tolist() == [0, 0, 0]
    assert picture[0, 0].tolist() == [0, 0, 0], "what lies below the lower percentile is cut"
    assert picture[0, 35].tolist() == [127, 127, 127], "half way, truncated"
    assert picture[0, 60].tolist() == picture[0, 100].tolist() == [255, 255, 255]


@pytest.mark.parametrize("name", ["percentile", "max"])
def test_zeros_are_black(name):
    picture = build_sar_rendering(name)(np.zeros((5, 4), np.float32))
    assert picture.shape == (5, 4, 3)
    assert not picture.any()


@given(
    arrays(
        np.float32,
        array_shapes(min_dims=2, max_dims=2),
        elements=st.floats(-(2.0**83), 2.0**83, width=32, allow_subnormal=False),
    )
)
def test_any_finite_values_give_a_grey_picture_without_a_warning(values):
    with np.errstate(all="raise", under="ignore"):
        picture = render_percentile(values)
    assert picture.dtype == np.uint8
    assert (picture == picture[..., :1]).all()


@given(
    arrays(np.float32, (6, 5), elements=st.floats(0, 100, width=32, allow_subnormal=False)),
    st.sampled_from(["percentile", "max"]),
)
def test_brighter_values_are_never_darker(values, name):
    picture = build_sar_rendering(name)(values)[..., 0].ravel()
    order = values.ravel().argsort()
    assert (np.diff(picture[order].astype(int)) >= 0).all()


def test_max_cuts_negative_values_and_refuses_decibels():
    assert render_max(np.array([[-1, 2]], np.float32))[0, :, 0].tolist() == [0, 255]
    with pytest.raises(ValueError, match="decibels"):
        render_max(np.array([[-20, -3]], np.float32))


def test_a_rendering_is_chosen_by_name_with_its_percentiles():
    values = np.arange(101, dtype=np.float32).reshape(1, 101)
    chosen = build_sar_rendering("percentile", low=10, high=60)
    np.testing.assert_array_equal(chosen(values), render_percentile(values, low=10, high=60))
    assert build_sar_rendering("max") is render_max


@pytest.mark.parametrize(
    ("name", "low", "high"), [("median", 5, 100), ("percentile", 50, 50), ("max", -1, 100), ("max", 5, 101)]
)
def test_unknown_names_and_percentiles_out_of_range_are_refused(name, low, high):
    with pytest.raises(UsageError, match=r"INPUT\.SAR_.*(choose one of|must satisfy)"):
        build_sar_rendering(name, low=low, high=high)


@pytest.mark.parametrize("factor", [1e-9, 1e-4, 1e6])
def test_the_unit_does_not_matter(factor):
    values = np.random.default_rng(3).gamma(1.0, 0.3, (60, 20)).astype(np.float32)
    picture = render_percentile(values)
    other = render_percentile(values * np.float32(factor))
    assert other.max() == 255
    difference = np.abs(picture.astype(int) - other)
    assert difference.max() <= 1 and (difference > 0).mean() < 0.002, "what rounding to 8 bits may change"


@pytest.mark.parametrize("name", ["percentile", "max", "lee", "nlm", "clahe"])
def test_pixels_without_a_value_are_black_and_take_no_part(name):
    values = np.random.default_rng(4).gamma(4.0, 0.25, (60, 40)).astype(np.float32)
    values[20:40, 15:25] += 6
    render = build_sar_rendering(name)
    holed = np.vstack([np.full((30, 40), np.nan, np.float32), values])
    picture, whole = render(holed), render(values)
    assert not picture[:30].any()
    # Filters look two pixels and more around; elsewhere nothing changes that matters.
    difference = np.abs(picture[30:].astype(int) - whole)
    assert difference[10:].mean() <= {"percentile": 0, "max": 0, "lee": 0.6, "nlm": 3, "clahe": 25}[name]
