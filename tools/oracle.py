"""How far a perfect picture would take a network, and how much of that way fusion and common spaces go.

The oracle joins to each optical feature that of another SAR chip of the same ship, which is ranked nowhere: `<root>/spare` of
`tools.make_dataset --spare-views`, or `--spare`; else one SAR chip of each ship that has two or more in the gallery, which
then leaves the gallery. Rows beside it tell how much of a gain is no knowledge of the ship.

Legend: I images, S of them with a picture, K pictures of each, D feature width.
"""

import argparse
import itertools
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from configs.parser import add_spaces, answer_help, config_parser, list_of

TAUS = [0.0, 0.02, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]


def build_parser() -> argparse.ArgumentParser:
    """Build the command line."""
    parser = config_parser(
        "python -m tools.oracle",
        "How far perfect pictures would take a network, and how much of that way fusion and common spaces go.",
        "python -m tools.oracle --config_file configs/hoss_transoss.yml --store logs/samples \\\n"
        "      TEST.WEIGHT logs/hoss_transoss/best_model_mAP.pth",
        weights="TEST.WEIGHT",
    )
    parser.add_argument("--store", default="", metavar="DIR", help="generated samples of the test images, for the row 'fused'")
    parser.add_argument("--val-store", default="", metavar="DIR", help="those of the validation ships (DATASETS.VAL_FRACTION)")
    spare = "spare SAR views, laid out as generated samples ({}; where there is none, chips of the gallery)"
    parser.add_argument("--spare", type=Path, metavar="DIR", help=spare.format("<ROOT_DIR>/spare/test"))
    parser.add_argument("--val-spare", type=Path, metavar="DIR", help=spare.format("<ROOT_DIR>/spare/train"))
    parser.add_argument("--taus", type=list_of(float), default=TAUS, metavar="A,B", help="weights to try (0, 0.02, 0.1 to 1)")
    add_spaces(parser)
    parser.add_argument("--metric", default="mAP", choices=("mAP", "R1"), help="whose gap it is (mAP)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything there too")
    parser.add_argument("--verbose", action="store_true", help="say also what figures count, and how intervals are made")
    return parser


if __name__ == "__main__":
    answer_help(build_parser)

from torch import Tensor
from torch.nn import functional

from configs.command import Command, open_command
from datasets.catalogue import HossData, read_hoss
from datasets.loaders import build_chip_reading
from datasets.validation import build_training_data, build_validation_data
from processor.common_space import FITS, CommonSpace, build_space_chips, fit_chips
from processor.extraction import Extractor, build_extractor
from processor.fusion import SampleSet, count_movable, find_samples, fuse_images
from processor.ranking.comparison import METRICS, compare_outcomes, gap_closed
from processor.ranking.evaluation import Ranking, build_ranking, counting_line, unusual_line
from processor.ranking.intervals import PAIRED_METHOD
from processor.ranking.results import Outcome
from processor.ranking.tuning import Trial, choose, choose_on_other_ships, score_features
from processor.selection import UNKNOWN, selection_of
from processor.stand_ins import build_mean_drawing, draw_grey, find_spare_views, match_sizes, take_spare_views, write_stand_ins
from utils.cli import run
from utils.errors import UsageError
from utils.files import write_json
from utils.log import fold, progress, table


@dataclass(frozen=True)
class Candidate:
    """Features that a row may be ranked by; of a row with several, one is chosen.

    Attributes:
        features: (I, D) of the images, of any norm.
        sources: which of them have pictures.
        generated: (S, K, D) features of these pictures, which are tried at every tau; None without.
        setting: of the common space, by name; empty without one.
    """

    features: Tensor
    sources: Sequence[int] = ()
    generated: Tensor | None = None
    setting: Mapping[str, Any] = field(default_factory=dict)


RELEASED_TAU = 0.02
PLAIN, FUSED, ORACLE, OTHER_RADAR = "plain", "fused", "oracle: a spare SAR view", "oracle: a view by another radar"


