"""Disks that are full, memory that is short, processes that are killed: one sentence, and what was whole stays."""

import io
import json
import logging
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, redirect_stderr
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import test as test_command
import train
from datasets.records import Batch
from processor.reid import ReIDTask
from tests.chip_files import write_hoss
from tests.commands import call, settings
from tests.test_survival import at_step
from tools import convert_weights
from utils import checkpoint, children, memory
from utils.checkpoint import load, save
from utils.children import run_child
from utils.errors import DataError, ResourceError
from utils.files import replacing, write_json
from utils.log import MetricsWriter, setup_logging
from utils.memory import explain, fitting
from utils.signals import Interrupted, raising

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_hoss(tmp_path_factory.mktemp("data"), train_ships=4, views=2)


def reid(data: Path, folder: Path, **changes) -> list[str]:
    return settings(**{"DATASETS__ROOT_DIR": data, "OUTPUT_DIR": folder, "SOLVER__MAX_EPOCHS": 2} | changes)


# The disk


@contextmanager
def small_disk(size: int):
    """No file of this process may grow beyond `size` bytes, which fails as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def write_png(path: Path) -> None:
    with replacing(path) as temporary:
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (99, 99), np.uint8)).save(temporary)


def write_array(path: Path) -> None:
    with replacing(path) as temporary:
        np.save(temporary, np.zeros(9999))


WEIGHTS = {f"w{number}": torch.randn(40, 40) for number in range(9)}
WRITERS = {
    "w.pth": lambda path: save(path, WEIGHTS),
    "w.safetensors": lambda path: save(path, WEIGHTS),
    "results.json": lambda path: write_json(path, list(range(9999))),
    "0001_0.png": write_png,
    "features.npy": write_array,
}


@pytest.mark.parametrize("size", [0, 64, 4096])
@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_names_the_file_and_keeps_what_was_whole(tmp_path, name, size):
    path = tmp_path / name
    path.write_bytes(b"whole")
    with small_disk(size), pytest.raises(DataError, match=rf"{name} could not be written \(.*\); make room on its disk"):
        WRITERS[name](path)
    assert path.read_bytes() == b"whole"
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_lines_of_metrics_and_of_the_log_that_do_not_fit_name_their_file(tmp_path):
    path = tmp_path / "metrics.jsonl"
    writer = MetricsWriter(path)
    writer.write(kind="step", epoch=1, step=1)
    with small_disk(path.stat().st_size + 5), pytest.raises(DataError, match=r"metrics\.jsonl could not be written"):
        writer.write(kind="step", epoch=1, step=2)
    MetricsWriter(path, keep=lambda line: True)
    assert json.loads(path.read_text()) == {"kind": "step", "epoch": 1, "step": 1}
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    root.handlers = []
    try:
        setup_logging(tmp_path, "train_log.txt")
        with (
            redirect_stderr(io.StringIO()),
            small_disk(5),
            pytest.raises(DataError, match=r"train_log\.txt could not be written"),
        ):
            logging.getLogger("some").info("a line")
    finally:
        root.handlers[-1].close()
        root.handlers, root.level = handlers, level
        logging.captureWarnings(False)


def test_errors_of_other_files_keep_their_names(tmp_path):
    with pytest.raises(FileNotFoundError, match="absent"), replacing(tmp_path / "a.txt"):
        (tmp_path / "absent").read_bytes()
    with pytest.raises(OSError, match="broken data stream"), replacing(tmp_path / "a.txt"):
        raise OSError("broken data stream when reading image file")  # of Pillow, about what is read


def test_a_training_on_a_full_disk_ends_in_one_sentence_and_goes_on_later(data, tmp_path):
    words = reid(data, tmp_path)
    with small_disk(30_000_000):  # the weights fit, the state does not
        ended = call(train.main, *words, "SOLVER.MAX_EPOCHS", 1)
    assert (ended.status, f"{tmp_path / 'last.pth'} could not be written" in ended.sentence) == (1, True)
    assert load(tmp_path / "best_model_mAP.pth")
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
    assert call(train.main, *words, "SOLVER.RESUME", "auto").status == 0
    with small_disk(3000):
        ended = call(test_command.main, *words, "TEST.WEIGHT", tmp_path / "best_model_mAP.pth", "OUTPUT_DIR", tmp_path / "t")
    assert ended.status == 1
    assert f"{tmp_path / 't' / 'results.json'} could not be written" in ended.sentence
    assert not (tmp_path / "t" / "results.json").exists()


def test_ctrl_c_within_torch_save_waits_for_the_file(tmp_path, monkeypatch):
    save(tmp_path / "in.pth", WEIGHTS)
    write, pressed = checkpoint._Writer.write, []

    def press(self, content):
        if not pressed:
            pressed.append(signal.raise_signal(signal.SIGINT))
        return write(self, content)

    monkeypatch.setattr(checkpoint._Writer, "write", press)
    ended = call(convert_weights.main, tmp_path / "in.pth", tmp_path / "out.pth")
    assert pressed
    assert (ended.status, ended.sentence) == (130, "ended by SIGINT")
    assert load(tmp_path / "out.pth").keys() == WEIGHTS.keys()
    assert {path.name for path in tmp_path.iterdir()} == {"in.pth", "out.pth"}


# Memory


def cpu_is_full(size: int) -> None:
    asked = f"DefaultCPUAllocator: can't allocate memory: you tried to allocate {size}000000 bytes. Error code 12"
    raise RuntimeError(f"[enforce fail at alloc_cpu.cpp:127] err == 0. {asked} (Cannot allocate memory)")


def gpu_is_full(size: int) -> None:
    raise torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {size}.00 GiB. GPU 0 has ...")


def numpy_is_full(size: int) -> None:
    raise MemoryError(f"Unable to allocate {size} MiB for an array")


@pytest.mark.parametrize(
    ("fill", "said"),
    [
        (cpu_is_full, "memory is full (8000000 bytes more were asked for) with 8 images at a time; 4 fit, so set"),
        (gpu_is_full, "the GPU's memory is full (8.00 GiB more were asked for) with 8 images at a time; 4 fit, so set"),
        (numpy_is_full, "memory is full (8 MiB more were asked for) with 8 images at a time; 4 fit, so set"),
    ],
)
def test_short_memory_names_a_batch_size_that_fits(data, tmp_path, monkeypatch, fill, said):
    step = ReIDTask.step

    def limited(self, batch):
        if len(batch.indices) > 4:
            fill(len(batch.indices))
        return step(self, batch)

    monkeypatch.setattr(ReIDTask, "step", limited)
    ended = call(train.main, *reid(data, tmp_path))
    assert (ended.status, ended.sentence) == (1, f"{said} SOLVER.IMS_PER_BATCH 4")


def test_short_memory_in_a_test_names_its_own_key(data, tmp_path, monkeypatch):
    words = reid(data, tmp_path / "run", SOLVER__MAX_EPOCHS=1)
    assert call(train.main, *words).status == 0
    network = torch.nn.Module.__call__

    def limited(self, *inputs, **more):
        if type(self).__name__ == "ReIDModel" and len(inputs[0]) > 3:
            cpu_is_full(len(inputs[0]))
        return network(self, *inputs, **more)

    monkeypatch.setattr(torch.nn.Module, "__call__", limited)
    words = [*words, "TEST.IMS_PER_BATCH", 8, "OUTPUT_DIR", tmp_path / "test", "TEST.WEIGHT", tmp_path / "run" / "last.pth"]
    ended = call(test_command.main, *words)
    assert (ended.status, ended.sentence.endswith("with 8 images at a time; 2 fit, so set TEST.IMS_PER_BATCH 2")) == (1, True)


def test_sizes_are_tried_in_whole_units():
    tried = []

    def attempt(size):
        tried.append(size)
        if size > 8:
            cpu_is_full(size)

    with pytest.raises(ResourceError, match="8 fit, so set KEY 8"), fitting("KEY", 72, attempt, unit=4):
        numpy_is_full(72)
    assert tried == [36, 16, 8]
    with pytest.raises(ResourceError, match="4 at a time do not fit either"), fitting("KEY", 8, cpu_is_full, unit=4):
        numpy_is_full(8)
    with pytest.raises(ValueError, match="other"), fitting("KEY", 8, attempt):
        raise ValueError("other")


def test_other_processes_do_not_try(monkeypatch):
    monkeypatch.setattr(memory.distributed, "world_size", lambda: 2)
    with pytest.raises(ResourceError, match="8 images at a time on this process; lower KEY"), fitting("KEY", 8, pytest.fail):
        numpy_is_full(8)


def test_the_first_images_of_a_batch_are_whole_pairs_where_nothing_is_labelled():
    indices = torch.arange(8)
    batch = Batch(torch.zeros(8, 3, 1, 1), torch.zeros(8, 3), indices // 4, None, indices)
    assert batch.first(4).indices.tolist() == [0, 1, 4, 5]
    assert batch.first(1).indices.tolist() == [0]
    batch.labels = indices // 2
    assert batch.first(4).indices.tolist() == [0, 1, 2, 3]


# Processes


def test_a_worker_that_is_killed_ends_the_run_in_one_sentence(data, tmp_path, monkeypatch):
    def kill():
        os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)
        time.sleep(0.5)

    at_step(monkeypatch, ReIDTask, 2, kill)
    ended = call(train.main, *reid(data, tmp_path, DATALOADER__NUM_WORKERS=1, SOLVER__MAX_EPOCHS=50))
    assert ended.status == 1
    assert ended.sentence.startswith("a process that reads chips was ended from outside")
    assert "DATALOADER.NUM_WORKERS" in ended.sentence


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)", "docker run --shm-size"),
        ("unable to open shared memory object </torch_1> in read-write mode: Too many open files (24)", "ulimit -n"),
    ],
)
def test_shared_memory_that_is_too_small_names_the_key(data, tmp_path, monkeypatch, fault, said):
    def refuse(self):
        raise RuntimeError(fault)

    monkeypatch.setattr(torch.Tensor, "share_memory_", refuse)  # in the worker too, which is forked
    ended = call(train.main, *reid(data, tmp_path, DATALOADER__NUM_WORKERS=1))
    assert ended.status == 1
    assert said in ended.sentence and "DATALOADER.NUM_WORKERS" in ended.sentence


def test_a_bus_error_is_one_of_shared_memory():
    said = (
        "DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that dataloader's workers are out of shared"
    )
    assert "/dev/shm" in explain(RuntimeError(said))
    assert explain(RuntimeError("a fault")) is None


PARENT = """
import sys
from utils.children import run_child
print("parent", flush=True)
run_child(["-c", sys.argv[1], sys.argv[2]])
"""

CHILD = """
import sys, time
from utils.children import end_with_parent
from utils.signals import Interrupted, raising
end_with_parent()
try:
    with raising():
        open(sys.argv[1], "w").write("begun")
        time.sleep(60)
