"""tools.oracle: the gap by hand, spare views that are never ranked, what stands in for a picture, and whose tau is taken."""

import json
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

from datasets.catalogue import HossData, read_hoss
from datasets.chips import read_chip
from datasets.records import Chip, Modality, Protocol, Split
from datasets.sar import build_sar_rendering
from model.build import build_model
from processor.fusion import SampleSet
from processor.ranking.comparison import gap_closed
from processor.ranking.results import Outcome
from processor.ranking.tuning import Trial
from processor.stand_ins import (
    build_mean_drawing,
    draw_grey,
    find_spare_views,
    match_sizes,
    take_spare_views,
    write_stand_ins,
)
from tests.chip_files import write_chip, write_hoss
from tests.commands import call, settings, tiny_cfg
from tests.test_tune import score_of
from tools import oracle
from utils.checkpoint import save
from utils.errors import DataError

# The gap


def outcomes(values) -> list[Outcome]:
    return [Outcome(f"{ship}_{n}", ship, value, 1) for n, (ship, value) in enumerate(values)]


PLAIN = outcomes([(ship, 0.2) for ship in range(40)])
GOAL = outcomes([(ship, 0.8 + 0.001 * (ship % 2)) for ship in range(40)])


def test_the_share_of_the_gap_by_hand():
    half = gap_closed(PLAIN, outcomes([(ship, 0.5) for ship in range(40)])[::-1], GOAL, "mAP")
    assert half.mean == pytest.approx(0.3 / 0.6005)
    assert half.low < half.mean < half.high and half.high - half.low < 0.01
    assert gap_closed(PLAIN, GOAL, GOAL, "mAP").ends == pytest.approx([1, 1])
    assert gap_closed(PLAIN, PLAIN, GOAL, "mAP").ends == pytest.approx([0, 0])
    assert gap_closed(PLAIN, outcomes([(ship, 0.1) for ship in range(40)]), GOAL, "mAP").mean == pytest.approx(-0.1 / 0.6005)


def test_there_is_no_share_of_a_gap_that_is_not_shown():
    assert gap_closed(GOAL, GOAL, PLAIN, "mAP") is None
    assert gap_closed(PLAIN, GOAL, PLAIN, "mAP") is None


def test_the_interval_of_the_share_covers_and_counts_ships():
    draws, inside = np.random.default_rng(0), 0
    for _ in range(200):
        plain, way = draws.uniform(0.1, 0.3, 120), draws.normal(0.5, 0.2, 120)
        part = np.repeat(draws.normal(0.4, 0.3, 40), 3)  # three queries of a ship go as far
        ships = np.repeat(np.arange(40), 3).tolist()
        sides = [outcomes(zip(ships, values.tolist())) for values in (plain, plain + part * way, plain + way)]
        found = gap_closed(*sides, "mAP")
        inside += found.low <= 0.4 <= found.high
    assert 180 <= inside <= 199


# Spare views


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("oracle")
    write_hoss(root / "data", train_ships=10, test_ships=4, subset=True)
    torch.manual_seed(0)
    save(root / "weights.pth", build_model(tiny_cfg(), 10).state_dict())
    return root


def test_a_spare_view_of_the_gallery_is_of_the_ship_and_leaves_every_gallery(root):
    data = read_hoss(root / "data", train=False)
    ranked, spare = take_spare_views(data)
    shown = {name: {data.images[i].path.name for i in own.gallery} for name, own in ranked.protocols.items()}
    before = {name: len(own.gallery) for name, own in data.protocols.items()}
    taken = {chips[0].path.name for chips in spare.chips}
    assert taken == {f"{pid:04d}_s01c2_SAR.tif" for pid in (101, 102, 103, 104)}
    assert all(not taken & names for names in shown.values())
    after = {name: len(own.gallery) for name, own in ranked.protocols.items()}
    assert after == {"ALL": before["ALL"] - 4, "O2S": before["O2S"] - 4, "S2O": before["S2O"]}
    assert {name: own.query for name, own in ranked.protocols.items()} == {n: own.query for n, own in data.protocols.items()}
    for index, chips in zip(spare.sources, spare.chips, strict=True):
        assert ranked.images[index].modality is Modality.OPTICAL
        assert (chips[0].modality, chips[0].ship) == (Modality.SAR, ranked.images[index].ship)
    assert len(spare.sources) == 4 * 3


