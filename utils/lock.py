"""A folder belongs to one run at a time."""

import glob
import logging
import os
import secrets
import shutil
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
    """Hold a folder, made if it is missing, on the first process until a block ends; sweep out what killed runs left in it.

    The system holds the lock (flock, or LockFile on Windows), so it ends with the process however that ends, and two containers
    on one disk know of each other. A file system that cannot lock leaves it to the user, and a line says so.

    Raises:
        UsageError: another run is at work there.
    """
    if not distributed.is_main():
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
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


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """Give an empty folder beside `path` that becomes `path` if the block ends well, and is deleted if not.

    What killed runs left of such folders is swept out; two runs cannot make one `path` at a time.

    Args:
        path: of the folder to be; it may be there if it is empty.

    Raises:
        UsageError: it is a file or a folder that is not empty, or another run is about to make it.
    """
    path = path.absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    lock, held = FileLock(path.with_name(f".{path.name}{LOCK}")), True
    try:
        _acquire(lock, path)
    except (OSError, NotImplementedError):
        held = False  # a disk that cannot lock
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise UsageError(f"{path} exists and is not an empty folder; name a new folder with --output, or delete it first")
        for left in path.parent.glob(f".{glob.escape(path.name)}.*.tmp") if held else ():
            shutil.rmtree(left, ignore_errors=True)
        temporary.mkdir()
        yield temporary
        if hasattr(os, "sync"):
            os.sync()  # thousands of files, on the disk before their folder has its name
        if path.exists():
            path.rmdir()  # empty, as was seen above; not every system renames onto it
        temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if held:
            Path(lock.lock_file).unlink(missing_ok=True)
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
