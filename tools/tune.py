"""Choose the settings of fusion and re-ranking: every image goes through the network once, every setting is then scored.

Each `--store` is a folder of generated samples of queries and gallery; stores of other sampling steps give a table over steps.
With DATASETS.VAL_FRACTION the choice is made on the validation ships of the training set; their samples come from
`python -m bbdm.sample ... BBDM.SPLITS "['validation/query', 'validation/gallery']"` with the same VAL_FRACTION and SOLVER.SEED.
"""

import argparse
import itertools
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from configs import load_cfg
from datasets.catalogue import HossData, read_hoss
from datasets.loaders import build_test_loader
from datasets.records import Modality
from datasets.validation import build_validation_data
from model.build import build_model
from model.pretrained import load_weights
from processor.feature_store import build_feature_store, chip_contents, hash_files, sample_contents
from processor.features import extract_features
from processor.fusion import SampleSet, find_samples, fuse_images
from processor.ranking.comparison import METRICS, Comparison
from processor.ranking.evaluation import Ranking, build_ranking, counting_line
from processor.ranking.intervals import PAIRED_METHOD
from processor.ranking.tuning import Trial, choose, compare_choice, score_features
from processor.selection import UNKNOWN, Tuning, build_split, find_selection, write_tuning
from utils import distributed
from utils.checkpoint import sha256
from utils.cli import run
from utils.device import Precision, build_device
from utils.errors import CheckpointError, UsageError
from utils.files import write_json
from utils.log import setup_logging, table

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Store:
    """Generated samples of the images that choose.

    Attributes:
        name: the folder.
        steps: network calls of a sample, as its manifest says, or those of both sides; None where no manifest tells.
        samples: whose they are.
        features: (S, K, D) of them.
        seconds: that the network took for them.
    """

    name: str
    steps: int | str | None
    samples: SampleSet
    features: Tensor
    seconds: float


def find_stores(data: HossData, folders: Sequence[tuple[str, str]]) -> list[tuple[str, int | str | None, SampleSet]]:
    """Folder, steps and samples of each pair of folders (of the queries, of the gallery).

    Raises:
        DataError: see `processor.fusion.find_samples`.
    """
    stores = []
    for query_dir, gallery_dir in folders:
        samples = find_samples(data.images, query_dir=query_dir, gallery_dir=gallery_dir)
        steps = samples.steps[0] if len(samples.steps) == 1 else " and ".join(map(str, samples.steps)) or None
        stores.append((query_dir or gallery_dir, steps, samples))
    return stores


def build_choosing(cfg, folders: Sequence[tuple[str, str]], digest: str) -> tuple[HossData, list, str]:
    """The images to choose on, the samples of them, and a sentence that says which they are.

    Raises:
        UsageError: the weights have learnt from the validation ships.
        DataError: samples are missing.
    """
    if not cfg.DATASETS.VAL_FRACTION:
        reason = "DATASETS.VAL_FRACTION is 0"
    else:
        data = build_validation_data(cfg)
        if all(any(_holds_samples(folder, data) for folder in pair) for pair in folders):
            return data, find_stores(data, folders), _validation_sentence(cfg, digest)
        reason = "the folders hold no sample of a validation ship"
    data = read_hoss(cfg.DATASETS.ROOT_DIR, train=False)
    told = f"chosen on the test split, so its figures flatter the choice ({reason})"
    return data, find_stores(data, folders), told


def _holds_samples(folder: str, data: HossData) -> bool:
    """Whether the folder has any sample of the data set's optical images; what is wrong with the others is told later."""
    stems = {record.path.stem for record in data.images if record.modality is Modality.OPTICAL}
    root = Path(folder)
    names = {path.stem for path in root.iterdir()} if folder and root.is_dir() else set()
    return not stems.isdisjoint(names | {name.rpartition("_")[0] for name in names})


def _validation_sentence(cfg, digest: str) -> str:
    split, selection = build_split(cfg), find_selection(cfg.TEST.WEIGHT, digest)
    if selection is not None and (selection.fraction, selection.seed) != (split.fraction, split.seed):
        raise UsageError(
            f"TEST.WEIGHT was trained with DATASETS.VAL_FRACTION {selection.fraction:g} and SOLVER.SEED {selection.seed}, so "
            f"it has learnt from ships that would validate here with {split.fraction:g} and {split.seed}; set its own"
        )
    known = "" if selection else f"; {UNKNOWN}, so see that they were trained without these ships"
    return f"chosen on validation ships, {split.fraction:g} of the training set, seed {split.seed}{known}"