except Interrupted as asked:
    open(sys.argv[1], "w").write(f"ended by {asked.number}")
"""


def wait_for(path: Path, text: str, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not (path.is_file() and path.read_text() == text):
        assert time.monotonic() < end, path.read_text() if path.is_file() else "nothing"
        time.sleep(0.05)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_child_ends_with_its_parent_however_that_ends(tmp_path, number):
    note = tmp_path / "note"
    parent = subprocess.Popen([sys.executable, "-c", PARENT, CHILD, str(note)], cwd=ROOT, start_new_session=True)
    wait_for(note, "begun")
    if number == signal.SIGINT:
        os.killpg(parent.pid, number)  # as a terminal does
    else:
        parent.send_signal(number)
    parent.wait(60)
    wait_for(note, f"ended by {int(signal.SIGINT if number == signal.SIGINT else signal.SIGTERM)}")


def test_a_child_of_a_parent_that_lives_is_left_alone(tmp_path):
    assert run_child(["-c", "from utils.children import end_with_parent as e; e(); import sys; sys.exit(7)"], folder=ROOT) == 7


def test_a_child_that_does_not_end_is_killed_and_named(monkeypatch, caplog, tmp_path):
    monkeypatch.setattr(children, "PATIENCE", 0.2)
    deaf = "import pathlib, signal, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
    deaf += "pathlib.Path(sys.argv[1]).touch(); time.sleep(60)"

    def ask():
        while not (tmp_path / "deaf").exists():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGUSR1)

    threading.Thread(target=ask).start()
    with raising(), pytest.raises(Interrupted):
        run_child(["-c", deaf, str(tmp_path / "deaf")])
    assert "did not end within" in caplog.text
