"""Generated pictures in the feature space of a re-identification network."""

import json

import pytest
import torch
from PIL import Image

from bbdm import evaluate
from bbdm.data import build_bridge_pairs, to_tensor
from bbdm.model import build_network
from configs import load_cfg
from datasets.chips import read_chip
from datasets.sar import render_percentile
from datasets.transforms import resize
from model.build import build_model
from tests.chip_files import write_hoss
from tests.commands import call, tiny_cfg
from tools import evaluate_ships
from utils.checkpoint import save


@pytest.fixture
def network(tmp_path):
    """A re-identification network: its config file and weights."""
    cfg = tiny_cfg()
    torch.manual_seed(0)
    save(tmp_path / "reid.pth", build_model(cfg).state_dict())
    (tmp_path / "reid.yml").write_text(cfg.dump(), encoding="utf-8")
    return tmp_path / "reid.yml", tmp_path / "reid.pth"


WORDS = [
    *("BBDM.PAIRS", "hoss", "BBDM.HOLD_OUT_EVERY", "3", "BBDM.CROP", "False", "BBDM.IMAGE_SIZE", "[16, 16]"),
    *("BBDM.WIDTH", "32", "BBDM.MULTIPLIERS", "[1, 1]", "BBDM.BLOCKS", "1", "BBDM.HEAD_WIDTH", "32", "BBDM.SAMPLE_NUM", "2"),
    *("DATALOADER.NUM_WORKERS", "0", "MODEL.DEVICE", "cpu"),
]


@pytest.mark.parametrize(("shift", "rank"), [(0, 1), (1, 2)], ids=["the right ship", "the other ship"])
def test_ships_are_ranked_by_generated_pictures_alone(network, tmp_path, monkeypatch, shift, rank):
    """Two ships are held out, and the bridge "generates" the real SAR chip of the right one, or of the other one."""
    words = [*WORDS, "DATASETS.ROOT_DIR", str(write_hoss(tmp_path / "data", train_ships=6, views=1))]
    cfg = load_cfg(None, words)
    held_out = build_bridge_pairs(cfg).validation
    assert [pair.place for pair in held_out] == ["3", "6"]
    save(tmp_path / "bridge.pth", build_network(cfg).state_dict())
    real = [read_chip(pair.sar, render_percentile) for pair in held_out]
    pictures = [to_tensor(resize(picture, (16, 16), Image.Resampling.BILINEAR)) for picture in real]
    told = {}

    def draw(model, jobs, read, settings, **drawing):
        told.update(jobs=jobs, optical=read(2))
        return [pictures[(job // 2 + shift) % 2] for job in range(4)]

    monkeypatch.setattr(evaluate, "draw", draw)
    reid = ["--reid_config", network[0], "--reid_weights", network[1]]
    ended = call(evaluate_ships.main, *reid, *words, "BBDM.WEIGHT", tmp_path / "bridge.pth", "OUTPUT_DIR", tmp_path / "out")
    assert ended.status == 0, ended.err
    assert told["jobs"] == [(f"000{ship}_s01c0_RGB.tif", k) for ship in (3, 6) for k in range(2)]
    optical = resize(read_chip(held_out[1].optical, render_percentile), (16, 16), Image.Resampling.BILINEAR)
    torch.testing.assert_close(told["optical"], to_tensor(optical))
    content = json.loads((tmp_path / "out" / "evaluation.json").read_text(encoding="utf-8"))
    assert content["features"] == f"the re-identification network {network[1]}"
    means = {kind: {name: row["mean"] for name, row in rows.items()} for kind, rows in content["figures"].items()}
    assert means["generated"]["rank"] == rank
    assert means["generated"]["top1"] == (rank == 1)
    assert (means["generated"]["features"] < 1e-6) == (means["generated"]["L1"] < 1e-6) == (rank == 1)
    assert (means["mean SAR"]["rank"], means["mean SAR"]["top1"]) == (1.5, 0.5)  # one picture for all: chance


def test_features_are_those_of_the_network(network):
    cfg = tiny_cfg()
    embed = evaluate_ships.build_embedding(cfg, str(network[1]), torch.device("cpu"))
    pictures = torch.rand(3, *cfg.INPUT.SIZE_TEST, generator=torch.Generator().manual_seed(0))
    model = build_model(cfg).eval()
    model.load_state_dict(torch.load(network[1], weights_only=True))
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (cfg.INPUT.PIXEL_MEAN, cfg.INPUT.PIXEL_STD))
    images = (pictures[:, None].expand(-1, 3, -1, -1) - mean) / std
    with torch.no_grad():
        expected = model(images, torch.ones(3, dtype=torch.int64), torch.zeros(3, 3)).neck_feature
    torch.testing.assert_close(embed(pictures), expected, atol=1e-5, rtol=1e-4)


def test_a_call_without_a_network_is_wrong(tmp_path):
    assert call(evaluate_ships.main, "OUTPUT_DIR", tmp_path).status == 2
