"""Train the bridge: `python -m bbdm.train --config_file configs/bbdm_hoss.yml [KEY VALUE ...]`."""

import contextlib
import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from bbdm.checkpoints import fit
from bbdm.data import Pair, PairBatch, build_pairs, build_train_loader, build_validation_loader, to_picture
from bbdm.model import BridgeModel, SamplerSettings, build_model
from bbdm.noise import sample_seed, seeded_normal
from configs import load_cfg
from utils import checkpoint, cli, distributed
from utils.device import build_device, build_precision
from utils.ema import ExponentialMovingAverage
from utils.errors import CheckpointError, TrainingError, UsageError
from utils.files import replacing, write_json, write_text
from utils.log import MetricsWriter, describe_environment, make_output_dir, progress, setup_logging
from utils.seed import seed_everything

logger = logging.getLogger(__name__)

GRID_ROWS = 4
GRID_SAMPLER = SamplerSettings(name="few_step", steps=20)


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

    def step(self, batch: PairBatch) -> None:
        """Accumulate one batch's gradients; every `accumulation` batches, update weights and average. Waits for nothing."""
        recipe, network = self.recipe, self.model.network
        self.batches += 1
        updates = self.batches % recipe.accumulation == 0
        waits = isinstance(network, nn.parallel.DistributedDataParallel) and not updates
        with network.no_sync() if waits else contextlib.nullcontext():
            loss = self.model.random_loss(batch.optical, batch.sar, recipe.loss)
            self.scaler.scale(loss / recipe.accumulation).backward()
        self.recent.append((loss.detach(), batch.indices))
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
                names = ", ".join(f"{pairs[i].optical.name} with {pairs[i].sar.name}" for i in indices.tolist())
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
        """Everything that resuming needs beside the configuration. Random numbers are seeded anew for each epoch."""
        return {
            "model": distributed.unwrap(self.model.network).state_dict(),
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
            fit(distributed.unwrap(self.model.network), state["model"], path, "BBDM.*")
            fit(self.average.network, state["ema"], path, "BBDM.*")
            self.optimizer.load_state_dict(state["optimizer"])
            self.schedule.load_state_dict(state["schedule"])
            self.scaler.load_state_dict(state["scaler"])
            self.epoch, self.batches, self.best = int(state["epoch"]), int(state["batches"]), float(state["best"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(
                f"{path} is no training state of a bridge ({error!r}); give a last.pth of this run"
            ) from error


def train_one_epoch(
    trainer: Trainer, loader, pairs: Sequence[Pair], *, seed: int, log_period: int, on_log: Callable[..., None], on_batch
) -> float:
    """Train on every batch of `loader` once; `trainer.epoch` is raised by one.

    Args:
        trainer: what is trained.
        loader: yields `PairBatch`es; its `batch_sampler.set_epoch` chooses the epoch.
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
        trainer.step(batch.to(device))
        on_batch()
        if number % log_period == 0 or number == count:
            loss = trainer.look_at_losses(pairs)
            now = time.perf_counter()
            on_log(loss=loss, batches=number - done, seconds=now - start)
            total, done, start = total + loss * (number - done), number, now
    trainer.epoch += 1
    return total / count


def validate(model: BridgeModel, loader, *, loss: str, seed: int, device: torch.device) -> float:
    """Mean loss over held-out pairs, at time steps and with noise that are the same each time.

    Args:
        model: with the network to judge.
        loader: yields `PairBatch`es.
        loss: 'l1' or 'l2'.
        seed: of time steps and noise.
        device: of the network.
    """
    generator = torch.Generator().manual_seed(seed)
    total, count = torch.zeros((), device=device), 0
    with torch.no_grad():
        for batch in loader:
            batch = batch.to(device)
            total += model.random_loss(batch.optical, batch.sar, loss, generator=generator) * len(batch.indices)
            count += len(batch.indices)
    shares = distributed.gather((total.item(), count))
    return sum(part for part, _ in shares) / sum(number for _, number in shares)


def write_grid(path: Path, model: BridgeModel, batch: PairBatch, *, seed: int) -> None:
    """Write rows of optical | SAR | generated for the first pairs of a batch, as one PNG."""
    optical, sar = batch.optical[:GRID_ROWS], batch.sar[:GRID_ROWS]
    seeds = torch.tensor([sample_seed(seed, "grid", row) for row in range(len(optical))], device=optical.device)
    shape = model.state_shape(optical)[1:]
    generated = model.sample(optical, GRID_SAMPLER, lambda step: seeded_normal(seeds, step, shape))
    rows = to_picture(torch.cat([optical, sar, generated], dim=3))
    with replacing(path) as temporary:
        Image.fromarray(np.concatenate(list(rows))).save(temporary)


def build_recipe(cfg) -> Recipe:
    """BBDM.LOSS, ACCUMULATION, CLIP_GRADIENT and EMA_*."""
    for key, low in (("ACCUMULATION", 1), ("CLIP_GRADIENT", 0), ("EMA_PERIOD", 1), ("EMA_START", 0), ("GRID_PERIOD", 0)):
        if cfg.BBDM[key] < low:
            raise UsageError(f"BBDM.{key} is {cfg.BBDM[key]}; it is at least {low}")
    return Recipe(
        loss=cfg.BBDM.LOSS,
        accumulation=cfg.BBDM.ACCUMULATION,
        clip_gradient=cfg.BBDM.CLIP_GRADIENT,
        ema_period=cfg.BBDM.EMA_PERIOD,
        ema_start=cfg.BBDM.EMA_START,
    )


def build_trainer(cfg, device: torch.device) -> Trainer:
    """Model, average, Adam and plateau schedule; from BBDM.PRETRAINED, or SOLVER.RESUME where the run goes on."""
    recipe = build_recipe(cfg)
    precision = build_precision(cfg, device)
    model = build_model(cfg, device, precision, weights="" if cfg.SOLVER.RESUME else cfg.BBDM.PRETRAINED)
    average = ExponentialMovingAverage(model.network, decay=cfg.BBDM.EMA_DECAY)
    optimizer = torch.optim.Adam(model.network.parameters(), lr=cfg.SOLVER.BASE_LR, fused=device.type == "cuda")
    schedule = ReduceLROnPlateau(
        optimizer,
        factor=cfg.BBDM.PLATEAU_FACTOR,
        patience=cfg.BBDM.PLATEAU_PATIENCE,
        cooldown=cfg.BBDM.PLATEAU_COOLDOWN,
        threshold=cfg.BBDM.PLATEAU_THRESHOLD,
        min_lr=cfg.BBDM.PLATEAU_MIN_LR,
    )
    trainer = Trainer(model, average, optimizer, schedule, precision.scaler(), recipe)
    if cfg.SOLVER.RESUME:
        trainer.load_state_dict(checkpoint.load(cfg.SOLVER.RESUME), cfg.SOLVER.RESUME)
    trainer.model = model.with_network(distributed.wrap(model.network, device))
    return trainer


def build_and_train(cfg, device: torch.device) -> None:
    """Train as `cfg` says; checkpoints, metrics and grids go to OUTPUT_DIR."""
    output, main = make_output_dir(cfg.OUTPUT_DIR), distributed.is_main()
    setup_logging(output, "train_log.txt")
    if main:
        write_text(output / "config.yml", cfg.dump())
        write_json(output / "environment.json", describe_environment(seed=cfg.SOLVER.SEED, device=device))
    seed_everything(cfg.SOLVER.SEED, 0)  # the same start weights in every process
    pairs = build_pairs(cfg)
    trainer = build_trainer(cfg, device)
    sharing = {"device_type": device.type, "rank": distributed.rank(), "world_size": distributed.world_size()}
    if cfg.SOLVER.IMS_PER_BATCH % sharing["world_size"]:
        raise UsageError(
            f"SOLVER.IMS_PER_BATCH {cfg.SOLVER.IMS_PER_BATCH} cannot be shared by {sharing['world_size']} processes"
        )
    loader = build_train_loader(cfg, pairs.train, **sharing)
    validation = build_validation_loader(cfg, pairs.validation, **sharing) if pairs.validation else None
    shown = next(iter(build_validation_loader(cfg, (pairs.validation or pairs.train)[:GRID_ROWS], device_type="cpu")))
    averaged = trainer.model.with_network(trainer.average.network)
    metrics = MetricsWriter(output / "metrics.jsonl", epoch=trainer.epoch)
    logger.info("%d training pairs, %d held out; %s", len(pairs.train), len(pairs.validation), device)
    with progress(cfg.SOLVER.MAX_EPOCHS * len(loader), "bridge", unit="batch", initial=trainer.batches) as bar:

        def on_log(*, loss: float, batches: int, seconds: float) -> None:
            values = {"loss": loss, "lr": trainer.optimizer.param_groups[0]["lr"]}
            speed = batches * cfg.SOLVER.IMS_PER_BATCH / seconds
            memory = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
            metrics.write(epoch=trainer.epoch + 1, batches=trainer.batches, **values, pairs_per_second=speed, memory=memory)
            bar.set_postfix(loss=f"{loss:.4f}", refresh=False)

        while trainer.epoch < cfg.SOLVER.MAX_EPOCHS:
            train_one_epoch(
                trainer,
                loader,
                pairs.train,
                seed=cfg.SOLVER.SEED,
                log_period=cfg.SOLVER.LOG_PERIOD,
                on_log=on_log,
                on_batch=bar.update,
            )
            last = trainer.epoch == cfg.SOLVER.MAX_EPOCHS
            if validation is not None and (last or trainer.epoch % cfg.SOLVER.EVAL_PERIOD == 0):
                loss = validate(averaged, validation, loss=trainer.recipe.loss, seed=cfg.SOLVER.SEED, device=device)
                metrics.write(epoch=trainer.epoch, batches=trainer.batches, validation_loss=loss)
                logger.info("epoch %d: validation loss %.4f", trainer.epoch, loss)
                if loss < trainer.best:
                    trainer.best = loss
                    if main:
                        checkpoint.save(output / "bridge_best.pth", trainer.average.network.state_dict())
            grids = cfg.BBDM.GRID_PERIOD
            if main and grids and (last or trainer.epoch % grids == 0):
                write_grid(
                    output / "grids" / f"epoch_{trainer.epoch:04d}.png", averaged, shown.to(device), seed=cfg.SOLVER.SEED
                )
            if main and (last or trainer.epoch % cfg.SOLVER.CHECKPOINT_PERIOD == 0):
                checkpoint.save(output / f"bridge_{trainer.epoch}.pth", trainer.average.network.state_dict())
                checkpoint.save(output / "last.pth", trainer.state_dict())
    distributed.barrier()


def main(arguments: Sequence[str]) -> None:
    """Parse the command line and train."""
    parser = cli.config_parser(
        "python -m bbdm.train",
        "Train the bridge that turns optical chips into pseudo-SAR ones.",
        "python -m bbdm.train --config_file configs/bbdm_hoss.yml BBDM.PRETRAINED logs/bbdm_qxs/bridge_100.pth",
    )
    options = parser.parse_args(arguments)
    setup_logging()
    cfg = load_cfg(options.config_file, options.overrides)
    device = build_device(cfg)
    with distributed.process_group(device):
        build_and_train(cfg, device)


if __name__ == "__main__":
    cli.run(main)
