"""Reading one chip: what is accepted comes out whole, everything else is refused by the name of the file."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from datasets.chips import read_chip, read_header, read_optical, read_sar, size_triple
from datasets.records import Chip, Modality
from datasets.sar import render_max, render_percentile
from tests.chip_files import optical_pixels, sar_values, write_chip
from utils.errors import DataError

GOLDEN = Path(__file__).parent / "golden" / "ship_size.npz"
READERS = {"RGB": read_optical, "SAR": read_sar}


def refused(path: Path, reader, *words: str) -> None:
    """Check that `reader` refuses `path` in one sentence that names it and holds `words`."""
    with pytest.raises(DataError) as caught:
        reader(path)
    text = str(caught.value)
    assert str(path) in text
    assert "\n" not in text
    assert caught.value.exit_status == 1
    for word in words:
        assert word in text


def test_size_triple_is_the_released_one():
    with np.load(GOLDEN, allow_pickle=False) as golden:
        for modality in Modality:
            triples = [size_triple(width, height, modality) for width, height in golden["wh"].tolist()]
            np.testing.assert_allclose(triples, golden[modality.name.lower()], rtol=0, atol=1e-12)


def test_an_optical_chip_of_the_same_metres_has_the_same_size_as_a_sar_chip():
    np.testing.assert_allclose(size_triple(40, 120, Modality.OPTICAL), size_triple(30, 90, Modality.SAR))


@pytest.mark.parametrize("suffix", [".tif", ".tiff", ".png", ".TIF"])
def test_lossless_optical_chips_come_out_as_written(tmp_path, suffix):
    path = write_chip(tmp_path / f"0001_RGB{suffix}", seed=3)
    np.testing.assert_array_equal(read_optical(path), optical_pixels(3), strict=True)
    assert read_header(path) == ((24, 60), True)


def test_a_float_sar_chip_comes_out_as_written(tmp_path):
    path = write_chip(tmp_path / "0001_SAR.tif", seed=3)
    np.testing.assert_array_equal(read_sar(path), sar_values(3), strict=True)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".jpeg", ".JPG"])
def test_8_bit_sar_chips_are_values(tmp_path, suffix):
    path = write_chip(tmp_path / f"0001_SAR{suffix}", seed=3)
    values = read_sar(path)
    assert values.dtype == np.float32
    assert values.shape == (45, 18)
    assert values.max() > 200, "values as stored, not divided by 255"


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_16_bit_sar_chips_are_values(tmp_path, suffix):
    stored = np.random.default_rng(0).integers(0, 65536, (9, 7), dtype=np.uint16)
    path = tmp_path / f"0001_SAR{suffix}"
    cv2.imwrite(str(path), stored)
    np.testing.assert_array_equal(read_sar(path), stored.astype(np.float32))


def test_a_jpeg_named_rgb_is_optical(tmp_path):
    path = write_chip(tmp_path / "0001_RGB.jpg")
    picture = read_chip(Chip(path, 1, Modality.OPTICAL, "query"), render_percentile)
    assert picture.shape == (60, 24, 3)
    assert (picture[..., 0] != picture[..., 1]).any()


def test_a_sar_record_is_rendered(tmp_path):
    path = write_chip(tmp_path / "0001_SAR.tif", seed=5)
    picture = read_chip(Chip(path, 1, Modality.SAR, "query"), render_percentile)
    np.testing.assert_array_equal(picture, render_percentile(sar_values(5)))


def test_grey_palette_and_opaque_alpha_are_the_rgb_that_they_show(tmp_path):
    pixels = optical_pixels()
    Image.fromarray(pixels[..., 0]).save(tmp_path / "grey.png")
    np.testing.assert_array_equal(read_optical(tmp_path / "grey.png"), np.repeat(pixels[..., :1], 3, axis=2))
    palette = Image.fromarray(pixels).quantize(16)
    palette.save(tmp_path / "palette.png")
    np.testing.assert_array_equal(read_optical(tmp_path / "palette.png"), np.asarray(palette.convert("RGB")))
    opaque = np.dstack([pixels, np.full(pixels.shape[:2], 255, np.uint8)])
    for name in ("opaque.png", "opaque.tif"):
        Image.fromarray(opaque).save(tmp_path / name)
        np.testing.assert_array_equal(read_optical(tmp_path / name), pixels)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_transparent_optical_chips_are_refused(tmp_path, suffix):
    pixels = np.dstack([optical_pixels(), np.full((60, 24), 255, np.uint8)])
    pixels[0, 0, 3] = 254
    path = tmp_path / f"0001_RGB{suffix}"
    Image.fromarray(pixels).save(path)
    refused(path, read_optical, "transparent", "without an alpha band")
    refused(path, read_sar, "one band")


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("shape", [(20, 10), (20, 10, 3)])
def test_16_bit_optical_chips_are_refused(tmp_path, suffix, shape):
    path = tmp_path / f"0001_RGB{suffix}"
    cv2.imwrite(str(path), np.full(shape, 4000, np.uint16))
    refused(path, read_optical, "more than 8 bits")


def test_a_fourth_band_of_unknown_meaning_is_refused(tmp_path):
    path = tmp_path / "0001_RGB.tif"
    Image.frombytes("RGBX", (10, 20), bytes(800)).save(path)
    refused(path, read_optical, "4 band(s)")


@pytest.mark.parametrize("kind", READERS)
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_two_bands_are_refused(tmp_path, kind, suffix):
    path = tmp_path / f"0001_{kind}{suffix}"
    Image.fromarray(optical_pixels()[..., :2]).save(path)
    refused(path, READERS[kind])


def test_three_bands_are_no_sar_chip_and_floats_no_optical_one(tmp_path):
    refused(write_chip(tmp_path / "0001_RGB.tif"), read_sar, "3 band(s)", "one band")
    refused(write_chip(tmp_path / "0001_SAR.tif"), read_optical, "8-bit RGB")


@pytest.mark.parametrize("kind", READERS)
def test_several_pages_are_refused(tmp_path, kind):
    path = tmp_path / f"0001_{kind}.tif"
    pages = [Image.fromarray(optical_pixels(i) if kind == "RGB" else sar_values(i)) for i in range(3)]
    pages[0].save(path, save_all=True, append_images=pages[1:])
    refused(path, READERS[kind], "3 pages")
    refused(path, read_header, "3 pages")


@pytest.mark.parametrize("kind", READERS)
def test_missing_empty_and_foreign_files_are_refused(tmp_path, kind):
    path = tmp_path / f"0001_{kind}.tif"
    refused(path, READERS[kind], "does not exist")
    path.touch()
    refused(path, READERS[kind], "empty")
    path.write_text("<html>404</html>" * 50)
    refused(path, READERS[kind], "no TIFF, PNG or JPEG")
    Image.fromarray(optical_pixels()).save(path, format="GIF")
    refused(path, READERS[kind], "no TIFF, PNG or JPEG")


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow warns of some damage before it fails.
@pytest.mark.parametrize("name", ["0001_RGB.tif", "0001_RGB.png", "0001_RGB.jpg", "0001_SAR.tif", "0001_SAR.png"])
def test_truncated_files_are_refused_wherever_they_end(tmp_path, name):
    path = write_chip(tmp_path / name, height=30, width=12)
    content = path.read_bytes()
    reader = READERS[path.stem[-3:]]
    whole = reader(path)
    for length in range(1, len(content), 37):
        path.write_bytes(content[:length])
        try:
            # A file cut behind its last pixel (tags, end marker) is whole to every reader.
            np.testing.assert_array_equal(reader(path), whole)
            assert length > 0.9 * len(content)
        except DataError as error:
            assert str(path) in str(error)


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow warns of some damage before it fails.
@pytest.mark.parametrize("name", ["0001_RGB.tif", "0001_RGB.png", "0001_RGB.jpg", "0001_SAR.tif"])
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=8))
def test_damaged_bytes_give_a_picture_or_a_refusal_and_nothing_else(tmp_path, name, changes):
    path = write_chip(tmp_path / name, height=30, width=12)
    content = bytearray(path.read_bytes())
    for place, value in changes:
        # Headers and tags stand at the ends, where damage does most.
        content[int(place**3 * len(content))] = value
    path.write_bytes(content)
    modality = Modality.SAR if "SAR" in name else Modality.OPTICAL
    try:
        picture = read_chip(Chip(path, 1, modality, "query"), render_percentile)
    except DataError as error:
        assert str(path) in str(error)
    else:
        assert picture.dtype == np.uint8
        assert picture.ndim == 3


@pytest.mark.parametrize("value", [np.inf, -np.inf, 3e38])
def test_sar_values_that_are_not_finite_are_refused(tmp_path, value):
    values = sar_values()
    values[7, 5] = value
    path = tmp_path / "0001_SAR.tif"
    Image.fromarray(values).save(path)
    refused(path, read_sar, "infinite or above")


@pytest.mark.parametrize("value", [0.0, 0.37])
def test_a_sar_chip_of_one_value_is_black(tmp_path, value):
    path = tmp_path / "0001_SAR.tif"
    Image.fromarray(np.full((20, 10), value, np.float32)).save(path)
    assert not read_chip(Chip(path, 1, Modality.SAR, "query"), render_percentile).any()


def test_a_rendering_that_refuses_names_the_file(tmp_path):
    path = tmp_path / "0001_SAR.tif"
    Image.fromarray(-1 - sar_values()).save(path)
    refused(path, lambda path: read_chip(Chip(path, 1, Modality.SAR, "query"), render_max), "decibels")


def test_a_picture_too_large_for_a_ship_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    path = write_chip(tmp_path / "0001_RGB.png")
    monkeypatch.setattr(Image.Image, "convert", lambda *_: pytest.fail("decoded"))
    refused(path, lambda path: read_optical(path, max_pixels=1439), "24 x 60 pixels, more than the 1,439 of a ship")
    made = Chip(path, 1, Modality.SAR, "query", source=Chip(path, 1, Modality.OPTICAL, "query"))
    refused(path, lambda _: read_chip(made, render_max, max_pixels=1439), "INPUT.MAX_PIXELS")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    refused(path, read_optical, "decompression bomb")