def build_features(cfg, data: HossData, stores: Sequence, device: torch.device, digest: str) -> tuple[Tensor, list[Store]]:
    """Features (I, D) of the images and of every store's samples: one pass, or what TEST.FEATURE_STORE kept of it."""
    model = build_model(cfg)
    load_weights(cfg.TEST.WEIGHT, model)
    model.to(device)
    options = {"device": device, "precision": Precision(device.type), "neck": cfg.TEST.NECK_FEAT, "flip": cfg.TEST.FLIP}
    extract = partial(extract_features, model, **options)
    kept = build_feature_store(cfg, weights_sha256=digest, device=device)
    hashes = hash_files([record.path for record in data.images])
    images = kept.get(
        chip_contents(data.images, hashes),
        lambda: extract(
            build_test_loader(cfg, data.images, device_type=device.type), count=len(hashes), description="features"
        ),
    )
    extracted = []
    for name, steps, samples in stores:
        chips = [chip for own in samples.chips for chip in own]
        places = [index for index in samples.sources for _ in range(samples.per_image)]
        loader = build_test_loader(cfg, chips, device_type=device.type)
        found = kept.get(
            sample_contents(chips, [hashes[place] for place in places]),
            partial(extract, loader, count=len(chips), description=f"features of {name}"),
        )
        values = found.values.unflatten(0, (-1, samples.per_image))
        extracted.append(Store(name, steps, samples, values, found.seconds))
    return images.values, extracted


