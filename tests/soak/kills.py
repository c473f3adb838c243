"""Commands that are killed at random moments, started again, and held against runs that nothing killed.

Each command is a process that is forked from this one, which has imported everything already, so that a small command takes a
second. Moments are of two kinds: any time, and any event of writing (a part of an archive, a line, a sync, a rename), before,
within or after it.
"""

import atexit
import os
import random
import shutil
import signal
import socket
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.soak.contents import contents_of, faults_of, leftovers_of
from tests.soak.jobs import Job
from utils import checkpoint, files, log
from utils.cli import run as run_command

LONGEST = 300.0
"""Seconds after which a command is taken to hang."""


PART = 4096
"""Bytes from which a part of an archive is an event: an archive is written in thousands of small ones."""


@dataclass(frozen=True)
class Moment:
    """When a command is killed.

    Attributes:
        seconds: after its start; 0 for an event.
        event: number of the event of writing, from 1 on; 0 for a time.
        place: 'before', 'within' or 'after' the event.
        alone: kill the first process alone, and leave it to those that it started to end.
    """

    seconds: float = 0.0
    event: int = 0
    place: str = "before"
    alone: bool = False


@dataclass(frozen=True)
class Ending:
    """How a command ended: its exit status, or minus the signal; seconds; what it printed; events of writing."""

    status: int
    seconds: float
    told: str
    events: int


@dataclass
class Survived:
    """What the kills of a job came to.

    Attributes:
        job: its name.
        kills: in all.
        at_events: of these, at events of writing.
        ended_first: commands that ended before their moment came.
        faults: what went wrong.
    """

    job: str
    kills: int = 0
    at_events: int = 0
    ended_first: int = 0
    faults: list[str] = field(default_factory=list)


