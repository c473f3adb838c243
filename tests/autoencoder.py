"""A kind of training that the project does not have: a denoising autoencoder of chips (Vincent et al. 2008), in one file."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from configs.command import open_training
from configs.parser import config_parser
from datasets.loaders import build_train_loader
from datasets.records import Batch
from datasets.validation import build_training_data
from processor.engine import fit
from processor.task import Task, build_training_plan
from processor.update import Update
from utils import distributed
from utils.device import Precision
from utils.seed import seed_everything


@dataclass
class AutoencoderTask(Task):
    """The network takes noise off the pictures."""

    network: nn.Module
    update: Update
    device: torch.device
    name = "autoencoder"
    precision = Precision("cpu")
    numbers = ("loss",)

    def __post_init__(self):
        self.parts = {"update": self.update}

    def step(self, batch: Batch) -> Tensor:
        """One update; returns its loss."""
        images = batch.to(self.device).images
        loss = functional.mse_loss(self.network(images + 0.1 * torch.randn_like(images)), images)
        self.update(loss)
        return loss.detach()[None]

    def rate(self) -> float:
        """Of all parameters."""
        return self.update.optimizers[0].param_groups[0]["lr"]


def build_task(cfg, device: torch.device) -> AutoencoderTask:
    """A network of two layers and Adam."""
    layers = nn.Sequential(nn.Conv2d(3, 8, 4, stride=4), nn.ReLU(), nn.ConvTranspose2d(8, 3, 4, stride=4))
    network = distributed.wrap(layers.to(device), device)
    optimizer = torch.optim.Adam(network.parameters(), lr=cfg.SOLVER.BASE_LR)
    return AutoencoderTask(network, Update(network, [optimizer], torch.amp.GradScaler(enabled=False)), device)


def main(arguments: Sequence[str]) -> None:
    """Read the call and train."""
    parser = config_parser("autoencoder", "Train an autoencoder.", "autoencoder DATASETS.ROOT_DIR data")
    with open_training(parser, arguments) as command:
        seed_everything(command.cfg.SOLVER.SEED)
        share = {"rank": distributed.rank(), "world_size": distributed.world_size()}
        loader = build_train_loader(command.cfg, build_training_data(command.cfg), **share)
        task = build_task(command.cfg, command.device)
        command.record()
        fit(task, loader, build_training_plan(command.cfg, command.folder, "autoencoder"), resume=command.cfg.SOLVER.RESUME)
