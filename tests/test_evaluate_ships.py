"""Generated pictures in the feature space of a re-identification network."""

import json

import pytest
import torch

from bbdm import train
from model.build import build_model
from tests.chip_files import write_hoss
from tests.commands import call, tiny_cfg
from tests.test_bbdm_evaluate import TINY
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


def test_ships_are_ranked_by_generated_pictures_alone(network, tmp_path):
    settings = TINY | {
        "BBDM.PAIRS": "hoss",
        "BBDM.CROP": "False",
        "DATASETS.ROOT_DIR": str(write_hoss(tmp_path / "data", train_ships=6)),
    }
    words = [word for item in settings.items() for word in item]
    train.main([*words, "OUTPUT_DIR", str(tmp_path / "bridge")])
    reid = ["--reid_config", network[0], "--reid_weights", network[1]]
    ended = call(
        evaluate_ships.main, *reid, *words, "BBDM.WEIGHT", tmp_path / "bridge" / "bridge_2.pth", "OUTPUT_DIR", tmp_path / "out"
    )
    assert ended.status == 0, ended.err
    content = json.loads((tmp_path / "out" / "evaluation.json").read_text(encoding="utf-8"))
    assert content["features"] == f"the re-identification network {network[1]}"
    assert content["figures"]["generated"]["rank"]["mean"] >= 1
    assert "features" in content["figures"]["mean SAR"]


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
