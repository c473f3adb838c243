"""From a scene to an answer: ships are cut out of scenes upright and at one pixel size, and are found again."""

import csv
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import rasterio
from rasterio.transform import from_origin
from rasterio.warp import transform

from datasets.chips import read_optical, read_sar
from datasets.curation.boxes import read_boxes
from datasets.records import Chip, Modality, Split
from datasets.ships.counts import View
from datasets.ships.world import World
from tests.test_rank import run as rank
from tests.test_rank import weights  # noqa: F401  (a fixture)
from tools import cut_chips
from utils.errors import DataError, UsageError

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
SHIPS = 4
ANGLES = (0, 35, 90, 140)
"""Degrees from north to the bow, clockwise."""


def chip_of(number: int, modality: Modality) -> np.ndarray:
    """A procedural ship, bow up."""
    view = View(Chip(Path(f"{number}.tif"), number, modality, Split.GALLERY), number, scene=1, camera=1)
    return World(seed=5, difficulty=0.0, scenes=8).draw(view)


def draw_scene(path: Path, modality: Modality, pixel: float, crs: str | None = "EPSG:32650", **profile) -> list[np.ndarray]:
    """Write a scene of `SHIPS` ships, `pixel` metres a pixel; returns the corners of each, in pixels."""
    chip_pixel = 0.75 if modality is Modality.OPTICAL else 1.0
    size, factor = round(900 / pixel), chip_pixel / pixel
    chips = [np.atleast_3d(chip_of(number + 1, modality)).astype(np.float32) for number in range(SHIPS)]
    sea = np.median(chips[0][:3].reshape(-1, chips[0].shape[2]), axis=0)
    scene = np.broadcast_to(sea, (size, size, len(sea))).copy()
    boxes = []
    for number, (chip, angle) in enumerate(zip(chips, ANGLES)):
        height, width = chip.shape[:2]
        middle = np.array([225 + 450 * (number % 2), 225 + 450 * (number // 2)]) / pixel
        turn = np.deg2rad(angle)
        rotation = factor * np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
        matrix = np.column_stack([rotation, middle - 0.5 - rotation @ (np.array([width, height]) / 2 - 0.5)])
        inside = cv2.warpAffine(np.ones((height, width), np.float32), matrix, (size, size)) > 0.99
        flags = cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR
        scene[inside] = cv2.warpAffine(chip, matrix, (size, size), flags=flags).reshape(size, size, -1)[inside]
        hull = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * np.array([width / 1.25, height / 1.1]) / 2
        boxes.append(middle + hull @ rotation.T)
    values = np.moveaxis(scene if modality is Modality.SAR else scene.round().astype(np.uint8), -1, 0)
    georeference = {"crs": crs, "transform": from_origin(500_000, 3_000_000, pixel, pixel)} if crs else {}
    shape = {"count": len(values), "dtype": values.dtype, "height": size, "width": size}
    with rasterio.open(path, "w", driver="GTiff", tiled=True, **shape, **georeference, **profile) as file:
        file.write(values)
    return boxes


def write_dota(path: Path, boxes: list[np.ndarray]) -> Path:
    lines = [" ".join(f"{value:.3f}" for value in box.ravel()) + " ship 0" for box in boxes]
    path.write_text("imagesource:x\ngsd:0.5\n" + "\n".join(lines) + "\n")
    return path


def run(*words: object) -> None:
    cut_chips.main([str(word) for word in words])


def likeness(one: np.ndarray, other: np.ndarray) -> float:
    """The correlation of two pictures of about one size, bow up or down."""
    size = (min(one.shape[1], other.shape[1]), min(one.shape[0], other.shape[0]))
    one, other = (cv2.GaussianBlur(cv2.resize(np.float32(picture), size), (0, 0), 1).ravel() for picture in (one, other))
    return float(np.corrcoef(one, other)[0, 1])


@pytest.mark.parametrize(
    ("modality", "pixel"), [(Modality.OPTICAL, 0.75), (Modality.OPTICAL, 0.5), (Modality.SAR, 1.0), (Modality.SAR, 1.5)]
)
def test_ships_come_out_of_a_scene_upright_and_at_the_pixel_size_of_hoss(tmp_path, modality, pixel):
    name = "port_RGB.tif" if modality is Modality.OPTICAL else "port_SAR.tif"
    boxes = draw_scene(tmp_path / name, modality, pixel)
    run("--scene", tmp_path / name, "--boxes", write_dota(tmp_path / "b.txt", boxes), "--output", tmp_path / "chips")
    read = read_optical if modality is Modality.OPTICAL else read_sar
    rows = list(csv.DictReader((tmp_path / "chips" / "chips.csv").open()))
    assert len(rows) == SHIPS
    metres = 0.75 if modality is Modality.OPTICAL else 1.0
    for number, row in enumerate(rows):
        chip, original = read(tmp_path / "chips" / row["chip"]), chip_of(number + 1, modality)
        assert np.abs(np.subtract(chip.shape[:2], original.shape[:2])).max() <= 2
        assert likeness(chip, original) > 0.9, ANGLES[number]
        assert float(row["angle"]) == pytest.approx(ANGLES[number], abs=0.2)
        assert float(row["length"]) == pytest.approx(original.shape[0] * metres / 1.1, abs=1)
        assert (row["sensor"], row["scene"]) == (modality.name.lower(), str(tmp_path / name))
        assert float(row["longitude"]) == pytest.approx(117, abs=0.02) and float(row["latitude"]) == pytest.approx(
            27.1, abs=0.1
        )
    with rasterio.open(tmp_path / "chips" / rows[0]["chip"]) as file:
        assert file.dtypes[0] == ("uint8" if modality is Modality.OPTICAL else "float32")


def test_from_scene_to_answer(tmp_path, weights):  # noqa: F811
    """The ships of a scene are found among all chips of the world, by a network that was never trained."""
    boxes = draw_scene(tmp_path / "port_SAR.tif", Modality.SAR, 1.0)
    run("--scene", tmp_path / "port_SAR.tif", "--boxes", write_dota(tmp_path / "b.txt", boxes), "--output", tmp_path / "chips")
    (tmp_path / "known").mkdir()
    for number in range(1, 3 * SHIPS + 1):
        values = chip_of(number, Modality.SAR)
        if number % 2:
            values = values[::-1, ::-1]  # a scene does not tell the bow
        cv2.imwrite(str(tmp_path / "known" / f"ship{number}_SAR.tif"), values)
    rank(tmp_path / "chips", tmp_path / "known", weights, "--output", tmp_path / "out", "--both-ends")
    found = json.loads((tmp_path / "out" / "prediction.json").read_text())
    assert [found[f"port_SAR_{n:04d}_SAR.tif"][0] for n in range(1, SHIPS + 1)] == [
        f"ship{n}_SAR.tif" for n in range(1, SHIPS + 1)
    ]


def test_boxes_of_every_kind_give_the_same_chips(tmp_path):
    boxes = draw_scene(tmp_path / "s_SAR.tif", Modality.SAR, 1.0)
    with rasterio.open(tmp_path / "s_SAR.tif") as scene:
        on_map = [np.column_stack(rasterio.transform.xy(scene.transform, *(box.T[::-1] - 0.5))) for box in boxes]
        degrees = [np.column_stack(transform(scene.crs, "EPSG:4326", *box.T.tolist())) for box in on_map]
    ring = [np.vstack([box, box[:1]]).tolist() for box in degrees]
    features = [
        {"type": "Feature", "properties": {"ship": f"s{n}", "time": "t"}, "geometry": {"type": "Polygon", "coordinates": [r]}}
        for n, r in enumerate(ring)
    ]
    (tmp_path / "a.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    header = ",".join(f"{axis}{n}" for n in range(1, 5) for axis in "xy")
    (tmp_path / "b.csv").write_text("\n".join([header, *(",".join(map(str, box.ravel())) for box in on_map)]))
    turned = []
    for box in boxes:
        across = box[1] - box[0]
        size = np.linalg.norm(across), np.linalg.norm(box[2] - box[1])
        turned.append([*box.mean(axis=0), *size, np.degrees(np.arctan2(across[1], across[0]))])
    (tmp_path / "c.csv").write_text("\n".join(["cx,cy,w,h,angle", *(",".join(map(str, box)) for box in turned)]))
    write_dota(tmp_path / "d.txt", boxes)
    cut = {}
    for name, words in (("d.txt", ()), ("a.geojson", ()), ("b.csv", ("--coordinates", "map")), ("c.csv", ())):
        run("--scene", tmp_path / "s_SAR.tif", "--boxes", tmp_path / name, "--output", tmp_path / name[0], *words)
        cut[name] = [read_sar(path) for path in sorted((tmp_path / name[0]).glob("*.tif"))]
    for chips in cut.values():
        for chip, expected in zip(chips, cut["d.txt"], strict=True):
            assert chip.shape == expected.shape and likeness(chip, expected) > 0.999
    row = next(csv.DictReader((tmp_path / "a" / "chips.csv").open()))
    assert (row["ship"], row["time"]) == ("s0", "t")


def test_scenes_of_16_bits_are_stretched_as_one_and_nodata_stays_unknown(tmp_path):
    boxes = draw_scene(tmp_path / "s_RGB.tif", Modality.OPTICAL, 0.75)
    with rasterio.open(tmp_path / "s_RGB.tif") as file:
        values, profile = file.read(), file.profile
    profile.update(dtype="uint16", nodata=0)
    values = values.astype(np.uint16) * 40
    with rasterio.open(tmp_path / "s16_RGB.tif", "w", **profile) as file:
        file.write(values)
    for name in ("s", "s16"):
        run(
            "--scene",
            tmp_path / f"{name}_RGB.tif",
            "--boxes",
            write_dota(tmp_path / "b.txt", boxes),
            "--output",
            tmp_path / name,
        )
    for number in range(1, SHIPS + 1):
        one = read_optical(tmp_path / "s" / f"s_RGB_{number:04d}_RGB.tif")
        other = read_optical(tmp_path / "s16" / f"s16_RGB_{number:04d}_RGB.tif")
        assert likeness(one[..., 1], other[..., 1]) > 0.95 and other.max() > 100
    edge = [np.array([[-27, 100], [33, 100], [33, 300], [-27, 300]], dtype=float)]
    draw_scene(tmp_path / "t_SAR.tif", Modality.SAR, 1.0)
    run("--scene", tmp_path / "t_SAR.tif", "--boxes", write_dota(tmp_path / "e.txt", edge), "--output", tmp_path / "e")
    chip = read_sar(tmp_path / "e" / "t_SAR_0001_SAR.tif")
    assert 0.4 < np.isnan(chip).mean() < 0.55 and np.isnan(chip[:, 0]).all()


def test_boxes_without_a_chip_are_listed_and_counted(tmp_path, capsys):
    boxes = draw_scene(tmp_path / "s_SAR.tif", Modality.SAR, 1.0)
    outside, flat = boxes[0] + 5000, boxes[0] * [1, 0] + [0, 40]
    write_dota(tmp_path / "b.txt", [boxes[0], outside, flat])
    with pytest.raises(DataError, match="2 of 3 boxes gave no chip") as caught:
        run("--scene", tmp_path / "s_SAR.tif", "--boxes", tmp_path / "b.txt", "--output", tmp_path / "c")
    told = capsys.readouterr().out
    assert caught.value.exit_status == 1 and "box 2: less than 50%" in told and "box 3: the box has no area" in told
    assert len(list((tmp_path / "c").glob("*.tif"))) == 1


def test_a_scene_without_a_map_needs_its_pixel_size(tmp_path):
    boxes = draw_scene(tmp_path / "s_SAR.tif", Modality.SAR, 2.0, crs=None)
    words = ("--scene", tmp_path / "s_SAR.tif", "--boxes", write_dota(tmp_path / "b.txt", boxes), "--output", tmp_path / "c")
    with pytest.raises(DataError, match="--pixel-size"):
        run(*words)
    run(*words, "--pixel-size", 2)
    assert read_sar(tmp_path / "c" / "s_SAR_0001_SAR.tif").shape[0] == pytest.approx(chip_of(1, Modality.SAR).shape[0], abs=2)
    for wrong in (("--pixel-size", 0), ("--margins", 0, 1), ("--bands", 7)):
        with pytest.raises(UsageError):
            run(*words, *wrong)


def test_a_scene_is_never_read_whole(tmp_path, monkeypatch):
    boxes = draw_scene(tmp_path / "s_SAR.tif", Modality.SAR, 0.5)
    read, shares = rasterio.io.DatasetReader.read, []

    def watch(self, bands, window=None, **options):
        shares.append(window.width * window.height / (self.width * self.height))
        return read(self, bands, window=window, **options)

    monkeypatch.setattr(rasterio.io.DatasetReader, "read", watch, raising=False)
    run("--scene", tmp_path / "s_SAR.tif", "--boxes", write_dota(tmp_path / "b.txt", boxes), "--output", tmp_path / "c")
    assert len(shares) == SHIPS and max(shares) < 0.2


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("b.txt", "1 2 3 ship\n", "line 1 has 4 words"),
        ("b.txt", "a 2 3 4 5 6 7 8 ship\n", "line 1: 'a' is no number"),
        ("b.txt", "nan 2 3 4 5 6 7 8 ship\n", "finite numbers"),
        ("b.csv", "x,y\n1,2\n", "it needs columns"),
        ("b.geojson", "{}", "FeatureCollection"),
        ("b.geojson", '{"features": [{"geometry": {"type": "Point", "coordinates": [1]}}]}', "feature 1 is no Polygon"),
        ("b.geojson", '{"features": []}', "holds no box"),
        ("b.xml", "", "none of the suffixes"),
    ],
)
def test_faults_of_boxes_are_named(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message):
        read_boxes(tmp_path / name)


def test_a_map_that_is_neither_of_degrees_nor_of_metres_is_told(tmp_path):
    shape = {"width": 64, "height": 64, "count": 1, "dtype": "float32"}
    with rasterio.open(
        tmp_path / "s_SAR.tif", "w", driver="GTiff", crs="EPSG:4978", transform=from_origin(0, 0, 2, 2), **shape
    ) as file:
        file.write(np.ones((1, 64, 64), np.float32))
    (tmp_path / "boxes.csv").write_text("xmin,ymin,xmax,ymax\n20,20,40,44\n")
    words = ["--scene", tmp_path / "s_SAR.tif", "--boxes", tmp_path / "boxes.csv", "--output", tmp_path / "out"]
    with pytest.raises(DataError, match=r"s_SAR\.tif"):
        cut_chips.main([str(word) for word in words])
