"""Train the bridge: `python -m bbdm.train --config_file configs/bbdm_hoss.yml [KEY VALUE ...]`."""

import argparse
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from configs.parser import answer_help, config_parser


def build_parser() -> argparse.ArgumentParser:
    """Build the command line."""
    return config_parser(
        "python -m bbdm.train",
        "Train the bridge that turns optical chips into pseudo-SAR ones.",
        "python -m bbdm.train --config_file configs/bbdm_hoss.yml BBDM.PRETRAINED logs/bbdm_qxs/last.pth",
        offers=("bbdm_*.yml", "demo_bbdm.yml", "demo_land.yml"),
    )


if __name__ == "__main__":
    answer_help(build_parser)

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.optim.swa_utils import AveragedModel

from bbdm.averaging import build_average, update_average
from bbdm.checkpoints import BridgeFile, fill_network, read_bridge
from bbdm.data import build_bridge_loader, build_bridge_pairs, build_validation_loader, layout_of, to_picture
from bbdm.feature_term import build_feature_term
from bbdm.latents import OPTICAL, SAR, LatentLoader, measure_statistics
from bbdm.model import NETWORK_KEYS, BridgeModel, SamplerSettings, build_bridge_model
from bbdm.noise import sample_seed, seeded_normal
from configs.command import open_training
from datasets.pairs import PairLists
from datasets.records import Batch
from processor.engine import fit
from processor.task import Task, build_training_plan
from processor.update import Update
from utils import cli, distributed
from utils.device import build_compilation, build_precision
from utils.files import replacing
from utils.global_batch import share_batch
from utils.log import MetricsWriter, progress
from utils.seed import seed_everything
from utils.sharding import build_sharding, put_together, whole

logger = logging.getLogger(__name__)

GRID_ROWS = 4
GRID_STEPS = 20
GRID_HEIGHT, GRID_LABEL = 192, 16
"""Pixels of a picture that is smaller itself, and of the line of labels."""


@dataclass
class BridgeTask(Task):
    """The network learns the bridge's target at random times; what is judged and kept is its moving average.

    Attributes:
        model: the bridge; its network is the one that learns (inside `distributed.wrap` where there are several processes).
        learner: the same, as it learns from batches: of pictures, or of latents that are made already.
        average: moving average of the network.
        update: steps the optimiser.
        schedule: lowers the learning rate where the training loss no longer falls.
        device: of the network.
        loss: 'l1' or 'l2'.
        average_period: optimiser steps between updates of the average.
        average_start: batches before which the average copies the weights.
        validation: loader of held-out pairs, or None.
        shown: the pairs of the grid.
        grids: folder of the grids.
        grid_period: epochs between grids; 0: none.
        seed: of validation and grids.
        whole: pairs of each batch of `validation` but the last.
        grey: whether grids show grey samples, as BBDM.GREY has them made.
    """

    model: BridgeModel
    learner: BridgeModel
    average: AveragedModel
    update: Update
    schedule: ReduceLROnPlateau
    device: torch.device
    loss: str
    average_period: int
    average_start: int
    validation: torch.utils.data.DataLoader | None
    shown: Batch
    grids: Path
    grid_period: int
    seed: int
    whole: int = 0
    grey: bool = False
    name = "bridge"
    numbers = ("loss",)

    def __post_init__(self):
        self.network, self.precision = self.model.network, self.model.precision
        self.parts = {"ema": self.average.module, "update": self.update, "schedule": self.schedule}

    def step(self, batch: Batch) -> Tensor:
        """Accumulate a batch's gradients; where they complete a step of the optimiser, follow it with the average."""
        batch = batch.to(self.device, memory_format=layout_of(self.model.precision))
        optical, sar = batch.images.chunk(2)
        with self.update.passes():
            loss = self.learner.random_loss(optical, sar, self.loss, sizes=batch.sizes)
            stepped = self.update(loss)
        if stepped and self.update.steps % self.average_period == 0:
            begun = self.update.steps * self.update.accumulation >= self.average_start
            update_average(self.average, distributed.unwrap(self.network), copying=not begun)
        return loss.detach()[None]

    def observe(self, losses: Sequence[float]) -> None:
        """Step the schedule with the loss of each batch that completed a step of the optimiser.

        Its patience is thousands of steps, so hearing of a loss a few steps late changes nothing but the waiting.
        """
        batches = self.update.steps * self.update.accumulation + self.update.waiting
        for batch, loss in enumerate(losses, start=batches - len(losses) + 1):
            if batch % self.update.accumulation == 0:
                self.schedule.step(loss)

    def rate(self) -> float:
        """Of all parameters."""
        return self.update.optimizers[0].param_groups[0]["lr"]

    def finish(self, epoch: int, *, last: bool) -> dict[str, float]:
        """Draw a grid if it is due."""
        due = self.grid_period and (last or epoch % self.grid_period == 0)
        if due:
            with put_together(self.average.module):  # every process gives its part
                if distributed.is_main():
                    shown = self.shown.to(self.device, memory_format=layout_of(self.model.precision))
                    write_grid(self.grids / f"epoch_{epoch:04d}.png", self._averaged(), shown, seed=self.seed, grey=self.grey)
        return {}

    def evaluate(self, epoch: int, metrics: MetricsWriter) -> dict[str, float]:
        """Mean loss of the held-out pairs, if there are any; the lowest one chooses bridge_best.pth."""
        if self.validation is None:
            return {}
        told = {"loss": self.loss, "seed": self.seed, "device": self.device, "whole": self.whole}
        with put_together(self.average.module):
            loss = validate(self._averaged(), self.validation, **told)
        metrics.write(kind="validation", epoch=epoch, validation_loss=loss)
        logger.info("epoch %d: validation loss %.4f", epoch, loss)
        return {"bridge_best": -loss}

    def weights(self) -> dict[str, Tensor]:
        """The averaged ones."""
        return whole(self.average.module.state_dict())

    def _averaged(self) -> BridgeModel:
        return self.model.with_network(self.average.module)


