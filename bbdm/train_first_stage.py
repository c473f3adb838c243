"""Train a first stage on one's own pictures: `python -m bbdm.train_first_stage --config_file FILE [KEY VALUE ...]`.

The objective is that of a vector-quantised autoencoder (van den Oord et al. 2017): L1 of the reconstruction, codes that move to
the latents, and latents that keep near their codes. Latent diffusion adds a perceptual and an adversarial term, which sharpen
photographs; for pictures as small as ship chips, plain L1 with a factor of 4 keeps what the bridge needs.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from bbdm.data import build_pairs, build_train_loader, build_validation_loader, layout_of
from bbdm.first_stage import FirstStage
from bbdm.model import build_empty_first_stage
from configs import load_cfg
from configs.command import config_parser
from utils import checkpoint, cli
from utils.device import Precision, build_device, build_precision
from utils.errors import TrainingError
from utils.files import write_json, write_text
from utils.log import MetricsWriter, describe_environment, make_output_dir, progress, setup_logging
from utils.seed import seed_everything

logger = logging.getLogger(__name__)

COMMITMENT = 0.25
"""Weight of the latents' distance to their codes."""


@dataclass(frozen=True)
class Reconstruction:
    """What one pass gives.

    Attributes:
        picture: (B, 3, H, W) float32.
        codes: (B, h, w) int64, number of each latent pixel's code.
        latent: (B, c, h, w) float32, not quantised.
        quantised: likewise, the codes' vectors.
    """

    picture: Tensor
    codes: Tensor
    latent: Tensor
    quantised: Tensor


def reconstruct(stage: FirstStage, pictures: Tensor, precision: Precision) -> Reconstruction:
    """Encode, quantise and decode (B, 3, H, W); gradients pass the quantisation as if it were not there."""
    with precision.autocast():
        latent = stage.encode(pictures).float()
        quantised, codes = stage.quantise(latent)
        picture = stage.decode_codes(latent + (quantised - latent).detach())
    return Reconstruction(picture.float(), codes, latent, quantised.float())


def first_stage_loss(result: Reconstruction, pictures: Tensor) -> Tensor:
    """L1 of the picture, plus codes to latents, plus `COMMITMENT` times latents to codes: a float32 number."""
    codebook = F.mse_loss(result.quantised, result.latent.detach())
    commitment = F.mse_loss(result.latent, result.quantised.detach())
    return F.l1_loss(result.picture, pictures) + codebook + COMMITMENT * commitment


@torch.no_grad()
def revive_codes(stage: FirstStage, used: Tensor, latent: Tensor) -> None:
    """Move codes that nothing used, `used` (N,) bool, onto random pixels of `latent` (B, c, h, w)."""
    pixels = latent.permute(0, 2, 3, 1).flatten(0, 2)
    dead = (~used).nonzero()[:, 0]
    stage.quantize.embedding.weight[dead] = pixels[torch.randint(len(pixels), (len(dead),), device=pixels.device)]


def train_one_epoch(
    stage: FirstStage, loader, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, precision: Precision, *, on_batch
) -> tuple[float, int]:
    """Train on the optical and the SAR picture of every pair once, then revive the codes that nothing used.

    Returns:
        Mean loss, and how many codes were used.

    Raises:
        TrainingError: the loss is no longer finite.
    """
    device = stage.quantize.embedding.weight.device
    used = torch.zeros(stage.quantize.embedding.num_embeddings, dtype=torch.bool, device=device)
    losses = []
    stage.train()
    for batch in loader:
        pictures = batch.to(device, memory_format=layout_of(device)).images
        result = reconstruct(stage, pictures, precision)
        loss = first_stage_loss(result, pictures)
        optimizer.zero_grad(set_to_none=True)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        used[result.codes.flatten()] = True
        losses.append(loss.detach())
        on_batch()
    mean = torch.stack(losses).mean().item()
    if not torch.tensor(mean).isfinite():
        raise TrainingError(f"the loss of the first stage is {mean}; lower SOLVER.BASE_LR or set SOLVER.AMP off")
    revive_codes(stage, used, result.latent.detach())
    return mean, int(used.sum())


@torch.no_grad()
def validate(stage: FirstStage, loader, precision: Precision) -> float:
    """Mean L1 of reconstructions of held-out pictures, in units where black to white is 2."""
    device = stage.quantize.embedding.weight.device
    stage.eval()
    total, count = 0.0, 0
    for batch in loader:
        pictures = batch.to(device, memory_format=layout_of(device)).images
        total += F.l1_loss(reconstruct(stage, pictures, precision).picture, pictures).item() * len(pictures)
        count += len(pictures)
    return total / count


def build_and_train(cfg, device: torch.device) -> None:
    """Train as `cfg` says (BBDM.FIRST_STAGE_*, SOLVER.*); `first_stage_<epoch>.pth` goes to OUTPUT_DIR."""
    output = make_output_dir(cfg.OUTPUT_DIR)
    setup_logging(output, "train_log.txt")
    write_text(output / "config.yml", cfg.dump())
    write_json(output / "environment.json", describe_environment(seed=cfg.SOLVER.SEED, device=device))
    seed_everything(cfg.SOLVER.SEED)
    pairs, precision = build_pairs(cfg), build_precision(cfg, device)
    stage = build_empty_first_stage(cfg).to(device)
    optimizer = torch.optim.Adam(stage.parameters(), lr=cfg.SOLVER.BASE_LR, betas=(0.5, 0.9), fused=device.type == "cuda")
    loader = build_train_loader(cfg, pairs.train, device_type=device.type)
    validation = build_validation_loader(cfg, pairs.validation, device_type=device.type) if pairs.validation else None
    metrics, scaler = MetricsWriter(output / "metrics.jsonl"), precision.scaler()
    with progress(cfg.SOLVER.MAX_EPOCHS * len(loader), "first stage", unit="batch") as bar:
        for epoch in range(1, cfg.SOLVER.MAX_EPOCHS + 1):
            loader.batch_sampler.set_epoch(epoch)
            loss, codes = train_one_epoch(stage, loader, optimizer, scaler, precision, on_batch=bar.update)
            last = epoch == cfg.SOLVER.MAX_EPOCHS
            due = validation is not None and (last or epoch % cfg.SOLVER.EVAL_PERIOD == 0)
            held_out = validate(stage, validation, precision) if due else None
            metrics.write(epoch=epoch, loss=loss, codes_used=codes, validation_l1=held_out)
            bar.set_postfix(loss=f"{loss:.4f}", codes=codes, refresh=False)
            if last or epoch % cfg.SOLVER.CHECKPOINT_PERIOD == 0:
                checkpoint.save(output / f"first_stage_{epoch}.pth", stage.state_dict())
    logger.info("set BBDM.FIRST_STAGE %s", output / f"first_stage_{cfg.SOLVER.MAX_EPOCHS}.pth")


def main(arguments: Sequence[str]) -> None:
    """Parse the command line and train."""
    parser = config_parser(
        "python -m bbdm.train_first_stage",
        "Train the latent model's first stage on the optical and SAR pictures of the pairs.",
        "python -m bbdm.train_first_stage --config_file configs/bbdm_qxs.yml BBDM.FIRST_STAGE_WIDTH 64 OUTPUT_DIR out",
    )
    options = parser.parse_intermixed_args(arguments)
    setup_logging()
    cfg = load_cfg(options.config_file, options.overrides)
    build_and_train(cfg, build_device(cfg))


if __name__ == "__main__":
    cli.run(main)
