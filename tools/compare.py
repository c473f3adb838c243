"""Compare results of the same queries: `python -m tools.compare A/results.json [B/results.json]`.

With two files, A and B are compared in every protocol, plain with plain and fused with fused; with one or two, each file's
plain figures are compared with its fused ones. A difference has a 95 % interval because it is taken query by query: it shows
far less than the two figures' own intervals seem to hide.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from processor.ranking.comparison import KINDS, METRICS, Comparison, Results, compare_outcomes, read_results
from processor.ranking.intervals import PAIRED_METHOD
from utils.cli import run
from utils.errors import DataError
from utils.files import write_json
from utils.log import table


@dataclass(frozen=True)
class Line:
    """One comparison and what it is of: the protocol, the two sides in words, and the figure."""

    protocol: str
    sides: str
    metric: str
    comparison: Comparison


def compare_files(first: Results, second: Results) -> list[Line]:
    """Every protocol and kind that both files have.

    Raises:
        DataError: they have none in common, other queries, other galleries, or count by other rules.
    """
    if first.same_modality != second.same_modality:
        raise DataError(
            f"{first.path} and {second.path} count differently: one leaves images of the query's own modality out of the "
            "gallery; test both with the same TEST.SAME_MODALITY_GALLERY"
        )
    common = [key for key in first.scored if key in second.scored]
    if not common:
        raise DataError(f"{first.path} and {second.path} have no protocol in common; compare tests of the same data set")
    lines = []
    for protocol, kind in common:
        ours, theirs = first.scored[protocol, kind], second.scored[protocol, kind]
        lines += _lines(protocol, f"{kind}: A to B", ours.outcomes, theirs.outcomes, f"{first.path} and {second.path}")
        if ours.gallery != theirs.gallery:
            raise DataError(
                f"{protocol} has {ours.gallery} gallery images in {first.path} and {theirs.gallery} in {second.path}; "
                "compare tests of the same data set"
            )
    return lines


def compare_kinds(results: Results, name: str) -> list[Line]:
    """Plain with fused figures of one file, where it has both."""
    lines = []
    for protocol in dict.fromkeys(protocol for protocol, _ in results.scored):
        if all((protocol, kind) in results.scored for kind in KINDS):
            plain, fused = (results.scored[protocol, kind].outcomes for kind in KINDS)
            lines += _lines(protocol, f"{name}: plain to fused", plain, fused, str(results.path))
    return lines


def _lines(protocol: str, sides: str, first, second, files: str) -> list[Line]:
    try:
        return [Line(protocol, sides, metric, compare_outcomes(first, second, metric)) for metric in METRICS]
    except DataError as error:
        raise DataError(f"{files}, {protocol}: {error}") from error
    except ValueError as error:
        raise DataError(f"{files}, {protocol}: {error} in both, so nothing can be compared") from error


def comparison_table(lines: Sequence[Line]) -> str:
    """The comparisons as text, in percent and points."""
    rows = []
    for line in lines:
        found, interval = line.comparison, line.comparison.difference
        figures = [f"{100 * found.first:.1f}", f"{100 * found.second:.1f}", f"{100 * interval.mean:+.1f}"]
        ends = f"{100 * interval.low:+.1f} .. {100 * interval.high:+.1f}"
        counts = [len(found.won), len(found.lost), interval.queries]
        rows.append([line.protocol, line.sides, line.metric, *figures, ends, *counts, found.verdict])
    headers = ["protocol", "", "", "first", "second", "difference", "95 %", "won", "lost", "queries", "second is"]
    return table(headers, rows)


def names_text(lines: Sequence[Line], limit: int) -> str:
    """The queries whose first image became right or wrong, by name."""
    told = []
    for line in lines:
        if line.metric == "R1":
            for word, names in (("won", line.comparison.won), ("lost", line.comparison.lost)):
                more = f" and {len(names) - limit} more" if len(names) > limit else ""
                told += [f"{line.protocol}, {line.sides}, R1 {word}: {', '.join(names[:limit])}{more}"] if names else []
    return "\n".join(told)


def comparison_dict(lines: Sequence[Line]) -> list[dict[str, Any]]:
    """The comparisons for JSON, every name included."""
    return [
        {
            "protocol": line.protocol,
            "sides": line.sides,
            "metric": line.metric,
            "first": line.comparison.first,
            "second": line.comparison.second,
            "difference": line.comparison.difference.mean,
            "interval": [line.comparison.difference.low, line.comparison.difference.high],
            "method": PAIRED_METHOD,
            "won": line.comparison.won,
            "lost": line.comparison.lost,
        }
        for line in lines
    ]


def notes(files: Sequence[Results]) -> list[str]:
    """What a reader should know of the files."""
    told = [f"{name}: {results.path}" for name, results in zip("AB", files)]
    for name, results in zip("AB", files):
        selection = results.content.get("selection")
        if selection and selection.get("split") == "test":
            told.append(f"{name}'s weights were chosen on the test split, whose figures flatter them")
    if len({results.images for results in files}) > 1:
        told.append("the test images of A and B are not the same files, or not in the same order")
    return told


def main(arguments: Sequence[str]) -> None:
    """Read the files, compare, print and perhaps write."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.compare",
        description="Paired differences between results of the same queries, with 95 % intervals and the queries won and lost.",
        epilog="example:\n  python -m tools.compare logs/hoss_baseline/results.json logs/hoss_transoss/results.json",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("files", metavar="results.json", type=Path, nargs="+", help="A, or A and B, as test.py writes them")
    parser.add_argument("--names", type=int, default=10, metavar="N", help="how many names of queries to print a line (10)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the comparisons there too, with every name")
    args = parser.parse_args(arguments)
    if args.names < 1:
        parser.error("--names is at least 1")
    if len(args.files) > 2:
        parser.error(f"{len(args.files)} files are given; compare one or two")
    files = [read_results(path) for path in args.files]
    lines = compare_files(*files) if len(files) == 2 else []
    for name, results in zip("AB", files):
        lines += compare_kinds(results, name)
    if not lines:
        raise DataError(f"{args.files[0]} has no fused figures to compare its plain ones with; give a second results.json")
    for text in (*notes(files), "", comparison_table(lines), f"95 %: {PAIRED_METHOD}", names_text(lines, args.names)):
        print(text)
    if args.json:
        write_json(args.json, comparison_dict(lines))


if __name__ == "__main__":
    run(main)
