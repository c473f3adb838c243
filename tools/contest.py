"""From a table of labelled chips and a test without labels to prediction.json: import, train, choose on validation ships, fuse.

Every model is trained on the training ships, its best weights and whether it re-ranks are chosen on the validation ships, and
the rankings of all models are fused. What is finished is not done again: started anew, the command goes on where it stood.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from configs.parser import answer_help


def build_parser() -> argparse.ArgumentParser:
    """Build the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.contest",
        description="From a table of labelled chips and a test without labels to prediction.json.",
        epilog="example:\n  python -m tools.contest --csv train.csv --query test/query --gallery test/gallery \\\n"
        "      --config configs/hoss_transoss.yml --config configs/sdf_net.yml --seeds 1,2 --output logs/contest \\\n"
        "      SOLVER.IMS_PER_BATCH auto",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--csv", type=Path, required=True, metavar="FILE", help="labelled chips (tools.import_dataset)")
    parser.add_argument("--images", type=Path, metavar="DIR", help="folder that its paths start from (that of the table)")
    parser.add_argument("--column", action="append", default=[], metavar="OURS=THEIRS", help="as of tools.import_dataset")
    parser.add_argument("--query", type=Path, required=True, metavar="DIR", help="the test's queries: a folder or a CSV")
    parser.add_argument("--gallery", type=Path, required=True, metavar="DIR", help="and its gallery")
    parser.add_argument("--config", action="append", required=True, metavar="FILE", help="of a model; again for each")
    parser.add_argument("--seeds", default="1", metavar="LIST", help="each model once for each, such as 1-3 (1)")
    parser.add_argument("--validation", type=float, default=0.15, metavar="SHARE", help="of the ships, to choose by (0.15)")
    parser.add_argument("--top-k", type=int, default=0, metavar="K", help="length of each list; 0: the whole gallery (0)")
    parser.add_argument("--skip-bad", action="store_true", help="go on without files that cannot be read (exit status 1)")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder of data, models and prediction.json")
    parser.add_argument("overrides", metavar="KEY VALUE", nargs="*", help="settings of every model")
    return parser


if __name__ == "__main__":
    answer_help(build_parser)

import csv
import io

from configs.loading import load_cfg
from processor.ranking.comparison import Comparison, compare_outcomes
from processor.ranking.results import Score, read_results
from tools.fuse_results import check_queries, fuse_rankings, read_rankings
from tools.repeat import parse_seeds
from utils.checkpoint import sha256
from utils.children import run_child
from utils.cli import run
from utils.errors import DataError, UsageError
from utils.files import write_json, write_text
from utils.lock import own_folder
from utils.log import setup_logging, table
from utils.reading import read_json, read_text
from utils.tables import read_cell

ROOT = Path(__file__).parent.parent
LOOKS = ["TEST.FLIP", "True"]
"""How every chip is looked at: with its mirror image."""

WEIGHTS = "best_model_mAP.pth"
HEADERS = ["model", "validation mAP", "R1", "re-ranked mAP", "change (95 %)", "taken"]


@dataclass(frozen=True)
class Contestant:
    """A model of the contest.

    Attributes:
        name: of its folder.
        folder: of all that it leaves.
        words: its configuration as the command line has it, without data and output.
    """

    name: str
    folder: Path
    words: tuple[str, ...]


def list_contestants(args: argparse.Namespace) -> list[Contestant]:
    """Each configuration with each seed.

    Raises:
        UsageError: a configuration that cannot be read, or two files of one name.
    """
    found = []
    for config in args.config:
        load_cfg(config, args.overrides)  # what is wrong with it is said before any work
        for seed in parse_seeds(args.seeds):
            name = f"{Path(config).stem}_{seed}"
            words = ("--config_file", str(config), *args.overrides, "SOLVER.SEED", str(seed))
            found.append(Contestant(name, args.output / name, words))
    names = [one.name for one in found]
    if repeated := [name for name in names if names.count(name) > 1]:
        raise UsageError(f"two --config files are called {repeated[0].rpartition('_')[0]}; rename one")
    return found


def start_program(program: str, *words: object, may_skip: bool = False) -> bool:
    """Run a program of this repository; returns whether it did all, False only where `may_skip` says that it need not.

    Raises:
        DataError: it failed.
    """
    start = [str(ROOT / program)] if program.endswith(".py") else ["-m", program]
    status = run_child([*start, *map(str, words)])
    if status and not (may_skip and status == 1):
        raise DataError(f"{program} ended with status {status}; see above, then start again to go on from there")
    return status == 0


