"""Test a re-identification model: python test.py --config_file configs/hoss_transoss.yml TEST.WEIGHT <checkpoint>"""

import logging
from collections.abc import Sequence
from functools import partial

from configs import load_cfg
from configs.command import config_parser
from datasets.catalogue import read_hoss
from datasets.loaders import build_test_loader
from model.build import build_model
from model.pretrained import load_weights
from processor.feature_store import build_feature_store, chip_contents, hash_files, hash_text, sample_contents
from processor.features import extract_features
from processor.fusion import find_samples, fuse_images
from processor.ranking.evaluation import build_ranking, counting_line, counting_rules, evaluate, results_table
from processor.ranking.intervals import METHOD
from processor.ranking.results import Results, write_results
from processor.selection import UNKNOWN, build_tuning_sentences, find_selection
from utils import distributed
from utils.checkpoint import sha256
from utils.cli import run
from utils.device import Precision, build_device
from utils.errors import UsageError
from utils.log import describe_environment, make_output_dir, setup_logging

logger = logging.getLogger("test")


def test(cfg, device) -> None:
    """Extract every test image's feature once, score all protocols, write results.json."""
    folder = make_output_dir(cfg.OUTPUT_DIR)
    setup_logging(folder, "test_log.txt")
    data = read_hoss(cfg.DATASETS.ROOT_DIR, train=False)
    logger.info("%s", data.summary())
    model = build_model(cfg)
    load_weights(cfg.TEST.WEIGHT, model)
    model.to(device)
    folders = {"query_dir": cfg.DATASETS.QUERY_ADD_DIR, "gallery_dir": cfg.DATASETS.GALLERY_ADD_DIR}
    samples = find_samples(data.images, **folders, count=cfg.TEST.FUSION_SAMPLES)
    share = {"device_type": device.type, "rank": distributed.rank(), "world_size": distributed.world_size()}
    float32 = Precision(device.type)
    options = {"neck": cfg.TEST.NECK_FEAT, "flip": cfg.TEST.FLIP}
    extract = partial(extract_features, model, device=device, precision=float32, **options)
    digest, hashes = sha256(cfg.TEST.WEIGHT), hash_files([record.path for record in data.images])
    store = build_feature_store(cfg, weights_sha256=digest, device=device)
    images = samples.images if samples else data.images
    features = store.get(
        chip_contents(images, hashes),
        lambda: extract(build_test_loader(cfg, images, **share), count=len(images), description="features"),
    ).values
    fused = None
    if samples is not None:
        chips = [chip for own in samples.chips for chip in own]
        loader = build_test_loader(cfg, chips, **share)
        origins = [hashes[index] for index in samples.sources for _ in range(samples.per_image)]
        contents = sample_contents(chips, origins) if store.folder else []
        generated = store.get(contents, lambda: extract(loader, count=len(chips), description="features of samples")).values
        generated = generated.unflatten(0, (-1, samples.per_image))
        fused = fuse_images(features, generated, samples.sources, tau=cfg.TEST.FUSION_TAU)
    sources = samples.sources if samples else ()
    ranking = build_ranking(cfg, device)
    evaluations = evaluate(data.protocols, data.images, features, ranking, fused=fused, sources=sources)
    if distributed.is_main():
        selection, tuned = find_selection(cfg.TEST.WEIGHT, digest), build_tuning_sentences(cfg, digest)
        results = Results(
            weights={"path": str(cfg.TEST.WEIGHT), "sha256": digest},
            selection=selection,
            tuning=tuned,
            data={"root": str(cfg.DATASETS.ROOT_DIR), "images": len(hashes), "sha256": hash_text(hashes)},
            counting=counting_rules(ranking),
            tau=cfg.TEST.FUSION_TAU,
            samples_per_image=samples.per_image if samples else 0,
            protocols=evaluations,
            environment=describe_environment(device=device, seed=cfg.SOLVER.SEED),
        )
        write_results(folder / "results.json", results)
        print(results_table(evaluations))
        print(f"{counting_line(ranking)}\n95 %: {METHOD}")
        print("\n".join([selection.sentence() if selection else UNKNOWN, *tuned]))
        logger.info("wrote %s", folder / "results.json")


def main(arguments: Sequence[str]) -> None:
    """Read the call and test."""
    example = "python test.py --config_file configs/hoss_transoss.yml TEST.WEIGHT logs/hoss_transoss/best_model_mAP.pth"
    parser = config_parser("test.py", "Test a model on the protocols of a data set in HOSS layout.", example)
    args = parser.parse_intermixed_args(arguments)
    setup_logging()
    cfg = load_cfg(args.config_file, args.overrides)
    if not cfg.TEST.WEIGHT:
        raise UsageError("TEST.WEIGHT is empty; name the checkpoint to test")
    device = build_device(cfg)
    with distributed.process_group(device):
        test(cfg, device)


if __name__ == "__main__":
    run(main, together=True)
