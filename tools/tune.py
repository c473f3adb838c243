"""Choose common space, fusion and re-ranking: images go through the network once, every setting is then scored.

Each `--store` is a folder of generated samples of queries and gallery; stores of other sampling steps give a table over steps.
With DATASETS.VAL_FRACTION the choice is made on the validation ships of the training set; their samples come from
`python -m bbdm.sample ... BBDM.SPLITS "['validation/query', 'validation/gallery']"` with the same VAL_FRACTION and SOLVER.SEED.
"""

import argparse
import itertools
import sys
import textwrap
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from configs.parser import add_spaces, answer_help, config_parser, list_of


def build_parser() -> argparse.ArgumentParser:
    """Build the command line."""
    parser = config_parser(
        "python -m tools.tune",
        "Choose a common space, tau, K and sampling steps of fusion, and the parameters of re-ranking, with one extraction.",
        "python -m tools.tune --weights logs/hoss_transoss/best_model_mAP.pth --store logs/samples_50 \\\n"
        "      --store logs/samples_200 --rerank",
        weights="TEST.WEIGHT",
    )
    parser.add_argument("--store", action="append", default=[], metavar="DIR", help="generated samples; may be given again")
    taus = [0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9]
    parser.add_argument("--taus", type=list_of(float), default=taus, metavar="A,B", help="weights to try (0.01 to 0.9)")
    parser.add_argument("--samples", type=list_of(int), default=[], metavar="A,B", help="values of K to try (1, half, all)")
    parser.add_argument("--space", action="store_true", help="also try common spaces")
    add_spaces(parser)
    parser.add_argument("--rerank", action="store_true", help="also try re-ranking")
    parser.add_argument("--k1", type=list_of(int), default=[10, 20, 50], metavar="A,B", help="of re-ranking (10,20,50)")
    parser.add_argument("--k2", type=list_of(int), default=[1, 6, 15], metavar="A,B", help="of re-ranking (1,6,15)")
    parser.add_argument("--lambdas", type=list_of(float), default=[0.3, 0.6], metavar="A,B", help="of re-ranking (0.3,0.6)")
    parser.add_argument("--protocol", default="ALL", metavar="NAME", help="whose figure decides (ALL)")
    parser.add_argument("--metric", default="mAP", choices=("mAP", "R1"), help="which figure decides (mAP)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything there too")
    parser.add_argument("--verbose", action="store_true", help="say also what figures count, and how intervals are made")
    return parser


if __name__ == "__main__":
    answer_help(build_parser)

from torch import Tensor
from torch.nn import functional

from configs.command import Command, open_command
from datasets.catalogue import HossData, read_hoss
from datasets.records import Modality
from datasets.validation import build_validation_data
from processor.common_space import FITS, CommonSpace, build_common_space, build_space_chips, fit_chips
from processor.extraction import Extractor, build_extractor
from processor.fusion import SampleSet, find_samples
from processor.ranking.evaluation import (
    Ranking,
    build_ranking,
    counting_line,
    rank_protocol,
    score_protocol,
    tell_doubts,
    unusual_line,
)
from processor.ranking.intervals import PAIRED_METHOD
from processor.ranking.tuning import (
    VERDICTS,
    Store,
    Trial,
    choose,
    compare_choice,
    fusion_settings,
    report_dict,
    trials_table,
    try_fusion,
    try_reranking,
    try_spaces,
    verdict_text,
)
from processor.selection import UNKNOWN, Selection, build_split, selection_of, write_tuning
from utils.cli import run
from utils.errors import UsageError
from utils.files import write_json
from utils.log import fold

Found = list[tuple[str, SampleSet]]
"""Folders and the samples that they hold."""


def build_stores(cfg, data: HossData, folders: Sequence[tuple[str, str]]) -> Found:
    """Folder and samples of each pair of folders (of the queries, of the gallery).

    Raises:
        DataError: see `processor.fusion.find_samples`.
    """
    find = partial(find_samples, data.images, measured=cfg.TEST.GENERATED_SIZE == "file")
    return [(query or gallery, find(query_dir=query, gallery_dir=gallery)) for query, gallery in folders]


def build_choosing(cfg, folders: Sequence[tuple[str, str]], selection: Selection | None) -> tuple[HossData, Found, str]:
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
            return data, build_stores(cfg, data, folders), _validation_sentence(cfg, selection)
        reason = "the folders hold no sample of a validation ship"
    data = read_hoss(cfg.DATASETS.ROOT_DIR, train=False)
    told = f"chosen on the test split, so its figures flatter the choice ({reason})"
    return data, build_stores(cfg, data, folders), told


