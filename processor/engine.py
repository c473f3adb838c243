"""The one loop that trains. What is trained, and what a step of it is, is a `processor.task.Task`; what it keeps, a `Saver`'s.

Epochs and their steps count from 1. What a step draws at random follows from (seed, process, epoch, step) alone.
"""

import logging
import math
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from datasets.records import Batch
from processor.resuming import DATA, describe_chips, restore
from processor.saving import Saver
from processor.standing import Standing
from processor.task import Task, TrainingPlan
from utils import distributed
from utils.errors import PeerError, TrainingError, some
from utils.log import MetricsWriter, progress
from utils.memory import fitting
from utils.seed import seed_step
from utils.trackers import open_trackers

logger = logging.getLogger(__name__)


def fit(task: Task, loader, plan: TrainingPlan, *, resume: str | Path = "") -> None:
    """Train until the last epoch; evaluate and write checkpoints on the way. Call it on every process.

    Args:
        task: at its start.
        loader: yields batches with `indices` into `loader.dataset.chips`; `loader.batch_sampler.set_epoch` chooses the epoch,
            and how many of its batches to pass over.
        plan: how long, and where to.
        resume: a last.pth to go on from, or nothing.

    Raises:
        CheckpointError, UsageError: `resume` is not of this training.
        TrainingError: a loss, or what was learned, is no longer finite.
        Interrupted: the program was asked to end; last.pth holds what was learned.
    """
    plan = replace(plan, origin={**plan.origin, DATA: describe_chips(loader.dataset.chips)})
    at = restore(task, plan, resume) if resume else Standing.at_start(task)
    loader.batch_sampler.set_epoch(at.epoch)  # for the length of the bar
    logger.info("%s", start_line(task, plan, steps=len(loader)))
    done, total = len(loader) * (at.epoch - 1) + at.step, len(loader) * plan.epochs
    with (
        open_trackers(plan.trackers, plan.folder, plan.origin.get("config", ""), steps=len(loader)) as also,
        Saver(task, plan, loader.dataset.chips) as saver,
        progress(total, task.name, unit="step", initial=done) as bar,
    ):
        metrics = MetricsWriter(plan.folder / "metrics.jsonl", keep=at.has_logged, also=also)
        while at.epoch <= plan.epochs:
            last = at.epoch == plan.epochs
            if not at.finished:
                train_one_epoch(task, loader, plan, at, metrics, saver, bar)
            bar.total = bar.n + len(loader) * (plan.epochs - at.epoch)  # plans of epochs may differ by a batch or two
            if last or at.epoch % plan.evaluation_period == 0:
                distributed.share_buffers(distributed.unwrap(task.network))  # what is evaluated is what rank 0 will write
                with saver.interruptible(at):
                    figures = task.evaluate(at.epoch, metrics)
                saver.keep_best(at, figures)
            saver.after_epoch(at, last=last)
            distributed.barrier()
    logger.info("%d epochs are done; see %s", plan.epochs, plan.folder)


def start_line(task: Task, plan: TrainingPlan, *, steps: int) -> str:
    """What is going to be trained, on what and for how long; `steps` are those of an epoch."""
    parameters = sum(parameter.numel() for parameter in task.network.parameters())
    parts = [str(task.device), task.precision.name, f"{parameters / 1e6:.1f} M parameters"]
    parts += [f"batch {plan.batch}"] if plan.batch else []
    if "identities" in plan.description:
        parts.append(f"{plan.description['identities']} identities")
    if distributed.world_size() > 1:
        parts.append(f"{distributed.world_size()} processes")
    return ", ".join([*parts, f"{plan.epochs} x {steps} steps"])


def train_one_epoch(
    task: Task, loader, plan: TrainingPlan, at: Standing, metrics: MetricsWriter, saver: Saver, bar: tqdm
) -> None:
    """Learn from every batch of `loader` once, less those of this epoch that are done."""
    loader.batch_sampler.set_epoch(at.epoch, skip=at.step)
    if not at.step:
        task.begin(at.epoch)
    task.network.train()
    count, first, start = len(loader), at.step, time.perf_counter()
    for batch in loader:
        seed_step(plan.seed, distributed.rank(), at.epoch, at.step + 1)
        at.add(learn(task, batch), batch.indices)
        bar.update()
        if at.step % plan.log_period == 0 or at.step == count:
            values = look(at, task.numbers, loader.dataset)
            task.observe(values[:, list(task.numbers).index("loss")].tolist())
            means = dict(zip(task.numbers, values.mean(0).tolist(), strict=True))
            metrics.write(kind="step", epoch=at.epoch, step=at.step, **means, lr=task.rate(), **_usage(task.device))
            bar.set_postfix(epoch=at.epoch, loss=f"{means['loss']:.4g}", refresh=False)
        if at.step < count:
            saver.after_step(at)
    last = at.epoch == plan.epochs
    means = dict(zip(task.numbers, (at.sums / count).tolist(), strict=True)) | task.finish(at.epoch, last=last)
    seconds = time.perf_counter() - start
    speed = {"seconds": seconds, "steps_per_second": (count - first) / seconds}
    metrics.write(kind="epoch", epoch=at.epoch, **means, **speed, **_usage(task.device))
    at.finished = True
    if last or at.epoch % plan.evaluation_period == 0:
        logger.info("epoch %d: %s", at.epoch, ", ".join(f"{name} {mean:.4g}" for name, mean in means.items()))


def learn(task: Task, batch: Batch) -> Tensor:
    """One step of the task.

    Raises:
        ResourceError: memory does not hold the batch; the message has the size of one that it holds.
    """
    unit = 2 if batch.labels is None else int(batch.labels.unique(return_counts=True)[1].min())
    with fitting("SOLVER.IMS_PER_BATCH", len(batch.indices), lambda size: task.step(batch.first(size)), unit=unit):
        return task.step(batch)


def look(at: Standing, names: Sequence[str], dataset) -> Tensor:
    """Bring the numbers of the recent batches from the device, the one place of the loop that waits for it, and add them up.

    Args:
        at: whose `recent` are looked at.
        names: of the numbers.
        dataset: whose `chips` the indices of batches refer to.

    Returns:
        (batches, N) float64, means over processes.

    Raises:
        TrainingError: one is not finite; the message has all numbers of the batch and the names of its files.
    """
    own = torch.stack([values for values, _ in at.recent]).double()
    means = distributed.mean(own).cpu()
    first = at.step - len(at.recent) + 1
    for step, (values, (_, indices)) in enumerate(zip(own.tolist(), at.recent, strict=True), start=first):
        if not all(map(math.isfinite, values)):
            told = ", ".join(f"{name} {value:g}" for name, value in zip(names, values, strict=True))
            files = some([dataset.chips[index].path.name for index in indices.tolist()])
            raise TrainingError(
                f"the loss is not finite in epoch {at.epoch}, step {step} ({told}), for {files}; look at these files, lower "
                "SOLVER.BASE_LR, or set SOLVER.AMP off"
            )
    if not means.isfinite().all():
        raise PeerError(f"the loss of another process is not finite in epoch {at.epoch}; its own message says more")
    at.sums, at.recent = at.sums + means.sum(0), []
    return means


def _usage(device: torch.device) -> dict[str, float]:
    return {"memory_mb": torch.cuda.max_memory_allocated(device) / 2**20} if device.type == "cuda" else {}