def test_the_last_sar_chip_of_a_ship_is_not_taken(tmp_path):
    data = read_hoss(write_hoss(tmp_path, views=1), train=False)
    with pytest.raises(DataError, match="two SAR chips in the gallery"):
        take_spare_views(data)


def test_spare_views_of_a_folder_are_those_of_the_images_alone(tmp_path):
    data = read_hoss(write_hoss(tmp_path, train_ships=2))
    optical = [chip for chip in (*data.images, *data.train) if chip.modality is Modality.OPTICAL]
    (tmp_path / "spare").mkdir()
    for chip in optical:
        for k in range(2):
            Image.new("L", (24, 60), 9).save(tmp_path / "spare" / f"{chip.path.stem}_{k}.png")
    found = find_spare_views(tmp_path / "spare", data)
    assert len(found.images) == len(data.images)
    assert [data.images[index] for index in found.sources] == optical[: len(optical) - 4]
    for index, chips in zip(found.sources, found.chips, strict=True):
        assert [chip.path.name for chip in chips] == [f"{data.images[index].path.stem}_{k}.png" for k in range(2)]
        assert all(chip.measured for chip in chips)


# What stands in for a picture


def chip(ship, size, name="x", modality=Modality.OPTICAL):
    return Chip(name, ship, modality, Split.GALLERY, size)


def test_another_ship_is_the_nearest_in_size_and_never_the_same():
    chips = [
        chip(1, (20, 100)),
        chip(1, (21, 100)),
        chip(2, (40, 200)),
        chip(3, (23, 110)),
        chip(-1, (41, 200)),
        chip(-1, (20, 90)),
    ]
    assert match_sizes(SampleSet(tuple(chips), tuple(range(6)), (), 1)) == [5, 5, 4, 1, 2, 0]


def test_grey_and_mean_pictures_have_the_size_of_their_source(tmp_path):
    paths = [write_chip(tmp_path / f"{n}_RGB.tif", n, height=30 + n, width=10 + n) for n in range(2)]
    values = [write_chip(tmp_path / f"{n}_SAR.tif", n) for n in range(3)]
    sources = tuple(Chip(path, n, Modality.OPTICAL, Split.QUERY) for n, path in enumerate(paths))
    sar = [Chip(path, 9, Modality.SAR, Split.TRAIN) for path in values]
    samples = SampleSet(sources, (0, 1), (), 5)
    (tmp_path / "grey").mkdir()
    grey = write_stand_ins(tmp_path / "grey", samples, draw_grey)
    assert grey.per_image == 1
    for (made,), source in zip(grey.chips, sources, strict=True):
        picture = np.asarray(Image.open(made.path))
        colour = np.asarray(Image.open(source.path).convert("RGB"), dtype=float)
        np.testing.assert_allclose(picture, colour @ [0.299, 0.587, 0.114], atol=1)
        assert (made.modality, made.ship, made.source) == (Modality.SAR, source.ship, source)
    rendering = build_sar_rendering("percentile", low=5.0, high=100.0)
    draw = build_mean_drawing([*sar, *sources], partial(read_chip, render_sar=rendering), (32, 16))
    drawn = [np.asarray(draw(source)) for source in sources]
    assert [picture.shape for picture in drawn] == [(30, 10), (31, 11)]
    average = np.mean([rendering(np.asarray(Image.open(path))).mean() for path in values])
    assert drawn[0].mean() == pytest.approx(average, abs=4)


