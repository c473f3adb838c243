"""Weights that say what they are: every command takes them alone, other programs read them, contradictions are refused."""

import json
from pathlib import Path

import pytest
import torch

import test as test_command
import train as train_command
from model.build import build_model
from tests.chip_files import write_hoss
from tests.commands import call, settings, tiny_cfg
from tools import convert_weights, inspect_weights, rank, tune
from utils.checkpoint import description_of, load, save

CPU = ("MODEL.DEVICE", "cpu", "TEST.REPORT", "False")


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """Data and a training of two epochs, with pictures and features that are not the defaults."""
    root = tmp_path_factory.mktemp("root")
    write_hoss(root / "data", train_ships=4, test_ships=4, views=2)
    values = {
        "DATASETS__ROOT_DIR": root / "data",
        "OUTPUT_DIR": root / "run",
        "SOLVER__MAX_EPOCHS": 2,
        "SOLVER__EVAL_PERIOD": 2,
    }
    changes = {"INPUT__SAR_DENOISE": "max", "MODEL__MIE_COE": 2.0, "INPUT__PIXEL_MEAN": "[0.5,0.5,0.5]"}
    ended = call(train_command.main, *settings(**values | changes))
    assert ended.status == 0, ended.err
    return root


@pytest.fixture(scope="module")
def weights(root) -> Path:
    return root / "run" / "best_model_mAP.pth"


def figures(folder: Path) -> dict:
    protocols = json.loads((folder / "results.json").read_text())["protocols"]
    return {name: {rate: kinds["plain"][rate] for rate in ("mAP", "R1")} for name, kinds in protocols.items()}


def test_a_test_by_the_weights_alone_is_the_one_of_the_training(root, weights):
    ended = call(test_command.main, "--weights", weights, *CPU)
    assert ended.status == 0, ended.err
    lines = [json.loads(line) for line in (root / "run" / "metrics.jsonl").read_text().splitlines()]
    trained = {line["protocol"]: {rate: line[rate] for rate in ("mAP", "R1")} for line in lines if line["kind"] == "test"}
    assert figures(root / "run") == trained  # in the folder of the weights
    assert json.loads((root / "run" / "results.json").read_text())["selection"]["epoch"] == 2
    assert "has no effect" not in ended.err


def test_settings_that_make_another_network_are_refused(root, weights, tmp_path):
    for words in (["MODEL.MIE_COE", "3.0"], ["MODEL.SSE", "False"], ["--config_file", "configs/hoss_transoss.yml"]):
        ended = call(test_command.main, "--weights", weights, *words, *CPU, "OUTPUT_DIR", tmp_path)
        assert ended.status == 2
        assert str(weights) in ended.sentence
        assert "MODEL." in ended.sentence


def test_settings_that_may_differ_are_told(root, weights, tmp_path):
    ended = call(test_command.main, "--weights", weights, "INPUT.SAR_DENOISE", "percentile", *CPU, "OUTPUT_DIR", tmp_path)
    assert ended.status == 0, ended.err
    assert f"INPUT.SAR_DENOISE is percentile; {weights} was made with max" in ended.err
    assert ended.err.count("was made with") == 1
    assert figures(tmp_path) != figures(root / "run")


def test_a_whole_configuration_that_agrees_says_nothing(root, weights, tmp_path):
    words = ["--config_file", root / "run" / "config.yml", "TEST.WEIGHT", weights, *CPU, "OUTPUT_DIR", tmp_path]
    ended = call(test_command.main, *words)
    assert ended.status == 0, ended.err
    assert "was made with" not in ended.err
    assert "no effect" not in ended.err  # a run's own config.yml warns of nothing
    assert figures(tmp_path) == figures(root / "run")


def test_other_commands_run_by_the_weights_alone(root, weights, tmp_path):
    chips = root / "data" / "HOSS"
    words = ["--query", chips / "query", "--gallery", chips / "bounding_box_test", "--output", tmp_path]
    ended = call(rank.main, "--weights", weights, *words, *CPU)
    assert ended.status == 0, ended.err
    found = json.loads((tmp_path / "prediction.json").read_text())
    hits = [names[0].split("_")[0] == name.split("_")[0] for name, names in found.items()]
    assert sum(hits) / len(hits) == figures(root / "run")["ALL"]["R1"]
    ended = call(tune.main, "--weights", weights, "--rerank", "--k1", 3, "--k2", 1, "--lambdas", "0.3", *CPU)
    assert ended.status == 0, ended.err


def test_a_training_state_and_safetensors_tell_the_same(root, weights, tmp_path):
    whole = description_of(load(weights))
    assert whole["identities"] == 4
    assert whole["network"] == "transformer"
    assert "INPUT:" in whole["config"]
    state = description_of(load(root / "run" / "last.pth"))
    assert {key: state[key] for key in ("config", "identities", "commit")} == {
        key: whole[key] for key in ("config", "identities", "commit")
    }
    for name in ("own.safetensors", "own.pth"):
        assert call(convert_weights.main, weights, tmp_path / name).status == 0
        assert description_of(load(tmp_path / name)) == whole
    assert call(convert_weights.main, weights, tmp_path / "released.pth", "--layout", "released").status == 0
    assert description_of(load(tmp_path / "released.pth")) == {}
    ended = call(test_command.main, "--weights", tmp_path / "own.safetensors", *CPU)
    assert ended.status == 0, ended.err
    assert figures(tmp_path) == figures(root / "run")


def test_other_programs_read_them_as_bare_tensors(weights):
    """As TransOSS and MOS do: torch.load, then a copy for each name."""
    for safe in (True, False):
        content = torch.load(weights, map_location="cpu", weights_only=safe)
        assert all(isinstance(value, torch.Tensor) for value in content.values())
        model = build_model(tiny_cfg(), 4)
        for name in content:
            model.state_dict()[name.replace("module.", "")].copy_(content[name])
        assert torch.equal(model.classifier.weight, content["classifier.weight"])
        model.load_state_dict(content)


def test_inspect_says_what_a_file_is_and_how_to_use_it(weights):
    ended = call(inspect_weights.main, weights)
    assert ended.status == 0, ended.err
    assert "32 x 32, height and width" in ended.out
    assert "rendered by max" in ended.out
    assert "chosen on the test split (epoch 2" in ended.out
    assert f"python test.py --weights {weights}" in ended.out


def test_weights_of_other_programs_need_their_configuration(root, weights, tmp_path):
    save(tmp_path / "bare.pth", dict(load(weights)))
    ended = call(test_command.main, "--weights", tmp_path / "bare.pth", *CPU, "DATASETS.ROOT_DIR", root / "data")
    assert ended.status == 2
    assert "MODEL.TRANSFORMER_TYPE" in ended.sentence


@pytest.mark.parametrize("config", ["{", "[1]", "A: 1", ""])
def test_a_file_that_tells_nonsense_of_itself_is_as_one_that_tells_nothing(root, weights, tmp_path, config):
    save(tmp_path / "odd.pth", load(weights), {"config": config, "selection": 3})
    ended = call(test_command.main, "--weights", tmp_path / "odd.pth", *CPU, "DATASETS.ROOT_DIR", root / "data")
    assert ended.status == 2
    assert "MODEL.TRANSFORMER_TYPE" in ended.sentence
