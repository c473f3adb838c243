"""Compare results of the same queries: `python -m tools.compare A/results.json [B/results.json]`.

With two files, A and B are compared in every protocol, plain with plain and fused with fused; with one or two, each file's
plain figures are compared with its fused ones. A difference has a 95 % interval because it is taken query by query: it shows
far less than the two figures' own intervals seem to hide.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from configs.parser import answer_help


def build_parser() -> argparse.ArgumentParser:
    """Build the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.compare",
        description="Paired differences between results of the same queries, with 95 % intervals and the queries won and lost.",
        epilog="example:\n  python -m tools.compare logs/hoss_baseline/results.json logs/hoss_transoss/results.json",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("files", metavar="results.json", type=Path, nargs="+", help="A, or A and B, as test.py writes them")
    parser.add_argument("--names", type=int, default=10, metavar="N", help="how many names of queries to print a line (10)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the comparisons there too, with every name")
    return parser


if __name__ == "__main__":
    answer_help(build_parser)

from processor.common_space import space_sentence
from processor.ranking.comparison import METRICS, Comparison, compare_outcomes
from processor.ranking.intervals import PAIRED_METHOD
from processor.ranking.results import KINDS, Results, Score, read_results
from utils.checkpoint import sha256
from utils.cli import run
from utils.errors import DataError
from utils.files import write_json
from utils.log import table

COUNTED = ("same_modality_gallery", "queries_without_match", "distractors")
"""Rules that decide what is counted: files that differ in them are refused."""

NAMED = {"query_expansion": "query expansion", "reranking": "re-ranking"}
"""Rules whose effect a comparison may be about: where they differ it is said."""

File = tuple[Path, Results]


Comparisons = dict[tuple[str, str, str], Comparison]
"""Protocol, the two sides in words, figure -> comparison."""


def compare_files(*files: File) -> Comparisons:
    """Every protocol and kind that two files both have.

    Raises:
        DataError: they have none in common, other queries, other galleries, or count by other rules.
    """
    (first, ours), (second, theirs) = files
    for rule in COUNTED:
        if ours.counting.get(rule) != theirs.counting.get(rule):
            advice = f"test both with the same TEST.{rule.upper()}" if rule == COUNTED[0] else "test again with one version"
            raise DataError(f"{first} and {second} count differently: {rule} is not the same in both; {advice}")
    common = [key for key in ours.scores if key in theirs.scores]
    if not common:
        raise DataError(f"{first} and {second} have no protocol in common; compare tests of the same data set")
    found: Comparisons = {}
    for protocol, kind in common:
        scores = ours.scores[protocol, kind], theirs.scores[protocol, kind]
        found |= _compare(protocol, f"{kind}: A to B", *scores, f"{first} and {second}")
        if scores[0].gallery != scores[1].gallery:
            raise DataError(
                f"{protocol} has {scores[0].gallery} gallery images in {first} and {scores[1].gallery} in {second}; "
                "compare tests of the same data set"
            )
    return found


def compare_kinds(path: Path, results: Results, name: str) -> Comparisons:
    """Plain with fused figures of one file, where it has both."""
    found: Comparisons = {}
    for protocol, evaluation in results.protocols.items():
        if evaluation.fused is not None:
            found |= _compare(protocol, f"{name}: {' to '.join(KINDS)}", evaluation.plain, evaluation.fused, str(path))
    return found


def _compare(protocol: str, sides: str, first: Score, second: Score, files: str) -> Comparisons:
    pair = first.per_query, second.per_query
    try:
        return {(protocol, sides, metric): compare_outcomes(*pair, metric) for metric in METRICS}
    except DataError as error:
        raise DataError(f"{files}, {protocol}: {error}") from error
    except ValueError as error:
        raise DataError(f"{files}, {protocol}: {error} in both, so nothing can be compared") from error


