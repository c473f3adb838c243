"""Train a re-identification model: python train.py --config_file configs/hoss_transoss.yml [KEY VALUE ...]"""

import argparse
import logging
from collections.abc import Mapping, Sequence

from configs.parser import answer_help, config_parser


def build_parser() -> argparse.ArgumentParser:
    """Build the command line."""
    example = "python train.py --config_file configs/hoss_transoss.yml DATASETS.ROOT_DIR data SOLVER.SEED 1"
    offers = ("hoss_transoss.yml", "hoss_baseline.yml", "*sdf*.yml", "ablation_[123]_*.yml", "mos_best.yml", "demo_reid.yml")
    return config_parser("train.py", "Train a re-identification model on a data set in HOSS layout.", example, offers=offers)


if __name__ == "__main__":
    answer_help(build_parser)

import torch
from torch import nn

from configs.command import open_training
from datasets.catalogue import HossData
from datasets.loaders import build_train_loader
from datasets.validation import build_training_data
from loss.criterion import build_criterion
from model.build import build_model, choose_attention
from model.pretrained import build_start
from processor.engine import fit
from processor.extraction import build_extractor
from processor.ranking.evaluation import Evaluation, build_ranking, evaluate, results_table
from processor.reid import ReIDTask
from processor.report.page import build_page
from processor.selection import build_split
from processor.task import build_training_plan
from processor.update import Update
from solver.optimizer import build_center_optimizer, build_optimizer
from solver.schedule import build_schedule
from utils import distributed
from utils.cli import run
from utils.device import build_compilation, build_precision
from utils.errors import UsageError
from utils.global_batch import share_batch
from utils.seed import seed_everything
from utils.sharding import build_sharding, put_together

logger = logging.getLogger("train")


def build_reid_task(cfg, data: HossData, device: torch.device) -> ReIDTask:
    """Model, objective, optimisers and schedule at their start."""
    model = build_model(cfg, data.num_identities)
    if not cfg.SOLVER.RESUME:
        build_start(cfg, model)
    if cfg.SOLVER.IMS_PER_PASS and any(isinstance(module, nn.BatchNorm2d) for module in model.base.modules()):
        raise UsageError(f"MODEL.NAME {cfg.MODEL.NAME} has statistics of whole batches inside; set SOLVER.IMS_PER_PASS 0")
    model.to(device)
    criterion = build_criterion(cfg, num_identities=data.num_identities, num_features=model.num_features)
    criterion.load_state_dict(distributed.broadcast(criterion.state_dict()))  # the network's wrapper does this for the network
    criterion.to(device)
    share_batch(model)
    sharded = build_sharding(cfg, model, model.units(), device.type)
    optimizer = build_optimizer(cfg, model)
    optimizers = [optimizer] if criterion.centers is None else [optimizer, build_center_optimizer(cfg, criterion.centers)]
    precision, network = build_precision(cfg, device), model if sharded else distributed.wrap(model, device)
    choose_attention(model, precision)
    build_compilation(cfg, network, learns=True)
    extractor, ranking = build_extractor(cfg, device, model=model), build_ranking(cfg, device)

    def test() -> Mapping[str, Evaluation]:
        with put_together(model):
            features = extractor.features(data.images)
        return evaluate(data.protocols, data.images, features, ranking)

    return ReIDTask(
        network=network,
        criterion=criterion,
        update=Update(network, optimizers, precision.scaler(), others=criterion.parameters()),
        schedule=build_schedule(cfg, optimizer),
        precision=precision,
        device=device,
        test=test,
        split=build_split(cfg, data.images),
        local_losses=cfg.SOLVER.LOCAL_LOSSES,
        part=cfg.SOLVER.IMS_PER_PASS,
    )


def main(arguments: Sequence[str]) -> None:
    """Read the call and train."""
    with open_training(build_parser(), arguments) as command:
        cfg, device = command.cfg, command.device
        seed_everything(cfg.SOLVER.SEED, distributed.rank())
        data = build_training_data(cfg)
        logger.info("%s", data.summary())
        share = {"device_type": device.type, "rank": distributed.rank(), "world_size": distributed.world_size()}
        loader, task = build_train_loader(cfg, data, **share), build_reid_task(cfg, data, device)
        command.record()
        plan = build_training_plan(
            cfg,
            command.folder,
            cfg.MODEL.NAME,
            facts={"identities": data.num_identities, "split": vars(task.split)},
            split=vars(task.split),
        )
        fit(task, loader, plan, resume=cfg.SOLVER.RESUME)
        if task.evaluations:
            logger.info("figures of %s:\n%s", task.split.words, results_table(task.evaluations))
        build_page(cfg, command.folder)


if __name__ == "__main__":
    run(main, together=True)
