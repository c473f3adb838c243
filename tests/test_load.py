"""model.load: the same features and lists as the commands', from files and from arrays."""

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from datasets.chips import read_optical, read_sar
from datasets.records import Modality
from model.build import build_model
from model.load import load_reid
from tests.chip_files import write_hoss
from tests.commands import call, tiny_cfg
from tools import rank
from utils.checkpoint import save
from utils.errors import CheckpointError, DataError, UsageError
from utils.tables import read_cell

NOTEBOOK = Path(__file__).parent.parent / "docs" / "notebook.ipynb"


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> tuple[Path, list[Path], list[Path]]:
    """A weights file that says what it is, and the files of queries and gallery."""
    folder = tmp_path_factory.mktemp("load")
    root = write_hoss(folder)
    torch.manual_seed(0)
    cfg = tiny_cfg()
    save(folder / "weights.pth", build_model(cfg).state_dict(), {"network": "transformer", "config": cfg.dump()})
    return folder / "weights.pth", *(sorted((root / "HOSS" / name).iterdir()) for name in ("query", "bounding_box_test"))


def read_array(path: Path):
    return read_optical(path) if "_RGB" in path.name else read_sar(path)


def test_files_and_arrays_give_the_same_features(world):
    weights, query, _ = world
    reid = load_reid(weights, "MODEL.DEVICE", "cpu")
    features = reid.embed(query)
    assert features.shape == (len(query), 192) and features.dtype is torch.float32
    torch.testing.assert_close(features.norm(dim=1), torch.ones(len(query)))
    arrays = [read_array(path) for path in query]
    torch.testing.assert_close(reid.embed(arrays), features)
    torch.testing.assert_close(reid.embed([str(query[0]), arrays[1]]), features[:2])
    plain = load_reid(weights, "TEST.FEAT_NORM", "no").embed(query)
    torch.testing.assert_close(torch.nn.functional.normalize(plain), features)
    assert not torch.allclose(plain, features)


def test_lists_are_those_of_the_command(world, tmp_path):
    weights, query, gallery = world
    reid = load_reid(weights)
    order, distances = reid.rank(reid.embed(query), reid.embed(gallery), top_k=3)
    assert order.shape == distances.shape == (len(query), 3)
    folders = ["--query", query[0].parent, "--gallery", gallery[0].parent, "--output", tmp_path, "--top-k", "3"]
    ended = call(rank.main, "--weights", weights, *folders)
    assert ended.status == 0, ended.err
    rows = list(csv.DictReader((tmp_path / "ranking.csv").open()))
    assert [read_cell(row["gallery"]) for row in rows] == [gallery[place].name for place in order.flatten()]
    assert [float(row["distance"]) for row in rows] == pytest.approx(distances.flatten().tolist(), abs=1e-5)
    every, _ = reid.rank(reid.embed(query), reid.embed(gallery))
    assert every.shape == (len(query), len(gallery)) and torch.equal(every[:, :3], order)


def test_the_modality_can_be_told(world, tmp_path):
    weights, query, _ = world
    reid = load_reid(weights)
    optical = next(path for path in query if "_RGB" in path.name)
    other = tmp_path / "unnamed.tif"
    other.write_bytes(optical.read_bytes())
    torch.testing.assert_close(reid.embed([other], "optical"), reid.embed([optical]))
    assert reid.embed([read_optical(optical)], "optical").shape == (1, 192)


@pytest.mark.parametrize(
    ("pictures", "modality", "words"),
    [
        ([np.zeros((4, 4, 3))], "auto", "array 0 is float64 of 4 x 4 x 3; an optical chip is"),
        ([np.ones((4, 4)), np.zeros((4, 4, 4), np.uint8)], "auto", "array 1 is uint8 of 4 x 4 x 4"),
        ([np.ones((4, 4))], "optical", "array 0 is float64 of 4 x 4"),
        ([np.ones((0, 4))], "auto", "array 0 is float64 of 0 x 4"),
        ([], "auto", "there are no pictures"),
        (["nowhere_RGB.tif"], "auto", "nowhere_RGB.tif"),
    ],
)
def test_what_is_no_chip_is_named(world, pictures, modality, words):
    with pytest.raises(DataError, match=re.escape(words)):
        load_reid(world[0]).embed(pictures, modality)


def test_wrong_calls_say_why(world, tmp_path):
    with pytest.raises(UsageError, match="modality cannot be 'radar'"):
        load_reid(world[0]).embed([np.ones((4, 4))], "radar")
    with pytest.raises(CheckpointError, match=r"none\.pth"):
        load_reid(tmp_path / "none.pth")
    save(tmp_path / "bare.pth", build_model(tiny_cfg()).state_dict())
    with pytest.raises(UsageError, match="does not say what it is"):
        load_reid(tmp_path / "bare.pth")


def test_the_common_space_is_kept(world):
    """It is fitted to training chips, as by the commands."""
    weights, query, _ = world
    values = ["DATASETS.ROOT_DIR", str(query[0].parents[2]), "TEST.COMMON_SPACE", "centre"]
    mapped, plain = load_reid(weights, *values), load_reid(weights)
    assert mapped.space.kind == "centre"
    assert not torch.allclose(mapped.embed(query), plain.embed(query))
    assert {Modality.OPTICAL, Modality.SAR} == {Modality.OPTICAL if "_RGB" in path.name else Modality.SAR for path in query}


def test_the_notebook_was_executed_and_runs(tmp_path, monkeypatch):
    """With fewer ships and epochs; its pictures are left out."""
    cells = [cell for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert not any(output["output_type"] == "error" for cell in cells for output in cell["outputs"])
    assert any("image/png" in output.get("data", {}) for cell in cells for output in cell["outputs"])
    assert NOTEBOOK.stat().st_size < 200_000
    code = "\n".join("".join(cell["source"]) for cell in cells)
    for usual, small in (("40", "12"), ("SOLVER.MAX_EPOCHS 60", "SOLVER.MAX_EPOCHS 1")):
        assert usual in code
        code = code.replace(usual, small)
    monkeypatch.setenv("MPLBACKEND", "agg")
    monkeypatch.chdir(NOTEBOOK.parent.parent)
    exec(compile(code.replace('"logs/notebook"', repr(str(tmp_path))), NOTEBOOK.name, "exec"), {"__name__": "__main__"})
