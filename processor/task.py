"""What a training is to the loop (`processor.engine`): what a step does, how long it goes, and what it leaves behind."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from processor.description import build_description
from utils import distributed
from utils.device import Precision
from utils.log import MetricsWriter
from utils.sharding import whole


class Task(ABC):
    """Something to train. A kind of training says what a step is; it may say more by the methods that do nothing here.

    Attributes:
        name: on the progress bar.
        network: on its device, inside `distributed.wrap` where there are several processes.
        device: of the network.
        precision: in which it computes.
        numbers: names of what `step` returns; one of them is 'loss'.
        parts: name -> what has `state_dict` and `load_state_dict`: all that resuming needs beside the network, at any step.
    """

    name: str
    network: nn.Module
    device: torch.device
    precision: Precision
    numbers: Sequence[str]
    parts: Mapping[str, Any]

    @abstractmethod
    def step(self, batch) -> Tensor:
        """Learn from a batch, which is on the CPU; returns `numbers` as one detached vector, without waiting for the device."""

    @abstractmethod
    def rate(self) -> float:
        """The learning rate, for the log."""

    def begin(self, epoch: int) -> None:  # noqa: B027
        """Get ready for an epoch; not called where one is gone on with, since `parts` hold what it did."""

    def observe(self, losses: Sequence[float]) -> None:  # noqa: B027
        """Hear of the losses of the batches since the last time, means over processes."""

    def finish(self, epoch: int, *, last: bool) -> dict[str, float]:
        """Close an epoch; returns figures for its line of metrics.jsonl."""
        return {}

    def evaluate(self, epoch: int, metrics: MetricsWriter) -> dict[str, float]:
        """Judge the weights, on every process; returns name of the best weights' file -> figure, higher is better."""
        return {}

    def weights(self) -> dict[str, Tensor]:
        """What checkpoints hold: the network's weights, whole where they are sharded; called on every process."""
        return whole(distributed.unwrap(self.network).state_dict())

    def selection(self, name: str, *, epoch: int, figure: float) -> dict[str, Any]:
        """Why the weights of a file `name`.pth are the best of the run, in plain values, for what the file says of itself."""
        return {"metric": name, "epoch": epoch, "score": figure}


@dataclass(frozen=True)
class TrainingPlan:
    """How long a training goes and what it leaves behind.

    Attributes:
        folder: OUTPUT_DIR.
        name: first part of checkpoint names.
        epochs: in all.
        evaluation_period, checkpoint_period: in epochs; the last epoch is always evaluated and kept. A checkpoint_period of -1
            keeps the best weights alone, and a state to go on from at each evaluation.
        log_period: in steps.
        save_minutes: between states to go on from within an epoch; 0: none.
        seed: of what steps draw at random.
        origin: kept in last.pth beside the state: the configuration as text, and what else a resumed run should know.
        description: what every weights file says of itself (`processor.description`).
        allowed: what a resumed run may differ in although it cannot be meant (`processor.resuming`).
        batch: images of a batch, of all processes, for the log; 0 where it is not known.
        trackers: programs that show the metrics too (`utils.trackers`).
    """

    folder: Path
    name: str
    epochs: int
    evaluation_period: int
    checkpoint_period: int
    log_period: int
    save_minutes: float
    seed: int
    origin: Mapping[str, Any]
    description: Mapping[str, Any] = field(default_factory=dict)
    allowed: tuple[str, ...] = ()
    batch: int = 0
    trackers: tuple[str, ...] = ()


def build_training_plan(cfg, folder: Path, name: str, *, facts: Mapping[str, Any] | None = None, **origin: Any) -> TrainingPlan:
    """The plan of SOLVER.*; `origin` is kept in last.pth beside the configuration, `facts` in every weights file."""
    return TrainingPlan(
        folder=folder,
        name=name,
        epochs=cfg.SOLVER.MAX_EPOCHS,
        evaluation_period=cfg.SOLVER.EVAL_PERIOD,
        checkpoint_period=cfg.SOLVER.CHECKPOINT_PERIOD,
        log_period=cfg.SOLVER.LOG_PERIOD,
        save_minutes=cfg.SOLVER.SAVE_MINUTES,
        seed=cfg.SOLVER.SEED,
        origin={"config": cfg.dump(), **origin},
        description=build_description(cfg, name, **facts or {}),
        allowed=tuple(cfg.SOLVER.RESUME_ALLOW),
        batch=cfg.SOLVER.IMS_PER_BATCH,
        trackers=tuple(cfg.SOLVER.TRACKERS),
    )
