"""Procedural ships and the data set made of them."""

import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datasets.curation.faults import MAIN_SPLITS
from datasets.records import DISTRACTOR, Modality, Split
from datasets.ships.designs import draw_ship
from datasets.ships.rendering import OPTICAL_PIXEL, cast_shadow, draw_plan, render_optical, render_sar
from tools import make_dataset
from utils.errors import UsageError

SHIPS = [draw_ship(np.random.default_rng([7, number])) for number in range(40)]


def view(*words):
    return np.random.default_rng([11, *words])


@pytest.fixture(scope="module")
def optical():
    return [render_optical(ship, view(number, 0)) for number, ship in enumerate(SHIPS)]


@pytest.fixture(scope="module")
def sar():
    return [render_sar(ship, view(number, 1)) for number, ship in enumerate(SHIPS)]


def test_optical_chips_are_like_those_of_hoss(optical):
    for chip in optical:
        assert chip.dtype == np.uint8 and chip.ndim == 3 and chip.shape[2] == 3
        assert 50 <= chip.shape[0] <= 600 and 12 <= chip.shape[1] <= 120
        assert chip.shape[0] > 2 * chip.shape[1]
    assert 250 < np.median([chip.shape[0] for chip in optical]) < 350
    assert 45 < np.mean([chip.mean() for chip in optical]) < 100
    assert 25 < np.mean([chip.std() for chip in optical]) < 75


def test_sar_chips_are_like_those_of_hoss(sar):
    for chip in sar:
        assert chip.dtype == np.float32 and chip.ndim == 2
        assert np.isfinite(chip).all() and chip.min() >= 0 and 1 < chip.max() <= 11.1
        assert np.percentile(chip, 5) < 0.03 * chip.max()  # sea
    ceilings = np.array([chip.max() for chip in sar])
    assert ceilings.min() < 3 and ceilings.max() > 9  # products of different range are mixed
    relative = np.array([np.percentile(chip, [50, 90, 99]) / chip.max() for chip in sar]).mean(0)
    assert 0.02 < relative[0] < 0.2 and 0.2 < relative[1] < 0.6 and 0.5 < relative[2] < 0.98


def test_both_sensors_agree_on_the_size_in_metres(optical, sar):
    for seen, echoed in zip(optical, sar):
        assert abs(seen.shape[0] * OPTICAL_PIXEL / echoed.shape[0] - 1) < 0.15


def test_size_alone_does_not_tell_a_ship():
    lengths = np.array([ship.length for ship in SHIPS])
    close = np.abs(lengths[:, None] / lengths[None] - 1) < 0.05
    assert np.median(close.sum(1) - 1) >= 4


def test_a_view_depends_on_ship_and_generator_only():
    ship = SHIPS[0]
    for render in (render_optical, render_sar):
        first = render(ship, view(1))
        np.testing.assert_array_equal(first, render(ship, view(1)))
        other = render(ship, view(2))
        assert first.shape != other.shape or not np.array_equal(first, other)


def test_the_plan_stays_inside_the_hull():
    for ship in SHIPS[:10]:
        plan = draw_plan(ship)
        sea = plan.hull == 0
        assert not plan.height[sea].any() and not plan.echo[sea].any()
        assert (plan.height[~sea] > 0).all()
        area = plan.hull.sum() * 0.25
        assert 0.6 * ship.length * ship.beam < area <= 1.02 * ship.length * ship.beam


def test_a_mast_throws_a_shadow_of_its_height_over_the_slope():
    height = np.zeros((101, 101), np.float32)
    height[50, 50] = 10
    height[49:52, 49:52] = 10
    shadow = cast_shadow(height, (1.0, 0.0), 1.0)  # at 45 degrees; half a metre a pixel
    reach = np.flatnonzero(shadow[50])
    assert reach.min() >= 52 and 64 <= reach.max() <= 72
    assert not shadow[:45].any() and not shadow[56:].any()


def profile(chip, length=32):
    """Brightness along the ship."""
    rows = chip.mean(1) if chip.ndim == 2 else chip.mean((1, 2))
    rows = np.interp(np.linspace(0, len(rows) - 1, length), np.arange(len(rows)), rows)
    return (rows - rows.mean()) / rows.std()


def test_views_of_a_ship_are_more_alike_than_views_of_two(sar):
    again = np.stack([profile(render_sar(ship, view(number, 2))) for number, ship in enumerate(SHIPS)])
    likeness = np.stack([profile(chip) for chip in sar]) @ again.T / 32
    own = np.diag(likeness).mean()
    other = (likeness.sum() - np.trace(likeness)) / (likeness.size - len(SHIPS))
    assert own > other + 0.2