def _holds_samples(folder: str, data: HossData) -> bool:
    """Whether the folder has any sample of the data set's optical images; what is wrong with the others is told later."""
    stems = {record.path.stem for record in data.images if record.modality is Modality.OPTICAL}
    root = Path(folder)
    names = {path.stem for path in root.iterdir()} if folder and root.is_dir() else set()
    return not stems.isdisjoint(names | {name.rpartition("_")[0] for name in names})


def _validation_sentence(cfg, selection: Selection | None) -> str:
    split = build_split(cfg)
    if selection is not None and (selection.fraction, selection.seed) != (split.fraction, split.seed):
        raise UsageError(
            f"TEST.WEIGHT was trained with DATASETS.VAL_FRACTION {selection.fraction:g} and SOLVER.SEED {selection.seed}, so "
            f"it has learnt from ships that would validate here with {split.fraction:g} and {split.seed}; set its own"
        )
    known = "" if selection else f"; {UNKNOWN}, so see that they were trained without these ships"
    return f"chosen on validation ships, {split.fraction:g} of the training set, seed {split.seed}{known}"


def tune(command: Command) -> dict[str, Any]:
    """Extract, try, print, and give what `--json` holds."""
    cfg, args = command.cfg, command.args
    folders = [(store, store) for store in args.store]
    folders = folders or [pair for pair in [(cfg.DATASETS.QUERY_ADD_DIR, cfg.DATASETS.GALLERY_ADD_DIR)] if any(pair)]
    grid = list(itertools.product(args.k1, args.k2, args.lambdas)) if args.rerank else []
    if not folders and not grid and not args.space:
        raise UsageError("nothing to tune: name generated samples with --store, or ask for --space or --rerank")
    extractor = build_extractor(cfg, command.device, weights=cfg.TEST.WEIGHT, store=cfg.TEST.FEATURE_STORE)
    data, found, told = build_choosing(cfg, folders, selection_of(command.description))
    if args.protocol not in data.protocols:
        raise UsageError(f"--protocol {args.protocol} is not there; the images make {', '.join(data.protocols)}")
    features = extractor.features(data.images, description="features")
    stores = [(name, own, *extractor.samples(own, description=f"features of {name}")) for name, own in found]
    if args.space:
        spaces = build_spaces(cfg, extractor, args)
    else:
        spaces, (features, stores) = [], map_all(build_common_space(cfg, extractor), data, features, stores)
    ranking = build_ranking(cfg, command.device)
    rules = f"{counting_line(ranking)}\n95 %: {PAIRED_METHOD}" if args.verbose else unusual_line(ranking)
    print(fold(f"{told}\n{rules}".rstrip(), sys.stdout))
    sections, advice = try_all(data, features, ranking, spaces, stores, grid, args)
    split = "validation" if data.images[0].split.startswith("validation/") else "test"
    tried = sections.get("fusion", {}).get("trials", [])
    write_tuning(Path(cfg.TEST.WEIGHT), digest=extractor.weights_sha256, split=split, trials=tried, **advice)
    print(f"\nto test with what pays:\n{_keys(advice['settings']) or '  the plain test'}")
    if advice["not_recommended"]:
        print(f"not recommended, the best of what is not shown to pay:\n{_keys(advice['not_recommended'])}")
    facts = {"chosen_on": told, "weights": extractor.weights_sha256, "protocol": args.protocol, "metric": args.metric}
    return {**facts, "method": PAIRED_METHOD, **sections, **{key: list(value) for key, value in advice.items()}}


def try_all(
    data: HossData,
    features: Tensor,
    ranking: Ranking,
    spaces: Sequence[CommonSpace],
    stores: Sequence[Store],
    grid: Sequence[tuple[int, int, float]],
    args: argparse.Namespace,
) -> tuple[dict[str, Any], dict[str, list[dict[str, Any]]]]:
    """Try common spaces, fusion in the space that pays, then re-ranking of what pays, and print all.

    Returns:
        Sections of the report, and the settings that pay ('settings') and that are not shown to ('not_recommended').
    """
    of, sections = (data.protocols, data.images), {}
    advice: dict[str, list[dict[str, Any]]] = {"settings": [], "not_recommended": []}
    # Plain distances decide about fusion, unless TEST.RE_RANKING is on; the grid then starts from what pays.
    kept, kind = functional.normalize(features) if ranking.normalise else features, "plain features"
    before = Trial({}, _score_aloud(data, kept, ranking), 0.0)
    if spaces:
        tried = try_spaces(*of, features, ranking, spaces)
        best, list_name = _settle("common space", [trial for trial, _ in tried], before, "common space", args, sections)
        names = {"space": "", "shrinkage": "_SHRINKAGE", "dimensions": "_DIMENSIONS"}
        advice[list_name].append({f"TEST.COMMON_SPACE{end}": best.setting[name] for name, end in names.items()})
        if list_name == "settings":
            before, kind = Trial({}, best.scores, 0.0), "features of the common space"
            features, stores = map_all(next(space for trial, space in tried if trial is best), data, features, stores)
            kept = features
    if stores:
        settings = list(fusion_settings(stores, args.taus, args.samples))
        tried = try_fusion(*of, features, ranking, settings)
        best, list_name = _settle("fusion", [trial for trial, _ in tried], before, f"fusion of {kind}", args, sections)
        own = next(samples for name, samples, *_ in stores if name == best.setting["store"])
        count = 0 if best.setting["K"] == own.per_image else best.setting["K"]
        advice[list_name].append({"TEST.FUSION_TAU": best.setting["tau"], "TEST.FUSION_SAMPLES": count})
        if list_name == "settings":
            before, kind = Trial({}, best.scores, 0.0), "fused features"
            kept = next(fused for trial, fused in tried if trial is best)
    if grid:
        tried = try_reranking(*of, kept, ranking, grid)
        best, list_name = _settle("re-ranking", tried, before, f"re-ranking of {kind}", args, sections)
        names = {"k1": "TEST.RE_RANKING_K1", "k2": "TEST.RE_RANKING_K2", "lambda": "TEST.RE_RANKING_LAMBDA"}
        advice[list_name].append({"TEST.RE_RANKING": True, **{key: best.setting[name] for name, key in names.items()}})
    return sections, advice


