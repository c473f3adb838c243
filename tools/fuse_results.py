"""Fuse the rankings of several models into one, by reciprocal ranks.

Reads what `tools.rank` writes, ranking.csv or prediction.json, and writes both of the fused lists. Distances of different
models have different scales, so only ranks count (Cormack, Clarke and Buettcher 2009, "Reciprocal Rank Fusion").
"""

import argparse
import csv
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from configs.parser import answer_help

CONSTANT = 60
"""The constant of the paper: how little the first places count more than the next ones."""


def build_parser() -> argparse.ArgumentParser:
    """Build the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.fuse_results",
        description="Fuse the rankings of several models into one, by reciprocal ranks.",
        epilog="example:\n  python -m tools.fuse_results logs/a/ranking.csv logs/b/ranking.csv logs/c/prediction.json \\\n"
        "      --output logs/fused",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE", help="ranking.csv or prediction.json of tools.rank")
    parser.add_argument(
        "--constant", type=float, default=CONSTANT, metavar="C", help=f"a rank counts 1 / (C + rank) ({CONSTANT})"
    )
    parser.add_argument("--top-k", type=int, default=0, metavar="K", help="length of each list; 0 for all (0)")
    parser.add_argument("--output", type=Path, default=Path("fused"), metavar="DIR", help="folder of the results (fused)")
    return parser


if __name__ == "__main__":
    answer_help(build_parser)

from utils.cli import run
from utils.errors import DataError, UsageError, shown, some
from utils.files import write_json, write_text
from utils.lock import own_folder
from utils.reading import parse_json, read_text
from utils.tables import csv_text, read_cell

Rankings = Mapping[str, Sequence[str]]
"""Query file name -> gallery file names, nearest first."""


def read_rankings(path: Path) -> Rankings:
    """Read a ranking.csv or prediction.json.

    Raises:
        DataError: the file is missing, is neither, holds no query or a gallery picture twice for one query.
    """
    try:
        text = read_text(path, encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}; give a ranking.csv or prediction.json of tools.rank") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is no UTF-8 text; give a ranking.csv or prediction.json of tools.rank") from error
    rankings = _parse_json(path, text) if path.suffix.lower() == ".json" else _parse_csv(path, text)
    if not rankings:
        raise DataError(f"{path} holds no query; write it anew with tools.rank")
    for query, names in rankings.items():
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise DataError(f"{path} ranks {some([twice])} twice for {some([query])}; each picture has one place")
    return rankings


def _parse_json(path: Path, text: str) -> dict[str, list[str]]:
    try:
        content: Any = parse_json(text)
    except ValueError as error:
        raise DataError(f"{path} is not valid JSON ({error}); write it anew with tools.rank") from error
    lists = list(content.values()) if isinstance(content, dict) else [None]
    if not all(isinstance(names, list) and all(isinstance(name, str) for name in names) for names in lists):
        raise DataError(f"{path} is no prediction.json, which maps each query's file name to a list of gallery file names")
    return content


def _parse_csv(path: Path, text: str) -> dict[str, list[str]]:
    reader = csv.DictReader(io.StringIO(text, newline=""))
    ranked: dict[str, list[tuple[int, str]]] = {}
    try:
        if not {"query", "rank", "gallery"} <= set(reader.fieldnames or ()):
            raise DataError(f"{path} is no ranking.csv, which has columns query, rank and gallery")
        for row in reader:
            if None in (row["query"], row["gallery"]) or not re.fullmatch(r"\d{1,9}", row["rank"] or "", re.ASCII):
                raise DataError(f"{path}, line {reader.line_num}: the rank is {shown(row['rank'])}, not a whole number")
            ranked.setdefault(read_cell(row["query"]), []).append((int(row["rank"]), read_cell(row["gallery"])))
    except csv.Error as error:
        raise DataError(f"{path} is no CSV file ({error}); write it anew with tools.rank") from error
    return {query: [name for _, name in sorted(places, key=lambda place: place[0])] for query, places in ranked.items()}


def check_queries(files: Mapping[Path, Rankings]) -> None:
    """Refuse files that rank different queries.

    Raises:
        DataError: a query that a file lacks.
    """
    first, *others = files
    for other in others:
        for one, two in ((first, other), (other, first)):
            missing = sorted(files[one].keys() - files[two].keys())
            if missing:
                raise DataError(
                    f"{two} does not rank {missing[0]}, which {one} does ({len(missing)} such queries); rank all alike"
                )


def fuse_rankings(sources: Sequence[Rankings], *, constant: float = CONSTANT) -> dict[str, list[tuple[str, float]]]:
    """Sum 1 / (constant + rank) over the sources; a picture that a source does not rank gets nothing from it.

    Args:
        sources: of the same queries.
        constant: 0 or more; the larger, the less the first places outweigh the next ones.

    Returns:
        Query -> (gallery file name, score), highest score first; of equal scores the one that comes first in the first source.
    """
    fused = {}
    for query in sources[0]:
        scores: dict[str, float] = {}
        for source in sources:
            for rank, name in enumerate(source[query], start=1):
                scores[name] = scores.get(name, 0.0) + 1 / (constant + rank)
        fused[query] = sorted(scores.items(), key=lambda item: -item[1])  # stable: names are in order of appearance
    return fused


def format_csv(fused: Mapping[str, Sequence[tuple[str, float]]]) -> str:
    """The lists as a CSV, one line for each query and rank."""
    rows = [
        [query, rank, name, f"{score:.6g}"]
        for query, places in fused.items()
        for rank, (name, score) in enumerate(places, start=1)
    ]
    return csv_text(["query", "rank", "gallery", "score"], rows)


def main(arguments: Sequence[str]) -> None:
    """Parse `arguments`, fuse and write."""
    args = build_parser().parse_args(arguments)
    if len(set(args.files)) < 2 or len(set(args.files)) < len(args.files):
        raise UsageError("name two or more files, each once; one ranking alone has nothing to be fused with")
    if not 0 <= args.constant < float("inf"):
        raise UsageError(f"--constant is {args.constant}; take a number of 0 or more")
    if args.top_k < 0:
        raise UsageError(f"--top-k is {args.top_k}; take a length, or 0 for all")
    files = {path: read_rankings(path) for path in args.files}
    check_queries(files)
    fused = {
        query: places[: args.top_k or None]
        for query, places in fuse_rankings(list(files.values()), constant=args.constant).items()
    }
    with own_folder(args.output):
        write_text(args.output / "ranking.csv", format_csv(fused))
        write_json(args.output / "prediction.json", {query: [name for name, _ in places] for query, places in fused.items()})
    print(f"{len(fused)} queries fused from {len(files)} files: {args.output}")


if __name__ == "__main__":
    run(main)