def comparison_table(comparisons: Comparisons) -> str:
    """The comparisons as text, in percent and points."""
    rows = []
    for of, found in comparisons.items():
        interval = found.difference
        figures = [f"{100 * found.first:.1f}", f"{100 * found.second:.1f}", f"{100 * interval.mean:+.1f}"]
        ends = f"{100 * interval.low:+.1f} .. {100 * interval.high:+.1f}"
        rows.append([*of, *figures, ends, len(found.won), len(found.lost), interval.queries, found.verdict])
    headers = ["protocol", "", "", "first", "second", "difference", "95 %", "won", "lost", "queries", "second is"]
    return table(headers, rows)


def names_text(comparisons: Comparisons, limit: int) -> str:
    """The queries whose first image became right or wrong, by name."""
    told = []
    for (protocol, sides, metric), found in comparisons.items():
        if metric == "R1":
            for word, names in (("won", found.won), ("lost", found.lost)):
                more = f" and {len(names) - limit} more" if len(names) > limit else ""
                told += [f"{protocol}, {sides}, R1 {word}: {', '.join(names[:limit])}{more}"] if names else []
    return "\n".join(told)


def comparison_list(comparisons: Comparisons) -> list[dict[str, Any]]:
    """The comparisons for JSON, every name included."""
    return [
        {
            **dict(zip(("protocol", "sides", "metric"), of)),
            "first": found.first,
            "second": found.second,
            "difference": found.difference.mean,
            "interval": found.difference.ends,
            "method": PAIRED_METHOD,
            "won": found.won,
            "lost": found.lost,
        }
        for of, found in comparisons.items()
    ]


def notes(files: Sequence[File]) -> list[str]:
    """What a reader should know of the files."""
    told = [f"{name}: {path}" for name, (path, _) in zip("AB", files)]
    for name, (_, results) in zip("AB", files):
        if results.selection and results.selection.split == "test":
            told.append(f"{name}'s weights were chosen on the test split, whose figures flatter them")
    for name, (path, results) in zip("AB", files):
        beside = path.parent / Path(results.weights["path"]).name
        if beside.is_file() and sha256(beside) != results.weights["sha256"]:
            told.append(f"{name} is of other weights than {beside}, which lies beside it: test again")
    for rule, words in NAMED.items():
        values = [results.counting.get(rule) for _, results in files]
        if any(value != values[0] for value in values):
            sides = (f"{name}'s {_options(value)}" for name, value in zip("AB", values))
            told.append(f"figures differ by {words} too: {' and '.join(sides)}")
    spaces = [results.common_space for _, results in files]
    if any(space != spaces[0] for space in spaces):
        own = "features are compared as they are"
        sides = (f"{name}'s {space_sentence(space) if space else own}" for name, space in zip("AB", spaces))
        told.append(f"figures differ by the space too: {' and '.join(sides)}")
    if len({results.data["sha256"] for _, results in files}) > 1:
        told.append("the test images of A and B are not the same files, or not in the same order")
    return told


def _options(value: Mapping[str, Any] | None) -> str:
    return "with " + ", ".join(f"{name} {number:g}" for name, number in value.items()) if value else "without"


def main(arguments: Sequence[str]) -> None:
    """Read the files, compare, print and perhaps write."""
    parser = build_parser()
    args = parser.parse_args(arguments)
    if args.names < 1:
        parser.error("--names is at least 1")
    if len(args.files) > 2:
        parser.error(f"{len(args.files)} files are given; compare one or two")
    files = [(path, read_results(path)) for path in args.files]
    found = compare_files(*files) if len(files) == 2 else {}
    for name, (path, results) in zip("AB", files):
        found |= compare_kinds(path, results, name)
    if not found:
        raise DataError(f"{args.files[0]} has no fused figures to compare its plain ones with; give a second results.json")
    for text in (*notes(files), "", comparison_table(found), f"95 %: {PAIRED_METHOD}", names_text(found, args.names)):
        print(text)
    if args.json:
        write_json(args.json, comparison_list(found))


if __name__ == "__main__":
    run(main)
