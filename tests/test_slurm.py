"""docs/slurm_train.sh on a cluster of two stand-ins for Slurm's programs: asked to end, it saves and queues itself again."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.chip_files import write_hoss
from tests.commands import settings
from utils.checkpoint import load

ROOT = Path(__file__).parent.parent
SRUN = '#!/bin/sh\nwhile [ "${1#--}" != "$1" ]; do shift; done\nexec "$@"\n'
SCONTROL = '#!/bin/sh\nif [ "$1" = show ]; then echo localhost; else echo "$@" >> "$QUEUED"; fi\n'


@pytest.mark.skipif(sys.platform == "win32", reason="Slurm is not for Windows")
def test_a_job_that_is_preempted_saves_and_is_queued_again_and_goes_on(tmp_path):
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (tmp_path / "bin").mkdir(exist_ok=True)
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    queued, folder = tmp_path / "queued", tmp_path / "run"
    environment = os.environ | {
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "QUEUED": str(queued), "SLURM_JOB_ID": "77",
        "MOS_PYTHON": sys.executable, "MOS_PROCESSES": "1", "MOS_PORT": "0", "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    words = settings(DATASETS__ROOT_DIR=write_hoss(tmp_path / "data"), OUTPUT_DIR=folder, SOLVER__EVAL_PERIOD=1000)

    def start(epochs: int) -> subprocess.Popen:
        command = [str(ROOT / "docs" / "slurm_train.sh"), "train.py", *words, "SOLVER.MAX_EPOCHS", str(epochs)]
        return subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True)

    job, end = start(100_000), time.monotonic() + 240
    while not (folder / "metrics.jsonl").is_file() or (folder / "metrics.jsonl").read_text().count("\n") < 3:
        assert job.poll() is None and time.monotonic() < end, job.stderr.read()
        time.sleep(0.1)
    job.send_signal(signal.SIGUSR1)  # as Slurm does: the script alone hears it
    told = job.communicate(timeout=120)[1]
    assert job.returncode == 0, told
    assert queued.read_text() == "requeue 77\n"
    epochs = load(folder / "last.pth")["epoch"] + 1
    job = start(epochs)
    told = job.communicate(timeout=240)[1]
    assert job.returncode == 0, told
    assert "going on from" in told
    assert load(folder / "last.pth")["epoch"] == epochs
    assert queued.read_text().count("requeue") == 1