# Whose tau is taken


def trials_of(*rows):
    return [Trial({"tau": tau}, {"ALL": score_of(values)}, 0.0) for tau, values in rows]


def test_validation_ships_choose_the_tau():
    test = {"plain": trials_of((None, [0.1] * 4)), "fused": trials_of((0.0, [0.9] * 4), (0.5, [0.3] * 4))}
    validating = {"plain": trials_of((None, [0.1] * 3)), "fused": trials_of((0.0, [0.1] * 3), (0.5, [0.2] * 3))}
    found = oracle.settle_rows(test, validating, "ALL", "mAP")
    assert found["fused"][0] == {"tau": 0.5}
    assert [outcome.AP for outcome in found["fused"][1]] == [0.3] * 4
    assert found["plain"][0] == {"tau": None}


def test_without_validation_ships_queries_of_other_ships_choose():
    rows = [(n / 10, np.eye(6)[n].tolist()) for n in range(6)]  # each tau is right for one ship alone
    found = oracle.settle_rows({"fused": trials_of(*rows)}, None, "ALL", "mAP")
    assert [outcome.AP for outcome in found["fused"][1]] == [0.0] * 6


# The command


def measured(root, tmp_path, *options, **changes):
    values = {"DATASETS__ROOT_DIR": root / "data", "TEST__WEIGHT": root / "weights.pth"}
    ended = call(oracle.main, "--json", tmp_path / "out.json", "--taus", "0,0.5", *options, *settings(**values | changes))
    return ended, json.loads((tmp_path / "out.json").read_text()) if ended.status == 0 else None


