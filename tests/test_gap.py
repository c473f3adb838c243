"""The rivals of fusion: the bridge between features, scores side by side, and the table from end to end."""

import json

import pytest
import torch
from torch.nn import functional

from benchmarks import feature_bridge, gap
from benchmarks.feature_bridge import pairs_of_ships, sample_features, train_feature_bridge
from datasets.catalogue import read_hoss
from model.build import build_model
from tests.chip_files import write_hoss
from tests.commands import call, settings, tiny_cfg
from tests.test_oracle import write_store
from utils.checkpoint import save


def test_every_optical_and_sar_chip_of_a_ship_are_a_pair():
    assert pairs_of_ships([0, 1, 1, 0, 0], [7, 7, 8, 7, 9]).tolist() == [[0, 1], [3, 1]]


def test_the_bridge_between_features_leads_to_the_sar_side(monkeypatch):
    monkeypatch.setattr(feature_bridge, "STEPS", 300)
    draws = torch.Generator().manual_seed(0)
    ships = torch.randn(240, 6, generator=draws)
    turn = torch.linalg.qr(torch.randn(6, 6, generator=draws)).Q
    features = torch.cat([ships, ships @ turn])
    pairs = torch.stack([torch.arange(200), 240 + torch.arange(200)], dim=1)
    bridge, network = train_feature_bridge(features, pairs, seed=0)
    found = sample_features(bridge, network, ships[200:], count=3, seed=1)
    assert found.shape == (40, 3, 6) and not torch.equal(found[:, 0], found[:, 1])
    wanted = features[440:]
    before, after = (functional.cosine_similarity(own, wanted).mean() for own in (ships[200:], found.mean(1)))
    assert before < 0.4 and after > 0.8
    assert torch.equal(found, sample_features(bridge, network, ships[200:], count=3, seed=1))


def test_squared_distances_side_by_side_are_the_weighted_sum():
    draws = torch.Generator().manual_seed(0)
    first, second = (functional.normalize(torch.randn(5, 4, generator=draws)) for _ in range(2))
    both = gap.side_by_side(first, second, 0.3)
    expected = 0.7 * torch.cdist(first, first) ** 2 + 0.3 * torch.cdist(second, second) ** 2
    assert torch.cdist(both, both) ** 2 == pytest.approx(expected, abs=1e-5)


def test_every_rival_is_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(feature_bridge, "STEPS", 2)
    write_hoss(tmp_path / "data", train_ships=8, test_ships=4)
    torch.manual_seed(0)
    save(tmp_path / "weights.pth", build_model(tiny_cfg(), 8).state_dict())
    images = read_hoss(tmp_path / "data", train=False).images
    write_store(tmp_path / "data" / "spare" / "test", images)
    store = write_store(tmp_path / "store", images, count=2)
    values = {"DATASETS__ROOT_DIR": tmp_path / "data", "TEST__WEIGHT": tmp_path / "weights.pth"}
    ended = call(gap.main, "--store", store, "--json", tmp_path / "gap.json", *settings(**values))
    assert ended.status == 0, ended.err
    rows = {name: [row["row"] for row in found] for name, found in json.loads((tmp_path / "gap.json").read_text()).items()}
    assert set(rows) == {"ALL", "O2S", "S2O"} and len(set(rows["O2S"])) == 15
    assert "scores fused, not features" in ended.out and "the same, K = 1" in ended.out
