"""Train a re-identification model: python train.py --config_file configs/hoss_transoss.yml [KEY VALUE ...]"""

import logging
from collections.abc import Sequence

from configs import load_cfg
from configs.command import config_parser
from datasets.catalogue import HossData
from datasets.loaders import build_test_loader, build_train_loader
from datasets.validation import build_training_data
from loss.criterion import build_criterion
from model.build import build_model
from model.pretrained import build_start
from processor.features import extract_features
from processor.ranking.evaluation import Evaluation, build_ranking, evaluate
from processor.selection import build_resumed_state
from processor.train import Trainer, build_run, fit
from solver.optimizer import build_center_optimizer, build_optimizer
from solver.schedule import build_schedule
from utils import distributed
from utils.cli import run
from utils.device import Precision, build_device, build_precision
from utils.files import write_json, write_text
from utils.log import describe_environment, make_output_dir, setup_logging
from utils.seed import seed_everything

logger = logging.getLogger("train")


def build_trainer(cfg, data: HossData, device) -> Trainer:
    """Model, objective, optimisers and schedule, at the start or where SOLVER.RESUME left off."""
    model = build_model(cfg, data.num_identities)
    if not cfg.SOLVER.RESUME:
        build_start(cfg, model)
    model.to(device)
    criterion = build_criterion(cfg, num_identities=data.num_identities, num_features=model.base.num_features)
    criterion.load_state_dict(distributed.broadcast(criterion.state_dict()))  # the network's wrapper does this for the network
    criterion.to(device)
    optimizer = build_optimizer(cfg, model)
    optimizers = [optimizer] if criterion.centers is None else [optimizer, build_center_optimizer(cfg, criterion.centers)]
    precision = build_precision(cfg, device)
    trainer = Trainer(
        model=distributed.wrap(model, device),
        criterion=criterion,
        optimizers=optimizers,
        schedule=build_schedule(cfg, optimizer),
        scaler=precision.scaler(),
        precision=precision,
        device=device,
    )
    if cfg.SOLVER.RESUME:
        trainer.load_state_dict(build_resumed_state(cfg))
        logger.info("resumed from %s after epoch %d", cfg.SOLVER.RESUME, trainer.epoch)
    return trainer


def evaluate_trainer(cfg, trainer: Trainer, data: HossData, loader) -> dict[str, Evaluation]:
    """All protocols with the weights of now."""
    features = extract_features(
        distributed.unwrap(trainer.model),
        loader,
        count=len(data.images),
        device=trainer.device,
        precision=Precision(trainer.device.type),  # float32, as in testing
        neck=cfg.TEST.NECK_FEAT,
        flip=cfg.TEST.FLIP,
    )
    return evaluate(data.protocols, data.images, features, build_ranking(cfg, trainer.device))


def train(cfg, device) -> None:
    """Train, evaluate and write checkpoints as the configuration says."""
    folder = make_output_dir(cfg.OUTPUT_DIR)
    setup_logging(folder, "train_log.txt")
    seed_everything(cfg.SOLVER.SEED, distributed.rank())
    data = build_training_data(cfg)
    logger.info("%s", data.summary())
    share = {"device_type": device.type, "rank": distributed.rank(), "world_size": distributed.world_size()}
    train_loader, test_loader = build_train_loader(cfg, data, **share), build_test_loader(cfg, data.images, **share)
    trainer = build_trainer(cfg, data, device)
    if distributed.is_main():
        write_text(folder / "config.yml", cfg.dump())
        write_json(folder / "environment.json", describe_environment(seed=cfg.SOLVER.SEED, device=device))
    fit(trainer, train_loader, build_run(cfg, folder), evaluate=lambda: evaluate_trainer(cfg, trainer, data, test_loader))


def main(arguments: Sequence[str]) -> None:
    """Read the call and train."""
    example = "python train.py --config_file configs/hoss_transoss.yml DATASETS.ROOT_DIR data SOLVER.SEED 1"
    parser = config_parser("train.py", "Train a re-identification model on a data set in HOSS layout.", example)
    args = parser.parse_intermixed_args(arguments)
    setup_logging()
    cfg = load_cfg(args.config_file, args.overrides)
    device = build_device(cfg)
    with distributed.process_group(device):
        train(cfg, device)


if __name__ == "__main__":
    run(main, together=True)
