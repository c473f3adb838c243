"""What a command does before its own work: arguments, log, configuration, device, other processes, output folder."""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from yacs.config import CfgNode

from configs.loading import get_value, load_cfg
from utils import distributed
from utils.device import build_device
from utils.errors import UsageError
from utils.files import write_json, write_text
from utils.log import describe_environment, make_output_dir, setup_logging


@dataclass(frozen=True)
class Command:
    """What a command was asked for, and where it works.

    Attributes:
        args: the parsed arguments.
        cfg: the configuration that they name, frozen.
        device: of MODEL.DEVICE.
        folder: OUTPUT_DIR; None for a command that writes nothing there.
    """

    args: argparse.Namespace
    cfg: CfgNode
    device: torch.device
    folder: Path | None

    def record(self) -> None:
        """Write config.yml and environment.json, which tell what a run was made from, into the folder."""
        if distributed.is_main():
            write_text(self.folder / "config.yml", self.cfg.dump())
            environment = describe_environment(seed=self.cfg.SOLVER.SEED, device=self.device)
            write_json(self.folder / "environment.json", environment)


def config_parser(program: str, description: str, example: str) -> argparse.ArgumentParser:
    """The parser of a command that a configuration drives: `--config_file FILE [KEY VALUE ...]`."""
    parser = argparse.ArgumentParser(
        prog=program,
        description=description,
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config_file", metavar="FILE", help="a .yml; keys that it does not name keep their default")
    parser.add_argument("overrides", metavar="KEY VALUE", nargs="*", help="settings that override the file's")
    return parser


@contextmanager
def open_command(
    parser: argparse.ArgumentParser, arguments: Sequence[str], *, log: str | None = None, needs: Mapping[str, str] | None = None
) -> Iterator[Command]:
    """Open a command for the length of a block, joined to the other processes that torchrun started, if any.

    Args:
        parser: from `config_parser`, perhaps with more options.
        arguments: of the command line.
        log: file of OUTPUT_DIR that log lines go to; None for a command that writes nothing there.
        needs: keys that must not be empty -> what they name, for the message.

    Raises:
        UsageError: a wrong key or value, a device that is not there, a needed key that is empty.
        DataError: OUTPUT_DIR cannot be written to.
    """
    args = parser.parse_intermixed_args(arguments)
    setup_logging()
    cfg = load_cfg(args.config_file, args.overrides)
    for key, meaning in (needs or {}).items():
        if not get_value(cfg, key):
            raise UsageError(f"{key} is empty; name {meaning}")
    device = build_device(cfg)
    with distributed.process_group(device):
        folder = None if log is None else make_output_dir(cfg.OUTPUT_DIR)
        if folder is not None:
            setup_logging(folder, log)
        yield Command(args, cfg, device, folder)
