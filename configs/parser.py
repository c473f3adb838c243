"""Command lines, in a module that is quick to import: a call for help is answered before torch is loaded."""

import argparse
import os
import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any


def config_parser(
    program: str, description: str, example: str, *, weights: str = "", offers: Sequence[str] = ()
) -> argparse.ArgumentParser:
    """The parser of a command that a configuration drives: `--config_file FILE [KEY VALUE ...]`.

    Args:
        program, description, example: for the help.
        weights: key of the weights that the command uses, which `--weights FILE` then names too; empty for none.
        offers: names of configurations, perhaps with '*', to choose from where the call names nothing; empty if it need not.
    """
    parser = argparse.ArgumentParser(
        prog=program,
        description=description,
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config_file", metavar="FILE", help="a .yml; keys that it does not name keep their default")
    if weights:
        parser.add_argument("--weights", metavar="FILE", help=f"{weights}; a file of this program needs no --config_file")
    parser.set_defaults(weights_key=weights, offers=offers)
    parser.add_argument("overrides", metavar="KEY VALUE", nargs="*", help="settings that override the file's")
    return parser


def answer_help(build_parser: Callable[[], argparse.ArgumentParser]) -> None:
    """Print the help, or the configurations to choose from, and end the program, if that is what the call asks for.

    A command calls this between its parser and the imports that take seconds.
    """
    words, parser = sys.argv[1:], build_parser()
    offers = parser.get_default("offers") if not words else ()
    if not (offers or {"-h", "--help"} & set(words)):
        return
    if os.environ.get("RANK", "0") != "0":  # of several processes one speaks
        sys.exit(2 if offers else 0)
    if offers:
        parser.exit(2, offer_configs(offers))
    parser.description, parser.epilog = textwrap.fill(parser.description, 80), _narrow(parser.epilog)
    parser.print_help()
    parser.exit()


def offer_configs(patterns: Sequence[str]) -> str:
    """Which configurations there are and what each is for, as the first line of each file says; 80 columns."""
    folder = Path(__file__).parent
    paths = [path for pattern in patterns for path in sorted(folder.glob(pattern))]
    names = [f"{folder.name}/{path.name}" for path in paths]
    width = max(map(len, names)) + 2
    lines = []
    for name, path in zip(names, paths):
        with path.open(encoding="utf-8") as file:
            purpose = file.readline().removeprefix("#").strip()
        lines += textwrap.wrap(purpose, 80, initial_indent=name.ljust(width), subsequent_indent=" " * width)
    return "\n".join([*lines, "", f"error: name a configuration, such as --config_file {names[0]}\n"])


def _narrow(examples: str) -> str:
    """Command lines broken, as a shell reads them, where 80 columns end."""
    style = {"width": 78, "subsequent_indent": " " * 6, "break_on_hyphens": False, "break_long_words": False}
    lines = [line if len(line) <= 80 else " \\\n".join(textwrap.wrap(line, **style)) for line in examples.splitlines()]
    return "\n".join(lines)


def list_of(kind: type) -> Any:
    """A parser of comma-separated values."""

    def parse(text: str) -> list:
        return [kind(part) for part in text.split(",")]

    parse.__name__ = f"list of {kind.__name__}"
    return parse


def add_spaces(parser: argparse.ArgumentParser) -> None:
    """The options of a command that tries common spaces: `--kinds`, `--shrinkages`, `--dimensions`."""
    kinds, shares, counts = ["centre", "ridge", "lda", "cca"], [0.001, 0.003, 0.01, 0.03, 0.1], [32, 64, 128]
    parser.add_argument("--kinds", type=list_of(str), default=kinds, metavar="A,B", help="of spaces (centre,ridge,lda,cca)")
    parser.add_argument("--shrinkages", type=list_of(float), default=shares, metavar="A,B", help="of spaces (0.001 to 0.1)")
    parser.add_argument("--dimensions", type=list_of(int), default=counts, metavar="A,B", help="of spaces (32,64,128)")
