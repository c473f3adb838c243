"""Test a re-identification model: python test.py --weights <checkpoint of train.py> [--config_file FILE] [KEY VALUE ...]"""

import argparse
import logging
import sys
from collections.abc import Sequence

from configs.parser import answer_help, config_parser


def build_parser() -> argparse.ArgumentParser:
    """Build the command line."""
    example = (
        "python test.py --weights logs/hoss_transoss/best_model_rank1.pth DATASETS.ROOT_DIR data\n"
        "  python test.py --config_file configs/hoss_transoss.yml TEST.WEIGHT released.pth"
    )
    description = "Test a model on the protocols of a data set in HOSS layout."
    parser = config_parser("test.py", description, example, weights="TEST.WEIGHT")
    parser.add_argument("--verbose", action="store_true", help="say also what figures count, and how intervals are made")
    return parser


if __name__ == "__main__":
    answer_help(build_parser)

from configs.command import Command, open_command
from datasets.catalogue import read_hoss
from processor.common_space import build_common_space, space_sentence
from processor.extraction import build_extractor
from processor.feature_store import hash_files, hash_text
from processor.fusion import build_samples, fuse_images
from processor.ranking.evaluation import (
    Ranking,
    build_ranking,
    counting_line,
    counting_rules,
    evaluate,
    results_table,
    unusual_line,
)
from processor.ranking.intervals import METHOD
from processor.ranking.results import Results, results_path, write_results
from processor.report.listing import RunLists, build_lists, lists_path, write_lists
from processor.report.page import build_page
from processor.selection import UNKNOWN, build_tuning_sentences, selection_of
from utils import distributed
from utils.cli import run
from utils.log import describe_environment, fold

logger = logging.getLogger("test")


def test(command: Command) -> tuple[Results, RunLists | None]:
    """Extract every test image's feature once and score all protocols; with TEST.REPORT, list what each query found too."""
    cfg, device = command.cfg, command.device
    data = read_hoss(cfg.DATASETS.ROOT_DIR, train=False)
    logger.info("%s", data.summary())
    extractor = build_extractor(cfg, device, weights=cfg.TEST.WEIGHT, store=cfg.TEST.FEATURE_STORE)
    samples = build_samples(cfg, data.images)
    hashes = hash_files([chip.path for chip in data.images])
    features = extractor.features(samples.images if samples else data.images, hashes, description="features")
    space, fused, lists = build_common_space(cfg, extractor), None, None
    features = space.map_images(features, [chip.modality for chip in data.images]) if space else features
    if samples:
        generated, _ = extractor.samples(samples, hashes, description="features of samples")
        generated = space.map_samples(generated) if space else generated
        fused = fuse_images(features, generated, samples.sources, tau=cfg.TEST.FUSION_TAU)
    ranking, sources = build_ranking(cfg, device), samples.sources if samples else ()
    results = Results(
        weights={"path": str(cfg.TEST.WEIGHT), "sha256": extractor.weights_sha256},
        selection=selection_of(command.description, data.images),
        tuning=build_tuning_sentences(cfg, extractor.weights_sha256),
        data={"root": str(cfg.DATASETS.ROOT_DIR), "images": len(hashes), "sha256": hash_text(hashes)},
        counting=counting_rules(ranking),
        tau=cfg.TEST.FUSION_TAU,
        samples_per_image=samples.per_image if samples else 0,
        protocols=evaluate(data.protocols, data.images, features, ranking, fused=fused, sources=sources),
        environment=describe_environment(device=device, seed=cfg.SOLVER.SEED),
        common_space=space.settings if space else None,
        precision=cfg.TEST.AMP,
    )
    if cfg.TEST.REPORT and distributed.is_main():
        digest = extractor.weights_sha256
        lists = build_lists(cfg, data, ranking, features, fused=fused, samples=samples, weights_sha256=digest)
    return results, lists


def told_below(results: Results, ranking: Ranking, verbose: bool) -> list[str]:
    """What a reader should know of the figures, below their table."""
    rules = [counting_line(ranking), f"95 %: {METHOD}"] if verbose else [unusual_line(ranking)]
    space = space_sentence(results.common_space) if results.common_space else ""
    chosen = results.selection.sentence() if results.selection else UNKNOWN
    return ["", *(line for line in (*rules, space, chosen, *results.tuning) if line)]


def main(arguments: Sequence[str]) -> None:
    """Read the call, test, and write results.json."""
    needs = {"TEST.WEIGHT": "the checkpoint to test"}
    with open_command(build_parser(), arguments, log="test_log.txt", needs=needs) as command:
        results, lists = test(command)
        if distributed.is_main():
            path = results_path(command.folder, **results.weights)
            write_results(path, results)
            if lists:
                write_lists(lists_path(path), lists)
            print(results_table(results.protocols))
            notes = told_below(results, build_ranking(command.cfg, command.device), command.args.verbose)
            print(fold("\n".join(notes), sys.stdout))
            other = "" if path.name == "results.json" else "; results.json there is of other weights and stays"
            logger.info("wrote %s%s", path, other)
            build_page(command.cfg, path)


if __name__ == "__main__":
    run(main, together=True)
