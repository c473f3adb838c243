"""From a scene to an answer: ships of a scene of one day are told by those that were cut out of another day's."""

import csv
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from rasterio.warp import transform

from configs import load_cfg
from datasets.records import Chip, Modality, Split
from datasets.ships.counts import View
from datasets.ships.world import World
from model.build import build_model
from tests import test_cut_chips as scenes
from tests.test_rank import SETTINGS
from tools import calibrate, cut_chips, identify
from utils.checkpoint import save

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")


def draw(number: int, look: int) -> np.ndarray:
    """A ship, bow up; each look at it has noise of its own."""
    view = View(Chip(Path(f"{number}.tif"), number, Modality.SAR, Split.GALLERY), number, scene=1, camera=1)
    values = World(seed=5, difficulty=0.0, scenes=8).draw(view)
    return (values * np.random.default_rng([number, look]).uniform(0.7, 1.3, values.shape)).astype(np.float32)


def write_calibration_set(root: Path) -> None:
    """Fifty other ships, three looks at each, a little turned and one of them bow down."""
    for number in range(100, 150):
        for look in range(3):
            folder = root / "HOSS" / ("query" if look == 0 else "bounding_box_test")
            folder.mkdir(parents=True, exist_ok=True)
            values = draw(number, look)
            height, width = values.shape
            turn = cv2.getRotationMatrix2D((width / 2, height / 2), 2.0 * (look - 1), 1.0)
            values = cv2.warpAffine(values, turn, (width, height), borderMode=cv2.BORDER_REFLECT)
            cv2.imwrite(str(folder / f"{number:04d}_l{look}_SAR.tif"), values[::-1, ::-1] if look == 1 else values)


def cut_scene(folder: Path, monkeypatch, *, look: int, angles: tuple[int, ...], day: str, named: bool) -> Path:
    """Draw a scene, name its ships or not, and cut them out."""
    folder.mkdir()
    monkeypatch.setattr(scenes, "chip_of", lambda number, modality: draw(number, look))
    monkeypatch.setattr(scenes, "ANGLES", angles)
    boxes = scenes.draw_scene(folder / "port_SAR.tif", Modality.SAR, 1.0)
    with scenes.rasterio.open(folder / "port_SAR.tif") as file:
        on_map = [np.column_stack(scenes.rasterio.transform.xy(file.transform, *(box.T[::-1] - 0.5))) for box in boxes]
        degrees = [np.column_stack(transform(file.crs, "EPSG:4326", *box.T.tolist())) for box in on_map]
    features = []
    for number, ring in enumerate(degrees, start=1):
        told = {"ship": f"Vessel {number}", "time": day} if named else {"time": day}
        shape = {"type": "Polygon", "coordinates": [np.vstack([ring, ring[:1]]).tolist()]}
        features.append({"type": "Feature", "properties": told, "geometry": shape})
    (folder / "boxes.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    words = ["--scene", folder / "port_SAR.tif", "--boxes", folder / "boxes.geojson", "--output", folder / "chips"]
    cut_chips.main([str(word) for word in words])
    return folder / "chips"


def test_ships_of_a_scene_are_told_by_those_of_another_day(tmp_path, monkeypatch):
    """The bow is up in one chip and down in another, and the network was never trained."""
    write_calibration_set(tmp_path / "data")
    torch.manual_seed(0)
    weights = tmp_path / "w.pth"
    save(weights, build_model(load_cfg(None, SETTINGS)).state_dict())
    calibrate.main(["--weights", str(weights), "--data", str(tmp_path / "data"), "--both-ends", *SETTINGS])
    known = cut_scene(tmp_path / "one", monkeypatch, look=11, angles=(0, 35, 90, 140), day="2026-03-01", named=True)
    query = cut_scene(tmp_path / "two", monkeypatch, look=12, angles=(180, 40, 265, 320), day="2026-03-08", named=False)
    places = ["--known", known, "--query", query, "--output", tmp_path / "out", "--false-alarms", "0.3"]
    identify.main(["--weights", str(weights), *map(str, places), *SETTINGS])
    with (tmp_path / "out" / "answers.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["ship"] for row in rows] == [f"Vessel {number}" for number in range(1, scenes.SHIPS + 1)]
    assert all(float(row["probability"]) > 0.5 for row in rows)
    page = (tmp_path / "out" / "answers.html").read_text()
    assert "2026-03-01" in page and "2026-03-08" in page and page.count("openstreetmap.org") >= 2 * scenes.SHIPS
