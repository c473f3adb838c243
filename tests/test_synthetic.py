"""Procedural ships, what both sensors see of them, and the data sets made of them."""

import hashlib
import json
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datasets.catalogue import read_hoss
from datasets.curation.faults import MAIN_SPLITS
from datasets.records import DISTRACTOR, Modality, Split
from datasets.sar import render_percentile
from datasets.ships import world as world_module
from datasets.ships.appearance import pixel_features
from datasets.ships.counts import CAMERAS, SIZES, Fleet, cameras_of, plan_views
from datasets.ships.designs import FAMILY, KINDS_OF_SHIP, draw_ship, load_ship
from datasets.ships.optical import OPTICAL_PIXEL, render_optical
from datasets.ships.plans import PLAN_PIXEL, draw_plan, is_lit, lean_over, turn_plan
from datasets.ships.radar import render_sar
from datasets.ships.scenes import Berth, draw_berth, draw_optical_pass, draw_radar_pass, seen_from
from datasets.ships.world import World
from processor.stand_ins import find_spare_views
from tests.commands import call
from tools import check_dataset, make_dataset
from utils.errors import UsageError


def rng(*words):
    return np.random.default_rng([11, *words])


SHIPS = [load_ship(draw_ship(number, seed=7, sisters=0.0), rng(number, 0)) for number in range(1, 41)]
NORTH = Berth(heading=0.0, bow_down=False)
BROADSIDE = replace(
    draw_radar_pass(rng(1), rng(2), variety=1.0),
    direction=0.0,
    incidence=np.pi / 4,
    looks=4,
    smear=0.0,
    side_lobes=0.0,
    sea=1e-6,
    gain=0.8,
)


@pytest.fixture(scope="module")
def optical():
    return [
        render_optical(ship, draw_optical_pass(rng(n), rng(n, 1), variety=1.0), NORTH, rng(n, 2))
        for n, ship in enumerate(SHIPS)
    ]


@pytest.fixture(scope="module")
def sar():
    return [render_sar(ship, draw_radar_pass(rng(n), rng(n, 1), variety=1.0), NORTH, rng(n, 3)) for n, ship in enumerate(SHIPS)]


# Ships


def test_a_number_and_a_seed_make_a_ship_and_a_visit_loads_it():
    ship = draw_ship(5, seed=3, sisters=0.5)
    assert ship == draw_ship(5, seed=3, sisters=0.5)
    assert ship != draw_ship(5, seed=4, sisters=0.5) and ship != draw_ship(6, seed=3, sisters=0.5)
    visit = load_ship(ship, rng(1))
    assert visit == load_ship(ship, rng(1)) != load_ship(ship, rng(2))
    assert visit.length == ship.length and visit.parts[: len(ship.parts)] == ship.parts
    assert KINDS_OF_SHIP[ship.kind].freeboard[0] <= visit.freeboard <= KINDS_OF_SHIP[ship.kind].freeboard[1]


def test_sisters_share_a_plan_and_differ_in_detail():
    family = [draw_ship(number, seed=1, sisters=1.0) for number in range(FAMILY, 2 * FAMILY)]
    assert len({(ship.kind, ship.length, ship.beam, ship.bow) for ship in family}) == 1
    assert len({ship.deck_paint for ship in family}) == len({ship.grain_seed for ship in family}) == FAMILY
    assert len({ship.parts for ship in family}) == FAMILY
    assert draw_ship(2 * FAMILY, seed=1, sisters=1.0).length != family[0].length
    strangers = {draw_ship(number, seed=1, sisters=0.0).length for number in range(FAMILY, 2 * FAMILY)}
    assert len(strangers) == FAMILY


def test_kinds_come_in_their_shares_and_sizes():
    ships = [draw_ship(number, seed=2, sisters=0.4) for number in range(1, 1201)]
    counts = Counter(ship.kind for ship in ships)
    assert sum(kind.share for kind in KINDS_OF_SHIP.values()) == pytest.approx(1)
    for name, kind in KINDS_OF_SHIP.items():
        assert abs(counts[name] / len(ships) - kind.share) < 0.06
    assert 190 < np.median([ship.length for ship in ships]) < 230
    assert all(3.5 < ship.length / ship.beam < 10.5 for ship in ships)


