"""Train the bridge: `python -m bbdm.train --config_file configs/bbdm_hoss.yml [KEY VALUE ...]`."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.optim.lr_scheduler import ReduceLROnPlateau

from bbdm.data import build_pairs, build_train_loader, build_validation_loader, layout_of, to_picture
from bbdm.model import BridgeModel, SamplerSettings, build_model
from bbdm.noise import sample_seed, seeded_normal
from bbdm.trainer import Recipe, Trainer, train_one_epoch
from configs import load_cfg
from configs.command import config_parser
from datasets.records import Batch
from utils import checkpoint, cli, distributed
from utils.device import build_device, build_precision
from utils.ema import ExponentialMovingAverage
from utils.errors import UsageError
from utils.files import replacing, write_json, write_text
from utils.log import MetricsWriter, describe_environment, make_output_dir, progress, setup_logging
from utils.seed import seed_everything

logger = logging.getLogger(__name__)

GRID_ROWS = 4
GRID_STEPS = 20


def validate(model: BridgeModel, loader, *, loss: str, seed: int, device: torch.device) -> float:
    """Mean loss over held-out pairs, at time steps and with noise that are the same each time.

    Args:
        model: with the network to judge.
        loader: yields batches of pairs.
        loss: 'l1' or 'l2'.
        seed: of time steps and noise.
        device: of the network.
    """
    generator = torch.Generator().manual_seed(seed)
    total, count = torch.zeros((), device=device), 0
    with torch.no_grad():
        for batch in loader:
            optical, sar = batch.to(device, memory_format=layout_of(device)).images.chunk(2)
            total += model.random_loss(optical, sar, loss, generator=generator) * len(optical)
            count += len(optical)
    shares = distributed.gather((total.item(), count))
    return sum(part for part, _ in shares) / sum(number for _, number in shares)


def write_grid(path: Path, model: BridgeModel, batch: Batch, *, seed: int) -> None:
    """Write rows of optical | SAR | generated for the first pairs of a batch, as one PNG."""
    optical, sar = (pictures[:GRID_ROWS] for pictures in batch.images.chunk(2))
    seeds = torch.tensor([sample_seed(seed, "grid", row) for row in range(len(optical))], device=optical.device)
    shape = model.state_shape(optical)[1:]
    steps = min(GRID_STEPS, len(model.bridge.schedule))
    settings = SamplerSettings(name="few_step", steps=steps)
    generated = model.sample(optical, settings, lambda step: seeded_normal(seeds, step, shape))
    rows = to_picture(torch.cat([optical, sar, generated], dim=3))
    with replacing(path) as temporary:
        Image.fromarray(np.concatenate(list(rows))).save(temporary)


def build_recipe(cfg) -> Recipe:
    """BBDM.LOSS, ACCUMULATION, CLIP_GRADIENT and EMA_*."""
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


@dataclass(frozen=True)
class Output:
    """What a run leaves behind, and when.

    Attributes:
        folder: OUTPUT_DIR.
        epochs: in all; after the last one everything is due.
        validation_period, checkpoint_period, grid_period: in epochs; 0: never, but for the last.
        seed: of validation and grids.
    """

    folder: Path
    epochs: int
    validation_period: int
    checkpoint_period: int
    grid_period: int
    seed: int


def finish_epoch(
    trainer: Trainer, output: Output, *, validation, shown: Batch, metrics: MetricsWriter, device: torch.device
) -> None:
    """Validate, draw a grid and write checkpoints, each where it is due; call it on every process.

    Args:
        trainer: after the epoch.
        output: what is due when.
        validation: loader of held-out pairs, or None.
        shown: the pairs of the grid.
        metrics: gets the validation loss.
        device: of the network.
    """
    last, main = trainer.epoch == output.epochs, distributed.is_main()

    def due(period: int) -> bool:
        return period > 0 and (last or trainer.epoch % period == 0)

    averaged = trainer.model.with_network(trainer.average.network)
    weights = trainer.average.network.state_dict()
    if validation is not None and due(output.validation_period):
        loss = validate(averaged, validation, loss=trainer.recipe.loss, seed=output.seed, device=device)
        metrics.write(epoch=trainer.epoch, batches=trainer.batches, validation_loss=loss)
        logger.info("epoch %d: validation loss %.4f", trainer.epoch, loss)
        if loss < trainer.best:
            trainer.best = loss
            if main:
                checkpoint.save(output.folder / "bridge_best.pth", weights)
    if main and due(output.grid_period):
        write_grid(
            output.folder / "grids" / f"epoch_{trainer.epoch:04d}.png",
            averaged,
            shown.to(device, memory_format=layout_of(device)),
            seed=output.seed,
        )
    if due(output.checkpoint_period):
        state = trainer.state_dict()
        if main:
            checkpoint.save(output.folder / f"bridge_{trainer.epoch}.pth", weights)
            checkpoint.save(output.folder / "last.pth", state)


def build_output(cfg) -> Output:
    """OUTPUT_DIR with what the run is from, and the periods of SOLVER.* and BBDM.GRID_PERIOD."""
    folder = make_output_dir(cfg.OUTPUT_DIR)
    return Output(
        folder=folder,
        epochs=cfg.SOLVER.MAX_EPOCHS,
        validation_period=cfg.SOLVER.EVAL_PERIOD,
        checkpoint_period=cfg.SOLVER.CHECKPOINT_PERIOD,
        grid_period=cfg.BBDM.GRID_PERIOD,
        seed=cfg.SOLVER.SEED,
    )


def build_and_train(cfg, device: torch.device) -> None:
    """Train as `cfg` says; checkpoints, metrics and grids go to OUTPUT_DIR."""
    output, batch_size = build_output(cfg), cfg.SOLVER.IMS_PER_BATCH
    sharing = {"device_type": device.type, "rank": distributed.rank(), "world_size": distributed.world_size()}
    if batch_size % sharing["world_size"]:
        raise UsageError(f"SOLVER.IMS_PER_BATCH {batch_size} cannot be shared by {sharing['world_size']} processes")
    setup_logging(output.folder, "train_log.txt")
    if distributed.is_main():
        write_text(output.folder / "config.yml", cfg.dump())
        write_json(output.folder / "environment.json", describe_environment(seed=cfg.SOLVER.SEED, device=device))
    pairs = build_pairs(cfg)
    seed_everything(cfg.SOLVER.SEED)  # the same start weights in every process
    trainer = build_trainer(cfg, device)
    loader = build_train_loader(cfg, pairs.train, **sharing)
    validation = build_validation_loader(cfg, pairs.validation, **sharing) if pairs.validation else None
    shown = next(iter(build_validation_loader(cfg, (pairs.validation or pairs.train)[:GRID_ROWS], device_type="cpu")))
    metrics = MetricsWriter(output.folder / "metrics.jsonl", epoch=trainer.epoch)
    logger.info("%d training pairs, %d held out; %s", len(pairs.train), len(pairs.validation), device)
    with progress(output.epochs * len(loader), "bridge", unit="batch", initial=trainer.batches) as bar:

        def on_log(*, loss: float, batches: int, seconds: float) -> None:
            values = {"loss": loss, "lr": trainer.optimizer.param_groups[0]["lr"]}
            memory = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
            speed = batches * batch_size / seconds
            metrics.write(epoch=trainer.epoch + 1, batches=trainer.batches, **values, pairs_per_second=speed, memory=memory)
            bar.set_postfix(loss=f"{loss:.4f}", refresh=False)

        while trainer.epoch < output.epochs:
            period = {"seed": output.seed, "log_period": cfg.SOLVER.LOG_PERIOD}
            train_one_epoch(trainer, loader, pairs.train, **period, on_log=on_log, on_batch=bar.update)
            finish_epoch(trainer, output, validation=validation, shown=shown, metrics=metrics, device=device)
    distributed.barrier()


def main(arguments: Sequence[str]) -> None:
    """Parse the command line and train."""
    parser = config_parser(
        "python -m bbdm.train",
        "Train the bridge that turns optical chips into pseudo-SAR ones.",
        "python -m bbdm.train --config_file configs/bbdm_hoss.yml BBDM.PRETRAINED logs/bbdm_qxs/bridge_100.pth",
    )
    options = parser.parse_intermixed_args(arguments)
    setup_logging()
    cfg = load_cfg(options.config_file, options.overrides)
    device = build_device(cfg)
    with distributed.process_group(device):
        build_and_train(cfg, device)


if __name__ == "__main__":
    cli.run(main, together=True)
