"""Files as the field makes them: each kind comes out as the values that it means, or is refused; none is read wrongly."""

import subprocess
import sys
from functools import partial

import numpy as np
import pytest
import rasterio
from PIL import Image
from rasterio.enums import ColorInterp

from datasets import chips
from datasets.chips import read_chip, read_header, read_optical, read_sar
from datasets.rasters import upright
from datasets.records import Chip, Modality
from datasets.sar import render_max, render_percentile
from tests.cases import FOLDER, TURNS, check_case, check_cases
from tests.chip_files import optical_pixels, sar_values
from tests.test_chips import refused

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")

REFUSED = {
    "optical/f32rgb_RGB.tif",
    "optical/grey16_RGB.png",
    "optical/rgba_nodata_border_RGB.tif",
    "optical/u16rgb_minisblack_RGB.tif",
    "sar_tiff/c64_SAR.tif",
}


def write_tiff(path, values, *, names=(), colours=(), **profile):
    """Write (H, W) or (H, W, C) values through GDAL."""
    bands = np.moveaxis(np.atleast_3d(values), -1, 0)
    profile = {"dtype": bands.dtype, "count": len(bands), "height": bands.shape[1], "width": bands.shape[2], **profile}
    with rasterio.open(path, "w", driver="GTiff", **profile) as file:
        file.write(bands)
        if colours:
            file.colorinterp = colours
        for number, name in enumerate(names, 1):
            file.set_band_description(number, name)
    return path


@pytest.fixture(autouse=True)
def nothing_said(monkeypatch):
    monkeypatch.setattr(chips, "_SAID", set())


def test_every_file_that_went_wrong_somewhere_is_read_rightly_or_refused():
    verdicts = list(check_cases())
    assert [str(verdict) for verdict in verdicts if verdict.word == "WRONG"] == []
    assert {verdict.name for verdict in verdicts if verdict.word == "refused"} == REFUSED
    assert len(verdicts) == 81


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("f32_orient6_SAR.tif", lambda truth: truth[::-1]),
        ("nodata_lin_m9999_SAR.tif", lambda truth: np.where(truth == -9999, 0, truth)),
        ("u16_SAR.tif", lambda truth: truth.byteswap()),
        ("vvvh_contig_SAR.tif", lambda truth: truth[..., ::-1]),
        ("u16_SAR.tif", lambda _: None),
    ],
)
def test_the_check_knows_wrong_values(name, change):
    with np.load(FOLDER / "sar_tiff" / "truth.npz") as file:
        truth = file[name.removesuffix("_SAR.tif")]
    path = FOLDER / "sar_tiff" / name
    assert check_case(path, truth).word == "ok"
    assert check_case(path, change(truth)).word == "WRONG"


def test_the_command_prints_a_line_a_file_and_fails_for_a_wrong_one(tmp_path):
    write_tiff(tmp_path / "a_SAR.tif", sar_values())
    write_tiff(tmp_path / "b_SAR.tif", sar_values().astype(np.complex64))
    for truth, status, word in ((sar_values(), 0, "ok"), (sar_values() * 2, 1, "WRONG")):
        np.savez(tmp_path / "truth.npz", a=truth)
        done = subprocess.run([sys.executable, "-m", "tests.cases", tmp_path], capture_output=True, text=True)
        assert done.returncode == status, done.stderr
        lines = [line.split()[:2] for line in done.stdout.splitlines()]
        assert lines == [[word, f"{tmp_path.name}/a_SAR.tif"], ["refused", f"{tmp_path.name}/b_SAR.tif"]]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["tif", "png", "jpg"])
def test_one_rule_for_orientation_tags(tmp_path, orientation, suffix):
    path = tmp_path / f"0001_RGB.{suffix}"
    exif = Image.Exif()
    exif[274] = orientation
    pixels = np.repeat(np.repeat(optical_pixels()[:6, :4], 8, axis=0), 8, axis=1)
    Image.fromarray(pixels).save(path, exif=exif)
    shown = Image.fromarray(pixels)
    shown = np.asarray(shown if orientation == 1 else shown.transpose(TURNS[orientation - 2]))
    picture = read_optical(path)
    assert picture.shape == shown.shape == (*read_header(path)[0][::-1], 3)
    assert np.abs(picture.astype(int) - shown).mean() <= (12 if suffix == "jpg" else 0)
    np.testing.assert_array_equal(upright(pixels, orientation), shown)


