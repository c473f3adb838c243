"""What a command does before its own work: arguments, log, configuration, device, other processes, output folder."""

import argparse
import contextlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from yacs.config import CfgNode

from configs.described import load_described
from configs.loading import get_value, load_cfg
from utils import distributed
from utils.device import build_device
from utils.errors import UsageError, some
from utils.files import write_json, write_text
from utils.lock import own_folder
from utils.log import describe_environment, make_output_dir, setup_logging

logger = logging.getLogger(__name__)

TRACES = ("*.pth", "metrics.jsonl", "results*.json")
"""What tells that a folder holds a run."""


@dataclass(frozen=True)
class Command:
    """What a command was asked for, and where it works.

    Attributes:
        args: the parsed arguments.
        cfg: the configuration that they name, frozen.
        device: of MODEL.DEVICE.
        folder: OUTPUT_DIR; None for a command that writes nothing there.
        description: what the weights of the command say of themselves; empty without weights, or if they say nothing.
    """

    args: argparse.Namespace
    cfg: CfgNode
    device: torch.device
    folder: Path | None
    description: Mapping[str, Any] = field(default_factory=dict)

    def record(self) -> None:
        """Write config.yml and environment.json, which tell what a run was made from, into the folder."""
        if distributed.is_main():
            write_text(self.folder / "config.yml", self.cfg.dump())
            environment = describe_environment(seed=self.cfg.SOLVER.SEED, device=self.device)
            write_json(self.folder / "environment.json", environment)


@contextmanager
def open_command(
    parser: argparse.ArgumentParser,
    arguments: Sequence[str],
    *,
    log: str | None = None,
    needs: Mapping[str, str] | None = None,
    writes: bool = False,
) -> Iterator[Command]:
    """Open a command for the length of a block, joined to the other processes that torchrun started, if any.

    Args:
        parser: from `config_parser`, perhaps with more options.
        arguments: of the command line.
        log: file of OUTPUT_DIR that log lines go to; None: no file.
        needs: keys that must not be empty -> what they name, for the message.
        writes: whether the command writes to OUTPUT_DIR, which is then its own until the end; one with a log does.

    Raises:
        UsageError: a wrong key or value, a device that is not there, a needed key that is empty, a folder of another run.
        DataError: OUTPUT_DIR cannot be written to.
    """
    args = parser.parse_intermixed_args(arguments)
    setup_logging()
    cfg, description = _read_configuration(args)
    for key, meaning in (needs or {}).items():
        if not get_value(cfg, key):
            raise UsageError(f"{key} is empty; name {meaning}")
    device = build_device(cfg)
    with distributed.process_group(device), contextlib.ExitStack() as owned:
        folder = None
        if log or writes:
            folder = make_output_dir(cfg.OUTPUT_DIR)
            owned.enter_context(own_folder(folder))
        if log:
            setup_logging(folder, log)
        yield Command(args, cfg, device, folder, description)


def _read_configuration(args: argparse.Namespace) -> tuple[CfgNode, Mapping[str, Any]]:
    """The configuration that arguments name, and what the weights of the command, if it uses any, say of themselves."""
    if not args.weights_key:
        return load_cfg(args.config_file, args.overrides), {}
    overrides = [*args.overrides, args.weights_key, args.weights] if args.weights else args.overrides
    return load_described(args.config_file, overrides, args.weights_key)


@contextmanager
def open_training(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> Iterator[Command]:
    """Open a command that trains: `open_command` in a folder that holds no other run, and with SOLVER.RESUME as a path.

    Raises:
        UsageError: the folder holds a run that this one does not go on from; otherwise see `open_command`.
    """
    with open_command(parser, arguments, log="train_log.txt") as command:
        cfg = command.cfg.clone()
        cfg.defrost()
        cfg.SOLVER.RESUME = _state_to_resume(cfg, command.folder)
        cfg.freeze()
        yield replace(command, cfg=cfg)


def _state_to_resume(cfg: CfgNode, folder: Path) -> str:
    """The path that SOLVER.RESUME means: 'auto' is the folder's own last.pth, or a new start where no run has left one."""
    own, resume = folder / "last.pth", cfg.SOLVER.RESUME
    if resume == "auto":
        logger.info("SOLVER.RESUME auto: %s", f"going on from {own}" if own.is_file() else f"there is no {own} yet")
        return str(own) if own.is_file() else ""
    traces = [path.name for pattern in TRACES for path in sorted(folder.glob(pattern))]
    if traces and not (resume and Path(resume).resolve().parent == folder.resolve()):
        raise UsageError(
            f"OUTPUT_DIR {folder} holds a run already ({some(traces, 3)}); name another OUTPUT_DIR, or go on with that run by "
            "SOLVER.RESUME auto"
        )
    return resume
