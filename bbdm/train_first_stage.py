"""Train a first stage on one's own pictures: `python -m bbdm.train_first_stage --config_file FILE [KEY VALUE ...]`.

The objective is that of a vector-quantised autoencoder (van den Oord et al. 2017): L1 of the reconstruction, codes that move to
the latents, and latents that keep near their codes. Latent diffusion adds a perceptual and an adversarial term, which sharpen
photographs; for pictures as small as ship chips, plain L1 with a factor of 4 keeps what the bridge needs.
"""

import argparse
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from configs.parser import answer_help, config_parser


def build_parser() -> argparse.ArgumentParser:
    """Build the command line."""
    return config_parser(
        "python -m bbdm.train_first_stage",
        "Train the latent model's first stage on the optical and SAR pictures of the pairs.",
        "python -m bbdm.train_first_stage --config_file configs/bbdm_qxs.yml BBDM.FIRST_STAGE_WIDTH 64 OUTPUT_DIR out",
        offers=("bbdm_*.yml", "demo_bbdm.yml", "demo_land.yml"),
    )


if __name__ == "__main__":
    answer_help(build_parser)

import torch
import torch.nn.functional as F
from torch import Tensor

from bbdm.data import build_bridge_loader, build_bridge_pairs, build_validation_loader, layout_of
from bbdm.first_stage import FirstStage
from bbdm.model import build_empty_first_stage
from configs.command import open_training
from datasets.pairs import PairLists
from datasets.records import Batch
from processor.engine import fit
from processor.task import Task, build_training_plan
from processor.update import Update
from utils import cli, distributed
from utils.device import Precision, build_precision
from utils.global_batch import gather_pairs
from utils.log import MetricsWriter
from utils.seed import seed_everything, shared_generator

logger = logging.getLogger(__name__)

COMMITMENT = 0.25
"""Weight of the latents' distance to their codes."""


@dataclass
class FirstStageTask(Task):
    """The optical and the SAR picture of every pair are reconstructed; codes that an epoch did not use are revived at its end.

    Attributes:
        network: the first stage.
        update: steps the optimiser.
        precision: in which the network computes.
        device: of the network.
        validation: loader of held-out pairs, or None.
    """

    network: FirstStage
    update: Update
    precision: Precision
    device: torch.device
    validation: torch.utils.data.DataLoader | None
    name = "first stage"
    numbers = ("loss",)

    def __post_init__(self):
        self.parts = {"update": self.update, "use": self}
        self.begin(0)

    def begin(self, epoch: int) -> None:
        """No code has been used yet."""
        self.used = torch.zeros(self.network.quantize.embedding.num_embeddings, dtype=torch.bool, device=self.device)
        self.latent = torch.zeros(0, device=self.device)

    def state_dict(self) -> dict[str, Tensor]:
        """The codes that this epoch has used, and the latents of its last batch, for `finish`."""
        return {"used": self.used, "latent": self.latent}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on within an epoch."""
        self.used, self.latent = state["used"].to(self.device), state["latent"].to(self.device)

    def step(self, batch: Batch) -> Tensor:
        """One update; returns its loss."""
        pictures = batch.to(self.device, memory_format=layout_of(self.precision)).images
        loss, codes, self.latent = first_stage_loss(self.network, pictures, self.precision)
        self.update(loss)
        self.used[codes.flatten()] = True
        return loss.detach()[None]

    def rate(self) -> float:
        """Of all parameters."""
        return self.update.optimizers[0].param_groups[0]["lr"]

    def finish(self, epoch: int, *, last: bool) -> dict[str, float]:
        """Revive the codes that nothing used, on any process, by latents of all."""
        used = torch.stack(distributed.gather(self.used.cpu())).any(0).to(self.device)
        revive_codes(self.network, used, gather_pairs(self.latent))
        return {"codes_used": int(used.sum())}

    @torch.no_grad()
    def evaluate(self, epoch: int, metrics: MetricsWriter) -> dict[str, float]:
        """Mean L1 of reconstructions of held-out pictures, in units where black to white is 2; the last weights are kept."""
        if self.validation is not None:
            self.network.eval()
            sums = []
            for batch in self.validation:
                pictures = batch.to(self.device, memory_format=layout_of(self.precision)).images
                loss = F.l1_loss(reconstruct(self.network, pictures, self.precision)[0], pictures)
                sums.append((loss.item() * len(pictures), len(pictures)))
            ordered = distributed.interleave(distributed.gather(sums))
            total = sum(part for part, _ in ordered) / sum(count for _, count in ordered)
            metrics.write(kind="validation", epoch=epoch, validation_l1=total)
        return {}


def reconstruct(stage: FirstStage, pictures: Tensor, precision: Precision) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Encode, quantise and decode (B, 3, H, W); gradients pass the quantisation as if it were not there.

    Returns:
        The pictures again, float32; codes (B, h, w) int64; latents (B, c, h, w) float32, and the codes' vectors likewise.
    """
    with precision.autocast():
        latent = stage.encode(pictures).float()
        quantised, codes = stage.quantise(latent)
        picture = stage.decode_codes(latent + (quantised - latent).detach())
    return picture.float(), codes, latent, quantised.float()


