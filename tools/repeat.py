"""Train and test with several seeds: `python -m tools.repeat --config_file FILE --seeds 0-4 [KEY VALUE ...]`.

Each seed has its own folder `<OUTPUT_DIR>/seed_<N>`, trained and tested by train.py and test.py in processes of their own. What
is finished is not done again, and a training that stopped goes on from its last.pth. `<OUTPUT_DIR>/repeat.md` and repeat.json
then hold the figures of each seed, their mean and deviation, and one interval for the mean.
"""

import argparse
import logging
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from configs.parser import answer_help, config_parser

BEST_WEIGHTS = {"best": "best_model_mAP.pth", "best_rank1": "best_model_rank1.pth"}
"""--checkpoint -> file of a run; the published checkpoint of MOS is one of the best R1."""


def build_parser() -> argparse.ArgumentParser:
    """Build the command line."""
    parser = config_parser(
        "python -m tools.repeat",
        "Train and test with several seeds; tell mean, deviation and one interval. Started again, it goes on.",
        "python -m tools.repeat --config_file configs/hoss_transoss.yml --seeds 0-4 OUTPUT_DIR logs/five",
    )
    parser.add_argument("--seeds", default="0-4", metavar="LIST", help="such as 0-4 or 1,5,7 (0-4)")
    parser.add_argument(
        "--checkpoint",
        choices=(*BEST_WEIGHTS, "last"),
        help="weights to test: best_model_mAP.pth, best_model_rank1.pth (as MOS published), or the last epoch's (best with "
        "DATASETS.VAL_FRACTION, else last, since the best would be chosen on the test split)",
    )
    return parser


if __name__ == "__main__":
    answer_help(build_parser)

import numpy as np
import yaml
from yacs.config import CfgNode

from configs.command import open_command
from configs.loading import get_value
from datasets.catalogue import read_hoss
from processor.feature_store import hash_files, hash_text
from processor.ranking.comparison import METRICS
from processor.ranking.intervals import METHOD, Interval, mean_interval
from processor.ranking.results import Results, read_results, results_path
from processor.selection import UNKNOWN
from utils.checkpoint import load, sha256
from utils.children import run_child
from utils.cli import run
from utils.errors import CheckpointError, DataError, UsageError, shorten
from utils.files import write_json, write_text
from utils.log import table
from utils.reading import parse_yaml, read_json, read_text

logger = logging.getLogger(__name__)

ROOT = Path(__file__).parent.parent
MOST_SEEDS = 1000
OF_TESTS = ("TEST.", "BBDM.", "SOLVER.RESUME", "DATASETS.QUERY_ADD_DIR", "DATASETS.GALLERY_ADD_DIR", "DATALOADER.NUM_WORKERS")
"""Starts of keys that a training does not depend on."""

OWN = {"SOLVER.SEED": None, "SOLVER.RESUME": "", "TEST.WEIGHT": ""}
"""Keys that every seed has of its own -> what the configuration of all seeds must hold; None: anything."""


def parse_seeds(text: str) -> list[int]:
    """'0-4', '1,5' or '0-2,7' -> seeds.

    Raises:
        UsageError: no such list, or a seed twice.
    """
    seeds: list[int] = []
    try:
        for part in text.split(","):
            first, dash, last = part.partition("-")
            low, high = int(first), int(last if dash else first)
            if not 0 <= low <= high < low + MOST_SEEDS:
                raise ValueError(part)
            seeds += range(low, high + 1)
    except ValueError as error:
        raise UsageError(f"--seeds cannot be {text!r}; it is a list such as 0-4 or 1,5,7") from error
    if not seeds or len(set(seeds)) < len(seeds):
        raise UsageError(f"--seeds {text} names no seed, or one twice; it is a list such as 0-4 or 1,5,7")
    return seeds


def start(program: str, arguments: Sequence[str]) -> int:
    """Run a program of this repository with this Python and wait for it; returns its exit status."""
    return run_child([str(ROOT / program), *arguments])