def find_views(data: HossData, folder: Path | None) -> tuple[HossData, SampleSet, str]:
    """The data as it is ranked, its spare views, and a sentence that says where these come from."""
    if folder is not None:
        return data, find_spare_views(folder, data), f"spare SAR views: {folder}, of which none is ranked"
    ranked, samples = take_spare_views(data)
    taken = len({own[0].path for own in samples.chips})
    optical = len(samples.sources)
    told = f"spare SAR views: {taken} chips of the gallery, one of each ship that has two there, which are not ranked; "
    told += f"{optical} optical images have one, those of a ship the same, which flatters the oracle in ALL"
    return ranked, samples, told


def build_rows(cfg, extractor: Extractor, data: HossData, spare: SampleSet, store: str, args) -> dict[str, list[Candidate]]:
    """What is compared, by name, in the order of the table; the first is plain."""
    features = extractor.features(data.images, description="features")
    views, _ = extractor.samples(spare, description="features of spare views")
    rows, fused = {PLAIN: [Candidate(features)]}, None
    if store:
        found = find_samples(data.images, query_dir=store, gallery_dir=store, measured=cfg.TEST.GENERATED_SIZE == "file")
        fused = Candidate(features, found.sources, extractor.samples(found, description="features of samples")[0])
        rows[FUSED] = [fused]
    rows |= build_space_rows(cfg, extractor, data, fused or rows[PLAIN][0], args)
    rows[ORACLE] = [Candidate(features, spare.sources, views[:, :1])]
    if spare.per_image > 1:
        rows[OTHER_RADAR] = [Candidate(features, spare.sources, views[:, 1:2])]
    rows["another ship of that size"] = [Candidate(features, spare.sources, views[match_sizes(spare), :1])]
    training = build_training_data(cfg).train
    drawings = {
        "the optical picture in grey": draw_grey,
        "the mean SAR picture": build_mean_drawing(training, build_chip_reading(cfg), tuple(cfg.INPUT.SIZE_TEST)),
    }
    for name, draw in drawings.items():
        with tempfile.TemporaryDirectory() as folder:
            pictures = write_stand_ins(Path(folder), spare, draw)
            generated, _ = extractor.samples(pictures, description=f"features of {name}")
            rows[name] = [Candidate(features, spare.sources, generated)]
    return rows


def build_space_rows(cfg, extractor: Extractor, data: HossData, plain: Candidate, args) -> dict[str, list[Candidate]]:
    """A row for each kind of space, of all shrinkages and dimensions; with the pictures of `plain` one of those of cfg."""
    if not args.kinds:
        return {}
    chips, rows = build_space_chips(cfg), {}
    known = extractor.features(chips, description="features of training ships")
    modalities = [chip.modality for chip in data.images]
    configured = (cfg.TEST.COMMON_SPACE_SHRINKAGE, cfg.TEST.COMMON_SPACE_DIMENSIONS)
    for kind in args.kinds:
        grid = itertools.product(args.shrinkages, args.dimensions) if kind != "centre" else [configured]
        spaces = [fit_chips(kind, known, chips, shrinkage=share, dimensions=count) for share, count in grid]
        rows[f"common space: {kind}"] = [
            Candidate(space.map_images(plain.features, modalities), setting=_setting(space)) for space in spaces
        ]
        if plain.generated is not None:
            space = fit_chips(kind, known, chips, shrinkage=configured[0], dimensions=configured[1])
            mapped = space.map_images(plain.features, modalities)
            generated = space.map_samples(plain.generated)
            rows[f"common space: {kind}, fused"] = [Candidate(mapped, plain.sources, generated, _setting(space))]
    return rows


def _setting(space: CommonSpace) -> dict[str, Any]:
    return {} if space.kind == "centre" else {"shrinkage": space.shrinkage, "dimensions": space.dimensions}