def test_size_alone_does_not_tell_a_ship():
    lengths = np.array([draw_ship(number, seed=2, sisters=0.0).length for number in range(1, 101)])
    assert np.median((np.abs(lengths[:, None] / lengths[None] - 1) < 0.05).sum(1) - 1) >= 8


def test_the_plan_stays_inside_the_hull():
    for ship in SHIPS[:10]:
        plan = draw_plan(ship)
        sea = plan.hull == 0
        assert not plan.height[sea].any() and not plan.echo[sea].any()
        assert (plan.height[~sea] > 0).all()
        assert 0.7 * ship.length * ship.beam < plan.hull.sum() * PLAN_PIXEL**2 <= 1.02 * ship.length * ship.beam


# Beams


def test_a_wall_throws_a_shadow_of_its_height_over_the_slope():
    height = np.zeros((5, 60), np.float32)
    height[2, 20] = 10
    dark = np.flatnonzero(is_lit(height, 0.5, 1.0)[2] == 0)  # falls half a metre a metre
    assert dark.min() == 21 and dark.max() == 39
    assert is_lit(height, 0.5, 1.0)[[0, 1, 3, 4]].all()


@pytest.mark.parametrize("direction", [0.0, 1.1, np.pi / 2, 4.0])
def test_a_turned_grid_runs_along_the_beam_and_comes_back(direction):
    plan = np.zeros((101, 61), np.float32)
    plan[40:61, 20:41] = 1
    turn = turn_plan(plan.shape, direction, PLAN_PIXEL)
    there = turn.ahead(plan)
    assert abs(there.sum() / plan.sum() - 1) < 0.12
    assert np.abs(turn.back(there, plan.shape) - plan).mean() < 0.02
    point = np.zeros_like(plan)
    point[48:53, 28:33] = 1  # the middle, and a point farther along the beam
    ahead = np.roll(point, (round(15 * np.sin(direction)), round(15 * np.cos(direction))), (0, 1))
    first, second = (np.argwhere(turn.ahead(image)).mean(0) for image in (point, ahead))
    np.testing.assert_allclose(second - first, (0, 15), atol=1.0)


def test_high_things_lean_and_show_their_walls():
    picture, height = np.zeros((20, 40, 3), np.float32), np.zeros((20, 40), np.float32)
    picture[8:12, 10:14] = 1
    height[8:12, 10:14] = 6  # metres: 8 pixels at a lean of 1
    leant = lean_over(picture, height, 0.0, 1.0)[..., 0]
    np.testing.assert_array_equal(leant[8:12, 18:22], 1)
    assert (leant[8:12, 14:18] == np.float32(0.55)).all() and not leant[:8].any() and not leant[:, 22:].any()
    np.testing.assert_array_equal(lean_over(picture, height, 0.0, 0.0), picture)


# Optical chips


def test_optical_chips_are_like_those_of_hoss(optical):
    for chip in optical:
        assert chip.dtype == np.uint8 and chip.ndim == 3 and chip.shape[2] == 3
        assert 50 <= chip.shape[0] <= 513 and 14 <= chip.shape[1] <= 101
    assert 250 < np.median([chip.shape[0] for chip in optical]) < 370
    assert 40 < np.mean([chip.mean() for chip in optical]) < 110
    assert 25 < np.mean([chip.std() for chip in optical]) < 75


