"""python -m tests.golden [DIR]: check every vector file of DIR; exit status 1 if one fails."""

import argparse
import sys
from pathlib import Path

import torch

from tests.golden import FOLDER, check_folder


def main() -> None:
    """Print a line for each file."""
    parser = argparse.ArgumentParser(prog="python -m tests.golden", description="Check golden vectors, a line each.")
    parser.add_argument("folder", metavar="DIR", nargs="?", type=Path, default=FOLDER, help="folder of .npz files")
    parser.add_argument("--device", default="cpu", help="where numbers are computed, in float32 without TF32 (default cpu)")
    arguments = parser.parse_args()
    folder = arguments.folder
    torch.set_default_device(arguments.device)
    torch.backends.cudnn.allow_tf32 = False
    if not any(folder.glob("*.npz")):
        parser.error(f"{folder} holds no .npz file")
    failed = False
    for outcome in check_folder(folder):
        print(outcome, flush=True)
        failed |= outcome.verdict == "FAIL"
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