def test_plan_of_files():
    views = list(make_dataset.plan_views(ships=60, test_ships=24, views=3, distractors=8))
    chips = [chip for chip, *_ in views]
    assert len({chip.path for chip in chips}) == len({(*view[1:], view[0].modality) for view in views}) == len(views)
    ships = {split: {chip.ship for chip in chips if chip.split is split} - {DISTRACTOR} for split in MAIN_SPLITS}
    assert ships[Split.QUERY] == ships[Split.GALLERY] and len(ships[Split.QUERY]) == 24
    assert len(ships[Split.TRAIN]) == 36 and not ships[Split.TRAIN] & ships[Split.QUERY]
    for pids in (ships[Split.TRAIN], ships[Split.QUERY]):
        seen = {pid: frozenset(chip.modality for chip in chips if chip.ship == pid) for pid in pids}
        kinds = list(seen.values())
        assert kinds.count(frozenset({Modality.OPTICAL})) >= 1 and kinds.count(frozenset({Modality.SAR})) >= 1
        assert kinds.count(frozenset(Modality)) > len(pids) / 2
    strangers = [(chip, number) for chip, number, _ in views if chip.ship == DISTRACTOR]
    assert {chip.modality for chip, _ in strangers} == set(Modality)
    assert {chip.split for chip, _ in strangers} == {Split.GALLERY}
    assert len({number for _, number in strangers} - set(range(61))) == 8, "ships that nobody else shows"


@pytest.mark.parametrize(("query", "gallery"), [(Modality.OPTICAL, Modality.SAR), (Modality.SAR, Modality.OPTICAL)])
def test_default_data_set_leaves_little_to_chance(query, gallery):
    args = make_dataset.build_parser().parse_args(["--output", "unused"])
    views = make_dataset.plan_views(
        ships=args.ships, test_ships=args.test_ships, views=args.views, distractors=args.distractors
    )
    chips = [chip for chip, *_ in views]
    held = [chip.ship for chip in chips if chip.split is Split.GALLERY and chip.modality == gallery]
    asked = [chip.ship for chip in chips if chip.split is Split.QUERY and chip.modality == query]
    chance = np.mean([held.count(pid) / len(held) for pid in asked if pid in held])
    assert args.ships >= 60 and 0 < chance <= 0.03


def test_written_files(tmp_path):
    output = tmp_path / "new" / "data"
    make_dataset.main(["--output", str(output), "--ships", "3", "--test-ships", "1", "--views", "2", "--distractors", "2"])
    names = sorted(path.relative_to(output / "HOSS").as_posix() for path in output.rglob("*.tif"))
    assert "bounding_box_train/0001_s01c2_SAR.tif" in names and "query/0003_s01c1_RGB.tif" in names
    assert "bounding_box_test/-1_0004_SAR.tif" in names and "bounding_box_test/-1_0005_RGB.tif" in names
    assert Image.open(output / "HOSS/query/0003_s01c1_RGB.tif").mode == "RGB"
    sar = np.asarray(Image.open(output / "HOSS/query/0003_s01c1_SAR.tif"))
    assert sar.dtype == np.float32 and sar.ndim == 2
    assert [path.name for path in output.parent.iterdir()] == ["data"]  # nothing temporary is left


def test_a_seed_makes_the_data_set_that_it_made_before(tmp_path):
    sizes = ["--ships", "14", "--test-ships", "6", "--views", "2", "--distractors", "3", "--seed", "5"]
    make_dataset.main(["--output", str(tmp_path / "made"), *sizes])
    paths = sorted((tmp_path / "made" / "HOSS").rglob("*.tif"))
    told = "\n".join(f"{path.parent.name}/{path.name} {Image.open(path).size}" for path in paths)
    assert len(paths) == 55
    assert hashlib.sha256(told.encode()).hexdigest()[:16] == "0edfbeb61ef90370"


def test_an_interrupted_run_leaves_nothing(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(make_dataset, "write_view", fail)
    with pytest.raises(OSError):
        make_dataset.main(["--output", str(tmp_path / "data"), "--ships", "3", "--test-ships", "1"])
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_not_empty_is_kept(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    command = [sys.executable, "-m", "tools.make_dataset", "--output", str(tmp_path), "--ships", "3", "--test-ships", "1"]
    result = subprocess.run(command, cwd=Path(make_dataset.__file__).parents[1], capture_output=True, text=True)
    assert result.returncode == 2 and str(tmp_path) in result.stderr and "Traceback" not in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize(
    "words", [["--views", "1"], ["--ships", "5", "--test-ships", "5"], ["--test-ships", "0"], ["--seed", "-1"]]
)
def test_wrong_numbers_are_refused(tmp_path, words):
    with pytest.raises(UsageError, match=words[0]):
        make_dataset.main(["--output", str(tmp_path / "data"), *words])
    assert not list(tmp_path.iterdir())
