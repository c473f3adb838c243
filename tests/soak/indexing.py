"""`tools.index`, and then what its index holds as a file, whose own files have other names in every run."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from processor.chip_index import ChipIndex, Conditions
from tools import index
from utils.files import write_text


def main(arguments: Sequence[str]) -> None:
    """Index, and write listing.json beside the index."""
    index.main(arguments)
    folder = Path(arguments[list(arguments).index("--index") + 1])
    held = {}
    for lines, vectors in ChipIndex.open(folder).vectors(Conditions()):
        for line, vector in zip(lines, vectors):
            told = {name: str(value) for name, value in asdict(line).items() if name != "thumbnail"}
            held[line.path] = told | {"vector": [round(float(value), 4) for value in vector]}
    write_text(folder.parent / "listing.json", json.dumps(held, sort_keys=True) + "\n")
