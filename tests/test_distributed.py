"""Two processes on CPUs (gloo): they share the batches, learn the same weights, write one set of files, and end together."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import test
from tests import distributed_train
from tests.chip_files import write_hoss
from tests.commands import call, settings
from utils import distributed
from utils.checkpoint import load

ROOT = Path(__file__).parent.parent
PROGRAM = Path(distributed_train.__file__)


def launch(records: Path, *words: str, **variables: str) -> subprocess.CompletedProcess:
    """Start two processes of the program by torchrun, on a free port."""
    records.mkdir()
    environment = os.environ | {"RECORDS": str(records), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **variables}
    call = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(PROGRAM), *words]
    return subprocess.run(
        [sys.executable, *call], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_hoss(tmp_path_factory.mktemp("data"), train_ships=4, views=2)


@pytest.fixture(scope="module")
def done(data, tmp_path_factory):
    """A run of two processes, and what each noted at the start and the end."""
    folder = tmp_path_factory.mktemp("two")
    changes = {"MODEL__IF_WITH_CENTER": "yes", "SOLVER__CENTER_LOSS_WEIGHT": 0.01}
    ended = launch(folder / "records", *settings(DATASETS__ROOT_DIR=data, OUTPUT_DIR=folder / "run", **changes))
    assert ended.returncode == 0, ended.stderr
    notes = {
        name: [json.loads((folder / "records" / f"{name}_{rank}.json").read_text()) for rank in range(2)]
        for name in ("start", "end")
    }
    return folder / "run", ended, notes


def test_two_processes_share_each_batch(done):
    first, second = (note["images"] for note in done[2]["end"])
    assert [note["ranks"] for note in done[2]["end"]] == [2, 2]
    assert len(first) == len(second) == 8
    for own, other in zip(first, second, strict=True):
        assert len(own) == len(other) == 4
        assert not set(own) & set(other)


@pytest.mark.parametrize("when", ["start", "end"])
def test_two_processes_have_the_same_weights_and_centres(done, when):
    first, second = (note["sum"] for note in done[2][when])
    assert first == second


def test_both_processes_evaluate_the_statistics_that_are_written(done):
    first, second = (note["buffers"] for note in done[2]["end"])
    assert first == second


def test_what_is_averaged_is_a_mean(done):
    assert [note["mean"] for note in done[2]["start"]] == [[1.5], [1.5]]


def test_the_loss_falls(done):
    lines = [json.loads(line) for line in (done[0] / "metrics.jsonl").read_text().splitlines()]
    epochs = [line for line in lines if line["kind"] == "epoch"]
    assert [line["epoch"] for line in epochs] == [1, 2, 3, 4]
    assert epochs[-1]["loss"] < epochs[0]["loss"]


def test_one_set_of_files_is_written_and_one_bar_drawn(done):
    folder, ended, _ = done
    assert {path.name for path in folder.iterdir()} == {
        "train_log.txt", "metrics.jsonl", "config.yml", "environment.json", "last.pth",
        "transformer_2.pth", "transformer_4.pth", "best_model_mAP.pth", "best_model_rank1.pth",
    }  # fmt: skip
    assert ended.stderr.count("4 epochs are done") == 1
    assert ended.stderr.count("100%") == 1
    assert not any(name.startswith("module.") for name in load(folder / "transformer_4.pth"))


def test_two_processes_evaluate_as_one_does(done, data, tmp_path):
    ended = call(
        test.main,
        *settings(DATASETS__ROOT_DIR=data, OUTPUT_DIR=tmp_path, TEST__WEIGHT=done[0] / "transformer_4.pth"),
    )
    assert ended.status == 0, ended.err
    protocols = json.loads((tmp_path / "results.json").read_text())["protocols"]
    lines = [json.loads(line) for line in (done[0] / "metrics.jsonl").read_text().splitlines()]
    by_two = {line["protocol"]: line for line in lines if line["kind"] == "test" and line["epoch"] == 4}
    for name, scores in protocols.items():
        for rate in ("mAP", "R1", "R5", "R10"):
            assert by_two[name][rate] == pytest.approx(scores["plain"][rate], abs=1e-6)


def test_an_error_of_all_processes_ends_all_of_them(data, tmp_path):
    """A batch of one ship cannot be shared by two processes."""
    changes = {"SOLVER__IMS_PER_BATCH": 4}
    ended = launch(tmp_path / "records", *settings(DATASETS__ROOT_DIR=data, OUTPUT_DIR=tmp_path / "run", **changes))
    assert ended.returncode != 0
    assert "error: the 1 ships of a batch" in ended.stderr
    assert not list(tmp_path.rglob("*.pth"))


def test_a_single_process_needs_no_group():
    value = torch.ones(2)
    assert (distributed.rank(), distributed.world_size(), distributed.is_main()) == (0, 1, True)
    assert distributed.mean(value) is value
    assert distributed.gather("x") == ["x"]
    assert distributed.broadcast("x") == "x"
    distributed.barrier()
    layer = torch.nn.Linear(1, 1)
    assert distributed.unwrap(distributed.wrap(layer, torch.device("cpu"))) is layer
    with distributed.process_group(torch.device("cpu")):
        assert not torch.distributed.is_initialized()