def first_stage_loss(stage: FirstStage, pictures: Tensor, precision: Precision) -> tuple[Tensor, Tensor, Tensor]:
    """L1 of the pictures, plus codes to latents, plus `COMMITMENT` times latents to codes; then codes and detached latents."""
    picture, codes, latent, quantised = reconstruct(stage, pictures, precision)
    codebook = F.mse_loss(quantised, latent.detach())
    commitment = F.mse_loss(latent, quantised.detach())
    return F.l1_loss(picture, pictures) + codebook + COMMITMENT * commitment, codes, latent.detach()


@torch.no_grad()
def revive_codes(stage: FirstStage, used: Tensor, latent: Tensor) -> None:
    """Move codes that nothing used, `used` (N,) bool, onto random pixels of `latent` (B, c, h, w)."""
    pixels = latent.permute(0, 2, 3, 1).flatten(0, 2)
    dead = (~used).nonzero()[:, 0]
    many = distributed.world_size() > 1
    generator = shared_generator(pixels.device) if many else None  # the same codes become the same on every process
    stage.quantize.embedding.weight[dead] = pixels[
        torch.randint(len(pixels), (len(dead),), device=pixels.device, generator=generator)
    ]


def build_first_stage_task(cfg, pairs: PairLists, device: torch.device) -> FirstStageTask:
    """The first stage of BBDM.FIRST_STAGE_* and Adam, at their start."""
    stage, precision = build_empty_first_stage(cfg).to(device), build_precision(cfg, device)
    optimizer = torch.optim.Adam(stage.parameters(), lr=cfg.SOLVER.BASE_LR, betas=(0.5, 0.9), fused=device.type == "cuda")
    sharing = {"rank": distributed.rank(), "world_size": distributed.world_size()}
    held_out = pairs.validation or None
    validation = held_out and build_validation_loader(cfg, held_out, device_type=device.type, **sharing)
    # No wrapper: it is run by its parts, never as a whole, so that processes average its gradients one by one.
    update = Update(stage, [optimizer], precision.scaler(), others=stage.parameters() if distributed.world_size() > 1 else ())
    return FirstStageTask(stage, update, precision, device, validation)


def main(arguments: Sequence[str]) -> None:
    """Parse the command line and train."""
    with open_training(build_parser(), arguments) as command:
        cfg, device = command.cfg, command.device
        seed_everything(cfg.SOLVER.SEED)
        pairs = build_bridge_pairs(cfg)
        sharing = {"rank": distributed.rank(), "world_size": distributed.world_size()}
        task, loader = (
            build_first_stage_task(cfg, pairs, device),
            build_bridge_loader(cfg, pairs.train, device_type=device.type, **sharing),
        )
        command.record()
        fit(task, loader, build_training_plan(cfg, command.folder, "first_stage"), resume=cfg.SOLVER.RESUME)
        logger.info("set BBDM.FIRST_STAGE %s", command.folder / f"first_stage_{cfg.SOLVER.MAX_EPOCHS}.pth")


if __name__ == "__main__":
    cli.run(main, together=True)
