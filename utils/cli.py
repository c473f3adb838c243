"""How commands end."""

import logging
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from utils import distributed
from utils.children import end_with_parent
from utils.errors import PeerError, UsageError, is_text, shorten
from utils.memory import explain
from utils.signals import raising

logger = logging.getLogger(__name__)

PEER_SECONDS = 5
"""How long a process leaves another one to say why both of them end."""


def run(main: Callable[[Sequence[str]], None], *, together: bool = False) -> None:
    """Run `main(arguments)` and end the process: status 0 only if all was done.

    Under torchrun, a command that does not work `together` with other processes is refused: each would do and write the same.
    Of several processes the first one that fails says why, and the others end quietly.

    An exception with `exit_status`, a full or missing disk, too little memory and an interrupt end in one sentence; any other
    one keeps its traceback, because it is a fault of the program.
    """
    try:
        end_with_parent()
        with raising():
            if distributed.launched_processes() > 1 and not together:
                raise UsageError("this command works in one process; start it without torchrun")
            _refuse_bytes(sys.argv[1:])
            main(sys.argv[1:])
    except KeyboardInterrupt as error:
        _fail(str(error) or "interrupted", getattr(error, "exit_status", 130))
    except Exception as error:
        sentence = explain(error)
        if sentence:
            _fail(sentence, 1)
        if isinstance(error, PeerError):
            time.sleep(PEER_SECONDS)
        status = getattr(error, "exit_status", None)
        if status is None and isinstance(error, OSError) and error.strerror:
            where = f"{error.filename}: " if error.filename else ""
            _fail(f"{where}{error.strerror}", 1)
        if status is None:
            _leave_if_another_failed()
            raise
        _fail(str(error), status)


def command_to_go_on() -> str:
    """The line that goes on with this training, as its user would type it."""
    words = [Path(sys.executable).name, *(word for word in sys.orig_argv[1:] if word != "-u")]  # which torchrun adds
    if "SOLVER.RESUME" in words[:-1]:
        place = words.index("SOLVER.RESUME")
        del words[place : place + 2]
    processes = distributed.launched_processes()
    if processes > 1:
        words[0] = f"torchrun --nproc_per_node={processes}"
    start, rest = words[0], [*words[1:], "SOLVER.RESUME", "auto"]
    return f"{start} {shlex.join(rest)}"


def _leave_if_another_failed() -> None:
    """End quietly where another process of the job has failed, which is what this one stumbled over."""
    if not distributed.fails_first():
        sys.exit(1)


def _refuse_bytes(arguments: Sequence[str]) -> None:
    """Refuse names that are no text before any work is done: results, logs and tables, which are text, could not name them."""
    for argument in arguments:
        if not is_text(argument):
            raise UsageError(f"{argument} is no text in UTF-8; rename the file or folder")


def _fail(sentence: str, status: int) -> None:
    logger.debug("stopped", exc_info=True)
    if distributed.fails_first():
        print(f"error: {shorten(sentence)}", file=sys.stderr, flush=True)
    sys.exit(status)