def fusion_settings(
    stores: Sequence[Store], taus: Sequence[float], counts: Sequence[int]
) -> Iterator[tuple[Store, int, float]]:
    """Store, K and tau of each trial.

    Raises:
        UsageError: a K that no store has.
    """
    most = max(store.samples.per_image for store in stores)
    beyond = [count for count in counts if not 1 <= count <= most]
    if beyond:
        raise UsageError(f"--samples asks for K {beyond[0]}; the stores hold 1 to {most} samples of an image")
    for store in stores:
        own = store.samples.per_image
        chosen = [count for count in counts if count <= own] or sorted({1, (own + 1) // 2, own})
        yield from ((store, count, tau) for count, tau in itertools.product(chosen, taus))


def try_fusion(
    data: HossData, features: Tensor, ranking: Ranking, settings: Sequence[tuple[Store, int, float]]
) -> list[tuple[Trial, Tensor]]:
    """Score each setting; also the fused features (I, D) of each."""
    trials = []
    for store, count, tau in settings:
        start = time.perf_counter()
        fused = fuse_images(features, store.features[:, :count], store.samples.sources, tau=tau)
        scores = score_features(data.protocols, data.images, fused, ranking)
        seconds = time.perf_counter() - start + store.seconds * count / store.samples.per_image
        setting = {"store": store.name, "steps": store.steps, "K": count, "tau": tau}
        trials.append((Trial(setting, scores, seconds), fused))
    return trials


def try_reranking(data: HossData, features: Tensor, ranking: Ranking, grid: Sequence[tuple[int, int, float]]) -> list[Trial]:
    """Score each (k1, k2, lambda)."""
    trials = []
    for k1, k2, share in grid:
        start = time.perf_counter()
        scores = score_features(
            data.protocols, data.images, features, replace(ranking, reranking={"k1": k1, "k2": k2, "lambda_value": share})
        )
        trials.append(Trial({"k1": k1, "k2": k2, "lambda": share}, scores, time.perf_counter() - start))
    return trials


def trials_table(trials: Sequence[Trial], best: Trial) -> str:
    """mAP / R1 of every protocol and seconds of each trial, in percent; the chosen one is marked."""
    names = list(trials[0].setting)
    protocols = list(trials[0].scores)
    rows = []
    for trial in trials:
        figures = [f"{100 * trial.scores[name].mAP:.1f} / {100 * trial.scores[name].R1:.1f}" for name in protocols]
        values = [trial.setting.get(name, "") for name in names] if trial.setting else ["without", *[""] * (len(names) - 1)]
        rows.append([*values, *figures, f"{trial.seconds:.2f}", "<- chosen" if trial is best else ""])
    return table([*names, *protocols, "seconds", ""], rows)


def verdict(gains: dict[str, Comparison], metric: str, what: str) -> str:
    """Whether the choice pays, by protocol."""
    words = {"better": "pays", "worse": "harms", "no difference shown": "is not shown to pay"}
    lines = [f"verdict, {metric}, each query under the setting that queries of other ships choose:"]
    for name, found in gains.items():
        ends = f"{100 * found.difference.low:+.1f} .. {100 * found.difference.high:+.1f}"
        lines.append(f"  {name}: {what} {words[found.verdict]} ({100 * found.difference.mean:+.1f} points, 95 % {ends})")
    return "\n".join(lines)


def report_dict(trials: Sequence[Trial], best: Trial, gains: dict[str, Comparison]) -> dict[str, Any]:
    """Trials, choice and gains for JSON."""
    return {
        "trials": [
            {
                **trial.setting,
                "seconds": trial.seconds,
                **{
                    name: {
                        **{"mAP": score.mAP, "mAP_interval": score.mAP_interval.ends},
                        **{"R1": score.R1, "R1_interval": score.R1_interval.ends},
                    }
                    for name, score in trial.scores.items()
                },
            }
            for trial in trials
        ],
        "chosen": dict(best.setting),
        "gain": {
            name: {
                "difference": found.difference.mean,
                "interval": [found.difference.low, found.difference.high],
                "verdict": found.verdict,
            }
            for name, found in gains.items()
        },
    }


def build_report(cfg, args: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Extract, try, print, and give what `--json` holds."""
    if not Path(cfg.TEST.WEIGHT).is_file():
        raise CheckpointError(f"there is no checkpoint {cfg.TEST.WEIGHT}; give the path of an existing file as TEST.WEIGHT")
    digest = sha256(cfg.TEST.WEIGHT)
    own = (cfg.DATASETS.QUERY_ADD_DIR, cfg.DATASETS.GALLERY_ADD_DIR)
    folders = [(store, store) for store in args.store] or ([own] if any(own) else [])
    grid = list(itertools.product(args.k1, args.k2, args.lambdas)) if args.rerank else []
    if not folders and not grid:
        raise UsageError("nothing to tune: name generated samples with --store, or ask for --rerank")
    data, found, told = build_choosing(cfg, folders, digest)
    if args.protocol not in data.protocols:
        raise UsageError(f"--protocol {args.protocol} is not there; the images make {', '.join(data.protocols)}")
    features, stores = build_features(cfg, data, found, device, digest)
    logging.getLogger().setLevel(logging.WARNING)  # each trial would say again which queries do not count
    # Plain distances decide about fusion, unless TEST.RE_RANKING is on; the grid then starts from what was chosen.
    ranking = build_ranking(cfg, device)
    kept = functional.normalize(features) if ranking.normalise else features
    by = {"protocol": args.protocol, "metric": args.metric}
    plain = Trial({}, score_features(data.protocols, data.images, kept, ranking), 0.0)
    report: dict[str, Any] = {"chosen_on": told, "weights": digest, **by, "method": PAIRED_METHOD}
    print(f"{told}\n{counting_line(ranking)}\n95 %: {PAIRED_METHOD}")
    settings: list[dict[str, Any]] = []
    baseline, of = plain.scores, "plain features"
    if stores:
        tried = try_fusion(data, features, ranking, list(fusion_settings(stores, args.taus, args.samples)))
        trials = [trial for trial, _ in tried]
        best = choose(trials, **by)
        gains = compare_choice(plain.scores, trials, **by)
        print(f"\nfusion\n{trials_table([*trials, plain], best)}\n{verdict(gains, args.metric, 'fusion')}")
        report["fusion"] = report_dict(trials, best, gains)
        count, own = best.setting["K"], next(store for store in stores if store.name == best.setting["store"])
        whole = count == own.samples.per_image
        settings.append({"TEST.FUSION_TAU": best.setting["tau"], "TEST.FUSION_SAMPLES": 0 if whole else count})
        # Re-ranking is tried on the features that would be used: the fused ones where fusion raised the figure.
        if choose([plain, best], **by) is best:
            baseline, of = best.scores, "fused features"
            kept = next(fused for trial, fused in tried if trial is best)
    if grid:
        trials = try_reranking(data, kept, ranking, grid)
        best = choose(trials, **by)
        gains = compare_choice(baseline, trials, **by)
        before = Trial({}, baseline, 0.0)
        print(f"\nre-ranking of {of}\n{trials_table([*trials, before], best)}\n{verdict(gains, args.metric, 're-ranking')}")
        report["reranking"] = report_dict(trials, best, gains)
        names = {"k1": "TEST.RE_RANKING_K1", "k2": "TEST.RE_RANKING_K2", "lambda": "TEST.RE_RANKING_LAMBDA"}
        settings.append({"TEST.RE_RANKING": True, **{key: best.setting[name] for name, key in names.items()}})
    split = "validation" if data.images[0].split.startswith("validation/") else "test"
    write_tuning(Path(cfg.TEST.WEIGHT), Tuning(digest, split, settings))
    keys = " ".join(f"{key} {value}" for choice in settings for key, value in choice.items())
    print(f"\nto test with what was chosen: {keys}")
    return report


def _numbers(kind: type) -> Any:
    """A parser of comma-separated numbers."""

    def parse(text: str) -> list:
        return [kind(part) for part in text.split(",")]

    parse.__name__ = f"list of {kind.__name__}"
    return parse


def build_parser() -> argparse.ArgumentParser:
    """Build the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.tune",
        description="Choose tau, K and sampling steps of fusion, and the parameters of re-ranking, with one extraction.",
        epilog="example:\n  python -m tools.tune --config_file configs/hoss_transoss.yml --store logs/samples_50 \\\n"
        "      --store logs/samples_200 --rerank TEST.WEIGHT logs/hoss_transoss/best_model_mAP.pth",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config_file", metavar="FILE", help="the .yml that the weights were trained with")
    parser.add_argument("--store", action="append", default=[], metavar="DIR", help="generated samples; may be given again")
    taus = [0.005, 0.01, 0.02, 0.05, 0.1, 0.2]
    parser.add_argument("--taus", type=_numbers(float), default=taus, metavar="A,B", help="weights to try (0.005 to 0.2)")
    parser.add_argument("--samples", type=_numbers(int), default=[], metavar="A,B", help="values of K to try (1, half, all)")
    parser.add_argument("--rerank", action="store_true", help="also try re-ranking")
    parser.add_argument("--k1", type=_numbers(int), default=[10, 20, 50], metavar="A,B", help="of re-ranking (10,20,50)")
    parser.add_argument("--k2", type=_numbers(int), default=[1, 6, 15], metavar="A,B", help="of re-ranking (1,6,15)")
    parser.add_argument("--lambdas", type=_numbers(float), default=[0.3, 0.6], metavar="A,B", help="of re-ranking (0.3,0.6)")
    parser.add_argument("--protocol", default="ALL", metavar="NAME", help="whose figure decides (ALL)")
    parser.add_argument("--metric", default="mAP", choices=tuple(METRICS), help="which figure decides (mAP)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything there too")
    parser.add_argument("overrides", metavar="KEY VALUE", nargs="*", help="settings that override the file's")
    return parser


def main(arguments: Sequence[str]) -> None:
    """Parse `arguments`, tune and print."""
    setup_logging()
    args = build_parser().parse_intermixed_args(arguments)
    if not all(0 < tau <= 1 for tau in args.taus) or not all(0 <= share <= 1 for share in args.lambdas):
        raise UsageError("--taus lie above 0 and up to 1, --lambdas between 0 and 1")
    if min(args.k1 + args.k2) < 1:
        raise UsageError("--k1 and --k2 are at least 1")
    if distributed.is_launched():
        raise UsageError("tools.tune works in one process; start it without torchrun")
    cfg = load_cfg(args.config_file, args.overrides)
    if not cfg.TEST.WEIGHT:
        raise UsageError("TEST.WEIGHT is empty; name the checkpoint to tune for")
    report = build_report(cfg, args, build_device(cfg))
    if args.json:
        write_json(args.json, report)


if __name__ == "__main__":
    run(main)
