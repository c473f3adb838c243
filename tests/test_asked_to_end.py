"""Real processes that are asked to end as Slurm and torchrun ask them: all at once, workers and every rank."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.chip_files import write_hoss
from tests.commands import settings
from tests.test_distributed import launch
from tests.test_survival import assert_same
from utils.checkpoint import load

ROOT = Path(__file__).parent.parent
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_hoss(tmp_path_factory.mktemp("data"), train_ships=4, views=2)


def start(data: Path, folder: Path, *, launcher: tuple[str, ...] = (), **changes) -> subprocess.Popen:
    """train.py as the leader of a group of processes."""
    words = settings(**{"DATASETS__ROOT_DIR": data, "OUTPUT_DIR": folder, "SOLVER__EVAL_PERIOD": 1000} | changes)
    return subprocess.Popen(
        [sys.executable, *launcher, "train.py", *words],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def wait_for_steps(run: subprocess.Popen, folder: Path, steps: int) -> None:
    path, end = folder / "metrics.jsonl", time.monotonic() + 120
    while not path.is_file() or path.read_text().count("\n") < steps:
        assert run.poll() is None and time.monotonic() < end, run.stdout.read()
        time.sleep(0.05)


def test_a_group_of_processes_saves_and_leaves_nothing_behind(data, tmp_path):
    """Slurm sends its signal to every process of a step: workers leave it to the main one."""
    run = start(data, tmp_path, SOLVER__MAX_EPOCHS=1000, DATALOADER__NUM_WORKERS=2)
    wait_for_steps(run, tmp_path, 5)
    os.killpg(run.pid, signal.SIGTERM)
    told, _ = run.communicate(timeout=60)
    assert run.returncode == 143, told
    assert "Traceback" not in told
    assert told.count("error: ended by SIGTERM\n") == 1
    line = re.search(r"go on with:\n  (.*)\n", told)[1]
    assert line.startswith("python") and "train.py MODEL.DEVICE cpu" in line and line.endswith(" SOLVER.RESUME auto")
    assert load(tmp_path / "last.pth")["epoch"] > 0
    with pytest.raises(ProcessLookupError):
        os.killpg(run.pid, 0)


def test_ranks_that_a_batch_system_asks_save_once_and_go_on(data, tmp_path):
    run = start(data, tmp_path / "parts", launcher=TORCHRUN, SOLVER__MAX_EPOCHS=1000)
    wait_for_steps(run, tmp_path / "parts", 5)
    os.killpg(run.pid, signal.SIGTERM)  # torchrun asks its processes once more
    told, _ = run.communicate(timeout=90)
    assert run.returncode != 0
    assert told.count("error: ended by SIGTERM") == 1, told
    assert "go on with:\n  torchrun --nproc_per_node=2 train.py" in told
    state = load(tmp_path / "parts" / "last.pth")
    epochs = state["epoch"] + 2
    run = start(data, tmp_path / "parts", launcher=TORCHRUN, SOLVER__MAX_EPOCHS=epochs, SOLVER__RESUME="auto")
    told, _ = run.communicate(timeout=120)
    assert run.returncode == 0, told
    assert load(tmp_path / "parts" / "last.pth")["epoch"] == epochs


def test_a_rank_alone_that_is_asked_ends_all_at_one_step_and_they_go_on_to_the_bit(tmp_path):
    data = write_hoss(tmp_path / "data", train_ships=8, views=4)
    words = settings(DATASETS__ROOT_DIR=data, SOLVER__MAX_EPOCHS=2, SOLVER__EVAL_PERIOD=2, SOLVER__LOG_PERIOD=3)
    ended = launch(tmp_path / "a", *words, "OUTPUT_DIR", str(tmp_path / "whole"))
    assert ended.returncode == 0, ended.stderr
    ended = launch(tmp_path / "b", *words, "OUTPUT_DIR", str(tmp_path / "parts"), STOP_STEP="3")
    assert ended.returncode != 0
    assert ended.stderr.count("error: ended by SIGTERM") == 1, ended.stderr
    last = load(tmp_path / "parts" / "last.pth")
    # Ranks ask one another the more seldom the faster the steps are, and after every epoch: that of the signal at the latest.
    assert 3 <= 8 * last["epoch"] + last["within"]["step"] <= 8
    ended = launch(tmp_path / "c", *words, "OUTPUT_DIR", str(tmp_path / "parts"), "SOLVER.RESUME", "auto")
    assert ended.returncode == 0, ended.stderr
    whole, parts = (load(tmp_path / folder / "last.pth") for folder in ("whole", "parts"))
    for part in ("model", "criterion", "update", "best"):
        assert_same(whole[part], parts[part])
