"""train.py: what a run leaves, that it goes on where it was interrupted, and how wrong calls and bad data end."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
import yaml

import processor.engine
import train
from tests.chip_files import write_hoss
from tests.commands import call, settings
from utils.checkpoint import load, save

ROOT = Path(__file__).parent.parent
RANDOM = {"MODEL__DROP_PATH": 0.2, "INPUT__RE_PROB": 0.5}
"""Settings that draw random numbers in network and augmentation."""


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_hoss(tmp_path_factory.mktemp("data"), train_ships=4, views=2)


def arguments(data: Path, output: Path, **changes) -> list[str]:
    return settings(**{"DATASETS__ROOT_DIR": data, "OUTPUT_DIR": output} | RANDOM | changes)


@pytest.fixture(scope="module")
def done(data, tmp_path_factory):
    """A whole run of four epochs: its folder, and how it ended."""
    folder = tmp_path_factory.mktemp("runs") / "straight"
    ended = call(train.main, *arguments(data, folder))
    assert ended.status == 0, ended.err
    return folder, ended


def test_a_run_leaves_the_files_of_the_interface(done):
    folder, _ = done
    assert {path.name for path in folder.iterdir()} == {
        "train_log.txt", "metrics.jsonl", "config.yml", "environment.json", "last.pth",
        "transformer_2.pth", "transformer_4.pth", "best_model_mAP.pth", "best_model_rank1.pth",
    }  # fmt: skip
    assert "4 epochs are done" in (folder / "train_log.txt").read_text()


def test_the_loss_falls_and_every_term_is_logged(done):
    lines = [json.loads(line) for line in (done[0] / "metrics.jsonl").read_text().splitlines()]
    epochs = [line for line in lines if line["kind"] == "epoch"]
    assert [line["epoch"] for line in epochs] == [1, 2, 3, 4]
    assert epochs[-1]["loss"] < epochs[0]["loss"]
    for line in lines:
        if line["kind"] == "step":
            assert {"identity", "triplet", "alignment", "loss", "lr"} <= line.keys()
            total = line["identity"] + line["triplet"] + 2 * line["alignment"]
            assert line["loss"] == pytest.approx(total, rel=1e-4)
    tests = {(line["epoch"], line["protocol"]) for line in lines if line["kind"] == "test"}
    assert tests == {(epoch, protocol) for epoch in (2, 4) for protocol in ("ALL", "O2S", "S2O")}


def test_weights_are_bare_state_dicts_under_the_released_names(done):
    weights = load(done[0] / "transformer_4.pth")
    assert all(isinstance(value, torch.Tensor) for value in weights.values())
    assert {"base.cls_token", "bottleneck.weight", "classifier.weight", "logit_scale"} <= weights.keys()
    assert weights["classifier.weight"].shape == (4, 192)


def test_a_run_tells_what_it_depended_on(done):
    environment = json.loads((done[0] / "environment.json").read_text())
    assert {"seed", "commit", "device", "command", "packages"} <= environment.keys()
    assert environment["packages"]["torch"]
    assert yaml.safe_load((done[0] / "config.yml").read_text())["SOLVER"]["IMS_PER_BATCH"] == 8


def test_progress_is_told_in_plain_lines_where_there_is_no_terminal(done):
    bars = [line for line in done[1].err.splitlines() if line.startswith("train:") and "loss=" in line]
    assert bars
    assert not any("\r" in line for line in bars)


def test_an_interrupted_run_goes_on_to_the_bit(data, done, tmp_path, monkeypatch):
    train_one_epoch = processor.engine.train_one_epoch

    def interrupt(task, loader, plan, at, *rest):
        if at.epoch == 4:  # after an epoch that last.pth does not hold
            raise KeyboardInterrupt
        return train_one_epoch(task, loader, plan, at, *rest)

    folder = tmp_path / "run"
    monkeypatch.setattr(processor.engine, "train_one_epoch", interrupt)
    ended = call(train.main, *arguments(data, folder))
    assert (ended.status, ended.sentence) == (130, "interrupted")
    monkeypatch.undo()
    ended = call(train.main, *arguments(data, folder, SOLVER__RESUME=folder / "last.pth"))
    assert ended.status == 0, ended.err
    assert f"resumed from {folder / 'last.pth'} after epoch 2" in ended.err
    straight, resumed = load(done[0] / "last.pth"), load(folder / "last.pth")
    different = [name for name, value in straight["model"].items() if not torch.equal(value, resumed["model"][name])]
    assert different == []
    assert straight["best"] == resumed["best"]
    losses = [
        [(line["epoch"], line["step"], line["loss"]) for line in map(json.loads, path.read_text().splitlines()) if "lr" in line]
        for path in (done[0] / "metrics.jsonl", folder / "metrics.jsonl")
    ]
    assert losses[0] == losses[1]


def test_another_seed_is_another_run(data, done, tmp_path):
    call(train.main, *arguments(data, tmp_path / "run", SOLVER__SEED=1, SOLVER__MAX_EPOCHS=1, SOLVER__CHECKPOINT_PERIOD=1))
    first, other = ((folder / "metrics.jsonl").read_text().splitlines()[0] for folder in (done[0], tmp_path / "run"))
    assert json.loads(first)["identity"] != json.loads(other)["identity"]


# Weights to start from


def one_epoch(data: Path, folder: Path, **changes):
    return call(train.main, *arguments(data, folder, SOLVER__MAX_EPOCHS=1, SOLVER__BASE_LR=0, **changes))


def test_weights_with_module_prefix_and_for_other_ships_start_a_run(data, done, tmp_path):
    """At a learning rate of 0 the weights at the end are those of the start; the classifier is for four ships, not seven."""
    source = load(done[0] / "transformer_4.pth")
    source["classifier.weight"] = torch.zeros(7, 192)
    save(tmp_path / "start.pth", {"state_dict": {f"module.{name}": value for name, value in source.items()}})
    ended = one_epoch(
        data, tmp_path / "run", MODEL__PRETRAIN_CHOICE="self", MODEL__PRETRAIN_PATH=tmp_path / "start.pth", MODEL__DROP_PATH=0
    )
    assert ended.status == 0, ended.err
    assert "classifier.weight" in ended.err  # skipped, and said
    end = load(tmp_path / "run" / "transformer_1.pth")
    assert torch.equal(end["base.blocks.3.attn.qkv.weight"], source["base.blocks.3.attn.qkv.weight"])
    assert end["classifier.weight"].shape == (4, 192)


class Unpicklable:
    """Stands for code in a file of weights."""

    def __reduce__(self):
        return (print, ("code ran",))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "there is no checkpoint"),
        (b"", "is no checkpoint"),
        (b"\x80\x02 not a checkpoint", "is no checkpoint"),
        (b"PK\x03\x04 cut short", "is no checkpoint"),
        ({"epoch": 3}, "holds no tensors"),
        ({"base.cls_token": torch.zeros(1, 1, 768)}, "start.pth"),
        ({"weight": torch.zeros(3)}, "start.pth"),
        ({"state_dict": Unpicklable()}, "could run code"),
    ],
)
def test_weights_that_are_none_are_refused_by_name(data, tmp_path, content, said):
    path = tmp_path / "start.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    ended = one_epoch(data, tmp_path / "run", MODEL__PRETRAIN_CHOICE="imagenet", MODEL__PRETRAIN_PATH=path)
    assert ended.status == 1
    assert said in ended.sentence
    assert str(path) in ended.sentence
    assert "code ran" not in ended.out
    assert not list((tmp_path / "run").glob("*.pth"))


def test_an_empty_path_of_weights_names_its_key(data, tmp_path):
    ended = one_epoch(data, tmp_path / "run", MODEL__PRETRAIN_CHOICE="imagenet")
    assert (ended.status, "MODEL.PRETRAIN_PATH is empty" in ended.sentence) == (2, True)


@pytest.mark.parametrize(
    ("name", "said"), [("transformer_4.pth", "transformer_4.pth does not fit this run"), ("none.pth", "there is no checkpoint")]
)
def test_what_is_no_training_state_is_not_resumed(data, done, tmp_path, name, said):
    ended = one_epoch(data, tmp_path / "run", SOLVER__RESUME=done[0] / name)
    assert ended.status == 1
    assert said in ended.sentence


def test_a_state_of_another_network_is_not_resumed(data, done, tmp_path):
    change = {"MODEL__MIE": False, "SOLVER__RESUME_ALLOW": "['MODEL.MIE', 'SOLVER.BASE_LR']"}
    ended = one_epoch(data, tmp_path / "run", SOLVER__RESUME=done[0] / "last.pth", **change)
    assert ended.status == 1
    assert "base.mie_embed" in ended.sentence


def test_a_finished_run_has_nothing_left_to_do(data, done, tmp_path):
    ended = call(train.main, *arguments(data, tmp_path / "run", SOLVER__RESUME=done[0] / "last.pth"))
    assert ended.status == 0, ended.err
    assert not list((tmp_path / "run").glob("*.pth"))


# Wrong calls, bad data


@pytest.mark.parametrize(
    ("changes", "status", "said"),
    [
        ({"SOLVER__IMS_PER_BATCH": 10}, 2, "SOLVER.IMS_PER_BATCH 10 is not a multiple of DATALOADER.NUM_INSTANCE 4"),
        ({"SOLVER__IMS_PER_BATCH": 20}, 1, "4 ships, fewer than the 5 of a batch"),
        ({"SOLVER__IMS_PER_BATCH": 64, "DATALOADER__SAMPLER": "softmax"}, 1, "16 images to train on, fewer than a batch of 64"),
        ({"MODEL__TRANSFORMER_TYPE": "vit_base"}, 2, "MODEL.TRANSFORMER_TYPE cannot be 'vit_base'"),
        ({"MODEL__DEVICE": "gpu"}, 2, "MODEL.DEVICE 'gpu' is no device"),
        ({"MODEL__DEVICE": "meta"}, 2, "MODEL.DEVICE 'meta' is not supported"),
        ({"SOLVER__AMP": "fp16"}, 2, "SOLVER.AMP fp16 needs a CUDA device"),
        ({"OUTPUT_DIR": ""}, 2, "OUTPUT_DIR is empty"),
        ({"SOLVER__BASE_RL": 1}, 2, "there is no key SOLVER.BASE_RL; the nearest is SOLVER.BASE_LR"),
        ({"SOLVER__MAX_EPOCHS": "many"}, 2, "SOLVER.MAX_EPOCHS cannot be 'many'"),
        ({"DATASETS__ROOT_DIR": "nowhere"}, 1, "nowhere"),
    ],
)
def test_wrong_calls_end_in_one_sentence(data, tmp_path, changes, status, said):
    ended = call(train.main, *arguments(data, tmp_path / "run", **changes))
    assert ended.status == status
    assert said in ended.sentence
    assert not list(tmp_path.rglob("*.pth"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_where_there_is_none(data, tmp_path):
    ended = call(train.main, *arguments(data, tmp_path / "run", MODEL__DEVICE="cuda"))
    assert (ended.status, "offers no CUDA device; set MODEL.DEVICE cpu" in ended.sentence) == (2, True)


def test_a_folder_that_cannot_be_made_is_named(data, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    ended = call(train.main, *arguments(data, tmp_path / "file" / "run"))
    assert ended.status == 1
    assert f"OUTPUT_DIR {tmp_path / 'file' / 'run'} cannot be written to" in ended.sentence


@pytest.mark.parametrize("workers", [0, 1])
def test_a_chip_that_cannot_be_read_ends_the_run_by_name(data, tmp_path, workers):
    shutil.copytree(data, tmp_path / "data")
    chip = sorted((tmp_path / "data" / "HOSS" / "bounding_box_train").iterdir())[0]
    chip.write_bytes(chip.read_bytes()[:200])
    ended = call(train.main, *arguments(tmp_path / "data", tmp_path / "run", DATALOADER__NUM_WORKERS=workers))
    assert ended.status == 1
    assert chip.name in ended.sentence
    assert not list((tmp_path / "run").glob("*.pth"))


def test_a_loss_that_is_not_finite_ends_the_run_with_its_terms(data, tmp_path):
    ended = call(train.main, *arguments(data, tmp_path / "run", SOLVER__BASE_LR=1e30, SOLVER__OPTIMIZER_NAME="SGD"))
    assert ended.status == 1
    assert all(word in ended.sentence for word in ("not finite", "identity", "triplet", "alignment", "SOLVER.BASE_LR"))
    assert not list((tmp_path / "run").glob("*.pth"))


def test_a_full_disk_leaves_no_half_file(data, tmp_path, monkeypatch):
    def full(content, file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    ended = call(train.main, *arguments(data, tmp_path / "run"))
    assert ended.status == 1
    assert f"{tmp_path / 'run' / 'best_model_mAP.pth'} could not be written (No space left on device)" in ended.sentence
    assert not [path for path in (tmp_path / "run").iterdir() if path.suffix in (".pth", ".tmp")]


def test_help_shows_an_example(monkeypatch):
    ended = call(train.main, "--help")
    assert (ended.status, "python train.py --config_file configs/hoss_transoss.yml" in ended.out) == (0, True)


def test_rates_reach_the_optimiser_as_configured(done):
    lines = [json.loads(line) for line in (done[0] / "metrics.jsonl").read_text().splitlines()]
    rates = {line["epoch"]: line["lr"] for line in lines if "lr" in line}
    floor = 0.002 * 0.001
    assert rates[2] == pytest.approx(floor + (0.001 - floor) * (1 + math.cos(math.pi * 2 / 4)) / 2)
