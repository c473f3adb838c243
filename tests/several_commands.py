"""Several commands one after the other in one process, as torchrun starts it: starting Python is most of a small command.

Call: a JSON file that lists [module, word, word, ...] of each command.
"""

import importlib
import json
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from unittest import mock

import torch

from utils import distributed
from utils.cli import run


def main(arguments: Sequence[str]) -> None:
    """Run the commands of the file, all within one group of processes: a second one would look for the first one's ports."""
    with distributed.process_group(torch.device("cpu")), mock.patch.object(distributed, "process_group", nullcontext):
        for module, *words in json.loads(Path(arguments[0]).read_text(encoding="utf-8")):
            importlib.import_module(module).main(words)


if __name__ == "__main__":
    run(main, together=True)