def import_chips(args: argparse.Namespace) -> bool:
    """Bring the chips into HOSS layout, once; returns whether all could be read."""
    data = args.output / "data"
    if data.is_dir():
        return True
    words = ["--csv", args.csv, "--query", args.query, "--gallery", args.gallery, "--validation", args.validation]
    words += ["--images", args.images] if args.images else []
    words += [word for column in args.column for word in ("--column", column)] + ["--skip-bad"] * args.skip_bad
    whole = start_program("tools.import_dataset", *words, "--output", data, may_skip=args.skip_bad)
    if not data.is_dir():
        raise DataError("tools.import_dataset wrote nothing; see above")
    return whole


def train_and_choose(one: Contestant, data: Path) -> tuple[list[str], list[object]]:
    """Train a model and see whether re-ranking pays on the validation ships.

    Returns:
        The settings that its test takes, and its row of `HEADERS`.
    """
    root = ["DATASETS.ROOT_DIR", data / "validation"]
    trained = one.folder / "trained.json"  # the words and the weights of a training that is finished
    if not (trained.is_file() and read_json(trained)["words"] == list(one.words)):
        start_program("train.py", *one.words, *root, "OUTPUT_DIR", one.folder, "SOLVER.RESUME", "auto")
        write_json(trained, {"words": list(one.words), "sha256": sha256(one.folder / WEIGHTS)})
    scores = {}
    for kind, ranks in (("plain", "False"), ("reranked", "True")):
        path = one.folder / kind / "results.json"
        if not (path.is_file() and read_results(path).weights["sha256"] == read_json(trained)["sha256"]):
            told = ["TEST.RE_RANKING", ranks, "TEST.FEATURE_STORE", one.folder / "features", "TEST.REPORT", "False"]
            told += ["OUTPUT_DIR", one.folder / kind, "TEST.WEIGHT", one.folder / WEIGHTS]
            start_program("test.py", *one.words, *root, *LOOKS, *told)
        scores[kind] = read_results(path).protocols["ALL"].plain
    change = compare_outcomes(scores["plain"].per_query, scores["reranked"].per_query, "mAP")
    return choose_ranking(one.name, scores["plain"], change)


def choose_ranking(name: str, plain: Score, change: Comparison) -> tuple[list[str], list[object]]:
    """Settings and row of a model: it re-ranks only where the interval of the change lies above zero."""
    pays = change.verdict == "better"
    interval = f"{100 * change.difference.mean:+.1f} ({change.difference.percent()})"
    row = [
        name,
        f"{100 * plain.mAP:.1f} ({plain.mAP_interval.percent()})",
        f"{100 * plain.R1:.1f}",
        f"{100 * change.second:.1f}",
    ]
    return ["TEST.RE_RANKING", str(pays)], [*row, interval, "re-ranked" if pays else "plain"]


def read_image_ids(data: Path) -> dict[str, dict[str, str]]:
    """'query' and 'gallery' -> file name of an unlabelled chip -> what the contest calls it."""
    found: dict[str, dict[str, str]] = {"query": {}, "gallery": {}}
    for row in csv.DictReader(io.StringIO(read_text(data / "images.csv"), newline="")):
        place = Path(read_cell(row["file"]))
        if place.parts[0] == "unlabelled":
            found[place.parts[1]][place.name] = read_cell(row["image_id"])
    return found


def main(arguments: Sequence[str]) -> None:
    """Parse `arguments`, and do what is not done yet."""
    setup_logging()
    args = build_parser().parse_intermixed_args(arguments)
    if args.top_k < 0 or not 0 < args.validation < 1:
        raise UsageError("--top-k is a length or 0, --validation a share of the ships between 0 and 1")
    contestants, data = list_contestants(args), args.output / "data"
    args.output.mkdir(parents=True, exist_ok=True)
    with own_folder(args.output):
        whole, rows, files = import_chips(args), [], {}
        for one in contestants:
            settings, row = train_and_choose(one, data)
            rows.append(row)
            sides = ["--query", data / "unlabelled" / "query", "--gallery", data / "unlabelled" / "gallery"]
            words = [*one.words, *LOOKS, *settings, "--weights", one.folder / WEIGHTS]
            start_program("tools.rank", *words, *sides, "--output", one.folder / "ranking")
            path = one.folder / "ranking" / "prediction.json"
            files[path] = read_rankings(path)
        check_queries(files)
        names, told = read_image_ids(data), {}
        for query, places in fuse_rankings(list(files.values())).items():
            told[names["query"][query]] = [names["gallery"][found] for found, _ in places[: args.top_k or None]]
        write_json(args.output / "prediction.json", told)
        write_text(args.output / "contest.md", table(HEADERS, rows, "pipe") + "\n")
        print(table(HEADERS, rows))
        print(f"{args.output / 'prediction.json'}: {len(told)} queries, the rankings of {len(files)} model(s) fused")
    if not whole:
        raise DataError("some files were skipped (listed above); everything else was done")


if __name__ == "__main__":
    run(main)