def test_the_sun_throws_the_shadows_to_its_own_side():
    ship = replace(SHIPS[0], parts=(), holds=(), freeboard=20.0, length=150.0, beam=30.0)
    clear = replace(
        draw_optical_pass(rng(1), rng(2), variety=1.0), sun_slope=1.0, lean=0.0, cloud=0.0, haze=0.0, swell=0.0, sea=(0.3,) * 3
    )
    sides = []
    for direction in (0.0, np.pi):
        chip = render_optical(ship, replace(clear, direction=direction), NORTH, rng(3), jitter=0.0).mean(2)
        middle = chip[chip.shape[0] // 3 : -chip.shape[0] // 3]
        sides.append(middle[:, -3:].mean() - middle[:, :3].mean())
    assert sides[0] < -15 and sides[1] > 15


def test_a_bow_below_turns_the_chip():
    passing = replace(draw_optical_pass(rng(1), rng(2), variety=1.0), lean=0.0, cloud=0.0)
    up, down = (
        render_optical(SHIPS[1], passing, Berth(0.0, bow_down), rng(4), jitter=0.0).mean(2).mean(1)
        for bow_down in (False, True)
    )
    assert len(up) == len(down)
    assert np.corrcoef(up, down[::-1])[0, 1] > 0.9 > np.corrcoef(up, down)[0, 1] + 0.2


# SAR chips


def test_sar_chips_are_like_those_of_hoss(sar):
    for chip in sar:
        assert chip.dtype == np.float32 and chip.ndim == 2
        assert 50 <= chip.shape[0] <= 513 and 14 <= chip.shape[1] <= 101
        assert np.isfinite(chip).all() and chip.min() >= 0 and 1 < chip.max() <= 11.1
        assert np.percentile(chip, 5) < 0.05 * chip.max()  # sea
    ceilings = np.array([chip.max() for chip in sar])
    assert ceilings.min() < 3 and ceilings.max() > 9  # products of different range are mixed
    relative = np.array([np.percentile(chip, [50, 90, 99]) / chip.max() for chip in sar]).mean(0)
    assert 0.02 < relative[0] < 0.2 and 0.2 < relative[1] < 0.6 and 0.5 < relative[2] < 0.98


def test_both_sensors_agree_on_the_size_in_metres(optical, sar):
    for seen, echoed in zip(optical, sar):
        assert abs(seen.shape[0] * OPTICAL_PIXEL / echoed.shape[0] - 1) < 0.15


def across(ship, **changes):
    """Mean power over the middle of the ship, across the chip, at a pass from port."""
    chips = [render_sar(ship, replace(BROADSIDE, **changes), NORTH, rng(n), jitter=0.0, scintillation=0.1) for n in range(4)]
    power = np.mean([np.arctanh(np.minimum(chip / BROADSIDE.ceiling, 0.999)) ** 2 for chip in chips], axis=0)
    return power[power.shape[0] // 3 : -power.shape[0] // 3].mean(0)


def block(height):
    """A bare ship with a wall of `height` metres along its middle."""
    from datasets.ships.decks import Part

    wall = Part(0, 0, 6, 100, height, (0.5,) * 3, 0.0)
    return replace(SHIPS[0], parts=(wall,), holds=(), freeboard=1.0, length=150.0, beam=40.0, deck_echo=0.05, rail_echo=0.0)


def test_a_wall_shines_at_its_foot_towards_the_radar_and_throws_a_shadow_behind():
    low, high = across(block(0.5)), across(block(8.0))
    centre = len(high) // 2 + 2  # the frame follows the deck, which leans
    near, far = slice(centre - 8, centre), slice(centre + 4, centre + 9)
    assert high[near].max() > 5 * low[near].max()
    assert high[far].mean() < 0.3 * low[far].mean()
    # A radar on the other side sees the mirror image.
    other = across(block(8.0), direction=np.pi)[::-1]
    assert abs(int(other.argmax()) - int(high.argmax())) <= 2


def test_walls_flash_where_they_face_the_beam():
    facing, oblique = across(block(8.0)).max(), across(block(8.0), direction=0.6).max()
    assert facing > 2 * oblique


def test_high_things_land_nearer_the_radar_the_steeper_it_looks():
    from datasets.ships.decks import Part

    mast = replace(block(0.5), parts=(Part(0, 0, 3, 100, 12, (0.5,) * 3, 5.0),))
    # Freeboard 1 m, which the frame follows; the top of the mast lies 12 m above: 12 cot(incidence) towards port.
    steep, flat = (across(mast, incidence=angle)[:20].sum() for angle in (0.6, 1.2))
    assert steep > 3 * flat


@pytest.mark.parametrize(("looks", "spread"), [(1, 1.0), (4, 0.5)])
def test_speckle_has_the_spread_of_its_looks(looks, spread):
    calm = replace(BROADSIDE, looks=looks, sea=0.02, gain=0.5)
    ship = replace(block(0.0), parts=(), deck_echo=0.0)
    chip = np.concatenate([render_sar(ship, calm, NORTH, rng(n), jitter=0.0)[:8].ravel() for n in range(30)])
    power = np.arctanh(chip / calm.ceiling) ** 2
    assert power.std() / power.mean() == pytest.approx(spread, abs=0.15)


def test_a_smeared_ship_is_smooth_along_azimuth_and_side_lobes_reach_far():
    def far(**changes):
        chip = render_sar(block(8.0), replace(BROADSIDE, looks=4, **changes), NORTH, rng(5), jitter=0.0)
        power = np.arctanh(np.minimum(chip / BROADSIDE.ceiling, 0.999)) ** 2
        rough = np.abs(np.diff(power, axis=0)).mean() / power.mean()
        return rough, power[:6].mean()

    sharp, smeared, lobed = far(), far(smear=4.0), far(side_lobes=0.2)
    assert smeared[0] < 0.6 * sharp[0]
    assert lobed[1] > 3 * sharp[1]


def test_scintillation_changes_what_shines():
    def twice(scintillation):
        first, second = (
            render_sar(SHIPS[2], BROADSIDE, NORTH, rng(n), jitter=0.0, scintillation=scintillation) for n in (1, 2)
        )
        return np.corrcoef(first.ravel(), second.ravel())[0, 1]

    assert twice(0.01) > twice(4.0) + 0.1


def test_a_view_finds_its_ship_among_others_by_plain_pixels():
    def seen(k):
        for n, ship in enumerate(SHIPS):
            passing = draw_radar_pass(rng(n, k), rng(n, k), variety=0.2)
            yield render_percentile(render_sar(ship, passing, NORTH, rng(n, k), scintillation=0.2))

    likeness = pixel_features(list(seen(8))) @ pixel_features(list(seen(9))).T
    before = (likeness > np.diag(likeness)[:, None]).sum(axis=1)
    assert np.mean(before < len(SHIPS) / 4) > 0.5  # by chance: a quarter


# Scenes


def test_cameras_of_a_scene_share_its_sun_and_ships_lie_about_alike():
    first, second = (draw_optical_pass(rng(1), rng(1, camera), variety=1.0) for camera in (1, 3))
    assert (first.direction, first.sun_slope, first.sea) == (second.direction, second.sun_slope, second.sea)
    assert first.lean_direction != second.lean_direction
    radars = [draw_radar_pass(rng(1), rng(1, camera), variety=1.0) for camera in (2, 4)]
    assert radars[0].ceiling == radars[1].ceiling and abs(radars[0].direction - radars[1].direction) < 0.6
    berths = [draw_berth(rng(1), rng(1, ship), variety=1.0) for ship in range(40)]
    assert len({berth.bow_down for berth in berths}) == 1
    middle = np.median([berth.heading for berth in berths])
    assert np.mean([abs(berth.heading - middle) < 0.6 for berth in berths]) > 0.7
    assert seen_from(first, Berth(1.0, False)).lean_direction == first.lean_direction - 1.0


# Counts


def test_hoss_has_the_published_counts():
    views = list(plan_views(SIZES["hoss"], 0))
    chips = [view.chip for view in views]
    counts = Counter((chip.split, chip.modality) for chip in chips)
    assert counts[Split.TRAIN, Modality.OPTICAL] == 574 and counts[Split.TRAIN, Modality.SAR] == 489
    by_split = Counter(chip.split for chip in chips)
    assert (by_split[Split.TRAIN], by_split[Split.QUERY], by_split[Split.GALLERY]) == (1063, 176, 593)
    ships = {split: {chip.ship for chip in chips if chip.split is split} - {DISTRACTOR} for split in MAIN_SPLITS}
    assert len(ships[Split.TRAIN]) == 361 and ships[Split.QUERY] == ships[Split.GALLERY] and len(ships[Split.QUERY]) == 88
    assert sum(chip.ship == DISTRACTOR for chip in chips) == 163
    cross = [
        sum(
            any(other.ship == chip.ship and other.modality != chip.modality for other in chips if other.split is Split.GALLERY)
            for chip in chips
            if chip.split is Split.QUERY and chip.modality is modality
        )
        for modality in Modality
    ]
    assert cross == [66, 66]  # published: about 65 and 67


@pytest.mark.parametrize("name", SIZES)
def test_every_size_holds_what_it_says(name):
    size = SIZES[name]
    views = list(plan_views(size, 3))
    assert len({view.chip.path for view in views}) == len(views)
    assert len({(view.number, view.scene, view.camera) for view in views}) == len(views), "no two chips are one view"
    total = sum((size.train.optical, size.train.sar, size.test.optical, size.test.sar, *size.distractors))
    assert len(views) == total
    assert name != "large" or total == 100_000
    assert {view.camera for view in views} == set(range(1, CAMERAS + 1))
    strangers = [view for view in views if view.chip.ship == DISTRACTOR]
    assert {view.chip.split for view in strangers} == {Split.GALLERY}
    assert len({view.number for view in strangers} - {view.chip.ship for view in views}) == sum(size.distractors)


def test_scaled_sizes_keep_their_proportions():
    size = SIZES["hoss"].scaled(None, 264)
    assert size.train == SIZES["hoss"].train and size.test.ships == 264 and size.distractors == (219, 270)
    assert size.test == Fleet(198, 36, 30, 1140, 678)
    views = list(plan_views(size, 0))
    assert sum(view.chip.split is Split.QUERY for view in views) == 2 * 264


def test_scenes_tell_their_sensors_in_the_names():
    for view in plan_views(SIZES["tiny"], 0):
        if view.chip.ship != DISTRACTOR:
            name = f"{view.chip.ship:04d}_s{view.scene:02d}c{view.camera}"
            assert view.chip.path.name.startswith(name)
            assert (view.scene + view.camera) % 2 == view.chip.modality


# The command

FEW = ["--train-ships", "8", "--test-ships", "6", "--seed", "5", "--workers", "1"]


def digests(folder):
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*.*"))
    }


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    output = tmp_path_factory.mktemp("made") / "new" / "data"
    make_dataset.main(["--output", str(output), "--size", "hoss", *FEW])
    return output


def test_written_files(made):
    names = [path.relative_to(made).as_posix() for path in made.rglob("*.tif")]
    assert any(name.startswith("HOSS/bounding_box_test/-1_0") for name in names)
    optical, sar = (Image.open(next((made / "HOSS/query").glob(f"*_{kind}.tif"))) for kind in ("RGB", "SAR"))
    assert optical.mode == "RGB" and np.asarray(sar).dtype == np.float32 and np.asarray(sar).ndim == 2
    assert [path.name for path in made.parent.iterdir()] == ["data"]  # nothing temporary is left


def test_the_same_seed_gives_the_same_bytes_with_any_number_of_processes(made, tmp_path):
    for workers in ("2", "3"):
        output = tmp_path / workers
        make_dataset.main(["--output", str(output), "--size", "hoss", *FEW[:-1], workers])
        assert digests(output) == digests(made)
    make_dataset.main(["--output", str(tmp_path / "other"), "--size", "hoss", *FEW[:4], "--seed", "6", "--workers", "1"])
    assert not set(digests(tmp_path / "other").values()) & set(digests(made).values())


def test_a_chip_does_not_depend_on_what_was_drawn_before():
    views, world = list(plan_views(SIZES["tiny"].scaled(2, 1), 0)), World(0, 1.0, 8)
    first = [world.draw(view) for view in views]
    for view, chip in reversed(list(zip(views, first))):
        np.testing.assert_array_equal(world.draw(view), chip)


@pytest.mark.parametrize("size", ["tiny", "hoss"])
def test_data_sets_are_sound(made, tmp_path, size):
    folder = made
    if size == "tiny":
        folder = tmp_path / "data"
        make_dataset.main(["--output", str(folder), *FEW])
    ended = call(check_dataset.main, str(folder), "--json", str(tmp_path / "report.json"))
    assert ended.status == 0, ended.out
    found = json.loads((tmp_path / "report.json").read_text())["findings"]
    assert {finding["level"] for finding in found} <= {"warning"}
    assert {finding["kind"] for finding in found} <= {"near-duplicate", "no match"}


def test_every_optical_chip_has_a_spare_view_that_is_ranked_nowhere(made):
    data = read_hoss(str(made))
    samples = find_spare_views(made / "spare" / "test", replace(data, train=()))
    optical = [chip for chip in data.images if chip.modality is Modality.OPTICAL]
    assert [samples.images[index].path for index in samples.sources] == [chip.path for chip in optical]
    training = [chip for chip in data.train if chip.modality is Modality.OPTICAL]
    assert len(list((made / "spare" / "train").iterdir())) == 2 * len(training)
    assert all(len(chips) == 2 for chips in samples.chips)
    picture = np.asarray(Image.open(next((made / "spare" / "test").iterdir())))
    assert picture.dtype == np.uint8 and picture.ndim == 2 and picture.max() == 255


def test_a_spare_view_has_another_pass_of_its_scene_and_the_next_one_of_another_scene(monkeypatch):
    seen, drawn = [], world_module.draw_radar_pass
    monkeypatch.setattr(
        world_module, "draw_radar_pass", lambda *by, variety: seen.append(drawn(*by, variety=variety)) or seen[-1]
    )
    world, passes, others = World(0, 1.0, 3), {}, set()
    views = list(plan_views(replace(SIZES["tiny"].scaled(12, 6), scenes=3), 0))
    radar = next(view for view in views if view.chip.modality is Modality.SAR)
    for scene in (1, 2, 3):
        for camera in cameras_of(scene, Modality.SAR):
            world.draw(replace(radar, scene=scene, camera=camera))
            passes.setdefault(scene, set()).add(seen.pop())
    for view in [view for view in views if view.chip.modality is Modality.OPTICAL]:
        world.draw_spare(view, 0)
        assert not any(seen[-1] in known for known in passes.values())
        assert {seen[-1].gain} == {own.gain for own in passes[view.scene]}  # of the scene
        world.draw_spare(view, 1)
        own = {scene for scene, known in passes.items() if seen[-1] in known}
        assert own and view.scene not in own
        others |= own
    assert others == {1, 2, 3}


def note(folder, item):
    time.sleep(0.02)
    (folder / str(item)).touch()
    return 1


def test_processes_that_draw_stop_where_nobody_asks_any_more(tmp_path):
    drawing = make_dataset._each(partial(note, tmp_path), range(400), 2)
    next(drawing)
    drawing.close()
    assert len(list(tmp_path.iterdir())) < 300


def test_an_interrupted_run_leaves_nothing(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(make_dataset, "write_views", fail)
    with pytest.raises(OSError):
        make_dataset.main(["--output", str(tmp_path / "data"), *FEW])
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_not_empty_is_kept(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    command = [sys.executable, "-m", "tools.make_dataset", "--output", str(tmp_path), *FEW]
    result = subprocess.run(command, cwd=Path(make_dataset.__file__).parents[1], capture_output=True, text=True)
    assert result.returncode == 2 and str(tmp_path) in result.stderr and "Traceback" not in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize(
    "words",
    [
        ["--train-ships", "0"],
        ["--test-ships", "0"],
        ["--seed", "-1"],
        ["--workers", "0"],
        ["--difficulty", "-1"],
        ["--difficulty", "1.1"],
    ],
)
def test_wrong_numbers_are_refused(tmp_path, words):
    with pytest.raises(UsageError, match=words[0]):
        make_dataset.main(["--output", str(tmp_path / "data"), *words])
    assert not list(tmp_path.iterdir())
