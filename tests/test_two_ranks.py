"""Two processes on CPUs (gloo) do what one process does with the same batches: losses, features, figures and pictures."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import train
from tests import several_commands
from tests.chip_files import write_hoss
from tests.commands import call, settings
from utils.checkpoint import load

ROOT = Path(__file__).parent.parent
BRIDGE = {
    "MODEL.DEVICE": "cpu",
    "DATALOADER.NUM_WORKERS": 0,
    "BBDM.WIDTH": 32,
    "BBDM.MULTIPLIERS": "[1, 1]",
    "BBDM.BLOCKS": 1,
    "BBDM.HEAD_WIDTH": 32,
    "BBDM.IMAGE_SIZE": "[16, 16]",
    "BBDM.ACCUMULATION": 1,
    "BBDM.EMA_START": 4,
    "BBDM.EMA_PERIOD": 1,
    "BBDM.GRID_PERIOD": 0,
    "BBDM.HOLD_OUT_EVERY": 4,
    "BBDM.SAMPLE_NUM": 2,
    "BBDM.SAMPLE_STEP": 3,
    "BBDM.FIRST_STAGE_WIDTH": 32,
    "BBDM.FIRST_STAGE_CODES": 64,
    "SOLVER.IMS_PER_BATCH": 4,
    "SOLVER.LOG_PERIOD": 1,
    "SOLVER.EVAL_PERIOD": 2,
    "SOLVER.MAX_EPOCHS": 2,
    "SOLVER.CHECKPOINT_PERIOD": 2,
}
"""A bridge of seconds."""


def launcher(*words: object) -> list[str]:
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", *map(str, words)]


def environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def run_in_order(folder: Path, commands) -> None:
    """Run `commands(out)`, lists of module and words, by one process into folder/one, and by two into folder/two."""
    for name, start in (("one", [sys.executable]), ("two", launcher())):
        listed = folder / f"{name}.json"
        listed.write_text(json.dumps([list(map(str, words)) for words in commands(folder / name)]), encoding="utf-8")
        ended = subprocess.run(
            [*start, several_commands.__file__, str(listed)],
            cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=400, check=False,
        )  # fmt: skip
        assert ended.returncode == 0, ended.stderr


def write_pairs(folder: Path, count: int = 12) -> Path:
    for place in range(count):
        pixels = np.random.default_rng(place).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        for sensor, picture in (("opt", pixels), ("sar", 255 - pixels[..., 0])):
            (folder / f"{sensor}_256").mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(folder / f"{sensor}_256" / f"{place}.png")
    return folder


def bridge(**changes: object) -> list[object]:
    values = BRIDGE | {key.replace("__", "."): value for key, value in changes.items()}
    return [word for item in values.items() for word in item]


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> Path:
    """Every job by two processes and by one: trainings of 20 steps and more, samples, a fused and re-ranked test."""
    folder = tmp_path_factory.mktemp("ranks")
    data, pairs = write_hoss(folder / "data", train_ships=10, views=4), write_pairs(folder / "pairs")

    def commands(out: Path) -> list[list[object]]:
        train = settings(
            DATASETS__ROOT_DIR=data, OUTPUT_DIR=out / "train", SOLVER__MAX_EPOCHS=5, MODEL__DROP_PATH=0.3,
            MODEL__IF_WITH_CENTER="yes", SOLVER__CENTER_LOSS_WEIGHT=0.01, DATALOADER__NUM_INSTANCE=2,
            SOLVER__OPTIMIZER_NAME="SGD",
        )  # fmt: skip
        pre = settings(
            DATASETS__ROOT_DIR=pairs, OUTPUT_DIR=out / "pre", MODEL__PAIR=True, MODEL__DROP_PATH=0.3,
            SOLVER__OPTIMIZER_NAME="SGD",
        )  # fmt: skip
        parts = settings(  # parts draw their own dropped paths, so none are dropped
            DATASETS__ROOT_DIR=data, OUTPUT_DIR=out / "parts", SOLVER__MAX_EPOCHS=2, SOLVER__EVAL_PERIOD=9,
            MODEL__DROP_PATH=0.0, DATALOADER__NUM_INSTANCE=2, SOLVER__OPTIMIZER_NAME="SGD", SOLVER__IMS_PER_PASS=3,
        )  # fmt: skip
        weights = folder / "one" / "train" / "transformer_5.pth"
        samples = ["OUTPUT_DIR", out / "samples", "BBDM.SPLITS", "['query', 'gallery']", "DATASETS.ROOT_DIR", data]
        test = settings(
            DATASETS__ROOT_DIR=data, OUTPUT_DIR=out / "test", TEST__WEIGHT=weights, TEST__IMS_PER_BATCH=3,
            TEST__RE_RANKING=True, TEST__RE_RANKING_K1=4, TEST__RE_RANKING_K2=2, TEST__FUSION_TAU=0.3,
            DATASETS__QUERY_ADD_DIR=out / "samples", DATASETS__GALLERY_ADD_DIR=out / "samples",
        )  # fmt: skip
        return [
            ["train", *train],
            ["train_pair", *pre],
            ["train", *parts],
            ["bbdm.train", *bridge(OUTPUT_DIR=out / "bridge", BBDM__PAIRS_DIR=pairs)],
            ["bbdm.train_first_stage", *bridge(OUTPUT_DIR=out / "stage", BBDM__PAIRS_DIR=pairs)],
            ["bbdm.sample", *bridge(BBDM__WEIGHT=folder / "one" / "bridge" / "bridge_2.pth"), *samples],
            ["test", *test],
        ]

    run_in_order(folder, commands)
    return folder


def lines_of(folder: Path, kind: str) -> list[dict]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == kind]


@pytest.mark.parametrize(("job", "steps"), [("train", 20), ("pre", 12), ("parts", 8), ("bridge", 4), ("stage", 4)])
def test_losses_of_every_step_are_those_of_one_process(done, job, steps):
    one, two = (lines_of(done / name / job, "step") for name in ("one", "two"))
    assert len(one) == len(two) >= steps
    numbers = one[0].keys() - {"kind", "epoch", "step", "memory_mb"}
    for first, second in zip(one, two, strict=True):
        for number in numbers:
            assert second[number] == pytest.approx(first[number], rel=1e-5, abs=1e-5), (number, first["epoch"], first["step"])


@pytest.mark.parametrize("job", ["bridge", "stage"])
def test_validation_is_that_of_one_process(done, job):
    one, two = (lines_of(done / name / job, "validation") for name in ("one", "two"))
    name = "validation_loss" if job == "bridge" else "validation_l1"
    assert [line[name] for line in one] == pytest.approx([line[name] for line in two], rel=1e-5)
    assert one


def test_the_same_weights_are_learned(done):
    for file in ("train/transformer_5.pth", "pre/transformer_4.pth"):
        one, two = (load(done / name / file) for name in ("one", "two"))
        assert one.keys() == two.keys()
        assert all(torch.allclose(one[key].float(), two[key].float(), atol=1e-4) for key in one), file


def test_figures_after_fusion_and_reranking_are_those_of_one_process_exactly(done):
    one, two = (json.loads((done / name / "test" / "results.json").read_text()) for name in ("one", "two"))
    assert one["protocols"] == two["protocols"]
    assert one["protocols"]["ALL"]["fused"] is not None
    assert one["counting"]["reranking"]


def test_pictures_are_those_of_one_process_byte_for_byte(done):
    one, two = ({path.name: path.read_bytes() for path in (done / name / "samples").glob("*.png")} for name in ("one", "two"))
    assert len(one) > 4
    assert one == two


def test_a_training_goes_on_with_another_number_of_processes(done, tmp_path):
    """What two processes left after epoch 2 is gone on with by one, to the same weights."""
    words = json.loads((done / "two.json").read_text())[0][1:]
    folder = str(tmp_path / "run")
    with started("train.py", *words, "OUTPUT_DIR", folder, "SOLVER.CHECKPOINT_PERIOD", 2) as program:
        wait_for(Path(folder) / "transformer_2.pth", program)
        program.send_signal(signal.SIGTERM)
        program.communicate(timeout=60)
    ended = call(train.main, *words, "OUTPUT_DIR", folder, "SOLVER.RESUME", f"{folder}/last.pth")
    assert ended.status == 0, ended.err
    one, other = load(done / "one" / "train" / "transformer_5.pth"), load(Path(folder) / "transformer_5.pth")
    assert all(torch.allclose(one[key].float(), other[key].float(), atol=1e-4) for key in one)


@contextmanager
def started(*words: object) -> Iterator[subprocess.Popen]:
    """Two processes of a command, in a session of their own, which ends with the block."""
    program = subprocess.Popen(
        launcher(*words), cwd=ROOT, env=environment(), stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        yield program
    finally:
        with suppress(ProcessLookupError):
            os.killpg(program.pid, signal.SIGKILL)
        program.wait()


def wait_for(path: Path, program: subprocess.Popen, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not path.is_file():
        assert time.monotonic() < end
        assert program.poll() is None, program.stderr.read()
        time.sleep(0.1)


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for a process in /proc")
def test_a_process_that_dies_ends_the_others_within_seconds_and_is_named(done, tmp_path):
    words = json.loads((done / "two.json").read_text())[0][1:]
    changes = ["OUTPUT_DIR", tmp_path / "run", "SOLVER.MAX_EPOCHS", 500]
    with started("train.py", *words, *changes) as program:
        wait_for(tmp_path / "run" / "transformer_2.pth", program)
        os.kill(process_of_rank(1, program.pid), signal.SIGKILL)
        killed = time.monotonic()
        _, told = program.communicate(timeout=60)
    assert time.monotonic() - killed < 30
    assert program.returncode != 0
    assert "rank      : 1" in told
    assert "exitcode  : -9" in told


def process_of_rank(rank: int, parent: int) -> int:
    for folder in Path("/proc").iterdir():
        try:
            is_child = f"PPid:\t{parent}\n" in (folder / "status").read_text()
            if folder.name.isdigit() and is_child and f"\0RANK={rank}\0".encode() in (folder / "environ").read_bytes():
                return int(folder.name)
        except OSError:
            continue
    raise AssertionError(f"no process of rank {rank}")


@pytest.mark.skipif(
    "MOS_RESTARTS" not in os.environ, reason="gloo may wait minutes for the dead process; set MOS_RESTARTS to try"
)
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for a process in /proc")
def test_torchrun_starts_a_job_anew_whose_process_died_and_it_goes_on(done, tmp_path):
    words = json.loads((done / "two.json").read_text())[0][1:]
    changes = ["OUTPUT_DIR", tmp_path / "run", "SOLVER.CHECKPOINT_PERIOD", 1, "SOLVER.RESUME", "auto"]
    # Where a process starts while the other still goes down, gloo may meet the dead one's address once more.
    with started("--max_restarts=3", "train.py", *words, *changes) as program:
        wait_for(tmp_path / "run" / "transformer_1.pth", program)
        os.kill(process_of_rank(1, program.pid), signal.SIGKILL)
        _, told = program.communicate(timeout=240)
    assert program.returncode == 0, told
    assert "going on from" in told
    one, other = load(done / "one" / "train" / "transformer_5.pth"), load(tmp_path / "run" / "transformer_5.pth")
    assert all(torch.allclose(one[key].float(), other[key].float(), atol=1e-4) for key in one)
