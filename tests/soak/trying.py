"""Readers and mutated files: each file ends in a value or in one sentence, within seconds and a bounded memory."""

import json
import os
import random
import resource
import select
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.soak.readers import Reader

SECONDS = 5.0
"""Of processor time that a file may take."""

PATIENCE = 60.0
"""Seconds of waiting that it may take: a machine may be busy, but a reader that waits for a pipe waits for ever."""

GROWTH = 500 * 2**20
"""Bytes by which reading a file may grow the process."""

CHUNK = 500
"""Files that a process reads before another one takes over: nothing adds up."""


@dataclass
class Tried:
    """What became of the files of a reader.

    Attributes:
        reader: its name.
        count: of files.
        read: files that were read all the same.
        refused: in one sentence.
        faults: number of a file -> what went wrong: a traceback, a hang, a death.
        slowest: seconds of the slowest file.
    """

    reader: str
    count: int = 0
    read: int = 0
    refused: int = 0
    faults: dict[int, str] = field(default_factory=dict)
    slowest: float = 0.0


def try_reader(reader: Reader, count: int, seed: int, *, keep: Path | None = None, first: int = 0) -> Tried:
    """Read `count` mutated files; each follows from (seed, reader, number) alone.

    Args:
        reader: which.
        count: of files.
        seed: of what is drawn.
        keep: folder for files that a reader did not survive.
        first: number of the first file.
    """
    place = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with tempfile.TemporaryDirectory(dir=place) as folder:
        good = Path(folder) / "good"
        good.mkdir()
        paths, read = reader.prepare(good)
        contents = [path.read_bytes() for path in paths]
        for path in paths:
            read(path)  # or nothing would be tried
        tried, following, end = Tried(reader.name), first, first + count
        while following < end:
            numbers = range(following, min(end, following + CHUNK))
            for number, outcome, seconds in _in_a_process(reader, paths, contents, read, numbers, seed):
                following = number + 1
                tried.count += 1
                tried.slowest = max(tried.slowest, seconds)
                if outcome in ("read", "refused"):
                    setattr(tried, outcome, getattr(tried, outcome) + 1)
                    continue
                tried.faults[number] = outcome
                if keep is not None:
                    keep.mkdir(parents=True, exist_ok=True)
                    path, content = mutant_of(reader, paths, contents, number, seed)
                    (keep / f"{reader.name.replace(' ', '_')}_{number}@{path.name}").write_bytes(content)
        return tried


def mutant_of(reader: Reader, paths: list[Path], contents: list[bytes], number: int, seed: int) -> tuple[Path, bytes]:
    """The good file that a mutant was made of, and the mutant."""
    draws = random.Random(f"{seed} {reader.name} {number}")
    chosen = draws.randrange(len(paths))
    return paths[chosen], reader.mutate(draws, contents[chosen], contents)


def _in_a_process(reader, paths, contents, read, numbers: range, seed: int) -> Iterator[tuple[int, str, float]]:
    """Number, outcome and seconds of each file; a process that hangs or dies ends the iteration after its file."""
    receiver, sender = os.pipe()
    sys.stdout.flush()
    child = os.fork()
    if not child:
        os.close(receiver)
        _read_all(reader, paths, contents, read, numbers, seed, sender)
    os.close(sender)
    buffer, number, begun, worked = b"", numbers.start, time.monotonic(), 0.0
    try:
        while number < numbers.stop:
            ready, _, _ = select.select([receiver], [], [], 1.0)
            got = os.read(receiver, 2**16) if ready else None
            over = not ready and (_worked(child) - worked > SECONDS or time.monotonic() - begun > PATIENCE)
            if got == b"" or over:
                kill_process(child)
                status = os.waitpid(child, 0)[1]
                child = 0
                yield number, f"no end within {SECONDS:g} s" if over else f"died, status {status}", SECONDS
                return
            *lines, buffer = (buffer + (got or b"")).split(b"\n")
            for line in lines:
                outcome, seconds = json.loads(line)
                yield number, outcome, seconds
                number, begun, worked = number + 1, time.monotonic(), _worked(child)
    finally:
        os.close(receiver)
        if child:
            kill_process(child)
            os.waitpid(child, 0)


def _worked(process: int) -> float:
    """Seconds of processor time that a process of ours has had."""
    words = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


def kill_process(number: int) -> None:
    """End a process of ours."""
    os.kill(number, signal.SIGKILL)


def _read_all(reader, paths, contents, read, numbers: range, seed: int, sender: int) -> None:
    """Read files, tell of each, and end this process."""
    status = 1
    try:
        silence = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silence, 1), os.dup2(silence, 2)
        with Path("/proc/self/statm").open() as file:
            limit = int(file.read().split()[0]) * resource.getpagesize() + GROWTH
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        for number in numbers:
            good, content = mutant_of(reader, paths, contents, number, seed)
            path = good.with_name(f"m{number}@{good.name}")
            path.write_bytes(content)
            begun = time.process_time()
            told = [_outcome(read, path), time.process_time() - begun]
            path.unlink()
            os.write(sender, json.dumps(told).encode() + b"\n")
        status = 0
    finally:
        os._exit(status)


def _outcome(read, path: Path) -> str:
    try:
        read(path)
        return "read"
    except BaseException as error:
        of_ours = hasattr(error, "exit_status") or (isinstance(error, OSError) and error.strerror)
        if of_ours and isinstance(error, Exception):
            return "refused"
        return "".join(traceback.format_exception(error))[-3000:]


def describe_tried(tried: Tried) -> list[object]:
    """A row of a table."""
    return [tried.reader, tried.count, tried.read, tried.refused, len(tried.faults), f"{tried.slowest:.2f}"]
