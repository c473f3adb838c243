"""SOLVER.TRACKERS: the numbers of metrics.jsonl go to each program by its own library, offline."""

import importlib.util
import json
import sys
from types import ModuleType
from unittest import mock

import pytest
from PIL import Image

import train
from tests.chip_files import write_hoss
from tests.commands import call, settings
from utils import trackers
from utils.trackers import open_trackers

LINES = [
    {"kind": "step", "epoch": 1, "step": 3, "loss": 2.5, "lr": 0.1, "memory": None},
    {"kind": "epoch", "epoch": 2, "loss": 1.5, "seconds": 4},
    {"kind": "test", "epoch": 2, "protocol": "ALL", "mAP": 0.5, "mAP_interval": [0.4, 0.6]},
]
CONFIG = "SOLVER: {SEED: 3}\nOUTPUT_DIR: here\n"
NUMBERS = [
    ({"step/loss": 2.5, "step/lr": 0.1}, 3),
    ({"epoch/loss": 1.5, "epoch/seconds": 4.0}, 20),
    ({"test/ALL/mAP": 0.5}, 20),
]


@pytest.fixture
def folder(tmp_path):
    """The folder of a run with a grid of its second epoch."""
    (tmp_path / "grids").mkdir()
    Image.new("RGB", (8, 4)).save(tmp_path / "grids" / "epoch_0002.png")
    return tmp_path


@pytest.fixture
def libraries(monkeypatch):
    """Modules that stand for the three libraries and note what they are asked for."""
    for name in ("WANDB_MODE", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    found = {}
    for name in ("tensorboard", "wandb", "mlflow"):
        found[name] = mock.MagicMock(spec=None)
        monkeypatch.setitem(sys.modules, name, found[name])
    board = ModuleType("torch.utils.tensorboard")
    board.SummaryWriter = found["tensorboard"].SummaryWriter
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", board)
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: found.get(name))
    return found


def tell(folder, *names):
    with open_trackers(names, folder, CONFIG, steps=10) as write:
        for line in LINES:
            write(line)


def test_wandb_gets_every_number_offline(libraries, folder):
    tell(folder, "wandb")
    wandb = libraries["wandb"]
    asked = wandb.init.call_args.kwargs
    assert (asked["mode"], asked["dir"], asked["name"]) == ("offline", str(folder), folder.name)
    assert asked["config"] == {"SOLVER.SEED": 3, "OUTPUT_DIR": "here"}
    logged = [(call.args[0], call.kwargs["step"]) for call in wandb.init().log.call_args_list]
    assert [item for item in logged if "grids" not in item[0]] == NUMBERS
    assert logged[2] == ({"grids": wandb.Image.return_value}, 20)
    wandb.init().finish.assert_called_once_with()


def test_wandb_goes_where_its_own_variable_says(libraries, folder, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "online")
    tell(folder, "wandb")
    assert libraries["wandb"].init.call_args.kwargs["mode"] == "online"


def test_mlflow_gets_every_number_in_the_folder_of_the_run(libraries, folder, monkeypatch):
    tell(folder, "mlflow")
    mlflow = libraries["mlflow"]
    mlflow.set_tracking_uri.assert_called_once_with((folder / "mlruns").as_uri())
    assert [(call.args[0], call.kwargs["step"]) for call in mlflow.log_metrics.call_args_list] == NUMBERS
    mlflow.log_artifact.assert_called_once_with(str(folder / "grids" / "epoch_0002.png"), "grids")
    mlflow.end_run.assert_called_once_with()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://localhost:1")
    tell(folder, "mlflow")
    assert mlflow.set_tracking_uri.call_args.args == ("http://localhost:1",)


def test_tensorboard_gets_every_number(libraries, folder):
    tell(folder, "tensorboard")
    writer = libraries["tensorboard"].SummaryWriter
    writer.assert_called_once_with(str(folder / "tensorboard"))
    scalars = [call.args for call in writer().add_scalar.call_args_list]
    assert scalars == [(name, value, step) for values, step in NUMBERS for name, value in values.items()]
    assert writer().add_image.call_args.args[1].shape == (4, 8, 3)
    writer().close.assert_called_once_with()


def test_tensorboard_reads_what_was_written(folder):
    """By the library itself, where it is installed."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tell(folder, "tensorboard")
    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    assert {name for values, _ in NUMBERS for name in values} == set(events.Tags()["scalars"])
    (point,) = events.Scalars("test/ALL/mAP")
    assert (point.step, point.value) == (20, 0.5)
    assert events.Tags()["images"] == ["grids"]


def test_several_are_told_and_all_are_closed_where_a_run_ends_early(libraries, folder):
    with pytest.raises(KeyboardInterrupt), open_trackers(["wandb", "mlflow"], folder, CONFIG, steps=10) as write:
        write(LINES[0])
        raise KeyboardInterrupt
    libraries["wandb"].init().finish.assert_called_once_with()
    libraries["mlflow"].end_run.assert_called_once_with()


def test_none_is_no_work(folder):
    with open_trackers([], folder, "", steps=10) as write:
        write(LINES[0])
    assert {path.name for path in folder.iterdir()} == {"grids"}


@pytest.mark.parametrize("spelling", ["['wandb']", "wandb"])
def test_a_library_that_is_missing_is_named_before_training(tmp_path, monkeypatch, spelling):
    spec = importlib.util.find_spec
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: None if name == "wandb" else spec(name))
    values = {"DATASETS__ROOT_DIR": write_hoss(tmp_path), "OUTPUT_DIR": tmp_path / "run", "SOLVER__TRACKERS": spelling}
    ended = call(train.main, *settings(**values))
    assert ended.status == 2
    assert ended.sentence == "SOLVER.TRACKERS names wandb, which is not installed; pip install wandb, or leave it out"


def test_a_training_tells_its_metrics(libraries, tmp_path):
    values = {"DATASETS__ROOT_DIR": write_hoss(tmp_path), "OUTPUT_DIR": tmp_path / "run", "SOLVER__MAX_EPOCHS": 2}
    ended = call(train.main, *settings(**values, SOLVER__TRACKERS="['mlflow']"))
    assert ended.status == 0, ended.err
    told = [(call.args[0], call.kwargs["step"]) for call in libraries["mlflow"].log_metrics.call_args_list]
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert len(told) == len(lines)
    losses = [values["epoch/loss"] for values, _ in told if "epoch/loss" in values]
    assert losses == [line["loss"] for line in lines if line["kind"] == "epoch"]


def test_other_words_are_refused():
    ended = call(train.main, "SOLVER.TRACKERS", "['abacus']", "OUTPUT_DIR", "nowhere")
    assert (ended.status, "any number of items, each one of tensorboard, wandb, mlflow" in ended.sentence) == (2, True)