def write_store(folder, images, count=1):
    folder.mkdir(parents=True)
    for number, own in enumerate(images):
        for k in range(count if own.modality is Modality.OPTICAL else 0):
            pixels = np.random.default_rng([number, k]).integers(0, 256, (60, 24, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{own.path.stem}_{k}.png")
    return folder


ROWS = ["plain", "fused", "common space: cca", "common space: cca, fused", "oracle: a spare SAR view",
        "another ship of that size", "the optical picture in grey", "the mean SAR picture"]  # fmt: skip


def test_every_row_is_measured(root, tmp_path):
    store = write_store(tmp_path / "store", read_hoss(root / "data", train=False).images)
    ended, report = measured(root, tmp_path, "--store", store, "--kinds", "cca")
    assert ended.status == 0, ended.err
    assert list(report["protocols"]) == ["ALL", "O2S", "S2O"]
    for rows in report["protocols"].values():
        assert [row["row"] for row in rows] == ROWS
        assert [row["setting"]["tau"] is None for row in rows] == [True, False, True, False, False, False, False, False]
    assert "spare SAR views: 4 chips of the gallery" in ended.out and "are not ranked" in ended.out
    assert "queries of other ships choose" in ended.out
    assert set(report["movable"]) == {"ALL", "O2S", "S2O"} and "tau 0.02 can change the first rank of" in ended.out
    assert "the weights do not say" in ended.out


def test_plain_is_what_test_py_finds_and_spare_folders_leave_the_gallery_whole(root, tmp_path):
    import test as command

    store = write_store(tmp_path / "spare", read_hoss(root / "data", train=False).images)
    _, report = measured(root, tmp_path, "--spare", store, "--kinds", "lda", "--taus", "0.3")
    assert report["spare"].startswith(f"spare SAR views: {store}")
    values = {"DATASETS__ROOT_DIR": root / "data", "TEST__WEIGHT": root / "weights.pth", "OUTPUT_DIR": tmp_path}
    samples = {"DATASETS__QUERY_ADD_DIR": store, "DATASETS__GALLERY_ADD_DIR": store, "TEST__FUSION_TAU": 0.3}
    assert call(command.main, *settings(**values | samples)).status == 0
    tested = json.loads((tmp_path / "results.json").read_text())["protocols"]
    for name, rows in report["protocols"].items():
        found = {row["row"]: row["mAP"] for row in rows}
        assert found["plain"] == pytest.approx(tested[name]["plain"]["mAP"])
        assert found["oracle: a spare SAR view"] == pytest.approx(tested[name]["fused"]["mAP"])


def test_a_second_spare_view_is_the_oracle_of_another_radar(root, tmp_path):
    store = write_store(tmp_path / "spare", read_hoss(root / "data", train=False).images, count=2)
    options = ("--spare", store, "--taus", "0.5", "--kinds", "lda", "--shrinkages", "0.1", "--dimensions", "0,3")
    _, report = measured(root, tmp_path, *options)
    for rows in report["protocols"].values():
        found = {row["row"]: row for row in rows}
        assert found["oracle: a spare SAR view"]["mAP"] != found["oracle: a view by another radar"]["mAP"]
        assert found["common space: lda"]["setting"]["shrinkage"] == 0.1
        assert found["common space: lda"]["setting"]["dimensions"] in (0, 3)


def test_validation_ships_choose_where_they_are_asked_for(root, tmp_path):
    ended, _ = measured(root, tmp_path, "--kinds", "centre", DATASETS__VAL_FRACTION=0.4)
    assert ended.status == 1  # of two views one is a query: the validation gallery has none to spare
    assert "name some with --spare" in ended.sentence
    store = write_store(tmp_path / "val", read_hoss(root / "data", test=False).train)
    ended, report = measured(root, tmp_path, "--val-spare", store, "--kinds", "centre", DATASETS__VAL_FRACTION=0.4)
    assert ended.status == 0, ended.err
    assert report["choice"] == "settings chosen on validation ships, 0.4 of the training set, seed 1234"


@pytest.mark.parametrize(
    ("options", "changes", "words"),
    [
        (("--taus", "0.1,2"), {}, "--taus"),
        (("--kinds", "pca"), {}, "--kinds"),
        (("--store", "x"), {"DATASETS__VAL_FRACTION": 0.4}, "--val-store go together"),
        ((), {"TEST__WEIGHT": ""}, "TEST.WEIGHT is empty"),
    ],
)
def test_wrong_calls_end_in_a_sentence(root, tmp_path, options, changes, words):
    ended, _ = measured(root, tmp_path, *options, **changes)
    assert ended.status == 2
    assert words in ended.sentence


def test_the_gap_and_gains_are_in_the_table():
    rows = {
        "plain": ({"tau": None}, PLAIN),
        "fused": ({"tau": 0.3, "shrinkage": 0.01, "dimensions": 64}, outcomes([(ship, 0.5) for ship in range(40)])),
        "oracle: a spare SAR view": ({"tau": 0.6}, GOAL),
    }
    report = oracle.report_rows(rows, "mAP")
    assert report[1]["gain"] == pytest.approx(0.3)
    assert report[1]["gap_closed"] == pytest.approx(0.3 / 0.6005)
    lines = oracle.format_rows(report, "O2S", "mAP").splitlines()
    assert lines[3].split()[:4] == ["fused", "50.0", "100.0", "+30.0"]
    told = lines[lines.index("") + 3].split()
    assert told == ["fused", "tau", "0.3,", "e", "0.01,", "d", "64", "50", "50", "..", "50"]


def test_protocols_that_validation_lacks_choose_for_themselves():
    own = {"fused": [Trial({"tau": 0.1}, {"O2S": score_of([0.5] * 3)}, 0.0)]}
    assert oracle.settle_rows(own, {"fused": trials_of((0.1, [0.5] * 3))}, "O2S", "mAP")["fused"][0] == {"tau": 0.1}


def test_no_view_to_spare_is_told():
    data = HossData((), {}, (chip(1, None), chip(1, None, "a", Modality.SAR)), {"ALL": Protocol("ALL", (0,), (1,))})
    with pytest.raises(DataError):
        take_spare_views(data)
