"""What asks a program to end: Ctrl-C (SIGINT), SIGTERM, and SIGUSR1, by which Slurm announces the end of a job."""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from utils import distributed

STOPPING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name))

IMPATIENCE = 1.0
"""Seconds after a first Ctrl-C from which a second one ends the program at once; sooner, both come of one key press."""


class Interrupted(KeyboardInterrupt):
    """The program was asked to end.

    Attributes:
        number: of the signal.
    """

    def __init__(self, number: int, sentence: str = ""):
        super().__init__(sentence or f"ended by {signal.Signals(number).name}")
        self.number = number

    @property
    def exit_status(self) -> int:
        """130 after Ctrl-C, 143 after what a machine sends."""
        return 130 if self.number == signal.SIGINT else 143


@contextmanager
def _handling(handle: Callable[[int], None]) -> Iterator[None]:
    """Let `handle` answer to STOPPING for the length of a block; signals that the caller ignores (nohup) stay ignored."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    asked = [number for number in STOPPING if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, lambda number, _: handle(number)) for number in asked}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)


@contextmanager
def raising() -> Iterator[None]:
    """Raise `Interrupted` wherever the program is when it is asked to end, so that what it holds is put away."""

    def handle(number: int) -> None:
        raise Interrupted(number)

    with _handling(handle):
        yield


@contextmanager
def deferred() -> Iterator[None]:
    """Hold signals back until a block has ended that must not be torn."""
    held: list[int] = []
    with _handling(held.append):
        yield
    for number in held[:1]:
        signal.raise_signal(number)


def ignore() -> None:
    """Leave it to the process that started this one to end it: a group of processes is asked all at once."""
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)


class StopRequest:
    """Notes that the program is asked to end, for a loop that ends where it can go on later.

    Attributes:
        number: of the signal; 0: none came.
    """

    def __init__(self):
        self.number = 0
        self._heard = 0.0
        self._raises = False

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Note signals for the length of a block; a second Ctrl-C raises `Interrupted`."""
        with _handling(self._note):
            yield

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Raise `Interrupted` within a block that may be torn."""
        self._raises = True
        try:
            self.check()
            yield
        finally:
            self._raises = False

    def check(self) -> None:
        """Raise `Interrupted` if a signal was noted."""
        if self.number:
            raise Interrupted(self.number)

    def _note(self, number: int) -> None:
        # torchrun passes on a Ctrl-C that its processes have got from the terminal already.
        again = self.number and number == signal.SIGINT and not distributed.is_launched()
        impatient = again and time.monotonic() - self._heard > IMPATIENCE
        self.number, self._heard = self.number or number, self._heard or time.monotonic()
        if self._raises or impatient:
            raise Interrupted(self.number)
