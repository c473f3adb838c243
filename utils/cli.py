"""What the commands share: their arguments, and how they end."""

import argparse
import logging
import sys
from collections.abc import Callable, Sequence

import torch

logger = logging.getLogger(__name__)

MEMORY_ADVICE = (
    "lower SOLVER.IMS_PER_BATCH, SOLVER.IMS_PER_PASS (pre-training), TEST.IMS_PER_BATCH or BBDM.SAMPLE_BATCH, "
    "or set BBDM.ACTIVATION_CHECKPOINTS True"
)


def config_parser(program: str, description: str, example: str) -> argparse.ArgumentParser:
    """The parser of a command that a configuration drives: `--config_file FILE [KEY VALUE ...]`."""
    parser = argparse.ArgumentParser(
        prog=program,
        description=description,
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--config_file", metavar="FILE", default=None, help="a .yml; keys that it does not name keep their default"
    )
    parser.add_argument("overrides", metavar="KEY VALUE", nargs="*", help="settings that override the file's")
    return parser


def run(main: Callable[[Sequence[str]], None]) -> None:
    """Run `main(arguments)` and end the process: status 0 only if all was done.

    An exception with `exit_status`, a full or missing disk, too little memory on the GPU and an interrupt end in one sentence;
    any other one keeps its traceback, because it is a fault of the program.
    """
    try:
        main(sys.argv[1:])
    except KeyboardInterrupt:
        _fail("interrupted", 130)
    except torch.OutOfMemoryError as error:
        _fail(f"the GPU's memory is full ({str(error).splitlines()[0]}); {MEMORY_ADVICE}", 1)
    except Exception as error:
        status = getattr(error, "exit_status", None)
        if status is None and isinstance(error, OSError) and error.strerror:
            where = f"{error.filename}: " if error.filename else ""
            _fail(f"{where}{error.strerror}", 1)
        if status is None:
            raise
        _fail(str(error), status)


def _fail(sentence: str, status: int) -> None:
    logger.debug("stopped", exc_info=True)
    print(f"error: {sentence}", file=sys.stderr, flush=True)
    sys.exit(status)
