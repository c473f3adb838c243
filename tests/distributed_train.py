"""train.py with a record of what each process did, for `test_distributed.py`; started by torchrun.

The folder of the records is the environment variable RECORDS. If STOP_STEP is set too, the second process alone is asked to end
in the step of that number.
"""

import json
import os
import signal
from pathlib import Path

import torch

import train
from processor.reid import ReIDTask
from utils import distributed
from utils.cli import run


def record() -> None:
    """Make `train` note the images of each step, and at the end a sum over all that was learned, in a file for each rank."""
    step, build_task, fit = ReIDTask.step, train.build_reid_task, train.fit
    images: list[list[int]] = []

    def noted_step(task, batch):
        images.append(batch.indices.tolist())
        if os.environ.get("STOP_STEP") == str(len(images)) and distributed.rank() == 1:
            signal.raise_signal(signal.SIGTERM)
        return step(task, batch)

    def summed(task) -> float:
        learned = [*task.network.parameters(), *task.criterion.parameters()]
        return sum(float(value.detach().double().abs().sum()) for value in learned)

    def noted_build(*arguments):
        task = build_task(*arguments)
        mean = distributed.mean(torch.tensor([1.0 + distributed.rank()])).tolist()
        write("start", {"sum": summed(task), "mean": mean})
        return task

    def noted_fit(task, *arguments, **more):
        fit(task, *arguments, **more)
        buffers = sum(float(value.double().abs().sum()) for value in distributed.unwrap(task.network).buffers())
        write("end", {"sum": summed(task), "images": images, "buffers": buffers})

    ReIDTask.step, train.build_reid_task, train.fit = noted_step, noted_build, noted_fit


def write(name: str, content: dict) -> None:
    """Write a record of this rank."""
    path = Path(os.environ["RECORDS"]) / f"{name}_{distributed.rank()}.json"
    path.write_text(json.dumps({"ranks": distributed.world_size(), **content}), encoding="utf-8")


if __name__ == "__main__":
    record()
    run(train.main, together=True)
