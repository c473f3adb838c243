"""The one loop that trains. What is trained, and what a step of it is, is a `Task`; everything else happens here.

Epochs and their steps count from 1. What a step draws at random follows from (seed, process, epoch, step) alone.
"""

import logging
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from utils import distributed
from utils.checkpoint import load, save
from utils.errors import CheckpointError, TrainingError, some
from utils.log import MetricsWriter, progress
from utils.seed import seed_step

logger = logging.getLogger(__name__)


class Task(ABC):
    """Something to train. A kind of training says what a step is; it may say more by the methods that do nothing here.

    Attributes:
        name: on the progress bar.
        network: on its device, inside `distributed.wrap` where there are several processes.
        device: of the network.
        numbers: names of what `step` returns; one of them is 'loss'.
        parts: name -> what has `state_dict` and `load_state_dict`: all that resuming needs beside the network.
    """

    name: str
    network: nn.Module
    device: torch.device
    numbers: Sequence[str]
    parts: Mapping[str, Any]

    @abstractmethod
    def step(self, batch) -> Tensor:
        """Learn from a batch, which is on the CPU; returns `numbers` as one detached vector, without waiting for the device."""

    @abstractmethod
    def rate(self) -> float:
        """The learning rate, for the log."""

    def begin(self, epoch: int) -> None:  # noqa: B027
        """Get ready for an epoch."""

    def observe(self, losses: Sequence[float]) -> None:  # noqa: B027
        """Hear of the losses of the batches since the last time, means over processes."""

    def finish(self, epoch: int, *, last: bool) -> dict[str, float]:
        """Close an epoch; returns figures for its line of metrics.jsonl."""
        return {}

    def evaluate(self, epoch: int, metrics: MetricsWriter) -> dict[str, float]:
        """Judge the weights, on every process; returns name of the best weights' file -> figure, higher is better."""
        return {}

    def weights(self) -> dict[str, Tensor]:
        """What checkpoints hold: the network's weights."""
        return distributed.unwrap(self.network).state_dict()

    def describe_best(self, path: Path, *, epoch: int, figure: float) -> None:  # noqa: B027
        """Say why `path` holds the best weights; called on the process that wrote it."""


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
        seed: of what steps draw at random.
        origin: kept in last.pth beside the state: the configuration as text, and what else a resumed run should know.
    """

    folder: Path
    name: str
    epochs: int
    evaluation_period: int
    checkpoint_period: int
    log_period: int
    seed: int
    origin: Mapping[str, Any]


def build_training_plan(cfg, folder: Path, name: str, **origin: Any) -> TrainingPlan:
    """The plan of SOLVER.*; `origin` is kept in last.pth beside the configuration."""
    return TrainingPlan(
        folder=folder,
        name=name,
        epochs=cfg.SOLVER.MAX_EPOCHS,
        evaluation_period=cfg.SOLVER.EVAL_PERIOD,
        checkpoint_period=cfg.SOLVER.CHECKPOINT_PERIOD,
        log_period=cfg.SOLVER.LOG_PERIOD,
        seed=cfg.SOLVER.SEED,
        origin={"config": cfg.dump(), **origin},
    )


def fit(task: Task, loader, plan: TrainingPlan, *, resume: str | Path = "") -> None:
    """Train until the last epoch; evaluate and write checkpoints on the way. Call it on every process.

    Args:
        task: at its start.
        loader: yields batches with `indices` into `loader.dataset.chips`; `loader.batch_sampler.set_epoch` chooses the epoch.
        plan: how long, and where to.
        resume: a last.pth to go on from, or nothing.

    Raises:
        CheckpointError: `resume` is not of this training.
        TrainingError: a loss, or the weights, are no longer finite.
    """
    done, best = restore(task, resume) if resume else (0, {})
    metrics = MetricsWriter(plan.folder / "metrics.jsonl", epoch=done)
    loader.batch_sampler.set_epoch(done + 1)  # for the length of the bar
    with progress(len(loader) * plan.epochs, task.name, unit="step", initial=len(loader) * done) as bar:
        for epoch in range(done + 1, plan.epochs + 1):
            means = train_one_epoch(task, loader, plan, epoch, metrics, bar)
            bar.total = bar.n + len(loader) * (plan.epochs - epoch)  # plans of epochs may differ by a batch or two
            last = epoch == plan.epochs
            if last or epoch % plan.evaluation_period == 0:
                told = ", ".join(f"{name} {mean:.4g}" for name, mean in means.items())
                logger.info("epoch %d: %s", epoch, told)
                distributed.share_buffers(distributed.unwrap(task.network))  # what is evaluated is what rank 0 will write
                keep_best(task, plan, epoch, task.evaluate(epoch, metrics), best)
            period = plan.evaluation_period if plan.checkpoint_period < 0 else plan.checkpoint_period
            if last or epoch % period == 0:
                keep_state(task, plan, epoch, best)
            distributed.barrier()
    logger.info("%d epochs are done; see %s", plan.epochs, plan.folder)


def train_one_epoch(task: Task, loader, plan: TrainingPlan, epoch: int, metrics: MetricsWriter, bar: tqdm) -> dict[str, float]:
    """Learn from every batch of `loader` once; returns the mean of each number over the epoch's batches and processes."""
    loader.batch_sampler.set_epoch(epoch)
    task.begin(epoch)
    task.network.train()
    count, start, sums, recent = len(loader), time.perf_counter(), torch.zeros(len(task.numbers)), []
    for step, batch in enumerate(loader, start=1):
        seed_step(plan.seed, distributed.rank(), epoch, step)
        recent.append((task.step(batch), batch.indices))
        bar.update()
        if step % plan.log_period == 0 or step == count:
            values = look(recent, task.numbers, loader.dataset, epoch=epoch, first=step - len(recent) + 1)
            task.observe(values[:, list(task.numbers).index("loss")].tolist())
            means = dict(zip(task.numbers, values.mean(0).tolist(), strict=True))
            metrics.write(kind="step", epoch=epoch, step=step, **means, lr=task.rate(), **_usage(task.device))
            bar.set_postfix(epoch=epoch, loss=f"{means['loss']:.4f}", refresh=False)
            sums += values.sum(0)
            recent = []
    means = dict(zip(task.numbers, (sums / count).tolist(), strict=True)) | task.finish(epoch, last=epoch == plan.epochs)
    seconds = time.perf_counter() - start
    speed = {"seconds": seconds, "steps_per_second": count / seconds}
    metrics.write(kind="epoch", epoch=epoch, **means, **speed, **_usage(task.device))
    return means


