"""Pre-train on optical-SAR pairs: python train_pair.py --config_file configs/pretrain_transoss.yml [KEY VALUE ...]"""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

from configs.parser import answer_help, config_parser


def build_parser() -> argparse.ArgumentParser:
    """Build the command line."""
    example = "python train_pair.py --config_file configs/pretrain_transoss.yml DATASETS.ROOT_DIR data"
    description = "Pre-train the network contrastively on optical-SAR pairs; its output is what train.py starts from."
    return config_parser("train_pair.py", description, example, offers=("pretrain_*.yml",))


if __name__ == "__main__":
    answer_help(build_parser)

import torch

from configs.command import open_training
from datasets.loaders import build_pair_loader
from datasets.pairs import Pair, read_optisar_pairs, read_registered_pairs
from loss.terms import pair_loss
from model.build import build_model, choose_attention
from model.pretrained import build_start
from processor.engine import fit
from processor.pairs import PairTask
from processor.task import build_training_plan
from processor.update import Update
from solver.optimizer import build_optimizer
from solver.schedule import build_schedule
from utils import distributed
from utils.cli import run
from utils.device import build_precision
from utils.errors import UsageError
from utils.global_batch import share_batch
from utils.seed import seed_everything

logger = logging.getLogger("train_pair")


def build_pairs(cfg) -> tuple[Pair, ...]:
    """The pairs of DATASETS.ROOT_DIR: OptiSar_Pair layout if it holds that folder, else a folder for each modality."""
    root = Path(cfg.DATASETS.ROOT_DIR)
    if (root / "OptiSar_Pair").is_dir():
        return read_optisar_pairs(root, join=cfg.DATASETS.PAIR_JOIN)
    return read_registered_pairs(root).train


def build_pair_task(cfg, device: torch.device) -> PairTask:
    """Model, objective, optimiser and schedule at their start."""
    if cfg.SOLVER.SHARD:
        raise UsageError("SOLVER.SHARD is for train.py and bbdm.train; set it False here, where IMS_PER_PASS saves memory")
    if not cfg.MODEL.PAIR:
        raise UsageError("MODEL.PAIR is False; train_pair.py pre-trains on pairs, so set it True (or use train.py)")
    model = build_model(cfg)
    if not cfg.SOLVER.RESUME:
        build_start(cfg, model)
    model.to(device)
    share_batch(model, halves=2)
    optimizer, precision, network = build_optimizer(cfg, model), build_precision(cfg, device), distributed.wrap(model, device)
    choose_attention(model, precision)
    return PairTask(
        network=network,
        objective=pair_loss,
        update=Update(network, [optimizer], precision.scaler()),
        schedule=build_schedule(cfg, optimizer),
        precision=precision,
        device=device,
        local_losses=cfg.SOLVER.LOCAL_LOSSES,
        part=cfg.SOLVER.IMS_PER_PASS,
    )


def main(arguments: Sequence[str]) -> None:
    """Read the call and pre-train."""
    with open_training(build_parser(), arguments) as command:
        cfg, device = command.cfg, command.device
        seed_everything(cfg.SOLVER.SEED, distributed.rank())
        task, pairs = build_pair_task(cfg, device), build_pairs(cfg)
        logger.info("%d pairs of %d places", len(pairs), len({pair.place for pair in pairs}))
        share = {"device_type": device.type, "rank": distributed.rank(), "world_size": distributed.world_size()}
        loader = build_pair_loader(cfg, pairs, **share)
        command.record()
        fit(task, loader, build_training_plan(cfg, command.folder, cfg.MODEL.NAME), resume=cfg.SOLVER.RESUME)


if __name__ == "__main__":
    run(main, together=True)
