"""train.py with a record of what each process did, for `test_distributed.py`; started by torchrun.

The folder of the records is the environment variable RECORDS.
"""

import json
import os
from pathlib import Path

import processor.train
import train
from utils import distributed
from utils.cli import run


def record() -> None:
    """Make `train` note the images of each step, and at the end a sum over all that was learned, in a file for each rank."""
    step, build_trainer, fit = processor.train.Trainer.step, train.build_trainer, train.fit
    images: list[list[int]] = []

    def noted_step(trainer, batch):
        images.append(batch.indices.tolist())
        return step(trainer, batch)

    def summed(trainer) -> float:
        learned = [*trainer.model.parameters(), *trainer.criterion.parameters()]
        return sum(float(value.detach().double().abs().sum()) for value in learned)

    def noted_build(*arguments):
        trainer = build_trainer(*arguments)
        write("start", {"sum": summed(trainer)})
        return trainer

    def noted_fit(trainer, *arguments, **more):
        fit(trainer, *arguments, **more)
        buffers = sum(float(value.double().abs().sum()) for value in distributed.unwrap(trainer.model).buffers())
        write("end", {"sum": summed(trainer), "images": images, "buffers": buffers})

    processor.train.Trainer.step, train.build_trainer, train.fit = noted_step, noted_build, noted_fit


def write(name: str, content: dict) -> None:
    """Write a record of this rank."""
    path = Path(os.environ["RECORDS"]) / f"{name}_{distributed.rank()}.json"
    path.write_text(json.dumps({"ranks": distributed.world_size(), **content}), encoding="utf-8")


if __name__ == "__main__":
    record()
    run(train.main, together=True)
