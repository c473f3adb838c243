"""Tell what a data set in HOSS layout holds and what is wrong with it."""

import argparse
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from configs.parser import answer_help


def build_parser() -> argparse.ArgumentParser:
    """Build the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.check_dataset",
        description="Tell what a data set in HOSS layout holds and what is wrong with it; exit status 1 if there are errors.",
        epilog="example:\n  python -m tools.check_dataset data --json report.json",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "root", type=Path, metavar="ROOT", help="the folder that holds HOSS/ or OptiSar_Pair/ (DATASETS.ROOT_DIR)"
    )
    parser.add_argument(
        "--json",
        nargs="?",
        const="-",
        metavar="FILE",
        help="write the report as JSON too; without FILE, to the standard output instead of the table",
    )
    return parser


if __name__ == "__main__":
    answer_help(build_parser)

from datasets.curation.checks import DatasetReport, check_dataset
from utils.cli import run
from utils.errors import DataError
from utils.files import write_json
from utils.log import setup_logging, table

logger = logging.getLogger(__name__)

NAMES_SHOWN = 5
"""Files of a finding that the table names; the JSON names all."""


def format_report(report: DatasetReport) -> str:
    """The report as text for people."""
    headers = ["split", "ships", "images", "optical", "SAR", "distractors", "height", "width", "SAR values"]
    rows = [
        [name, facts.ships, facts.images, facts.optical, facts.sar, facts.distractors]
        + [_span(limits) for limits in (facts.height, facts.width, facts.sar_values)]
        for name, facts in report.splits.items()
    ]
    protocols = [
        [name, facts.queries, facts.with_match, len(facts.without_match), facts.gallery]
        for name, facts in report.protocols.items()
    ]
    lines = [
        table(headers, rows),
        "",
        table(["protocol", "queries", "with a match", "without", "gallery"], protocols),
        "",
        f"optical x SAR training pairs: {report.training_pairs} of {report.training_pair_ships} ships",
    ]
    lines = [*(lines if rows else []), *_pair_lines(report.registered_pairs)]
    lines.append(f"errors: {report.count('error')}, warnings: {report.count('warning')}")
    for finding in report.findings:
        lines.append(f"{finding.level}, {finding.kind}: {finding.message}")
        lines += [f"    {name}" for name in finding.files[:NAMES_SHOWN]]
        if len(finding.files) > NAMES_SHOWN:
            lines.append(f"    and {len(finding.files) - NAMES_SHOWN} more")
    return "\n".join(lines)


def _pair_lines(facts: Mapping[str, Any]) -> list[str]:
    if not facts:
        return []
    manner = {"folder": "by folder and id, one to one", "id": "by id over all folders, many to many", "": "not as they are"}
    return [
        f"OptiSar_Pair: {facts['optical']} optical and {facts['sar']} SAR pictures in {facts['folders']} folder(s), "
        f"{facts['ids']} id(s); pairs within folders {facts['by_folder']}, by id alone {facts['by_id']}; "
        f"joined {manner[facts['join']]} (DATASETS.PAIR_JOIN)"
    ]


def _span(limits: tuple[float, float] | None) -> str:
    return "none" if limits is None else f"{limits[0]:.4g} to {limits[1]:.4g}"


def main(arguments: Sequence[str]) -> None:
    """Check the data set and print the report.

    Raises:
        DataError: the data set has errors.
    """
    setup_logging()
    args = build_parser().parse_args(arguments)
    report = check_dataset(args.root, description="reading chips")
    if args.json == "-":
        print(json.dumps(report.as_dict(), indent=2, ensure_ascii=False, allow_nan=False))
    else:
        print(format_report(report))
    if args.json not in (None, "-"):
        write_json(args.json, report.as_dict())
        logger.info("wrote %s", args.json)
    if errors := report.count("error"):
        raise DataError(f"{args.root} has {errors} kind(s) of error; mend what the report names")


if __name__ == "__main__":
    run(main)
