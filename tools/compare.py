"""Compare results of the same queries: `python -m tools.compare A [B C ...]`.

Each is a results.json, the OUTPUT_DIR that holds one, or that of `tools.repeat`, whose seeds are taken together: the value of a
query is its mean over them. Every other one is compared with the first in every protocol, plain with plain and fused with
fused, and each one's plain figures with its fused ones. A difference has a 95 % interval because it is taken query by query: it
shows far less than the two figures' own intervals seem to hide.
"""

import argparse
import string
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from configs.parser import answer_help


def build_parser() -> argparse.ArgumentParser:
    """Build the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.compare",
        description="Paired differences between results of the same queries, with 95 % intervals and the queries won and lost.",
        epilog="examples:\n"
        "  python -m tools.compare logs/hoss_baseline logs/hoss_transoss\n"
        "  python -m tools.compare logs/ablation_* --format latex > table.tex",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("runs", metavar="RUN", type=Path, nargs="+", help="results.json, its folder, or one of tools.repeat")
    styles = ("text", "markdown", "latex", "csv")
    parser.add_argument("--format", choices=styles, default="text", help="of what is printed; the last three: a table of runs")
    parser.add_argument("--names", type=int, default=10, metavar="N", help="how many names of queries to print a line (10)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the comparisons there too, with every name")
    parser.add_argument("--verbose", action="store_true", help="say also how intervals are made")
    return parser


if __name__ == "__main__":
    answer_help(build_parser)

from processor.common_space import space_sentence
from processor.ranking.comparison import METRICS, Comparison, compare_repeats
from processor.ranking.intervals import PAIRED_METHOD
from processor.ranking.results import KINDS, Results, Score, read_results
from processor.report.runs import RunRecord, differing, read_runs
from utils.checkpoint import sha256
from utils.cli import run
from utils.errors import DataError
from utils.files import write_json
from utils.log import fold, table
from utils.tables import csv_text

COUNTED = ("same_modality_gallery", "queries_without_match", "distractors")
"""Rules that decide what is counted: files that differ in them are refused."""

NAMED = {"query_expansion": "query expansion", "reranking": "re-ranking"}
"""Rules whose effect a comparison may be about: where they differ it is said."""

Key = tuple[str, str]
"""Protocol, and 'plain' or 'fused'."""

Comparisons = dict[tuple[str, str, str], Comparison]
"""Protocol, the two sides in words, figure -> comparison."""


@dataclass(frozen=True)
class ComparedRun:
    """One of the runs that are compared.

    Attributes:
        letter: that stands for it: A, B ...
        path: as it was named.
        repeats: the run, or those of each seed.
    """

    letter: str
    path: Path
    repeats: tuple[RunRecord, ...]

    @property
    def results(self) -> tuple[Results, ...]:
        """Of each repeat."""
        return tuple(repeat.results for repeat in self.repeats)

    def scores(self, key: Key) -> list[Score]:
        """Of each repeat; empty if one has none of these figures."""
        found = [results.scores.get(key) for results in self.results]
        return [] if None in found else found

    @property
    def keys(self) -> list[Key]:
        """The figures that all repeats have."""
        return [key for key in self.results[0].scores if self.scores(key)]


def read_compared(paths: Sequence[Path]) -> list[ComparedRun]:
    """Read what is to be compared.

    Raises:
        DataError: one is no run with results.
    """
    found = []
    for letter, path in zip(string.ascii_uppercase, paths):
        if path.suffix == ".json" and not path.is_file():
            read_results(path)  # which says so
        seeds = sorted(path.glob("seed_*")) if (path / "repeat.json").is_file() else []
        repeats = tuple(read_runs(seeds or [path]))
        for repeat in repeats:
            if repeat.results is None:
                raise DataError(f"{repeat.folder} has no results.json; test its weights by test.py")
        found.append(ComparedRun(letter, path, repeats))
    return found


def compare_runs(first: ComparedRun, second: ComparedRun) -> Comparisons:
    """Every protocol and kind that two runs both have.

    Raises:
        DataError: they have none in common, other queries, other galleries, or count by other rules.
    """
    ours, theirs = first.results[0], second.results[0]
    for rule in COUNTED:
        if ours.counting.get(rule) != theirs.counting.get(rule):
            advice = f"test both with the same TEST.{rule.upper()}" if rule == COUNTED[0] else "test again with one version"
            raise DataError(f"{first.path} and {second.path} count differently: {rule} is not the same in both; {advice}")
    common = [key for key in first.keys if key in second.keys]
    if not common:
        raise DataError(f"{first.path} and {second.path} have no protocol in common; compare tests of the same data set")
    found: Comparisons = {}
    for protocol, kind in common:
        scores = first.scores((protocol, kind)), second.scores((protocol, kind))
        sides = f"{kind}: {first.letter} to {second.letter}"
        found |= _compare(protocol, sides, *scores, f"{first.path} and {second.path}")
        if scores[0][0].gallery != scores[1][0].gallery:
            raise DataError(
                f"{protocol} has {scores[0][0].gallery} gallery images in {first.path} and {scores[1][0].gallery} in "
                f"{second.path}; compare tests of the same data set"
            )
    return found


def compare_kinds(side: ComparedRun) -> Comparisons:
    """Plain with fused figures of one run, where it has both."""
    found: Comparisons = {}
    for protocol, kind in side.keys:
        if kind == KINDS[1]:
            scores = side.scores((protocol, KINDS[0])), side.scores((protocol, kind))
            found |= _compare(protocol, f"{side.letter}: {' to '.join(KINDS)}", *scores, str(side.path))
    return found


def _compare(protocol: str, sides: str, first: Sequence[Score], second: Sequence[Score], files: str) -> Comparisons:
    pair = [[score.per_query for score in side] for side in (first, second)]
    try:
        return {(protocol, sides, metric): compare_repeats(*pair, metric) for metric in METRICS}
    except DataError as error:
        raise DataError(f"{files}, {protocol}: {error}") from error
    except ValueError as error:
        raise DataError(f"{files}, {protocol}: {error} in both, so nothing can be compared") from error


def comparison_tables(comparisons: Comparisons) -> str:
    """The comparisons as text, in percent and points: a table for each protocol, within 80 columns."""
    tables = []
    for protocol in dict.fromkeys(protocol for protocol, _, _ in comparisons):
        rows = []
        for (_, sides, metric), found in ((of, found) for of, found in comparisons.items() if of[0] == protocol):
            figures = [f"{100 * found.first:.1f}", f"{100 * found.second:.1f}", difference_of(found)]
            counts = [len(found.won), len(found.lost), found.difference.queries]
            rows.append([sides, metric, *figures, _ends(found), *counts])
        tables.append(table([protocol, "", "from", "to", "change", "95 %", "won", "lost", "queries"], rows))
    return "\n\n".join([*tables, "* the interval leaves zero out; otherwise no difference is shown"])


def difference_of(found: Comparison) -> str:
    """The change in points; '*' behind one that is shown."""
    return f"{100 * found.difference.mean:+.1f}{'*' if found.verdict in ('better', 'worse') else ' '}"


def _ends(found: Comparison) -> str:
    return f"{100 * found.difference.low:+.1f} .. {100 * found.difference.high:+.1f}"


def runs_table(sides: Sequence[ComparedRun], comparisons: Comparisons, style: str) -> str:
    """A row for each run, for a paper: the settings that differ, each figure, and its change from the first with its interval.

    Args:
        sides: the runs.
        comparisons: of each with the first.
        style: 'markdown' or 'latex'.
    """
    settings = differing([side.repeats[0] for side in sides])
    keys = [key for key in sides[0].keys if all(key in side.keys for side in sides)]
    headers = ["run", *settings, *(f"{protocol} {metric}{_mark(kind)}" for protocol, kind in keys for metric in METRICS)]
    rows = []
    for place, side in enumerate(sides):
        cells = [side.repeats[0].name if len(side.repeats) == 1 else f"{side.path.name} ({len(side.repeats)} seeds)"]
        cells += [_told(values[place]) for values in settings.values()]
        for protocol, kind in keys:
            for metric in METRICS:
                found = comparisons.get((protocol, f"{kind}: {sides[0].letter} to {side.letter}", metric))
                figure = _mean(side, (protocol, kind), metric)
                change = f" ({difference_of(found).strip()}, {_ends(found)})" if found else ""
                cells.append(f"{100 * figure:.1f}{change}")
        rows.append(cells)
    return table(headers, rows, {"markdown": "pipe", "latex": "latex_booktabs"}[style])


def runs_csv(sides: Sequence[ComparedRun], comparisons: Comparisons) -> str:
    """A line for each run, protocol, kind and figure, as numbers in 0..1."""
    settings = differing([side.repeats[0] for side in sides])
    facts = ["run", "seeds", "protocol", "features", "figure", "value", "change", "low", "high", "won", "lost", "queries"]
    rows = []
    for place, side in enumerate(sides):
        for protocol, kind in side.keys:
            for metric in METRICS:
                found = comparisons.get((protocol, f"{kind}: {sides[0].letter} to {side.letter}", metric))
                of = [str(side.path), len(side.repeats), protocol, kind, metric, _mean(side, (protocol, kind), metric)]
                interval = found.difference if found else None
                change = (
                    [interval.mean, *interval.ends, len(found.won), len(found.lost), interval.queries] if found else [""] * 6
                )
                rows.append([*of, *change, *(_told(values[place]) for values in settings.values())])
    return csv_text([*facts, *settings], rows)


def _numbers(found: Comparison | None) -> list[Any]:
    """Change, both ends of its interval, won, lost and queries; empty cells for the first run."""
    if found is None:
        return [""] * 6
    return [found.difference.mean, *found.difference.ends, len(found.won), len(found.lost), found.difference.queries]


def _mean(side: ComparedRun, key: Key, metric: str) -> float:
    values = [getattr(score, metric) for score in side.scores(key)]
    return sum(values) / len(values)


def _mark(kind: str) -> str:
    return "" if kind == KINDS[0] else f" {kind}"


def _told(value: Any) -> str:
    return "" if value is None else str(value)


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


def notes(sides: Sequence[ComparedRun]) -> list[str]:
    """What a reader should know of the runs."""
    seeds = (f", {len(side.repeats)} seeds" if len(side.repeats) > 1 else "" for side in sides)
    told = [f"{side.letter}: {side.path}{words}" for side, words in zip(sides, seeds)]
    for side in sides:
        if any(results.selection and results.selection.split == "test" for results in side.results):
            told.append(f"{side.letter}'s weights were chosen on the test split, whose figures flatter them")
    for side in sides:
        for repeat in side.repeats:
            beside = repeat.folder / Path(repeat.results.weights["path"]).name
            if beside.is_file() and sha256(beside) != repeat.results.weights["sha256"]:
                told.append(f"{side.letter} is of other weights than {beside}, which lies beside it: test again")
    results = [side.results[0] for side in sides]
    for rule, words in NAMED.items():
        told += _unlike(sides, words, [own.counting.get(rule) for own in results], _options)
    own = "features are compared as they are"
    spaces = [results.common_space for results in results]
    told += _unlike(sides, "the space", spaces, lambda space: space_sentence(space) if space else own)
    if len({own.data["sha256"] for side in sides for own in side.results}) > 1:
        which = " and ".join(side.letter for side in sides)
        told.append(f"the test images of {which} are not the same files, or not in the same order")
    return told


def _unlike(sides: Sequence[ComparedRun], words: str, values: Sequence[Any], spell: Any) -> list[str]:
    if all(value == values[0] for value in values):
        return []
    own = (f"{side.letter}'s {spell(value)}" for side, value in zip(sides, values))
    return [f"figures differ by {words} too: {' and '.join(own)}"]


def _options(value: Mapping[str, Any] | None) -> str:
    return "with " + ", ".join(f"{name} {number:g}" for name, number in value.items()) if value else "without"


def settings_text(sides: Sequence[ComparedRun]) -> str:
    """The settings in which runs differ; empty where none do, or none are told."""
    differ = differing([side.repeats[0] for side in sides])
    lines = (
        f"  {key}: {', '.join(f'{side.letter} {_told(value) or None}' for side, value in zip(sides, values))}"
        for key, values in differ.items()
    )
    return "\n".join(["settings that differ:", *lines]) if differ else ""


def main(arguments: Sequence[str]) -> None:
    """Read the runs, compare, print and perhaps write."""
    parser = build_parser()
    args = parser.parse_args(arguments)
    if args.names < 1:
        parser.error("--names is at least 1")
    if len(args.runs) > len(string.ascii_uppercase):
        parser.error(f"{len(args.runs)} runs are given; compare up to {len(string.ascii_uppercase)}")
    sides = read_compared(args.runs)
    found: Comparisons = {}
    for other in sides[1:]:
        found |= compare_runs(sides[0], other)
    for side in sides:
        found |= compare_kinds(side)
    if not found:
        raise DataError(f"{args.runs[0]} has no fused figures to compare its plain ones with; give a second results.json")
    if args.format == "csv":
        print(runs_csv(sides, found), end="")
    elif args.format != "text":
        print(runs_table(sides, found, args.format))
    else:
        method = f"95 %: {PAIRED_METHOD}" if args.verbose else ""
        parts = ["\n".join(notes(sides)), settings_text(sides), method]
        above = "\n".join(part for part in parts if part)
        print(fold(f"{above}\n\n{comparison_tables(found)}\n{names_text(found, args.names)}".rstrip(), sys.stdout))
    if args.json:
        write_json(args.json, comparison_list(found))


if __name__ == "__main__":
    run(main)
