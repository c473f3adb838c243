"""Write docs/config.md, the page of all keys of the configuration, from their declarations."""

import argparse
from collections.abc import Sequence
from itertools import groupby
from typing import Any

from configs.parser import answer_help


def build_parser() -> argparse.ArgumentParser:
    """Build the command line."""
    return argparse.ArgumentParser(
        prog="python -m tools.config_page",
        description="Print the page of all keys of the configuration.",
        epilog="example:\n  python -m tools.config_page > docs/config.md",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


if __name__ == "__main__":
    answer_help(build_parser)

from configs.defaults import KEYS
from configs.schema import Key
from utils.cli import run
from utils.log import table

INTRODUCTION = """# Keys of the configuration

Made by `python -m tools.config_page` from `configs/defaults.py`; change a key there.

A .yml file sets keys (`SOLVER: {SEED: 1}`), and may start from another one that it names as `_BASE_`; the command line
(`SOLVER.SEED 1`) is stronger. Lists are written `[256, 128]` or `(256, 128)`. Flags take True and False, yes and no, on and
off, 1 and 0. A key that does not exist, that takes no such value or that a file holds twice is an error. **new**: not a key
of the released programs; all others keep their name and place, and but for MODEL.DEVICE their default. The bridge reads keys
of SOLVER, too: MAX_EPOCHS, BASE_LR, IMS_PER_BATCH, LOG_PERIOD, CHECKPOINT_PERIOD, EVAL_PERIOD, SEED, AMP and RESUME.
"""


def config_page() -> str:
    """The page as Markdown: a table for each section."""
    parts = [INTRODUCTION]
    for section, keys in groupby(KEYS.values(), key=lambda key: key.name.rpartition(".")[0]):
        rows = [[f"`{key.name}`", f"`{_written(key.default)}`", key.takes, _meaning(key)] for key in keys]
        title = f"## {section or 'Output'}\n\n"
        parts.append(title + table(["key", "default", "takes", "meaning"], rows, "pipe") + "\n")
    return "\n".join(parts)


def _written(value: Any) -> str:
    return repr(value) if isinstance(value, list) or value == "" else str(value)


def _meaning(key: Key) -> str:
    text = f"no effect: {key.unused}" if key.unused else key.meaning
    return text if key.released else f"**new** {text}"


def main(arguments: Sequence[str]) -> None:
    """Print the page."""
    build_parser().parse_args(arguments)
    print(config_page(), end="")


if __name__ == "__main__":
    run(main)
