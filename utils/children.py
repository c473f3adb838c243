"""Programs that a command starts, which end with it however it ends.

The standard input of a child is a pipe that its parent holds and never writes to: the system closes it when the parent ends,
and the child then asks itself to end.
"""

import logging
import os
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

from utils.errors import shorten
from utils.signals import Interrupted

logger = logging.getLogger(__name__)

WATCHED = "MOS_PARENT_HOLDS_STDIN"
"""Environment variable that tells a child so."""

PATIENCE = 60.0
"""Seconds that a child has to put away what it holds once it is asked to end."""


def run_child(arguments: Sequence[str], *, folder: Path | None = None, environment: Mapping[str, str] | None = None) -> int:
    """Run this Python with `arguments` and wait for it; returns its exit status. A signal to end is passed on.

    Args:
        arguments: behind the name of the Python.
        folder: where it works; by default here.
        environment: by default this one's.
    """
    environment = {**(os.environ if environment is None else environment), WATCHED: "1"}
    child = subprocess.Popen([sys.executable, *arguments], cwd=folder, env=environment, stdin=subprocess.PIPE)
    try:
        return child.wait()
    except KeyboardInterrupt as asked:
        if not (isinstance(asked, Interrupted) and asked.number == signal.SIGINT):
            child.terminate()  # a Ctrl-C in a terminal reaches the child too
        raise
    finally:
        child.stdin.close()
        _end(child)


def _end(child: subprocess.Popen) -> None:
    try:
        child.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        logger.warning("%s did not end within %d s of being asked, and was killed", shorten(shlex.join(child.args)), PATIENCE)
    finally:
        child.kill()  # nothing happens to one that has ended
        child.wait()


def end_with_parent() -> None:
    """Ask this process to end as soon as the one that started it by `run_child` is gone."""
    if os.environ.pop(WATCHED, None) and sys.stdin is not None:
        threading.Thread(target=_watch, args=(os.dup(sys.stdin.fileno()),), daemon=True).start()


def _watch(descriptor: int) -> None:
    while os.read(descriptor, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
