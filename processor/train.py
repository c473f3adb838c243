"""The training loop: one epoch, all epochs, and the state that a run can resume from."""

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from datasets.records import Batch
from processor.ranking.evaluation import RATES, Evaluation, Score, results_table
from processor.selection import Split, build_split, write_selection
from utils import distributed
from utils.checkpoint import restore_optimizer, restore_scaler, save
from utils.device import Precision
from utils.errors import CheckpointError, TrainingError
from utils.log import MetricsWriter, progress
from utils.seed import random_state, set_random_state

logger = logging.getLogger(__name__)


@dataclass
class Trainer:
    """All that changes while a model is trained, and what changes it.

    Attributes:
        model: the network, on its device (inside `distributed.wrap` where there are several processes).
        criterion: gives `terms(feature, scores, labels, modalities)` and their `total`.
        optimizers: of the network, and of the criterion's own parameters if it has any.
        schedule: sets the learning rates of an epoch (1, 2, ...).
        scaler: of gradients, for float16.
        precision: in which the network computes.
        device: where.
        epoch: epochs done.
        best: best value seen of each watched metric.
    """

    model: nn.Module
    criterion: nn.Module
    optimizers: Sequence[Optimizer]
    schedule: Any
    scaler: torch.amp.GradScaler
    precision: Precision
    device: torch.device
    epoch: int = 0
    best: dict[str, float] = field(default_factory=dict)

    def step(self, batch: Batch) -> Tensor:
        """One update; returns the detached terms of the objective, then the total and the accuracy, as one vector."""
        with self.precision.autocast():
            output = self.model(batch.images, batch.modalities, batch.sizes, batch.labels)
        terms = self.criterion(output.feature, output.scores, batch.labels, batch.modalities)
        total = self.criterion.total(terms)
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(total).backward()
        for parameter in self.criterion.parameters():
            parameter.grad = distributed.mean(parameter.grad)  # the network's are averaged by its wrapper
        for optimizer in self.optimizers:
            self.scaler.step(optimizer)
        self.scaler.update()
        accuracy = (output.scores.argmax(1) == batch.labels).float().mean()
        return torch.stack([*(terms[name].detach() for name in self.criterion.weights), total.detach(), accuracy])

    @property
    def metric_names(self) -> list[str]:
        """Names of the numbers that `step` returns."""
        return [*self.criterion.weights, "loss", "accuracy"]

    def state_dict(self) -> dict[str, Any]:
        """Everything that resuming needs beside the configuration; random states of all processes, so call it on each."""
        return {
            "model": distributed.unwrap(self.model).state_dict(),
            "criterion": self.criterion.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "scaler": self.scaler.state_dict(),
            "epoch": self.epoch,
            "best": dict(self.best),
            "random": distributed.gather(random_state()),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken.

        Raises:
            CheckpointError: a part is missing or does not fit.
        """
        try:
            distributed.unwrap(self.model).load_state_dict(state["model"])
            self.criterion.load_state_dict(state["criterion"])
            for optimizer, own in zip(self.optimizers, state["optimizers"], strict=True):
                restore_optimizer(optimizer, own)
            restore_scaler(self.scaler, state["scaler"])
            self.epoch, self.best = int(state["epoch"]), dict(state["best"])
            random = state["random"]
        except (LookupError, TypeError, ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:300]
            raise CheckpointError(
                f"SOLVER.RESUME does not fit this run: {reason}; resume with the config of the run that wrote it"
            ) from error
        if len(random) == distributed.world_size():
            set_random_state(random[distributed.rank()])
        else:
            logger.warning("resuming with another number of processes than before: random numbers start anew")


def train_one_epoch(
    trainer: Trainer, loader, *, metrics: MetricsWriter, log_period: int, on_step: Callable[[], object]
) -> dict[str, float]:
    """Train on every batch of `loader` once.

    Args:
        trainer: its `epoch` is raised by one.
        loader: yields `Batch`es; `loader.batch_sampler.set_epoch` chooses the epoch.
        metrics: gets a line every `log_period` steps.
        log_period: in steps.
        on_step: called after each step.

    Returns:
        Mean of each term, of the loss and of the accuracy over the epoch.

    Raises:
        TrainingError: the loss is no longer finite; the message has every term.
    """
    epoch = trainer.epoch + 1
    loader.batch_sampler.set_epoch(epoch)
    trainer.schedule.step(epoch)
    trainer.model.train()
    names, count = trainer.metric_names, len(loader)
    window, steps, sums = torch.zeros(len(names), device=trainer.device), 0, [0.0] * len(names)
    start = time.perf_counter()
    for step, batch in enumerate(loader, start=1):
        window += trainer.step(batch.to(trainer.device))
        steps += 1
        if step % log_period == 0 or step == count:
            values = distributed.mean(window).tolist()  # the one place that waits for the device
            means = dict(zip(names, (value / steps for value in values), strict=True))
            _check_finite(means, epoch, step)
            rate = trainer.optimizers[0].param_groups[0]["lr"]
            metrics.write(kind="step", epoch=epoch, step=step, **means, lr=rate, **_usage(trainer.device))
            sums = [total + value for total, value in zip(sums, values, strict=True)]
            window, steps = torch.zeros_like(window), 0
        on_step()
    trainer.epoch = epoch
    means = {name: total / count for name, total in zip(names, sums, strict=True)}
    seconds = time.perf_counter() - start
    metrics.write(
        kind="epoch", epoch=epoch, **means, seconds=seconds, steps_per_second=count / seconds, **_usage(trainer.device)
    )
    return means


def _check_finite(means: dict[str, float], epoch: int, step: int) -> None:
    if not all(math.isfinite(value) for value in means.values()):
        values = ", ".join(f"{name} {value:g}" for name, value in means.items())
        raise TrainingError(
            f"the loss is not finite in epoch {epoch}, step {step} ({values}); try a lower SOLVER.BASE_LR or SOLVER.AMP off"
        )


def _usage(device: torch.device) -> dict[str, float]:
    return {"memory_mb": torch.cuda.max_memory_allocated(device) / 2**20} if device.type == "cuda" else {}


@dataclass(frozen=True)
class Run:
    """How long a training goes and what it leaves behind.

    Attributes:
        folder: OUTPUT_DIR.
        name: first part of checkpoint names (MODEL.NAME).
        epochs: in all.
        evaluation_period, checkpoint_period: in epochs; the last epoch is always evaluated and kept.
        log_period: in steps.
        config: the configuration as text, kept in last.pth.
        split: what the best weights are chosen on.
    """

    folder: Path
    name: str
    epochs: int
    evaluation_period: int
    checkpoint_period: int
    log_period: int
    config: str
    split: Split


def build_run(cfg, folder: Path) -> Run:
    """The run of SOLVER.* that writes to `folder`."""
    return Run(
        folder=folder,
        name=cfg.MODEL.NAME,
        epochs=cfg.SOLVER.MAX_EPOCHS,
        evaluation_period=cfg.SOLVER.EVAL_PERIOD,
        checkpoint_period=cfg.SOLVER.CHECKPOINT_PERIOD,
        log_period=cfg.SOLVER.LOG_PERIOD,
        config=cfg.dump(),
        split=build_split(cfg),
    )


def fit(trainer: Trainer, loader, run: Run, *, evaluate: Callable[[], Mapping[str, Evaluation]] | None = None) -> None:
    """Train until the last epoch; evaluate and write checkpoints on the way. Call it on every process.

    Args:
        trainer: at the start, or resumed.
        loader: see `train_one_epoch`.
        run: how long, and where to.
        evaluate: scores the protocols with the trainer's weights; the ALL protocol chooses the best ones.
    """
    metrics = MetricsWriter(run.folder / "metrics.jsonl", epoch=trainer.epoch)
    loader.batch_sampler.set_epoch(trainer.epoch + 1)
    steps = len(loader)
    bar = progress(steps * run.epochs, "train", unit="step", initial=steps * trainer.epoch)
    evaluations: Mapping[str, Evaluation] = {}
    while trainer.epoch < run.epochs:
        means = train_one_epoch(trainer, loader, metrics=metrics, log_period=run.log_period, on_step=bar.update)
        bar.total = bar.n + steps * (run.epochs - trainer.epoch)  # the sampler's plans differ by a batch or two
        bar.set_postfix(epoch=trainer.epoch, loss=f"{means['loss']:.3f}", accuracy=f"{means['accuracy']:.2f}", refresh=False)
        is_last = trainer.epoch == run.epochs
        evaluated = evaluate is not None and (is_last or trainer.epoch % run.evaluation_period == 0)
        if evaluated:
            distributed.share_buffers(distributed.unwrap(trainer.model))  # what is evaluated is what rank 0 will write
            evaluations = evaluate()
            _log_evaluation(trainer.epoch, means, evaluations, metrics, run.split.name)
        save_checkpoints(
            trainer,
            run,
            score=evaluations["ALL"].plain if evaluated else None,
            periodic=is_last or trainer.epoch % run.checkpoint_period == 0,
        )
    bar.close()
    figures = f"\nfigures of the {run.split.name} split:\n{results_table(evaluations)}" if evaluations else ""
    logger.info("%d epochs are done; see %s%s", trainer.epoch, run.folder, figures)


def _log_evaluation(
    epoch: int, means: dict[str, float], evaluations: Mapping[str, Evaluation], metrics: MetricsWriter, split: str
) -> None:
    plain = {name: evaluation.plain for name, evaluation in evaluations.items()}

    def told(score: Score, rate: str) -> str:
        return f"{rate} {100 * getattr(score, rate):.1f} ({getattr(score, f'{rate}_interval').percent()})"

    figures = ", ".join(f"{name} {told(score, 'mAP')} {told(score, 'R1')}" for name, score in plain.items())
    logger.info("epoch %d: loss %.3f, accuracy %.2f; %s", epoch, means["loss"], means["accuracy"], figures)
    for name, score in plain.items():
        rates = {rate: getattr(score, rate) for rate in RATES}
        intervals = {f"{rate}_interval": getattr(score, f"{rate}_interval").ends for rate in RATES}
        metrics.write(kind=split, epoch=epoch, protocol=name, **rates, **intervals)


def save_checkpoints(trainer: Trainer, run: Run, *, score: Score | None, periodic: bool) -> None:
    """Write the files of an epoch: best weights, `<NAME>_<epoch>.pth`, and last.pth to resume from. Call it on every process.

    Args:
        trainer: after the epoch.
        run: where to.
        score: of this epoch, if it was evaluated; a new best mAP or R1 writes best_model_mAP.pth or best_model_rank1.pth,
            and beside it a JSON file that says on which split it was chosen (`processor.selection`).
        periodic: whether this epoch's own checkpoint, and last.pth, are due.
    """
    values = {} if score is None else {"mAP": score.mAP, "rank1": score.R1}
    improved = {metric: value for metric, value in values.items() if value > trainer.best.get(metric, -math.inf)}
    trainer.best.update(improved)
    state = trainer.state_dict() if periodic else None
    if distributed.is_main():
        weights = distributed.unwrap(trainer.model).state_dict()
        for metric, value in improved.items():
            path = run.folder / f"best_model_{metric}.pth"
            save(path, weights)
            write_selection(path, epoch=trainer.epoch, metric=metric, score=value, split=run.split)
        if periodic:
            save(run.folder / f"{run.name}_{trainer.epoch}.pth", weights)
            save(run.folder / "last.pth", {**state, "config": run.config, "split": asdict(run.split)})
    distributed.barrier()
