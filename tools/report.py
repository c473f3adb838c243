"""Make one HTML page of a run, or of several side by side: `python -m tools.report RUN [RUN ...]`."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from configs.parser import answer_help


def build_parser() -> argparse.ArgumentParser:
    """Build the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.report",
        description="Make one HTML page of a run, or of several side by side, that opens from disk and can be sent on.",
        epilog="examples:\n  python -m tools.report logs/hoss_transoss\n"
        "  python -m tools.report logs/hoss_baseline logs/hoss_transoss --output compared.html",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "runs", metavar="RUN", type=Path, nargs="+", help="OUTPUT_DIR of a training or test, or a results file there"
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="the page (report.html in the folder of the first run)")
    parser.add_argument("--data", type=Path, metavar="DIR", help="folder that holds HOSS/, if it has moved since the test")
    parser.add_argument("--attention", type=int, default=40, metavar="N", help="queries to show attention of, 0: none (40)")
    parser.add_argument("--page-queries", type=int, default=500, metavar="N", help="queries of a page (500)")
    return parser


if __name__ == "__main__":
    answer_help(build_parser)

from processor.report.page import report_path, write_report
from utils.cli import run
from utils.log import setup_logging


def main(arguments: Sequence[str]) -> None:
    """Parse `arguments` and write the page."""
    parser = build_parser()
    args = parser.parse_args(arguments)
    if args.attention < 0 or args.page_queries < 1:
        parser.error("--attention is 0 or more, --page-queries at least 1")
    setup_logging()
    output = args.output or report_path(args.runs[0])
    paths = write_report(args.runs, output, root=args.data, attention=args.attention, page_queries=args.page_queries)
    size = sum(path.stat().st_size for path in paths) / 2**20
    print(f"{paths[0]}: {len(paths)} page{'s' if len(paths) > 1 else ''}, {size:.1f} MiB")


if __name__ == "__main__":
    run(main)
