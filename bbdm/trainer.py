"""What is trained, what changes it, and one epoch of it."""

import contextlib
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from bbdm.checkpoints import fill_network
from bbdm.data import layout_of
from bbdm.model import BridgeModel
from datasets.pairs import Pair
from datasets.records import Batch
from utils import distributed
from utils.checkpoint import restore_optimizer, restore_scaler
from utils.ema import ExponentialMovingAverage
from utils.errors import CheckpointError, TrainingError
from utils.seed import seed_everything


@dataclass(frozen=True)
class Recipe:
    """How a bridge is trained, apart from network and data.

    Attributes:
        loss: 'l1' or 'l2'.
        accumulation: batches to an optimiser step.
        clip_gradient: largest gradient norm, 0 for none.
        ema_period: optimiser steps between updates of the average.
        ema_start: batches before which the average copies the weights.
    """

    loss: str = "l1"
    accumulation: int = 2
    clip_gradient: float = 0.0
    ema_period: int = 8
    ema_start: int = 30000


@dataclass
class Trainer:
    """All that changes while a bridge is trained, and what changes it.

    Attributes:
        model: the bridge; its network is the one being trained (inside `distributed.wrap` where there are several processes).
        average: moving average of the network.
        optimizer: of the network.
        schedule: lowers the learning rate where the training loss no longer falls.
        scaler: of gradients, for float16.
        recipe: settings.
        epoch: epochs done.
        batches: batches done.
        best: lowest validation loss so far.
        recent: loss and pair indices of the batches since the last look at the losses.
    """

    model: BridgeModel
    average: ExponentialMovingAverage
    optimizer: torch.optim.Optimizer
    schedule: ReduceLROnPlateau
    scaler: torch.amp.GradScaler
    recipe: Recipe
    epoch: int = 0
    batches: int = 0
    best: float = math.inf
    recent: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def step(self, batch: Batch) -> None:
        """Accumulate one batch's gradients; every `accumulation` batches, update weights and average. Waits for nothing."""
        recipe, network = self.recipe, self.model.network
        self.batches += 1
        updates = self.batches % recipe.accumulation == 0
        waits = isinstance(network, nn.parallel.DistributedDataParallel) and not updates
        with network.no_sync() if waits else contextlib.nullcontext():
            optical, sar = batch.images.chunk(2)
            loss = self.model.random_loss(optical, sar, recipe.loss)
            self.scaler.scale(loss / recipe.accumulation).backward()
        self.recent.append((loss.detach(), batch.indices.chunk(2)[0] // 2))
        if not updates:
            return
        if recipe.clip_gradient:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(network.parameters(), recipe.clip_gradient)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if self.batches % (recipe.ema_period * recipe.accumulation) == 0:
            self.average.update(distributed.unwrap(network), copying=self.batches < recipe.ema_start)

    def look_at_losses(self, pairs: Sequence[Pair]) -> float:
        """Bring the losses since the last look from the device, and step the schedule with that of each optimiser step.

        The schedule's patience is thousands of steps, so hearing of a loss a few steps late changes nothing but the waiting.

        Returns:
            Their mean over batches and processes; NaN if there are none.

        Raises:
            TrainingError: a loss is not finite. The message names the pairs of its batch.
        """
        if not self.recent:
            return math.nan
        own = torch.stack([loss for loss, _ in self.recent])
        losses = distributed.mean(own).tolist()
        for loss, indices in zip(own.tolist(), (indices for _, indices in self.recent)):
            if not math.isfinite(loss):
                names = ", ".join(f"{pairs[i].optical.path.name} with {pairs[i].sar.path.name}" for i in indices.tolist())
                raise TrainingError(
                    f"the loss is {loss} in epoch {self.epoch + 1}, for the pairs {names}; look at these files, lower "
                    "SOLVER.BASE_LR, set BBDM.CLIP_GRADIENT 1, or set SOLVER.AMP off"
                )
        if not all(map(math.isfinite, losses)):
            raise TrainingError(
                f"the loss of another process is not finite in epoch {self.epoch + 1}; its own message says more"
            )
        first = self.batches - len(losses) + 1
        for batch, loss in enumerate(losses, start=first):
            if batch % self.recipe.accumulation == 0:
                self.schedule.step(loss)
        self.recent.clear()
        return sum(losses) / len(losses)

    def state_dict(self) -> dict[str, Any]:
        """Everything that resuming needs beside the configuration; call it on every process.

        Random numbers are seeded anew for each epoch, but gradients may wait at its end for the rest of their step.
        """
        network = distributed.unwrap(self.model.network)
        waiting = {name: parameter.grad for name, parameter in network.named_parameters() if parameter.grad is not None}
        return {
            "model": network.state_dict(),
            "gradients": {name: distributed.mean(gradient) for name, gradient in waiting.items()},
            "ema": self.average.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": self.scaler.state_dict(),
            "epoch": self.epoch,
            "batches": self.batches,
            "best": self.best,
        }

    def load_state_dict(self, state: dict[str, Any], path: str) -> None:
        """Go on where `state_dict` was taken. Raises CheckpointError if a part is missing or does not fit."""
        try:
            fill_network(distributed.unwrap(self.model.network), state["model"], path, "BBDM.*")
            fill_network(self.average.network, state["ema"], path, "BBDM.*")
            for name, gradient in state.get("gradients", {}).items():
                parameter = distributed.unwrap(self.model.network).get_parameter(name)
                parameter.grad = gradient.to(parameter.device)
            restore_optimizer(self.optimizer, state["optimizer"])
            self.schedule.load_state_dict(state["schedule"])
            restore_scaler(self.scaler, state["scaler"])
            self.epoch, self.batches, self.best = int(state["epoch"]), int(state["batches"]), float(state["best"])
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise CheckpointError(
                f"{path} is no training state of a bridge ({error!r}); give a last.pth of this run"
            ) from error


def train_one_epoch(
    trainer: Trainer, loader, pairs: Sequence[Pair], *, seed: int, log_period: int, on_log: Callable[..., None], on_batch
) -> float:
    """Train on every batch of `loader` once; `trainer.epoch` is raised by one.

    Args:
        trainer: what is trained.
        loader: yields batches of pairs; its `batch_sampler.set_epoch` chooses the epoch.
        pairs: what batch indices refer to.
        seed: of the run; time steps and noise follow from it, the epoch and the process.
        log_period: batches between looks at the losses.
        on_log: called with `loss`, `batches` and `seconds` at each look.
        on_batch: called after each batch.

    Returns:
        Mean loss of the epoch.

    Raises:
        TrainingError: the loss is no longer finite.
    """
    seed_everything(int(np.random.SeedSequence([seed, trainer.epoch]).generate_state(1)[0]), distributed.rank())
    loader.batch_sampler.set_epoch(trainer.epoch)
    trainer.model.network.train()
    device = next(trainer.model.network.parameters()).device
    total, done, count, start = 0.0, 0, len(loader), time.perf_counter()
    for number, batch in enumerate(loader, start=1):
        trainer.step(batch.to(device, memory_format=layout_of(device)))
        on_batch()
        if number % log_period == 0 or number == count:
            loss = trainer.look_at_losses(pairs)
            now = time.perf_counter()
            on_log(loss=loss, batches=number - done, seconds=now - start)
            total, done, start = total + loss * (number - done), number, now
    trainer.epoch += 1
    return total / count