def run_seed(cfg, options: Sequence[str], folder: Path, seed: int, checkpoint: str) -> Results:
    """Train and test one seed as far as that is not done.

    Args:
        cfg: the configuration of all seeds.
        options: of the command line that lead to it.
        folder: of this seed.
        seed: SOLVER.SEED.
        checkpoint: one of `BEST_WEIGHTS`, or 'last'.

    Raises:
        DataError: the folder holds a run of other settings, or a program failed.
    """
    own = [*options, "SOLVER.SEED", str(seed), "OUTPUT_DIR", str(folder)]
    _refuse_other_run(cfg, folder, seed)
    last = folder / "last.pth"
    done = _epochs(last)
    if done < cfg.SOLVER.MAX_EPOCHS:
        logger.info("seed %d: training%s", seed, f" goes on after epoch {done}" if done else "")
        _call("train.py", [*own, "SOLVER.RESUME", "auto"], seed)
    name = BEST_WEIGHTS.get(checkpoint, f"{cfg.MODEL.NAME}_{cfg.SOLVER.MAX_EPOCHS}.pth")
    weights = folder / name
    if not weights.is_file():
        raise DataError(f"{weights} is missing although the training is done; remove {folder} to train this seed again")
    path = results_path(folder, path=weights, sha256=sha256(weights))
    if not _is_tested(cfg, path, weights):
        logger.info("seed %d: testing %s", seed, weights)
        _call("test.py", [*own, "TEST.WEIGHT", str(weights)], seed)
        write_json(folder / "tested.json", _test_settings(cfg))
    return read_results(path)


def _call(program: str, arguments: Sequence[str], seed: int) -> None:
    status = start(program, arguments)
    if status:
        raise DataError(f"{program} of seed {seed} ended with status {status}; see above, then start again to go on from there")


def _refuse_other_run(cfg, folder: Path, seed: int) -> None:
    """Refuse a folder that was trained with other settings; what only tests depend on may differ."""
    path = folder / "config.yml"
    if not path.is_file():
        return
    try:
        before, now = (_training_settings(parse_yaml(text)[0]) for text in (read_text(path), cfg.dump()))
    except (ValueError, AttributeError) as error:
        raise DataError(f"{path} is no config.yml of a run ({shorten(str(error), 100)}); name a new OUTPUT_DIR") from error
    now["SOLVER.SEED"] = seed
    different = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
    if different:
        told = ", ".join(f"{key} {before.get(key)!r} instead of {now.get(key)!r}" for key in different[:3])
        raise DataError(f"{folder} holds a run of other settings ({told}); name a new OUTPUT_DIR, or remove the folder")


