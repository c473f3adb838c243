"""Ships that lie askew in their chips are noticed, turned upright, and asked for from both ends."""

import json

import cv2
import numpy as np
import pytest

from datasets.askew import askew_angle, ship_axis, stand_up
from tests.test_rank import run, weights  # noqa: F401  (a fixture)


def ship_picture(angle: float, length: int = 120, beam: int = 20, size: int = 160) -> np.ndarray:
    """A bright ship, its bow brighter, on a noisy sea; `angle` degrees clockwise from the top."""
    picture = np.random.default_rng(2).normal(30, 5, (size, size)).astype(np.float32)
    turn, middle = np.deg2rad(angle), (size - 1) / 2
    y, x = np.mgrid[:size, :size] - middle
    along, across = x * np.sin(turn) - y * np.cos(turn), x * np.cos(turn) + y * np.sin(turn)
    hull = (np.abs(along) < length / 2) & (np.abs(across) < beam / 2)
    picture[hull] = 130 + 0.8 * along[hull]
    return np.repeat(picture.clip(0, 255).astype(np.uint8)[..., None], 3, axis=2)


@pytest.mark.parametrize("angle", [-75, -40, -25, 0, 10, 30, 60, 90])
def test_the_axis_is_estimated(angle):
    axis = ship_axis(ship_picture(angle))
    assert (axis.angle - angle + 90) % 180 - 90 == pytest.approx(0, abs=1.5)
    assert axis.length == pytest.approx(120, abs=6) and axis.width == pytest.approx(20, abs=4)
    told = askew_angle(ship_picture(angle))
    assert (told is not None) == (abs(angle) > 20)


def test_a_sea_and_a_round_thing_have_no_axis():
    sea = np.full((80, 40, 3), 30, np.uint8)
    assert ship_axis(sea) is None and ship_axis(ship_picture(0, length=30, beam=30)) is None
    np.testing.assert_array_equal(stand_up(sea), sea)


@pytest.mark.parametrize("angle", [-60, 35, 90])
def test_a_turned_chip_is_the_upright_one(angle):
    upright = stand_up(ship_picture(0))
    turned = stand_up(ship_picture(angle))
    assert np.abs(np.subtract(turned.shape, upright.shape)).max() <= 4
    size = upright.shape[1::-1]
    versions = [cv2.resize(picture, size).astype(float) for picture in (turned, turned[::-1, ::-1])]
    assert min(np.abs(version - upright).mean() for version in versions) < 8
    assert askew_angle(turned) is None


@pytest.fixture
def folders(tmp_path):
    for folder in ("query", "gallery"):
        (tmp_path / folder).mkdir()
    for number, (length, beam) in enumerate([(120, 14), (90, 30), (130, 24), (70, 20)]):
        picture = ship_picture(0, length, beam, size=140)
        cv2.imwrite(str(tmp_path / "gallery" / f"{number}_SAR.png"), picture[..., 0])
    cv2.imwrite(str(tmp_path / "query" / "bow_down_SAR.png"), ship_picture(0, 90, 30, size=140)[::-1, ::-1, 0])
    cv2.imwrite(str(tmp_path / "query" / "askew_SAR.png"), ship_picture(50, 130, 24, size=160)[..., 0])
    return tmp_path


def test_both_ends_and_upright(folders, weights, capsys):  # noqa: F811
    def distances(*words):
        run(folders / "query", folders / "gallery", weights, "--output", folders / "out", *words)
        lines = (folders / "out" / "ranking.csv").read_text().splitlines()[1:]
        return {(line.split(",")[0], line.split(",")[2]): float(line.split(",")[3]) for line in lines}

    plain, both, upright = distances(), distances("--both-ends"), distances("--both-ends", "--upright")
    assert (
        "ships askew in 1 of 2 chips: askew_SAR.png (+50 degrees); the model knows upright ships only"
        in capsys.readouterr().err
    )
    assert both["bow_down_SAR.png", "1_SAR.png"] < 1e-4 < plain["bow_down_SAR.png", "1_SAR.png"]
    assert all(both[pair] <= plain[pair] + 1e-6 for pair in plain)
    found = json.loads((folders / "out" / "prediction.json").read_text())
    assert found["bow_down_SAR.png"][0] == "1_SAR.png"
    assert upright["bow_down_SAR.png", "1_SAR.png"] == both["bow_down_SAR.png", "1_SAR.png"]
    assert upright["askew_SAR.png", "2_SAR.png"] != both["askew_SAR.png", "2_SAR.png"]
