"""Writing files so that a reader never sees half of one, not even after a power cut."""

import errno
import json
import os
import re
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from utils.errors import DataError

TEMPORARY = re.compile(r"\..*\.[0-9a-f]{16}\.tmp(\.\w+)?")
"""Names that `replacing` gives to files that are being written."""

OF_DISKS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.ENODEV, errno.ESTALE)
"""What a write fails with where the disk is at fault; NumPy says how much it has 'written' instead."""


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Give a temporary path beside `path`; rename it to `path` if the block ends well, delete it if not.

    The temporary name ends in the suffix of `path`, so writers that choose a format by suffix work, and is drawn at random,
    since processes in two containers may have one number. Parent folders are made. File and folder are on the disk at the end.

    Raises:
        DataError: the disk does not take the file; what was at `path` stays.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem[:40]}.{secrets.token_hex(8)}.tmp{path.suffix}")
    try:
        with naming(path, temporary):
            yield temporary
            _settle(temporary)
            temporary.replace(path)
        if os.name != "nt":  # where a folder cannot be opened
            with suppress(OSError):  # some file systems do not know it
                _settle(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def naming(path: Path, temporary: Path | None = None) -> Iterator[None]:
    """Give the name of `path` to errors of a disk that does not take it; what fails at other files passes.

    Raises:
        DataError: in place of an OSError of `path`, of `temporary`, its stand-in, or of a file without a name.
    """
    try:
        yield
    except OSError as error:
        nameless = error.filename is None and (error.errno in OF_DISKS or (error.errno is None and "written" in str(error)))
        if not nameless and (error.filename is None or Path(error.filename) not in (path, temporary)):
            raise
        reason = error.strerror or error
        raise DataError(
            f"{path} could not be written ({reason}); make room on its disk or name another folder, then start again: "
            "files that were whole stay"
        ) from error


def _settle(path: Path) -> None:
    """Wait until a file, or the names of a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sweep_old(folder: Path, seconds: float = 86_400.0) -> None:
    """Delete what killed runs left half-written in a folder that several share, if it is so old that none is at work on it."""
    for path in folder.iterdir():
        with suppress(OSError):
            if TEMPORARY.fullmatch(path.name) and time.time() - path.stat().st_mtime > seconds:
                path.unlink()


def sweep(folder: Path) -> None:
    """Delete what killed runs left half-written in a folder that is locked, and in its folders that no run has locked."""
    inner = (path for path in folder.iterdir() if path.is_dir() and not path.is_symlink())
    for place in (folder, *(path for path in inner if not (path / LOCK).exists())):
        with os.scandir(place) as entries:
            leftovers = [entry.path for entry in entries if TEMPORARY.fullmatch(entry.name)]
        for path in leftovers:
            Path(path).unlink(missing_ok=True)


LOCK = ".lock"
"""Name of the file by which a run holds its folder; see `utils.lock`."""


def write_text(path: str | Path, text: str) -> None:
    """Write `text` as UTF-8, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` as indented JSON (UTF-8, NaN refused), whole or not at all."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
