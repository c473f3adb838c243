"""Pre-train on optical-SAR pairs: python train_pair.py --config_file configs/pretrain_transoss.yml [KEY VALUE ...]"""

import logging
from collections.abc import Sequence
from pathlib import Path

from configs import load_cfg
from configs.command import config_parser
from datasets.loaders import build_pair_loader
from datasets.pairs import Pair, read_optisar_pairs, read_registered_pairs
from loss.criterion import ContrastiveCriterion
from model.build import build_model
from model.pretrained import build_start
from processor.pretrain import PairTrainer
from processor.train import build_run, fit
from solver.optimizer import build_optimizer
from solver.schedule import build_schedule
from utils import distributed
from utils.checkpoint import load
from utils.cli import run
from utils.device import build_device, build_precision
from utils.errors import UsageError
from utils.files import write_json, write_text
from utils.log import describe_environment, make_output_dir, setup_logging
from utils.seed import seed_everything

logger = logging.getLogger("train_pair")


def build_pairs(cfg) -> tuple[Pair, ...]:
    """The pairs of DATASETS.ROOT_DIR: OptiSar_Pair layout if it holds that folder, else a folder for each modality."""
    root = Path(cfg.DATASETS.ROOT_DIR)
    return read_optisar_pairs(root) if (root / "OptiSar_Pair").is_dir() else read_registered_pairs(root).train


def build_trainer(cfg, device) -> PairTrainer:
    """Model, objective, optimiser and schedule, at the start or where SOLVER.RESUME left off."""
    model = build_model(cfg)
    if not cfg.SOLVER.RESUME:
        build_start(cfg, model)
    model.to(device)
    optimizer = build_optimizer(cfg, model)
    precision = build_precision(cfg, device)
    trainer = PairTrainer(
        model=distributed.wrap(model, device),
        criterion=ContrastiveCriterion(),
        optimizers=[optimizer],
        schedule=build_schedule(cfg, optimizer),
        scaler=precision.scaler(),
        precision=precision,
        device=device,
        part=cfg.SOLVER.IMS_PER_PASS,
    )
    if cfg.SOLVER.RESUME:
        trainer.load_state_dict(load(cfg.SOLVER.RESUME))
        logger.info("resumed from %s after epoch %d", cfg.SOLVER.RESUME, trainer.epoch)
    return trainer


def train(cfg, device) -> None:
    """Pre-train and write checkpoints as the configuration says."""
    if not cfg.MODEL.PAIR:
        raise UsageError("MODEL.PAIR is False; train_pair.py pre-trains on pairs, so set it True (or use train.py)")
    folder = make_output_dir(cfg.OUTPUT_DIR)
    setup_logging(folder, "train_log.txt")
    seed_everything(cfg.SOLVER.SEED, distributed.rank())
    pairs = build_pairs(cfg)
    logger.info("%d pairs of %d places", len(pairs), len({pair.place for pair in pairs}))
    share = {"device_type": device.type, "rank": distributed.rank(), "world_size": distributed.world_size()}
    loader = build_pair_loader(cfg, pairs, **share)
    trainer = build_trainer(cfg, device)
    if distributed.is_main():
        write_text(folder / "config.yml", cfg.dump())
        write_json(folder / "environment.json", describe_environment(seed=cfg.SOLVER.SEED, device=device))
    fit(trainer, loader, build_run(cfg, folder))


def main(arguments: Sequence[str]) -> None:
    """Read the call and pre-train."""
    example = "python train_pair.py --config_file configs/pretrain_transoss.yml DATASETS.ROOT_DIR data"
    description = "Pre-train the network contrastively on optical-SAR pairs; its output is what train.py starts from."
    args = config_parser("train_pair.py", description, example).parse_intermixed_args(arguments)
    setup_logging()
    cfg = load_cfg(args.config_file, args.overrides)
    device = build_device(cfg)
    with distributed.process_group(device):
        train(cfg, device)


if __name__ == "__main__":
    run(main, together=True)