def _training_settings(content: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    keys = {
        f"{section}.{key}": value for section, node in content.items() if isinstance(node, dict) for key, value in node.items()
    }
    return {key: value for key, value in keys.items() if not key.startswith(OF_TESTS)}


def _test_settings(cfg) -> dict[str, Any]:
    """What a test depends on beside the training: kept beside results.json."""
    content = yaml.safe_load(cfg.dump())
    test = {key: value for key, value in content["TEST"].items() if key not in ("WEIGHT", "FEATURE_STORE")}
    return {"TEST": test, "DATASETS": content["DATASETS"]}


def _epochs(last: Path) -> int:
    """Epochs that a last.pth has behind it; 0 where there is none, or none that can be read."""
    try:
        return int(load(last)["epoch"]) if last.is_file() else 0
    except (CheckpointError, LookupError, TypeError, ValueError) as error:
        logger.warning("%s tells no epoch: %s", last, error)
        return 0


def _is_tested(cfg, path: Path, weights: Path) -> bool:
    """Whether results.json is of these weights, settings and images."""
    if cfg.DATASETS.QUERY_ADD_DIR or cfg.DATASETS.GALLERY_ADD_DIR:
        return False  # which samples it was made with is not told
    try:
        tested = read_json(path.parent / "tested.json")
        results = read_results(path)
        images = [record.path for record in read_hoss(cfg.DATASETS.ROOT_DIR, train=False).images]
        return (
            tested == _test_settings(cfg)
            and results.weights["sha256"] == sha256(weights)
            and results.data["sha256"] == hash_text(hash_files(images))
        )
    except (OSError, ValueError, LookupError, TypeError, DataError):
        return False


@dataclass(frozen=True)
class Summary:
    """A figure over seeds.

    Attributes:
        protocol, kind, metric: which figure.
        values: of each seed, 0..1, in the order of the seeds.
        deviation: sample standard deviation over the seeds; None for one seed.
        interval: of the mean: each query's value is its mean over the seeds, and ships are what a new test would draw anew.
    """

    protocol: str
    kind: str
    metric: str
    values: tuple[float, ...]
    deviation: float | None
    interval: Interval


def summarise(results: Sequence[Results]) -> list[Summary]:
    """Every figure that all seeds have.

    Raises:
        DataError: the seeds were tested on different images.
    """
    if len({own.data["sha256"] for own in results}) > 1:
        paths = " and ".join(own.weights["path"] for own in results)
        raise DataError(f"{paths} were tested on different test images; test all seeds on the same data")
    summaries = []
    for of in results[0].scores:
        if not all(of in own.scores for own in results):
            continue
        outcomes = [own.scores[of].per_query for own in results]
        ships = [outcome.ship for outcome in outcomes[0]]
        for metric, value in METRICS.items():
            figures = np.array([[value(outcome) for outcome in own] for own in outcomes])
            values = tuple(np.nanmean(figures, axis=1).tolist())
            deviation = statistics.stdev(values) if len(values) > 1 else None
            summaries.append(Summary(*of, metric, values, deviation, mean_interval(figures.mean(axis=0), ships)))
    return summaries


def report_text(summaries: Sequence[Summary], facts: Mapping[str, Any]) -> str:
    """The report as Markdown: figures in percent, then what they were made with."""
    seeds, environment, own = facts["seeds"], facts["environment"], facts["counting"]["same_modality_gallery"]
    headers = ["protocol", "", "", *(f"seed {seed}" for seed in seeds), "mean", "deviation", "95 %"]
    rows = [
        [
            *(found.protocol, found.kind, found.metric),
            *(f"{100 * value:.1f}" for value in (*found.values, found.interval.mean)),
            "" if found.deviation is None else f"{100 * found.deviation:.1f}",
            f"{100 * found.interval.low:.1f} .. {100 * found.interval.high:.1f}",
        ]
        for found in summaries
    ]
    packages = ", ".join(f"{name} {version}" for name, version in environment["packages"].items())
    about = [
        f"{len(seeds)} seeds ({', '.join(map(str, seeds))}). Deviation: between seeds. 95 %: of the mean over seeds, for other "
        f"ships ({METHOD}); what other seeds would add is not in it: the deviation tells that.",
        "",
        f"* {facts['chosen']}",
        f"* counting: own modality {'in' if own else 'out of'} the gallery, queries without a match left out",
        f"* test images: {facts['data']['images']}, SHA-256 {facts['data']['sha256']}",
        *(f"* seed {seed}: weights SHA-256 {digest}" for seed, digest in zip(seeds, facts["weights"])),
        f"* commit {environment['commit']}, {environment['device_name']}, Python {environment['python']}, {packages}",
    ]
    return "\n".join(["# Repeated runs", "", table(headers, rows, "pipe"), "", *about, ""])


def describe(cfg, seeds: Sequence[int], results: Sequence[Results]) -> dict[str, Any]:
    """What the figures were made with."""
    chosen = [own.selection.sentence() if own.selection else UNKNOWN for own in results]
    return {
        "seeds": list(seeds),
        "chosen": "; ".join(dict.fromkeys(chosen)),
        "counting": results[0].counting,
        "data": results[0].data,
        "weights": [own.weights["sha256"] for own in results],
        "environment": results[0].environment,
        "config": cfg.dump(),
    }


def refuse_own_keys(cfg: CfgNode, args: argparse.Namespace) -> None:
    """Refuse keys that differ from seed to seed."""
    for key, needed in OWN.items():
        if key in args.overrides[::2]:
            raise UsageError(f"{key} is this tool's own to set; leave it out")
        value = get_value(cfg, key)
        if needed is not None and value != needed:
            raise UsageError(f"{key} is {value!r} in {args.config_file}; every seed has its own, so leave it empty")


def main(arguments: Sequence[str]) -> None:
    """Parse `arguments`, run every seed and write the report."""
    with open_command(build_parser(), arguments, writes=True) as command:
        args, cfg, folder = command.args, command.cfg, command.folder
        seeds = parse_seeds(args.seeds)
        refuse_own_keys(cfg, args)
        options = [*(["--config_file", args.config_file] if args.config_file else []), *args.overrides]
        checkpoint = args.checkpoint or ("best" if cfg.DATASETS.VAL_FRACTION else "last")
        results = [run_seed(cfg, options, folder / f"seed_{seed}", seed, checkpoint) for seed in seeds]
        summaries, facts = summarise(results), describe(cfg, seeds, results)
        figures = [{**asdict(found), "mean": found.interval.mean} for found in summaries]
        write_json(folder / "repeat.json", {"figures": figures, "method": METHOD, **facts})
        text = report_text(summaries, facts)
        write_text(folder / "repeat.md", text)
        print(text)


if __name__ == "__main__":
    run(main)
