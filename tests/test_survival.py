"""Trainings that are asked to end, are killed, or go on: nothing is lost, and nothing goes on wrongly."""

import json
import shutil
import signal
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest
import torch

import bbdm.train
import bbdm.train_first_stage
import train
import train_pair
from bbdm.train import BridgeTask
from bbdm.train_first_stage import FirstStageTask
from processor.pairs import PairTask
from processor.reid import ReIDTask
from tests.chip_files import write_hoss
from tests.commands import Ended, call, settings
from tests.test_bbdm_programs import TINY as BRIDGE
from tests.test_pretrain import write_pairs
from utils.checkpoint import load


@dataclass(frozen=True)
class Job:
    """A kind of training: its program, its task, and settings of two epochs with several steps that draw at random."""

    program: ModuleType
    task: type
    keys: dict[str, object]

    def run(self, data: Path, folder: Path, **changes: object) -> Ended:
        keys = self.keys | {key.replace("__", "."): value for key, value in changes.items()}
        keys |= {"DATASETS.ROOT_DIR": data, "OUTPUT_DIR": folder}
        return call(self.program.main, *(word for item in keys.items() for word in map(str, item)))


WORDS = settings(MODEL__DROP_PATH=0.2, SOLVER__MAX_EPOCHS=2, SOLVER__LOG_PERIOD=3, SOLVER__IMS_PER_BATCH=4)
REID = dict(zip(WORDS[::2], WORDS[1::2]))
STAGE = {"BBDM.FIRST_STAGE_WIDTH": 32, "BBDM.FIRST_STAGE_MULTIPLIERS": "[1, 1]", "BBDM.FIRST_STAGE_BLOCKS": 1}
JOBS = {
    "reid": Job(train, ReIDTask, REID),
    "pairs": Job(train_pair, PairTask, REID | {"MODEL.PAIR": True, "MODEL.SSE": False, "SOLVER.IMS_PER_PASS": 2}),
    "bridge": Job(bbdm.train, BridgeTask, BRIDGE | {"SOLVER.LOG_PERIOD": 4, "BBDM.DROPOUT": 0.1}),
    "first_stage": Job(bbdm.train_first_stage, FirstStageTask, BRIDGE | STAGE),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Chips and pairs in one folder."""
    return write_pairs(write_hoss(tmp_path_factory.mktemp("data"), train_ships=4, views=2), count=4)


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """Folders of runs that nothing interrupted."""
    root = tmp_path_factory.mktemp("whole")
    for name, job in JOBS.items():
        ended = job.run(data, root / name)
        assert ended.status == 0, ended.err
    return root


def at_step(monkeypatch, task: type, number: int, act) -> None:
    """Call `act` within the step of this number, counted over epochs."""
    step, counted = task.step, []

    def counting(self, batch):
        counted.append(1)
        if len(counted) == number:
            act()
        return step(self, batch)

    monkeypatch.setattr(task, "step", counting)


def lines_of(folder: Path) -> list[dict]:
    """What metrics.jsonl tells, less what a clock measured."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in ("seconds", "steps_per_second")} for line in lines]


def assert_same(first, second, name="") -> None:
    """Two states are one to the bit."""
    if isinstance(first, torch.Tensor):
        assert torch.equal(first, second), name
    elif isinstance(first, dict):
        assert first.keys() == second.keys(), name
        for key in first:
            assert_same(first[key], second[key], f"{name}.{key}")
    elif isinstance(first, list | tuple):
        assert len(first) == len(second), name
        for number, pair in enumerate(zip(first, second)):
            assert_same(*pair, f"{name}.{number}")
    else:
        assert first == second, name


@pytest.mark.parametrize("epochs", [0.25, 0.5, 1, 1.5])
@pytest.mark.parametrize("name", JOBS)
def test_a_run_that_is_asked_to_end_goes_on_to_the_bit_at_any_step(data, whole, tmp_path, monkeypatch, name, epochs):
    """Within the first of two epochs, at the end of it, and within the second one."""
    job, folder = JOBS[name], tmp_path / "run"
    number = int(epochs * max(line.get("step", 0) for line in lines_of(whole / name)))
    assert number
    with monkeypatch.context() as patch:
        at_step(patch, job.task, number, lambda: signal.raise_signal(signal.SIGTERM))
        ended = job.run(data, folder)
    assert (ended.status, ended.sentence) == (143, "ended by SIGTERM")
    assert "go on with:\n" in ended.err and " SOLVER.RESUME auto\n" in ended.err
    ended = job.run(data, folder, SOLVER__RESUME="auto")
    assert ended.status == 0, ended.err
    before, after = (load(place / "last.pth") for place in (whole / name, folder))
    for told in ("config", "data", "description"):  # they name the folders
        before.pop(told), after.pop(told)
    assert_same(before, after)
    assert lines_of(whole / name) == lines_of(folder)
    assert {path.name for path in (whole / name).iterdir()} == {path.name for path in folder.iterdir()}
    for path in (whole / name).glob("*.pth"):
        if path.name != "last.pth":
            assert_same(dict(load(path)), dict(load(folder / path.name)), path.name)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGUSR1, 143)])
def test_ctrl_c_and_the_signal_of_slurm_save_too(data, tmp_path, monkeypatch, number, status):
    at_step(monkeypatch, ReIDTask, 2, lambda: signal.raise_signal(number))
    ended = JOBS["reid"].run(data, tmp_path)
    assert (ended.status, ended.sentence) == (status, f"ended by {number.name}")
    within = load(tmp_path / "last.pth")["within"]
    assert (within["step"], within["finished"]) == (2, False)


def test_an_evaluation_is_not_waited_for(data, whole, tmp_path, monkeypatch):
    job = JOBS["reid"]
    with monkeypatch.context() as patch:
        patch.setattr(ReIDTask, "evaluate", lambda *_: signal.raise_signal(signal.SIGTERM) or pytest.fail("it went on"))
        assert job.run(data, tmp_path).status == 143
    assert load(tmp_path / "last.pth")["within"]["finished"]
    assert not (tmp_path / "best_model_mAP.pth").exists()
    at_step(monkeypatch, ReIDTask, 1, lambda: pytest.fail("an epoch was learned twice"))
    assert job.run(data, tmp_path, SOLVER__RESUME="auto").status == 0
    assert_same(load(whole / "reid" / "last.pth")["model"], load(tmp_path / "last.pth")["model"])
    assert lines_of(whole / "reid") == lines_of(tmp_path)


def test_a_state_is_written_every_few_minutes_within_an_epoch(data, tmp_path, monkeypatch):
    seen = []
    step = ReIDTask.step

    def looking(self, batch):
        last = tmp_path / "last.pth"
        seen.append(load(last)["within"]["step"] if last.is_file() else None)
        return step(self, batch)

    monkeypatch.setattr(ReIDTask, "step", looking)
    assert JOBS["reid"].run(data, tmp_path, SOLVER__SAVE_MINUTES=1e-6, SOLVER__MAX_EPOCHS=1).status == 0
    assert seen == [None, *range(1, len(seen))]
    assert load(tmp_path / "last.pth")["epoch"] == 1
    seen.clear()
    shutil.rmtree(tmp_path)
    assert JOBS["reid"].run(data, tmp_path, SOLVER__SAVE_MINUTES=0, SOLVER__MAX_EPOCHS=1).status == 0
    assert set(seen) == {None}
