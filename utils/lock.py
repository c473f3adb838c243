"""A folder belongs to one run at a time."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from utils import distributed
from utils.errors import UsageError
from utils.files import LOCK, sweep

logger = logging.getLogger(__name__)

PATIENCE = 15.0
"""Seconds that a killed run's own processes may take to end; the system keeps its lock until they have."""


@contextmanager
def own_folder(folder: Path) -> Iterator[None]:
    """Hold a folder for the length of a block, on the first process, and sweep out what killed runs left in it.

    The system holds the lock (flock, or LockFile on Windows), so it ends with the process however that ends, and two containers
    on one disk know of each other. A file system that cannot lock leaves it to the user, and a line says so.

    Raises:
        UsageError: another run is at work there.
    """
    if not distributed.is_main():
        yield
        return
    lock = FileLock(folder / LOCK)
    try:
        _acquire(lock, folder)
    except (OSError, NotImplementedError) as error:
        logger.warning("%s is on a disk that cannot lock (%s): see that no other run writes there", folder, error)
        yield
        return
    try:
        sweep(folder)
        yield
    finally:
        (folder / LOCK).unlink(missing_ok=True)  # while it is held: who waits for it finds the file gone and makes another
        lock.release(force=True)


def _acquire(lock: FileLock, folder: Path) -> None:
    try:
        lock.acquire(timeout=0)
        return
    except Timeout:
        logger.info("a run is at work in %s; waiting %g s for its end", folder, PATIENCE)
    try:
        lock.acquire(timeout=PATIENCE, poll_interval=0.1)
    except Timeout as error:
        raise UsageError(f"another run is at work in {folder}; name another OUTPUT_DIR, or wait until it has ended") from error