def look(recent: Sequence[tuple[Tensor, Tensor]], names: Sequence[str], dataset, *, epoch: int, first: int) -> Tensor:
    """Bring the numbers of the last batches from the device: the one place of the loop that waits for it.

    Args:
        recent: of each batch its numbers (N,) and the indices of its chips.
        names: of the numbers.
        dataset: whose `chips` the indices refer to.
        epoch, first: epoch and step of the first of them, for messages.

    Returns:
        (batches, N) float64, means over processes.

    Raises:
        TrainingError: one is not finite; the message has all numbers of the batch and the names of its files.
    """
    own = torch.stack([values for values, _ in recent]).double()
    means = distributed.mean(own).cpu()
    for step, (values, (_, indices)) in enumerate(zip(own.tolist(), recent, strict=True), start=first):
        if not all(map(math.isfinite, values)):
            told = ", ".join(f"{name} {value:g}" for name, value in zip(names, values, strict=True))
            files = some([dataset.chips[index].path.name for index in indices.tolist()])
            raise TrainingError(
                f"the loss is not finite in epoch {epoch}, step {step} ({told}), for {files}; look at these files, lower "
                "SOLVER.BASE_LR, or set SOLVER.AMP off"
            )
    if not means.isfinite().all():
        raise TrainingError(f"the loss of another process is not finite in epoch {epoch}; its own message says more")
    return means


def _usage(device: torch.device) -> dict[str, float]:
    return {"memory_mb": torch.cuda.max_memory_allocated(device) / 2**20} if device.type == "cuda" else {}


def keep_best(task: Task, plan: TrainingPlan, epoch: int, figures: Mapping[str, float], best: dict[str, float]) -> None:
    """Write the weights whose figure is the best so far, and raise `best`."""
    for name, figure in figures.items():
        if figure > best.get(name, -math.inf):
            best[name] = figure
            if distributed.is_main():
                path = plan.folder / f"{name}.pth"
                save_weights(task, path)
                task.describe_best(path, epoch=epoch, figure=figure)


def keep_state(task: Task, plan: TrainingPlan, epoch: int, best: Mapping[str, float]) -> None:
    """Write the weights of an epoch, and last.pth to go on from."""
    parts = {name: part.state_dict() for name, part in task.parts.items()}  # on every process: some are gathered
    if distributed.is_main():
        if plan.checkpoint_period > 0 or not best:  # nothing is the best of a training that is not judged
            save_weights(task, plan.folder / f"{plan.name}_{epoch}.pth")
        model = distributed.unwrap(task.network).state_dict()
        save(plan.folder / "last.pth", {"model": model, **parts, "epoch": epoch, "best": dict(best), **plan.origin})


def save_weights(task: Task, path: Path) -> None:
    """Write the task's weights to `path`, if all of them are finite.

    Raises:
        TrainingError: some are not; what was there before stays.
    """
    weights = task.weights()
    broken = [name for name, value in weights.items() if value.is_floating_point() and not value.isfinite().all()]
    if broken:
        raise TrainingError(
            f"the weights are not finite ({some(broken)}), so {path.name} was not written; lower SOLVER.BASE_LR and go on from "
            "the last.pth before it"
        )
    save(path, weights)


def restore(task: Task, path: str | Path) -> tuple[int, dict[str, float]]:
    """Put a training where a last.pth was written; returns the epochs done and the best figures so far.

    Raises:
        CheckpointError: no such file, or not of this training.
    """
    state = load(path)
    try:
        distributed.unwrap(task.network).load_state_dict(state["model"])
        for name, part in task.parts.items():
            part.load_state_dict(state[name])
        done, best = int(state["epoch"]), dict(state["best"])
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(
            f"SOLVER.RESUME {path} does not fit this run: {reason}; resume with the config of the run that wrote it"
        ) from error
    logger.info("resumed from %s after epoch %d", path, done)
    return done, best