def try_rows(
    data: HossData, rows: Mapping[str, Sequence[Candidate]], ranking: Ranking, taus: Sequence[float]
) -> dict[str, list[Trial]]:
    """Score each row: a trial for each candidate, and for each tau where it has pictures."""
    trials: dict[str, list[Trial]] = {name: [] for name in rows}
    every = [
        (name, own, tau)
        for name, candidates in rows.items()
        for own in candidates
        for tau in ([None] if own.generated is None else taus)
    ]
    with progress(len(every), "ranking", unit="trial") as bar:
        for name, own, tau in every:
            if tau is None:
                tried = functional.normalize(own.features) if ranking.normalise else own.features
            else:
                tried = fuse_images(own.features, own.generated, own.sources, tau=tau)
            scores = score_features(data.protocols, data.images, tried, ranking)
            trials[name].append(Trial({"tau": tau, **own.setting}, scores, 0.0))
            bar.update()
    return trials


def settle_rows(
    trials: Mapping[str, Sequence[Trial]], validating: Mapping[str, Sequence[Trial]] | None, protocol: str, metric: str
) -> dict[str, tuple[Mapping[str, Any], Sequence[Outcome]]]:
    """The setting of each row and the outcomes of its queries: as validation ships choose, else as queries of other ships do.

    Without validation ships the setting that is told is the one that all queries choose.
    """
    found = {}
    for name, own in trials.items():
        by = {"protocol": protocol, "metric": metric}
        if validating is None or protocol not in validating[name][0].scores:
            outcomes = choose_on_other_ships(own, **by)[protocol]
            found[name] = (choose(own, **by).setting, outcomes)
        else:
            place = validating[name].index(choose(validating[name], **by))
            found[name] = (own[place].setting, own[place].scores[protocol].per_query)
    return found


def report_rows(settled: Mapping[str, tuple[Mapping[str, Any], Sequence[Outcome]]], metric: str) -> list[dict[str, Any]]:
    """Figures of each row, its gain over plain and the gap that it closes, with their intervals: the table as JSON."""
    plain, goal = settled[PLAIN][1], settled[ORACLE][1]
    report = []
    for name, (setting, outcomes) in settled.items():
        compared = {rate: compare_outcomes(plain, outcomes, rate) for rate in METRICS}
        gain, closed = compared[metric].difference, gap_closed(plain, outcomes, goal, metric)
        entry = {"row": name, "setting": dict(setting), **{rate: found.second for rate, found in compared.items()}}
        entry |= {"gain": gain.mean, "gain_interval": gain.ends, "queries": gain.queries, "ships": gain.ships}
        entry |= {"gap_closed": closed and closed.mean, "gap_closed_interval": closed and closed.ends}
        report.append(entry)
    return report


def format_rows(report: Sequence[Mapping[str, Any]], protocol: str, metric: str) -> str:
    """The figures of a protocol, in percent, and below them the setting of each row and the gap that it closes."""
    lines, settings = [], []
    for row in report:
        rates, gain = [f"{100 * row[rate]:.1f}" for rate in METRICS], ["", ""]
        if row["row"] != PLAIN:
            gain = [f"{100 * row['gain']:+.1f}", _ends(row["gain_interval"], "+.1f")]
            closes = row["gap_closed"] is not None and row["row"] != ORACLE
            closed = [f"{100 * row['gap_closed']:.0f}", _ends(row["gap_closed_interval"], ".0f")] if closes else ["", ""]
            settings.append([row["row"], _told(row["setting"]), *closed])
        lines.append([row["row"], *rates, *gain])
    figures = table([protocol, *METRICS, f"gain, {metric}", "95 %"], lines)
    return f"{figures}\n\n{table([protocol, 'setting', 'gap closed, %', '95 %'], settings)}"


def _told(setting: Mapping[str, Any]) -> str:
    """Such as 'tau 0.3' or 'e 0.01, d 64': of a space shrinkage and dimensions."""
    short = {"shrinkage": "e", "dimensions": "d"}
    return ", ".join(f"{short.get(name, name)} {value:g}" for name, value in setting.items() if value is not None)


def _ends(ends: Sequence[float], style: str) -> str:
    return " .. ".join(f"{100 * end:{style}}" for end in ends)


