"""Which ship is this: probabilities that hold, answers that say so where no known ship is shown, and what is refused."""

import csv
import json
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch.nn import functional

from configs import load_cfg
from datasets.records import Modality
from model.build import build_model
from processor.calibration import (
    Tried,
    calibration_error,
    calibration_interval,
    fit_calibration,
    identification_rates,
    reliability,
    try_answers,
)
from processor.identification import answer_queries, find_nearest
from processor.ranking.retrieval import squared_distances
from tests.chip_files import write_chip
from tests.test_rank import SETTINGS
from tools import calibrate, identify
from utils.checkpoint import save
from utils.errors import DataError, UsageError

# Arrays


def clusters(ships: int, views: int, noise: float, seed: int, width: int = 16) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Squared distances, ships and modalities of features around one point for each ship and a shift of the sensor."""
    rng = np.random.default_rng(seed)
    centres = np.repeat(rng.normal(size=(ships, width)), 2 * views, axis=0)
    modalities = np.tile(np.repeat([0, 1], views), ships)
    shift = np.array([np.zeros(width), np.full(width, 0.4)])[modalities]
    spread = noise * np.where(modalities[:, None] == 0, 0.7, 1.0)
    features = torch.from_numpy(centres + shift + spread * rng.normal(size=centres.shape)).float()
    features = functional.normalize(features)
    return squared_distances(features, features).numpy(), np.repeat(np.arange(ships), 2 * views), modalities


def calibrated(ships: int = 120, noise: float = 0.8, seed: int = 0):
    distances, identities, modalities = clusters(ships, 3, noise, seed)
    return fit_calibration(distances, identities, modalities, weights_sha256="w", settings={})


@pytest.mark.parametrize("noise", [0.5, 0.8, 1.2])
def test_probabilities_hold_on_other_ships(noise):
    calibration = calibrated(noise=noise)
    assert set(calibration.directions) == {"optical->optical", "optical->sar", "sar->optical", "sar->sar"}
    tested = try_answers(*clusters(120, 3, noise, seed=7), calibration.directions, calibration.sensors, rounds=20, seed=3)
    error, (low, high) = calibration_error(tested), calibration_interval(tested, draws=50)
    assert error < 0.05 and low <= high and low < error + 0.02
    rows = reliability(tested)
    assert (np.diff(rows[:, 0]) > 0).all() and np.corrcoef(rows[:, 0], rows[:, 1])[0, 1] > 0.9


def test_probabilities_of_another_world_do_not_hold():
    """The check above can fail: a network whose distances mean something else."""
    tested = try_answers(
        *clusters(120, 3, 2.0, seed=7),
        *tuple(vars(calibrated(noise=0.5))[n] for n in ("directions", "sensors")),
        rounds=20,
        seed=3,
    )
    assert calibration_error(tested) > 0.07


def test_false_alarms_are_as_many_as_asked_for():
    calibration = calibrated()
    tested = try_answers(*clusters(120, 3, 0.8, seed=9), calibration.directions, calibration.sensors, rounds=20, seed=3)
    for rate in (0.05, 0.2):
        for modality in Modality:
            own = tested.probability[(tested.modality == modality) & ~tested.is_known]
            assert (own > calibration.threshold(modality, rate)).mean() == pytest.approx(rate, abs=0.03 + rate / 3)
    rates = [interval.mean for _, interval in identification_rates(tested)]
    assert rates == sorted(rates) and 0 < rates[0] < rates[-1] <= 1


def test_nearest_ship_worked_by_hand():
    distances = np.array([[0.5, 0.2, 0.9, 0.3], [np.inf, np.inf, 1.0, np.inf]])
    found = find_nearest(distances, np.array([0, 0, 1, 2]), 3)
    assert found.ship.tolist() == [0, 1] and found.runner_up.tolist() == [2, -1]
    np.testing.assert_allclose(found.distance, [0.2, 1.0])
    np.testing.assert_allclose(found.margin, [0.1, 3.0])
    assert found.ships.tolist() == [3, 1]


def test_the_surer_sensor_decides_and_ties_are_told():
    sure, unsure = [5.0, -10.0, 0.0, 0.0], [0.0, -10.0, 0.0, 0.0]
    distances = np.array([[0.3, 0.9, 0.1, 0.1]])
    told = answer_queries(
        distances,
        np.array([0]),
        np.array([0, 1, 1, 2]),
        np.array([0, 0, 1, 1]),
        {"optical->optical": sure, "optical->sar": unsure},
    )
    assert (told.ship[0], told.runner_up[0], told.sensor[0], bool(told.tied[0])) == (0, 1, 0, False)
    assert told.probability[0] == pytest.approx(1 / (1 + np.exp(-2)))
    told = answer_queries(distances, np.array([0]), np.array([0, 1, 1, 2]), np.array([0, 0, 1, 1]), {"optical->sar": unsure})
    assert (told.ship[0], told.sensor[0], bool(told.tied[0])) == (1, 1, True)
    told = answer_queries(distances, np.array([1]), np.array([0, 1, 1, 2]), np.array([0, 0, 1, 1]), {"optical->sar": unsure})
    assert told.probability[0] == 0


def test_calibration_error_worked_by_hand():
    known = np.array([True] * 50 + [False] * 50)
    tested = Tried(np.full(100, 0.7), np.r_[np.ones(40), np.zeros(60)] > 0, known, np.zeros(100, int), np.arange(100))
    assert calibration_error(tested) == pytest.approx(0.7 - 0.4, abs=0.35)  # bins of one probability split by order
    assert np.average(reliability(tested)[:, 1], weights=reliability(tested)[:, 2]) == pytest.approx(0.4)


# The commands


def pattern(ship: int, view: int, kind: str) -> np.ndarray:
    """A picture that shows a ship by where it is bright."""
    rng = np.random.default_rng(ship)
    coarse = rng.uniform(0, 1, (8, 4)) ** 3
    picture = cv2.resize(coarse, (32, 64), interpolation=cv2.INTER_CUBIC).clip(0, 1)
    picture = picture + np.random.default_rng([ship, view, len(kind)]).normal(0, 0.06, picture.shape)
    return (picture.clip(0, 1) * 255).astype(np.uint8)


def write_ship(folder: Path, ship: int, view: int, kind: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{ship:04d}_v{view}_{kind}.png"
    grey = pattern(ship, view, kind)
    cv2.imwrite(str(path), np.dstack([grey, grey // 2, 255 - grey]) if kind == "RGB" else grey)
    return path


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """A data set of 44 ships to calibrate on, a calibrated network, known ships and queries."""
    root = tmp_path_factory.mktemp("world")
    for ship in range(1, 45):
        for kind in ("RGB", "SAR"):
            write_ship(root / "data" / "HOSS" / "query", ship, 0, kind)
            for view in (1, 2):
                write_ship(root / "data" / "HOSS" / "bounding_box_test", ship, view, kind)
    for ship in range(101, 107):
        for view in range(2):
            for kind in ("RGB", "SAR"):
                write_ship(root / "known" / f"ship {ship}", ship, view, kind)
                write_ship(root / "query" / "day", ship, 5, kind)
    for ship in (901, 902):
        write_ship(root / "query", ship, 5, "SAR")
    torch.manual_seed(0)
    save(root / "w.pth", build_model(load_cfg(None, SETTINGS)).state_dict())
    calibrate.main(["--weights", str(root / "w.pth"), "--data", str(root / "data"), *SETTINGS])
    return root


def ask(world: Path, output: Path, *words: object, known: str = "known", query: str = "query") -> list[dict[str, str]]:
    places = ["--known", str(world / known), "--query", str(world / query), "--output", str(output)]
    identify.main(["--weights", str(world / "w.pth"), *places, *map(str, words), *SETTINGS])
    with (output / "answers.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_calibration_tells_how_good_it_is(world):
    content = json.loads((world / "w.pth.calibration.json").read_text())
    assert content["ships"] == 22 and {"optical->optical", "sar->sar"} <= set(content["directions"])
    assert [row["queries by"] for row in content["figures"]] == ["both sensors", "optical", "sar"]
    page = (world / "w.pth.calibration.html").read_text()
    assert page.count("<svg") == 2 and "expected calibration error" in page and "right at 1% false alarms" in page


def test_ships_are_named_with_a_probability_and_strangers_are_none_of_them(world, tmp_path):
    rows = ask(world, tmp_path / "out", "--false-alarms", 0.3)
    assert len(rows) == 14
    by_query = {row["query"]: row for row in rows}
    right = [row["ship"] == f"ship {int(name.rpartition('/')[2][:4])}" for name, row in by_query.items() if "/" in name]
    assert np.mean(right) > 0.8
    strangers = [by_query[f"{ship:04d}_v5_SAR.png"] for ship in (901, 902)]
    known = [float(row["probability"]) for name, row in by_query.items() if "/" in name]
    assert max(float(row["probability"]) for row in strangers) < np.median(known)
    assert strangers[0]["answer"] == identify.NONE
    best = by_query["day/0101_v5_SAR.png"]["best"].split(" | ")
    assert len(best) == identify.BEST and best[0].startswith("ship 101: ship 101/0101_")


def test_the_page_shows_answers_and_what_it_saves_becomes_known(world, tmp_path):
    rows = ask(world, tmp_path / "out")
    page = (tmp_path / "out" / "answers.html").read_text()
    assert page.count('<section class="answer"') == 14 and page.count("data:image/jpeg") >= 14 * 3
    assert not re.search(r"(src|href)=\"(https?:)?//(?!www\.openstreetmap)", page)
    stranger = next(row for row in rows if row["query"].startswith("0901"))
    lines = [
        "query,path,ship,decision",
        f'"x","{stranger["path"]}","new ship","accept"',
        f'"y","{rows[0]["path"]}","no","reject"',
    ]
    (tmp_path / "confirmed.csv").write_text("\n".join(lines))
    again = ask(world, tmp_path / "again", "--confirmed", tmp_path / "confirmed.csv")
    assert not [row for row in again if row["ship"] == "no"]
    with (tmp_path / "again" / "answers.json").open() as file:
        assert len(json.load(file)) == 14
    (tmp_path / "confirmed.csv").write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match="needs the columns path, ship, decision"):
        ask(world, tmp_path / "bad", "--confirmed", tmp_path / "confirmed.csv")


def test_a_folder_asked_about_itself_leaves_each_files_copy_out(world, tmp_path, capsys):
    rows = ask(world, tmp_path / "out", query="known")
    assert "24 queries have a copy of the same content among the known, which did not count" in capsys.readouterr().out
    assert all(row["query"] not in row["best"] for row in rows)


def test_known_ships_of_a_table(world, tmp_path):
    """A CSV names ship, time and place of chips that lie anywhere."""
    lines = ["path,ship_id,time,longitude,latitude,sensor"]
    for ship in (101, 102, 103):
        lines += [f"known/ship {ship}/{ship:04d}_v{v}_SAR.png,Vessel {ship},2026-03-0{v + 1},4.5,52.1,TSX" for v in (0, 1)]
    (world / "known.csv").write_text("\n".join([*lines, "known/ship 104/0104_v0_SAR.png,,,,,"]))
    rows = ask(world, tmp_path / "out", known="known.csv")
    assert {row["ship"] for row in rows} <= {"Vessel 101", "Vessel 102", "Vessel 103"}
    assert [row["ship"] for row in rows if row["query"] == "day/0102_v5_SAR.png"] == ["Vessel 102"]
    page = (tmp_path / "out" / "answers.html").read_text()
    assert "sar, TSX, 2026-03-01" in page and "mlat=52.1&amp;mlon=4.5" in page


def test_times_and_places_are_shown(world, tmp_path):
    for ship in (101, 102):
        path = write_ship(tmp_path / "known" / str(ship), ship, 0, "SAR")
        (path.parent / "chips.csv").write_text(f"chip,time,longitude,latitude\n{path.name},2026-01-0{ship - 100},4.5,52.1\n")
    write_ship(tmp_path / "q", 101, 5, "SAR")
    rows = ask(tmp_path, tmp_path / "out", known="known", query="q") if (tmp_path / "w.pth").exists() else None
    for name in ("w.pth", "w.pth.calibration.json"):
        (tmp_path / name).write_bytes((world / name).read_bytes())
    rows = rows or ask(tmp_path, tmp_path / "out", known="known", query="q")
    page = (tmp_path / "out" / "answers.html").read_text()
    assert "2026-01-01" in page and "mlat=52.1&amp;mlon=4.5" in page and rows[0]["ship"] == "101"


def test_what_cannot_be_answered_is_said(world, tmp_path):
    with pytest.raises(UsageError, match="--false-alarms"):
        ask(world, tmp_path / "o", "--false-alarms", 2)
    write_chip(tmp_path / "mixed" / "who_SAR.tif")
    with pytest.raises(DataError, match=r"tells the ship of who_SAR\.tif; put the chips of"):
        ask(world, tmp_path / "o", known=tmp_path / "mixed")
    with pytest.raises(DataError, match=r"was made with other settings \(INPUT\.SAR_LOW_PERCENT\)"):
        identify.main(["--weights", str(world / "w.pth"), "--known", str(world / "known"), "--query", str(world / "query"),
                       *SETTINGS, "INPUT.SAR_LOW_PERCENT", "9"])  # fmt: skip
    save(tmp_path / "other.pth", torch.load(world / "w.pth"))
    with pytest.raises(DataError, match=r"no calibration .*other\.pth\.calibration\.json.*tools\.calibrate"):
        identify.main(
            [
                "--weights",
                str(tmp_path / "other.pth"),
                "--known",
                str(world / "known"),
                "--query",
                str(world / "query"),
                *SETTINGS,
            ]
        )
    with pytest.raises(DataError, match="features of all 9 pictures are alike"):
        identify.refuse_collapsed(functional.normalize(torch.ones(9, 4)))
    with pytest.raises(DataError, match="ships are too few"):
        calibrate.split_ships([], seed=0)
