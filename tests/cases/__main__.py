"""python -m tests.cases [DIR]: read every file beside a truth.npz of DIR; exit status 1 if one is read wrongly."""

import argparse
import sys
from pathlib import Path

from tests.cases import FOLDER, check_cases


def main() -> None:
    """Print a line for each file."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.cases", description="Read files of all makes: ok, refused or WRONG, a line each."
    )
    parser.add_argument("folder", metavar="DIR", nargs="?", type=Path, default=FOLDER, help="folder of folders with truth.npz")
    folder = parser.parse_args().folder
    if not any(folder.rglob("truth.npz")):
        parser.error(f"{folder} holds no truth.npz")
    failed = False
    for verdict in check_cases(folder):
        print(verdict, flush=True)
        failed |= verdict.word == "WRONG"
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