def build_trials(
    cfg, extractor: Extractor, data: HossData, folders: Mapping[str, Any], ranking: Ranking, args: argparse.Namespace
) -> tuple[dict[str, list[Trial]], dict[str, int], str]:
    """The trials of all rows on some images, the queries that `RELEASED_TAU` could move, and where spare views come from.

    `folders` has 'spare' and 'store'.
    """
    ranked, spare, told = find_views(data, folders["spare"])
    rows = build_rows(cfg, extractor, ranked, spare, folders["store"], args)
    trials = try_rows(ranked, rows, ranking, args.taus)
    plain = functional.normalize(rows[PLAIN][0].features)
    of = {"images": ranked.images, "features": plain, "sources": spare.sources, "tau": RELEASED_TAU}
    return trials, {name: count_movable(protocol, **of) for name, protocol in ranked.protocols.items()}, told


def tell_gap(command: Command) -> dict[str, Any]:
    """Extract, rank, print the tables, and give what `--json` holds."""
    cfg, args, ranking = command.cfg, command.args, build_ranking(command.cfg, command.device)
    usual = {name: Path(cfg.DATASETS.ROOT_DIR, "spare", name) for name in ("train", "test")}
    usual = {name: folder if folder.is_dir() else None for name, folder in usual.items()}
    extractor = build_extractor(cfg, command.device, weights=cfg.TEST.WEIGHT, store=cfg.TEST.FEATURE_STORE)
    validating, chosen = None, "no validation ships: each query by the setting that queries of other ships choose"
    if fraction := cfg.DATASETS.VAL_FRACTION:
        folders = {"spare": args.val_spare or usual["train"], "store": args.val_store}
        validating, *_ = build_trials(cfg, extractor, build_validation_data(cfg), folders, ranking, args)
        chosen = f"settings chosen on validation ships, {fraction:g} of the training set, seed {cfg.SOLVER.SEED}"
    folders = {"spare": args.spare or usual["test"], "store": args.store}
    data = read_hoss(cfg.DATASETS.ROOT_DIR, train=False)
    trials, movable, told = build_trials(cfg, extractor, data, folders, ranking, args)
    selection = selection_of(command.description)
    doubts = selection.sentence() if selection else UNKNOWN
    method = f"95 %: {PAIRED_METHOD}; of the gap closed: of a ratio of means"
    rules = f"{counting_line(ranking)}\n{method}" if args.verbose else unusual_line(ranking)
    print(fold(f"{told}\n{chosen}\n{doubts}\n{rules}".rstrip(), sys.stdout))
    facts = {"spare": told, "choice": chosen, "weights": extractor.weights_sha256, "selection": doubts, "metric": args.metric}
    report = {}
    for protocol, score in trials[PLAIN][0].scores.items():
        report[protocol] = report_rows(settle_rows(trials, validating, protocol, args.metric), args.metric)
        share = f"{movable[protocol]} of {score.queries_counted} queries"
        print(f"\n{format_rows(report[protocol], protocol, args.metric)}")
        print(f"tau {RELEASED_TAU:g} can change the first rank of {share} at most")
    return {**facts, "protocols": report, "movable": movable}


def main(arguments: Sequence[str]) -> None:
    """Parse `arguments`, measure and print."""
    with open_command(build_parser(), arguments, needs={"TEST.WEIGHT": "the checkpoint to measure"}) as command:
        args, validates = command.args, bool(command.cfg.DATASETS.VAL_FRACTION)
        if not all(0 <= tau <= 1 for tau in args.taus):
            raise UsageError("--taus lie between 0 and 1")
        if not set(args.kinds) <= FITS.keys():
            raise UsageError(f"--kinds are of {', '.join(FITS)}")
        if validates and bool(args.store) != bool(args.val_store):
            raise UsageError("--store and --val-store go together: tau is chosen on the samples of validation ships")
        report = tell_gap(command)
        if args.json:
            write_json(args.json, report)


if __name__ == "__main__":
    run(main)