@torch.no_grad()
def validate(model: BridgeModel, loader, *, loss: str, seed: int, device: torch.device, whole: int = 0) -> float:
    """Mean loss over held-out pairs, at time steps and with noise that are the same each time.

    Args:
        model: with the network to judge.
        loader: yields batches of pairs.
        loss: 'l1' or 'l2'.
        seed: of time steps and noise.
        device: of the network.
        whole: pairs of a batch that is not the last; only several processes need it.
    """
    generator, sums = torch.Generator().manual_seed(seed), []
    for batch in loader:
        optical, sar = batch.to(device, memory_format=layout_of(model.precision)).images.chunk(2)
        # Draws go on from batch to batch, and other processes have those in between.
        others = distributed.rank() if not sums else distributed.world_size() - 1
        for _ in range(others):
            model.draw((whole, *model.state_shape(optical)[1:]), generator)
        sums.append((model.random_loss(optical, sar, loss, generator=generator) * len(optical), len(optical)))
    ordered = distributed.interleave(distributed.gather([(part.cpu(), count) for part, count in sums]))
    return sum(part for part, _ in ordered).item() / sum(count for _, count in ordered)


def write_grid(path: Path, model: BridgeModel, batch: Batch, *, seed: int, grey: bool = False) -> None:
    """Write labelled columns of optical, SAR and generated for the first pairs of a batch, as one PNG.

    Args:
        path: of the PNG.
        model: with the network to show.
        batch: pairs.
        seed: of the generated pictures.
        grey: whether they are made grey (BBDM.GREY), as samples are then.
    """
    optical, sar = (pictures[:GRID_ROWS] for pictures in batch.images.chunk(2))
    seeds = torch.tensor([sample_seed(seed, "grid", row) for row in range(len(optical))], device=optical.device)
    shape = model.state_shape(optical)[1:]
    settings = SamplerSettings(name="few_step", steps=min(GRID_STEPS, len(model.bridge.schedule)), grey=grey)
    generated = model.sample(optical, settings, lambda step: seeded_normal(seeds, step, shape))
    rows = to_picture(torch.cat([optical, sar, generated], dim=3))
    height, width = rows.shape[1:3]
    scale = max(1, GRID_HEIGHT // height)
    pictures = Image.fromarray(np.concatenate(list(rows)))
    pictures = pictures.resize((scale * pictures.width, scale * pictures.height), Image.Resampling.NEAREST)
    grid = Image.new("RGB", (pictures.width, pictures.height + GRID_LABEL), "white")
    grid.paste(pictures, (0, GRID_LABEL))
    for column, label in enumerate(("optical", "SAR", "generated")):
        ImageDraw.Draw(grid).text((scale * width * (2 * column + 1) // 6, 2), label, "black", anchor="ma")
    with replacing(path) as temporary:
        grid.save(temporary)


def build_plateau(cfg, optimizer: torch.optim.Optimizer) -> ReduceLROnPlateau:
    """The schedule of BBDM.PLATEAU_*."""
    return ReduceLROnPlateau(
        optimizer,
        factor=cfg.BBDM.PLATEAU_FACTOR,
        patience=cfg.BBDM.PLATEAU_PATIENCE,
        cooldown=cfg.BBDM.PLATEAU_COOLDOWN,
        threshold=cfg.BBDM.PLATEAU_THRESHOLD,
        min_lr=cfg.BBDM.PLATEAU_MIN_LR,
    )


def build_update(cfg, network: nn.Module, scaler: torch.amp.GradScaler, device: torch.device) -> Update:
    """Adam of SOLVER.BASE_LR, stepped as BBDM.ACCUMULATION and CLIP_GRADIENT say."""
    optimizer = torch.optim.Adam(network.parameters(), lr=cfg.SOLVER.BASE_LR, fused=device.type == "cuda")
    steps = {"accumulation": cfg.BBDM.ACCUMULATION, "largest_norm": cfg.BBDM.CLIP_GRADIENT}
    return Update(network, [optimizer], scaler, **steps)


def build_keeping(cfg) -> bool:
    """Whether the latents of training pictures are kept: BBDM.KEEP_LATENTS, where every epoch has the same."""
    moving = cfg.BBDM.CROP and cfg.BBDM.PAIRS == "registered"
    return cfg.BBDM.KEEP_LATENTS and cfg.BBDM.SPACE == "latent" and cfg.BBDM.CONDITION != "rescaler" and not moving


def measure_latents(model: BridgeModel, loader, device: torch.device) -> None:
    """Measure the statistics of the latents of a loader's pairs, not normalised yet, into the model's network."""

    def latents():
        with progress(len(loader), "statistics of latents", unit="batch") as bar:
            for batch in loader:
                optical, sar = batch.to(device, memory_format=layout_of(model.precision)).images.chunk(2)
                yield model.encode(sar, SAR), model.encode(optical, OPTICAL)
                bar.update()

    measure_statistics(model.network, latents())
    logger.info("latents are normalised by their mean and deviation over the training pairs")


def build_first_step(cfg, start: BridgeFile) -> int:
    """The optimiser steps that fine-tuning counts on from: those that made `start`, or as many as end the copying."""
    own = start.batches is not None
    batches = start.batches if own else cfg.BBDM.EMA_START
    what = f"raw and averaged weights after {batches} batches" if own else "one set of weights, or no count of batches"
    when = "at once" if batches >= cfg.BBDM.EMA_START else f"from batch {cfg.BBDM.EMA_START} on"
    logger.info("BBDM.PRETRAINED %s holds %s: training goes on from it, and averages %s", start.path, what, when)
    return -(-batches // cfg.BBDM.ACCUMULATION)


def build_bridge_task(cfg, pairs: PairLists, folder: Path, device: torch.device) -> BridgeTask:
    """Model, average, Adam and plateau schedule at their start, which BBDM.PRETRAINED may give."""
    sharing = {"rank": distributed.rank(), "world_size": distributed.world_size()}
    precision = build_precision(cfg, device)
    start = read_bridge(cfg.BBDM.PRETRAINED) if cfg.BBDM.PRETRAINED and not cfg.SOLVER.RESUME else None
    model = build_bridge_model(cfg, device, precision, weights=start, averaged=False)
    if cfg.BBDM.NORMALISE_LATENTS and not (start or cfg.SOLVER.RESUME):
        measure_latents(model, build_validation_loader(cfg, pairs.train, device_type=device.type, **sharing), device)
    average = build_average(model.network, cfg.BBDM.EMA_DECAY)
    share_batch(model.network)
    if start is not None:
        fill_network(average.module, start.averages, start.path, NETWORK_KEYS)
    if build_sharding(cfg, model.network, model.network.units(), device.type):
        build_sharding(cfg, average.module, average.module.units(), device.type)
    else:
        model = model.with_network(distributed.wrap(model.network, device))
    build_compilation(cfg, model.network, learns=True)
    update = build_update(cfg, model.network, precision.scaler(), device)
    if start is not None:
        update.steps = build_first_step(cfg, start)
    shown = build_validation_loader(cfg, (pairs.validation or pairs.train)[:GRID_ROWS], device_type="cpu")
    held_out = pairs.validation or None
    return BridgeTask(
        model=model,
        learner=model.between_latents() if build_keeping(cfg) else model.with_term(build_feature_term(cfg, device)),
        average=average,
        update=update,
        schedule=build_plateau(cfg, update.optimizers[0]),
        device=device,
        loss=cfg.BBDM.LOSS,
        average_period=cfg.BBDM.EMA_PERIOD,
        average_start=cfg.BBDM.EMA_START,
        validation=held_out and build_validation_loader(cfg, held_out, device_type=device.type, **sharing),
        whole=cfg.SOLVER.IMS_PER_BATCH,
        shown=next(iter(shown)),
        grids=folder / "grids",
        grid_period=cfg.BBDM.GRID_PERIOD,
        grey=cfg.BBDM.GREY,
        seed=cfg.SOLVER.SEED,
    )


def main(arguments: Sequence[str]) -> None:
    """Parse the command line and train."""
    with open_training(build_parser(), arguments) as command:
        cfg, device = command.cfg, command.device
        pairs = build_bridge_pairs(cfg)
        logger.info("%d training pairs, %d held out; %s", len(pairs.train), len(pairs.validation), device)
        sharing = {"rank": distributed.rank(), "world_size": distributed.world_size()}
        loader = build_bridge_loader(cfg, pairs.train, device_type=device.type, **sharing)
        seed_everything(cfg.SOLVER.SEED)  # the same start weights in every process
        task = build_bridge_task(cfg, pairs, command.folder, device)
        if build_keeping(cfg):
            once = build_validation_loader(cfg, pairs.train, device_type=device.type)
            loader = LatentLoader(loader, once, task.model.encode, flip=cfg.BBDM.FLIP, device=device)
        command.record()
        fit(task, loader, build_training_plan(cfg, command.folder, "bridge"), resume=cfg.SOLVER.RESUME)


if __name__ == "__main__":
    cli.run(main, together=True)