def _settle(
    what: str, trials: Sequence[Trial], before: Trial, heading: str, args: argparse.Namespace, sections: dict[str, Any]
) -> tuple[Trial, str]:
    """Choose, print and report in `sections`; the choice and the list of advice that it belongs to."""
    by = {"protocol": args.protocol, "metric": args.metric}
    best, gains = choose(trials, **by), compare_choice(before.scores, trials, **by)
    print(f"\n{heading}\n{trials_table([*trials, before], best)}\n{verdict_text(gains, args.metric, what)}")
    sections[what.replace("-", "").replace(" ", "_")] = report_dict(trials, best, gains)
    return best, "settings" if VERDICTS[gains[args.protocol].verdict] == "pays" else "not_recommended"


def map_all(
    space: CommonSpace | None, data: HossData, features: Tensor, stores: Sequence[Store]
) -> tuple[Tensor, Sequence[Store]]:
    """Features of the images and of generated samples in a space; as they are for None."""
    if space is None:
        return features, stores
    mapped = [(name, samples, space.map_samples(generated), seconds) for name, samples, generated, seconds in stores]
    return space.map_images(features, [chip.modality for chip in data.images]), mapped


def build_spaces(cfg, extractor: Extractor, args: argparse.Namespace) -> list[CommonSpace]:
    """A space of each kind, shrinkage and number of dimensions of the command line; centring has but one."""
    chips = build_space_chips(cfg)
    features = extractor.features(chips, description="features of training ships")
    pairs = list(itertools.product(args.shrinkages, args.dimensions))
    settings = [(kind, *pair) for kind in args.kinds for pair in (pairs[:1] if kind == "centre" else pairs)]
    return [fit_chips(kind, features, chips, shrinkage=share, dimensions=count) for kind, share, count in settings]


def _score_aloud(data: HossData, features: Tensor, ranking: Ranking) -> dict[str, Any]:
    """The figures of every protocol, with a word on queries that do not count or tie: once, not for every trial."""
    scores = {}
    for name, protocol in data.protocols.items():
        result = rank_protocol(protocol, features, data.images, ranking)
        tell_doubts(name, result)
        scores[name] = score_protocol(protocol, result, data.images)
    return scores


def _keys(settings: Sequence[dict[str, Any]]) -> str:
    style = {"initial_indent": "  ", "subsequent_indent": "  ", "break_on_hyphens": False, "break_long_words": False}
    lines = [" ".join(f"{key} {value}" for key, value in choice.items()) for choice in settings]
    return " \\\n".join(part for line in lines for part in textwrap.wrap(line, 78, **style))


def main(arguments: Sequence[str]) -> None:
    """Parse `arguments`, tune and print."""
    with open_command(build_parser(), arguments, needs={"TEST.WEIGHT": "the checkpoint to tune for"}) as command:
        args = command.args
        if not all(0 < tau <= 1 for tau in args.taus) or not all(0 <= share <= 1 for share in args.lambdas):
            raise UsageError("--taus lie above 0 and up to 1, --lambdas between 0 and 1")
        if min(args.k1 + args.k2) < 1:
            raise UsageError("--k1 and --k2 are at least 1")
        if min(args.shrinkages) <= 0 or min(args.dimensions) < 0 or not set(args.kinds) <= FITS.keys():
            raise UsageError(f"--shrinkages lie above 0, --dimensions are 0 or more, --kinds are of {', '.join(FITS)}")
        report = tune(command)
        if args.json:
            write_json(args.json, report)


if __name__ == "__main__":
    run(main)