KINDS = {
    "complex": ({"values": sar_values().astype(np.complex64)}, "complex values"),
    "complex integers": ({"values": sar_values().astype(np.complex64), "dtype": "complex_int16"}, "complex values"),
    "white is zero": ({"values": optical_pixels()[..., 0], "photometric": "MINISWHITE"}, "MinIsWhite"),
    "CMYK": ({"values": np.dstack([optical_pixels(), optical_pixels()[..., 0]]), "photometric": "CMYK"}, "CMYK"),
    "holes": ({"values": np.zeros((40, 30), np.float32), "sparse_ok": True}, "lacks the data of"),
    "four bands": ({"values": np.dstack([sar_values() + i for i in range(4)])}, "INPUT.SAR_BAND"),
    "nothing": ({"values": np.full((9, 5), -9999, np.float32), "nodata": -9999}, "no value"),
    "all NaN": ({"values": np.full((9, 5), np.nan, np.float32)}, "no value"),
    "beyond float32": ({"values": sar_values().astype(np.float64) * 1e-40}, "multiply"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_sar_files_that_leave_something_open_are_refused_by_what_they_are(tmp_path, kind):
    options, word = KINDS[kind]
    path = write_tiff(tmp_path / "0001_SAR.tif", **options)
    refused(path, read_sar, word)


@pytest.mark.parametrize(
    "dtype", ["uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "float32", "float64"]
)
@pytest.mark.parametrize(
    "layout", [{}, {"compress": "lzw", "predictor": 2}, {"tiled": True, "blockxsize": 16, "blockysize": 16}]
)
@pytest.mark.parametrize("order", ["LITTLE", "BIG"])
@pytest.mark.parametrize("big", ["YES", "NO"])
def test_numbers_of_every_size_come_out_as_stored(tmp_path, dtype, layout, order, big):
    low = 0 if dtype.startswith("u") else -100
    stored = np.random.default_rng(1).integers(low, 120, (37, 21)).astype(dtype)
    layout = {key: value for key, value in layout.items() if key != "predictor" or "float" not in dtype}
    path = write_tiff(tmp_path / "0001_SAR.tif", stored, ENDIANNESS=order, BIGTIFF=big, **layout)
    np.testing.assert_array_equal(read_sar(path), stored.astype(np.float32))


@pytest.mark.parametrize(
    ("dtype", "nodata"), [("uint16", 65535), ("int16", -9999), ("float32", -9999), ("float32", 0), ("float64", -1e300)]
)
def test_declared_nodata_and_nan_have_no_value(tmp_path, dtype, nodata):
    stored = (sar_values() * 50 + 1).astype(dtype)
    stored[:7] = nodata
    unknown = np.zeros(stored.shape, bool)
    unknown[:7] = True
    if "float" in dtype:
        stored[20, 3], unknown[20, 3] = np.nan, True
    values = read_sar(write_tiff(tmp_path / "0001_SAR.tif", stored, nodata=nodata))
    np.testing.assert_array_equal(np.isnan(values), unknown)
    np.testing.assert_allclose(values[~unknown], stored[~unknown], rtol=1e-7)


def test_masked_and_transparent_pixels_of_a_sar_chip_have_no_value(tmp_path):
    path = tmp_path / "0001_SAR.tif"
    mask = np.full(sar_values().shape, 255, np.uint8)
    mask[3:9] = 0
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
        write_tiff(path, sar_values())
        with rasterio.open(path, "r+") as file:
            file.write_mask(mask)
    np.testing.assert_array_equal(np.isnan(read_sar(path)), mask == 0)
    Image.fromarray(np.dstack([mask // 2, mask])).save(tmp_path / "0001_SAR.png")
    np.testing.assert_array_equal(np.isnan(read_sar(tmp_path / "0001_SAR.png")), mask == 0)
    mask[0, 0] = 128
    Image.fromarray(np.dstack([mask // 2, mask])).save(tmp_path / "0001_SAR.png")
    refused(tmp_path / "0001_SAR.png", read_sar, "half-transparent")


@pytest.mark.parametrize("render", [render_percentile, render_max])
def test_pixels_without_a_value_change_nothing_and_are_black(tmp_path, render):
    known = sar_values(height=40)
    stored = np.vstack([np.full((8, known.shape[1]), 1e6, np.float32), known])
    path = write_tiff(tmp_path / "0001_SAR.tif", stored, nodata=1e6)
    picture = read_chip(Chip(path, 1, Modality.SAR, "query"), render)
    assert not picture[:8].any()
    np.testing.assert_array_equal(picture[8:], render(known))


@pytest.mark.parametrize(
    ("names", "band", "taken"),
    [
        ((), "auto", 0),
        (("VH", "VV"), "auto", 1),
        (("hv", "hh"), "auto", 1),
        (("VV", "VH"), "vh", 1),
        ((), "2", 1),
        (("VH", "VV"), "1", 0),
    ],
)
def test_of_two_polarisations_one_is_chosen_and_it_is_said_once(tmp_path, caplog, names, band, taken):
    stored = np.dstack([sar_values(1), sar_values(2)])
    paths = [write_tiff(tmp_path / f"{i}_SAR.tif", stored, names=names) for i in range(3)]
    for path in paths:
        np.testing.assert_array_equal(read_sar(path, band), stored[..., taken])
    assert caplog.text.count("several bands") == 1
    assert f"band {taken + 1} of 2" in caplog.text


@pytest.mark.parametrize("band", ["3", "0", "VV"])
def test_a_band_that_a_file_lacks_is_refused(tmp_path, band):
    path = write_tiff(tmp_path / "0001_SAR.tif", np.dstack([sar_values(1), sar_values(2)]))
    refused(path, partial(read_sar, band=band), f"INPUT.SAR_BAND is {band}")


@pytest.mark.parametrize("suffix", ["tif", "png", "jpg"])
def test_a_grey_picture_saved_with_colours_is_one_band_and_it_is_said_once(tmp_path, caplog, suffix):
    grey = optical_pixels()[..., 0]
    path = tmp_path / f"0001_SAR.{suffix}"
    Image.fromarray(np.repeat(grey[..., None], 3, axis=2)).save(path)
    values = read_sar(path)
    read_sar(path)
    assert np.abs(values - grey).mean() <= (12 if suffix == "jpg" else 0)
    assert caplog.text.count("equal bands") == 1


def test_colours_in_another_order_are_put_in_order(tmp_path):
    pixels = optical_pixels()
    order = (ColorInterp.blue, ColorInterp.green, ColorInterp.red)
    path = write_tiff(tmp_path / "0001_RGB.tif", pixels[..., ::-1], colours=order)
    np.testing.assert_array_equal(read_optical(path), pixels)


def test_files_beside_a_chip_are_not_believed(tmp_path):
    path = write_tiff(tmp_path / "0001_SAR.tif", sar_values())
    (tmp_path / "0001_SAR.tif.aux.xml").write_text(
        '<PAMDataset><PAMRasterBand band="1"><NoDataValue>0.5</NoDataValue></PAMRasterBand></PAMDataset>'
    )
    write_tiff(tmp_path / "0001_SAR.tif.msk", np.zeros(sar_values().shape, np.uint8))
    np.testing.assert_array_equal(read_sar(path), sar_values())


def test_overviews_and_thumbnails_are_no_pages(tmp_path):
    path = write_tiff(tmp_path / "0001_SAR.tif", sar_values())
    with rasterio.open(path, "r+") as file:
        file.build_overviews([2, 4])
    np.testing.assert_array_equal(read_sar(path), sar_values())
