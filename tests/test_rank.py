"""Ranking pictures without labels: the order, what is written, and calls that are refused."""

import csv
import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

from configs import load_cfg
from datasets.catalogue import find_pictures, read_hoss
from datasets.chips import read_chip
from datasets.folders import gather_chips
from datasets.records import DISTRACTOR, Chip, Modality
from datasets.sar import render_max, render_percentile
from model.build import build_model
from processor.ranking.evaluation import Ranking, rank_protocol
from tests.chip_files import optical_pixels, sar_values, write_chip, write_hoss
from tools import check_dataset, import_dataset
from tools import rank as command
from tools.rank import RankedList, draw_sheet, prediction, rank_records
from utils.checkpoint import save
from utils.errors import CheckpointError, DataError, UsageError

SMALL = {
    "MODEL.DEVICE": "cpu",
    "MODEL.TRANSFORMER_TYPE": "vit_tiny_patch16_224_TransOSS",
    "MODEL.MIE": "True",
    "MODEL.SSE": "True",
    "INPUT.SIZE_TRAIN": "[64, 32]",
    "INPUT.SIZE_TEST": "[64, 32]",
    "DATALOADER.NUM_WORKERS": "0",
}
SETTINGS = [word for pair in SMALL.items() for word in pair]


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """A small model with random weights."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "small.pth"
    save(path, build_model(load_cfg(None, SETTINGS)).state_dict())
    return path


@pytest.fixture
def folders(tmp_path) -> tuple[Path, Path]:
    """Two queries, and a gallery that holds copies of them among others; names tell nothing but one modality."""
    query, gallery = tmp_path / "query", tmp_path / "gallery"
    query.mkdir()
    gallery.mkdir()
    for number in range(4):
        Image.fromarray(optical_pixels(number)).save(gallery / f"picture {number}.png")
        Image.fromarray(sar_values(number)).save(gallery / f"echo {number}.tif")
    Image.fromarray(optical_pixels(2)).save(query / "who.png")
    Image.fromarray((sar_values(3) * 20).astype(np.uint8)).save(query / "which_SAR.png")
    Image.fromarray((sar_values(3) * 20).astype(np.uint8)).save(gallery / "8bit_sar.png")
    return query, gallery


def run(query, gallery, weights, *arguments) -> None:
    command.main(["--query", str(query), "--gallery", str(gallery), "--weights", str(weights), *map(str, arguments), *SETTINGS])


def names_of(lists) -> tuple[dict, dict]:
    """File names of queries and gallery."""
    found = [chip.path for ranked in lists for chip in ranked.found]
    return {ranked.query.path: ranked.query.path.name for ranked in lists}, {path: path.name for path in found}


def find_records(folder, modality="auto"):
    return gather_chips(folder, "gallery", modality, partial(read_chip, render_sar=render_percentile)).chips


def records(modalities, split="gallery"):
    return [Chip(Path(f"{split}{number}.tif"), DISTRACTOR, modality, split) for number, modality in enumerate(modalities)]


# The order


@pytest.mark.parametrize(("same_modality", "reranking"), [(True, None), (False, None), (True, {"k1": 6, "k2": 3})])
def test_lists_agree_with_the_evaluation(tmp_path, same_modality, reranking):
    data = read_hoss(write_hoss(tmp_path, test_ships=9, views=3))
    protocol = data.protocols["ALL"]
    features = torch.randn(len(data.images), 16, generator=torch.Generator().manual_seed(1))
    ranking = Ranking(same_modality=same_modality, reranking=reranking)
    expected = rank_protocol(protocol, functional.normalize(features), data.images, ranking)
    query, gallery = ([data.images[i] for i in side] for side in (protocol.query, protocol.gallery))
    lists = rank_records(query, gallery, features, ranking, top_k=0)
    for ranked, first in zip(lists, expected.first_match, strict=True):
        matches = [rank for rank, record in enumerate(ranked.found, start=1) if record.ship == ranked.query.ship]
        assert matches[0] == first
        assert list(ranked.distances) == sorted(ranked.distances)
        assert len(ranked.found) == sum(same_modality or r.modality is not ranked.query.modality for r in gallery)


def test_equal_distances_keep_the_order_of_the_gallery_and_lists_are_cut():
    query, gallery = records([Modality.SAR], "query"), records([Modality.OPTICAL] * 5)
    features = torch.tensor([[1.0, 0], [0, 1], [1, 0], [0, 1], [1, 0], [0, 1]])
    (ranked,) = rank_records(query, gallery, features, Ranking(), top_k=3)
    assert [record.path.name for record in ranked.found] == ["gallery1.tif", "gallery3.tif", "gallery0.tif"]
    assert ranked.distances == pytest.approx((0, 0, 2))
    assert prediction([ranked], *names_of([ranked])) == {"query0.tif": ["gallery1.tif", "gallery3.tif", "gallery0.tif"]}


def test_ties_are_told(caplog):
    query, gallery = records([Modality.SAR] * 2, "query"), records([Modality.OPTICAL] * 4)
    features = torch.tensor([[1.0, 0], [0, 1], [1, 0], [1, 0], [1, 0], [0, 1]])
    rank_records(query, gallery, features, Ranking(), top_k=0)
    assert "for 2 of 2 queries most of the gallery lies at one distance" in caplog.text
    caplog.clear()
    rank_records(query, gallery, torch.eye(6), Ranking(), top_k=0)
    assert "for 2 of 2 queries" in caplog.text  # all at right angles
    caplog.clear()
    rank_records(query, gallery, torch.randn(6, 3, generator=torch.Generator().manual_seed(0)), Ranking(), top_k=0)
    assert caplog.text == ""


def test_many_queries_go_in_blocks(monkeypatch):
    query, gallery = records([Modality.SAR] * 7, "query"), records([Modality.OPTICAL] * 4)
    features = torch.randn(11, 3, generator=torch.Generator().manual_seed(0))
    whole = rank_records(query, gallery, features, Ranking(), top_k=0)
    monkeypatch.setattr(command, "BLOCK_QUERIES", 2)
    blocks = rank_records(query, gallery, features, Ranking(), top_k=0)
    assert prediction(blocks, *names_of(blocks)) == prediction(whole, *names_of(whole)) and len(whole) == 7


# Folders


def test_pictures_are_found_with_their_modality(folders):
    found = {record.path.name: record.modality for record in find_records(folders[0])}
    assert found == {"which_SAR.png": Modality.SAR, "who.png": Modality.OPTICAL}
    assert {record.modality for record in find_records(folders[1], "sar")} == {Modality.SAR}


def test_what_is_no_picture_is_left_out(tmp_path):
    for name in ("notes.txt", ".hidden_RGB.png"):
        (tmp_path / name).touch()
    with pytest.raises(DataError, match="hold no chip"):
        find_pictures(tmp_path)
    with pytest.raises(DataError, match="nowhere does not exist"):
        find_pictures(tmp_path / "nowhere")
    write_chip(tmp_path / "B_RGB.PNG")
    write_chip(tmp_path / "a_SAR.tif")
    assert [path.name for path in find_pictures(tmp_path)] == ["B_RGB.PNG", "a_SAR.tif"]


def test_folders_are_searched_below_and_names_tell_where(tmp_path, folders, weights):
    query, gallery = folders
    write_chip(gallery / "day 2" / "b" / "picture 1_RGB.png", seed=2)
    write_chip(gallery / ".cache" / "x_RGB.png", seed=2)
    run(query / "who.png", gallery, weights, "--output", tmp_path / "out", "--sheets")
    found = json.loads((tmp_path / "out" / "prediction.json").read_text())["who.png"]
    assert set(found[:2]) == {"picture 2.png", "day 2/b/picture 1_RGB.png"} and len(found) == 10
    run(gallery, gallery, weights, "--output", tmp_path / "all", "--sheets")
    assert (tmp_path / "all" / "sheets" / "day 2" / "b" / "picture 1_RGB.png.png").is_file()


def test_broken_files_are_listed_and_skipped_and_counted(tmp_path, folders, weights, capsys):
    query, gallery = folders
    (gallery / "bad_RGB.png").write_bytes(b"nothing")
    Image.fromarray(optical_pixels()).save(gallery / "rough_RGB.png")
    (gallery / "rough_RGB.png").write_bytes((gallery / "rough_RGB.png").read_bytes()[:500])
    with pytest.raises(DataError, match=r"2 of 11 files cannot be used .* --skip-bad"):
        run(query, gallery, weights, "--output", tmp_path / "out")
    listed = capsys.readouterr().err
    assert not (tmp_path / "out").exists() and "bad_RGB.png" in listed and "rough_RGB.png" in listed
    with pytest.raises(DataError, match=r"2 of 13 files were skipped .* everything else was done") as caught:
        run(query, gallery, weights, "--output", tmp_path / "out", "--skip-bad")
    assert caught.value.exit_status == 1
    ranking = json.loads((tmp_path / "out" / "prediction.json").read_text())
    assert {len(names) for names in ranking.values()} == {9}
    with pytest.raises(DataError, match="none of 1 files can be used"):
        run(query, gallery / "bad_RGB.png", weights, "--output", tmp_path / "none", "--skip-bad")


# The command


def test_copies_are_found_first_and_everything_is_written(folders, weights, tmp_path, capsys):
    query, gallery = folders
    run(query, gallery, weights, "--output", tmp_path / "out", "--sheets")
    ranking = json.loads((tmp_path / "out" / "prediction.json").read_text())
    assert list(ranking) == ["which_SAR.png", "who.png"]
    assert ranking["who.png"][0] == "picture 2.png" and ranking["which_SAR.png"][0] == "8bit_sar.png"
    assert all(sorted(names) == sorted(path.name for path in gallery.iterdir()) for names in ranking.values())
    with (tmp_path / "out" / "ranking.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["gallery"] for row in rows if row["query"] == "who.png"] == ranking["who.png"]
    assert [int(row["rank"]) for row in rows] == [*range(1, 10)] * 2
    best = rows[9]
    assert float(best["distance"]) < 1e-5 and (best["query_modality"], best["gallery_modality"]) == ("optical", "optical")
    assert sorted(path.name for path in (tmp_path / "out" / "sheets").iterdir()) == ["which_SAR.png.png", "who.png.png"]
    assert "2 queries ranked against 9 gallery pictures" in capsys.readouterr().out


def test_one_picture_as_query_short_lists_and_settings(folders, weights, tmp_path):
    query, gallery = folders
    run(query / "who.png", gallery, weights, "--output", tmp_path, "--top-k", 2, "TEST.SAME_MODALITY_GALLERY", "False")
    ranking = json.loads((tmp_path / "prediction.json").read_text())
    assert list(ranking) == ["who.png"] and len(ranking["who.png"]) == 2
    assert all(name.startswith(("echo", "8bit")) for name in ranking["who.png"])


def test_grey_pictures_need_a_flag(folders, weights, tmp_path):
    query, gallery = folders
    (query / "which_SAR.png").rename(query / "which.png")
    with pytest.raises(DataError, match=r"which\.png is grey"):
        run(query, gallery, weights, "--output", tmp_path)
    run(query / "which.png", gallery, weights, "--output", tmp_path, "--query-modality", "sar", "--top-k", 1)
    assert json.loads((tmp_path / "prediction.json").read_text()) == {"which.png": ["8bit_sar.png"]}


def test_a_damaged_picture_leaves_nothing_written(folders, weights, tmp_path):
    query, gallery = folders
    (gallery / "bad_RGB.png").write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"bad_RGB\.png"):
        run(query, gallery, weights, "--output", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_negative_length_is_a_wrong_call(folders, weights):
    with pytest.raises(UsageError, match="--top-k"):
        run(*folders, weights, "--top-k", "-1")


def test_sheets_show_the_query_and_what_was_found(folders):
    query, gallery = (find_records(folder) for folder in folders)
    ranked = RankedList(query[1], tuple(gallery[:3]), (0.1, 0.2, 0.3))
    sheet = np.asarray(draw_sheet(ranked, partial(read_chip, render_sar=render_percentile)))
    one = np.asarray(
        draw_sheet(RankedList(query[1], tuple(gallery[:1]), (0.1,)), partial(read_chip, render_sar=render_percentile))
    )
    assert sheet.shape[0] == one.shape[0] and sheet.shape[1] - one.shape[1] == 2 * (command.CELL[0] + 8)
    picture = sheet[8 : 8 + command.CELL[1], 8 : 8 + command.CELL[0]]
    assert (picture[..., 0] != picture[..., 1]).any()  # the query is optical: colour


def test_long_and_foreign_names_fit_on_a_sheet(tmp_path):
    path = write_chip(tmp_path / ("船" * 30 + "_RGB.png"))
    record = Chip(path, DISTRACTOR, Modality.OPTICAL, "query")
    assert (
        draw_sheet(RankedList(record, (record,), (0.0,)), partial(read_chip, render_sar=render_max)).size[1] > command.CELL[1]
    )


@pytest.mark.parametrize("tool", [check_dataset, import_dataset, command])
def test_help_has_an_example(tool, capsys):
    with pytest.raises(SystemExit) as caught:
        tool.main(["--help"])
    assert caught.value.code == 0
    assert f"example:\n  python -m {tool.__name__} " in capsys.readouterr().out


def test_missing_weights_are_named(folders, tmp_path):
    with pytest.raises(CheckpointError, match=r"no\.pth") as caught:
        run(*folders, tmp_path / "no.pth", "--output", tmp_path / "out")
    assert caught.value.exit_status == 1
    assert not (tmp_path / "out").exists()
