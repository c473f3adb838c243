"""A folder as the field makes it: OpenSARShip-like chips of two bands, by many writers, some of them broken.

MOS_FIELD_CHIPS=351 makes as many files as a real folder has; by default there are 39.
"""

import csv
import importlib.util
import json
import os
import struct
from pathlib import Path

import cv2
import numpy as np
import pytest
import rasterio
import tifffile

from tests.test_identify import pattern, world  # noqa: F401 - a fixture
from tests.test_rank import SETTINGS
from tools import identify, rank
from utils.errors import DataError

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
COUNT = int(os.environ.get("MOS_FIELD_CHIPS", "39"))


def values_of(number: int) -> np.ndarray:
    """VV and VH of a ship, (2, H, W) float64, of any size that chips have."""
    rng = np.random.default_rng(number)
    height, width = rng.integers(30, 140, 2)
    vv = cv2.resize(pattern(101 + number % 6, number, "SAR").astype(np.float64), (int(width), int(height))) * 3 + 1
    return np.stack([vv, vv * rng.uniform(0.1, 0.3)])


def by_gdal(dtype: str, scale: float = 1.0, **profile):
    def write(path: Path, values: np.ndarray) -> None:
        bands = (values * scale).astype(dtype)
        shape = {"count": 2, "height": bands.shape[1], "width": bands.shape[2], "dtype": dtype}
        with rasterio.open(path, "w", driver="GTiff", **shape, **profile) as file:
            file.write(bands)
            for number, name in enumerate(("VV", "VH"), 1):
                file.set_band_description(number, name)

    return write


def by_tifffile(dtype: str, **options):
    return lambda path, values: tifffile.imwrite(path, values.astype(dtype), photometric="minisblack", **options)


WRITERS = {
    "float32": by_gdal("float32"),
    "float64": by_gdal("float64"),
    "deflate": by_gdal("float32", compress="deflate", predictor=3),
    "lzw": by_gdal("uint16", compress="lzw", predictor=2),
    "tiled": by_gdal("float32", tiled=True, blockxsize=16, blockysize=16, compress="zstd"),
    "pixels": by_gdal("uint16", interleave="pixel"),
    "big": by_gdal("float32", BIGTIFF="YES"),
    "tiny": by_gdal("float32", scale=1e-9),
    "signed": by_gdal("int32"),
    "nodata": by_gdal("float32", nodata=-9999.0),
    "planes": by_tifffile("float32", planarconfig="separate"),
    "bigendian": by_tifffile("uint16", byteorder=">", planarconfig="separate"),
}
"""Way of writing -> writer."""

BREAKAGES = {
    "empty": lambda content: b"",
    "cut": lambda content: content[: len(content) // 3],
    "text": lambda content: b"<html>404 not found</html>",
    "zeros": lambda content: bytes(len(content)),
    "promises": lambda content: b"II*\0" + struct.pack("<I", 2**31),
}
"""What became of a file -> its bytes, of what they were."""


def write_field(root: Path, count: int) -> set[str]:
    """Write `count` files in folders by class and day; returns those that are broken."""
    broken = set()
    for number in range(count):
        way = list(WRITERS)[number % len(WRITERS)]
        name = f"{('Cargo', 'Tanker', 'Other')[number % 3]}/2026-01-{1 + number // 60:02d}/{way} x{number}_y{7 * number}.tif"
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        WRITERS[way](path, values_of(number))
        if number % 13 == 5:
            damage = list(BREAKAGES)[number // 13 % len(BREAKAGES)]
            path.write_bytes(BREAKAGES[damage](path.read_bytes()))
            broken.add(name)
    (root / "readme.txt").write_text("not a chip")
    return broken


@pytest.fixture(scope="module")
def field(tmp_path_factory) -> tuple[Path, set[str]]:
    root = tmp_path_factory.mktemp("field")
    return root / "chips", write_field(root / "chips", COUNT)


def words(world, *more: object) -> list[str]:  # noqa: F811
    return ["--weights", str(world / "w.pth"), *map(str, more), "--skip-bad", *SETTINGS]


def test_every_file_is_ranked_or_counted(world, field, tmp_path):  # noqa: F811
    chips, broken = field
    told = rf"{len(broken)} of {COUNT + 24} files were skipped \(listed above\); everything else was done"
    with pytest.raises(DataError, match=told):
        rank.main(words(world, "--query", chips, "--gallery", world / "known", "--output", tmp_path))
    found = json.loads((tmp_path / "prediction.json").read_text())
    assert len(found) == COUNT - len(broken) and not found.keys() & broken
    with (tmp_path / "ranking.csv").open(newline="") as file:
        assert {row["query_modality"] for row in csv.DictReader(file)} == {"sar"}
    # The network was never trained, but SAR pictures of one ship are alike whoever wrote them.
    right = [found[name][0].split("/")[0] == f"ship {101 + int(name.split(' x')[1].split('_')[0]) % 6}" for name in found]
    assert np.mean(right) > 0.6


def test_every_file_is_answered_or_counted(world, field, tmp_path):  # noqa: F811
    chips, broken = field
    with pytest.raises(DataError, match=f"{len(broken)} of {COUNT + 24} files were skipped"):
        identify.main(words(world, "--query", chips, "--known", world / "known", "--output", tmp_path))
    with (tmp_path / "answers.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == COUNT - len(broken)
    assert (tmp_path / "answers.html").read_text().count('<section class="answer"') == len(rows)


def test_every_file_is_indexed_or_counted_and_a_second_run_adds_none(world, field, tmp_path, capsys):  # noqa: F811
    if importlib.util.find_spec("lancedb") is None:
        pytest.skip("needs LanceDB (requirements-search.txt)")
    from tools import index

    chips, broken = field
    for told in (f"{COUNT - len(broken)} chips added, 0 amended, 0 as they were", "0 chips added, 0 amended"):
        with pytest.raises(DataError, match=f"{len(broken)} of .* files were skipped"):
            index.main(words(world, "--chips", chips, "--index", tmp_path / "index", "--batch", 10))
        assert told in capsys.readouterr().out
