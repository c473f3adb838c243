"""How commands end."""

import logging
import sys
import time
from collections.abc import Callable, Sequence

import torch

from utils import distributed
from utils.errors import UsageError, is_text, shorten

logger = logging.getLogger(__name__)

MEMORY_ADVICE = (
    "lower SOLVER.IMS_PER_BATCH, SOLVER.IMS_PER_PASS (pre-training), TEST.IMS_PER_BATCH or BBDM.SAMPLE_BATCH, "
    "or set BBDM.ACTIVATION_CHECKPOINTS True"
)

REFUSAL_SECONDS = 5
"""How long the other processes leave the first one to speak: torchrun ends all of them as soon as one has failed."""


def run(main: Callable[[Sequence[str]], None], *, together: bool = False) -> None:
    """Run `main(arguments)` and end the process: status 0 only if all was done.

    Under torchrun, a command that does not work `together` with other processes is refused: each would do and write the same.
    The first process says so, the others end quietly.

    An exception with `exit_status`, a full or missing disk, too little memory on the GPU and an interrupt end in one sentence;
    any other one keeps its traceback, because it is a fault of the program.
    """
    try:
        if distributed.launched_processes() > 1 and not together:
            _refuse_torchrun()
        _refuse_bytes(sys.argv[1:])
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


def _refuse_torchrun() -> None:
    if not distributed.is_main():
        time.sleep(REFUSAL_SECONDS)
        sys.exit(UsageError.exit_status)
    raise UsageError("this command works in one process; start it without torchrun")


def _refuse_bytes(arguments: Sequence[str]) -> None:
    """Refuse names that are no text before any work is done: results, logs and tables, which are text, could not name them."""
    for argument in arguments:
        if not is_text(argument):
            raise UsageError(f"{argument} is no text in UTF-8; rename the file or folder")


def _fail(sentence: str, status: int) -> None:
    logger.debug("stopped", exc_info=True)
    print(f"error: {shorten(sentence)}", file=sys.stderr, flush=True)
    sys.exit(status)