class Killer:
    """Counts the events of writing in this process, and ends it, with all of its group, at one of them."""

    def __init__(self, moment: Moment | None):
        self.moment = moment
        self.events = 0

    def arm(self) -> None:
        """Take the place of what writes."""
        for owner, name in (
            *((checkpoint._Writer, "write"), (files, "_settle"), (log.MetricsWriter, "write")),
            *((Path, name) for name in ("replace", "rename", "unlink", "mkdir", "write_text", "write_bytes")),
        ):
            setattr(owner, name, self._wrapped(getattr(owner, name), torn=name == "write" and owner is checkpoint._Writer))

    def _wrapped(self, call, *, torn: bool):
        def counted(*arguments, **more):
            if torn and len(arguments[1]) < PART:
                return call(*arguments, **more)
            self.events += 1
            mine = self.moment is not None and self.events == self.moment.event
            if mine and self.moment.place == "within" and torn:
                writer, content = arguments
                writer.file.write(bytes(content)[: len(bytes(content)) // 2])
                writer.file.flush()
            if mine and self.moment.place != "after":
                self._kill()
            result = call(*arguments, **more)
            if mine:
                self._kill()
            return result

        return counted

    def _kill(self) -> None:
        if self.moment.alone:
            os.kill(os.getpid(), signal.SIGKILL)
        os.killpg(os.getpgid(0), signal.SIGKILL)


def start(job: Job, folder: Path, moment: Moment | None) -> Ending:
    """Run a command on `folder` to its end, or to a moment at which it is killed."""
    place = folder.parent / f"{folder.name}.told"
    place.unlink(missing_ok=True)
    counts, begun = folder.parent / f"{folder.name}.events", time.monotonic()
    counts.unlink(missing_ok=True)
    port = _free_port() if job.ranks > 1 else 0
    children = [_fork(job, folder, moment if not rank else None, place, counts, rank, port) for rank in range(job.ranks)]
    statuses: dict[int, int] = {}
    while len(statuses) < len(children):
        seconds = time.monotonic() - begun
        over = seconds > LONGEST
        if over or (moment and moment.seconds and seconds >= moment.seconds):
            _kill(children, statuses, alone=bool(moment and moment.alone and not over))
        for child in children:
            if child not in statuses and (ended := os.waitpid(child, os.WNOHANG))[0]:
                statuses[child] = os.waitstatus_to_exitcode(ended[1])
        if any(status < 0 for status in statuses.values()):
            _kill(children, statuses, alone=job.ranks == 1 and bool(moment and moment.alone))
        time.sleep(0.005)
    told = place.read_text(encoding="utf-8", errors="replace") if place.is_file() else ""
    worst = min(statuses.values()) if min(statuses.values()) < 0 else max(statuses.values())
    events = int(counts.read_text()) if counts.is_file() else 0
    return Ending(worst, time.monotonic() - begun, told, events)


def _kill(children: Sequence[int], statuses: dict[int, int], *, alone: bool) -> None:
    for child in children:
        try:
            if alone and child not in statuses:
                os.kill(child, signal.SIGKILL)
            elif not alone:
                os.killpg(child, signal.SIGKILL)
        except ProcessLookupError:
            pass


def _free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def _fork(job: Job, folder: Path, moment: Moment | None, place: Path, counts: Path, rank: int, port: int) -> int:
    """The process of a rank of a command, the leader of a group of its own."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    status = 70
    try:
        os.setsid()
        told = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for stream in (1, 2):
            os.dup2(told, stream)
        if job.ranks > 1:
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(job.ranks), "MASTER_ADDR": "127.0.0.1"}
            os.environ["MASTER_PORT"] = str(port)
        killer = Killer(moment)
        killer.arm()
        words = [str(word) for word in job.words(folder)]
        sys.argv = [job.program.__name__, *words]
        sys.orig_argv = [sys.executable, "-m", *sys.argv]
        status = _status_of(job)
        atexit._run_exitfuncs()
        if not rank:
            with counts.open("w") as file:
                file.write(str(killer.events))
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(status)


def _status_of(job: Job) -> int:
    try:
        run_command(job.program.main, together=job.ranks > 1)
    except SystemExit as end:
        return end.code or 0
    return 0


@dataclass(frozen=True)
class Reference:
    """A run that nothing killed."""

    contents: dict[str, str]
    seconds: float
    events: int


def measure(job: Job, folder: Path) -> Reference:
    """Run a job to its end in its folder, twice: what differs of itself would tell nothing."""
    runs = []
    for _ in range(2):
        fresh(job, folder)
        ended = start(job, folder, None)
        if ended.status:
            raise RuntimeError(f"{job.name} ended with status {ended.status}:\n{ended.told[-3000:]}")
        runs.append((contents_of(folder), ended))
    (first, _), (second, ended) = runs
    if first != second:
        raise RuntimeError(f"two runs of {job.name} differ: {differing(first, second)}")
    if left := leftovers_of(folder):
        raise RuntimeError(f"{job.name} leaves {left}")
    return Reference(first, ended.seconds, ended.events)


def fresh(job: Job, folder: Path) -> None:
    """Make the folder of a run."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    job.prepare(folder)


def differing(first: dict[str, str], second: dict[str, str]) -> list[str]:
    """Files that are not the same in both."""
    return sorted(name for name in first.keys() | second.keys() if first.get(name) != second.get(name))


def draw_moment(draws: random.Random, job: Job, reference: Reference) -> Moment:
    """Any time, or any event of writing."""
    alone = job.ranks == 1 and draws.random() < 0.3
    if reference.events and draws.random() < 0.5:
        place = draws.choice(("before", "within", "after"))
        return Moment(event=draws.randint(1, reference.events), place=place, alone=alone)
    return Moment(seconds=max(1e-3, draws.uniform(0.0, reference.seconds)), alone=alone)


def survive(job: Job, reference: Reference, folder: Path, draws: random.Random, survived: Survived, most: int = 3) -> None:
    """Kill a run once or, now and then, again and again; then let it end, and compare. Adds to `survived`."""
    fresh(job, folder)
    name, moments = f"{job.name} {folder.name}", []
    for _ in range(draws.choice([1, 1, 1, 2, most])):
        if job.is_done(folder):
            break
        moments.append(draw_moment(draws, job, reference))
        ended = start(job, folder, moments[-1])
        if ended.status != -signal.SIGKILL:
            survived.ended_first += 1
            if ended.status:
                survived.faults.append(f"{name} {moments}: status {ended.status} before it was killed: {ended.told[-1500:]}")
            break
        survived.kills += 1
        survived.at_events += bool(moments[-1].event)
        survived.faults += [f"{name} {moments}: after the kill {fault}" for fault in faults_of(folder)]
    if not job.is_done(folder):
        ended = start(job, folder, None)
        if ended.status or "Traceback" in ended.told:
            survived.faults.append(f"{name} {moments}: started again, status {ended.status}: {ended.told[-1500:]}")
            return
    if wrong := differing(reference.contents, contents_of(folder)):
        survived.faults.append(f"{name} {moments}: other than unkilled: {wrong}")
    if left := [name for name in leftovers_of(folder) if not job.may_leave(name)]:
        survived.faults.append(f"{name} {moments}: left {left}")
