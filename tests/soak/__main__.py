"""`python -m tests.soak [--kills N] [--mutants N]`: kills over all jobs, then mutated files for all readers.

The exit status is 1 if anything was lost, damaged, other than unkilled, or left as a traceback. Each kill and each mutant
follows from the seed and its number; a job or reader can be named to try it alone.
"""

import argparse
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from tests.soak import jobs
from tests.soak.jobs import Job
from tests.soak.kills import Reference, Survived, fresh, measure, start, survive
from tests.soak.readers import READERS
from tests.soak.trying import describe_tried, try_reader
from utils.log import table

Measured = list[tuple[Job, Reference, Survived]]


def measure_all(base: Path, wanted: Callable[[Job], bool], tell: Callable[[str], None]) -> Measured:
    """Prepare data and run every job that is wanted without a kill; those that others build on run anyway."""
    data, made, found = jobs.write_data(base), base / "made", []
    needed = {"train", "bbdm.train", "bbdm.sample", "test", "tools.rank"}
    stages = (
        jobs.trainings(data), jobs.tests(data, made), jobs.fusing(made), jobs.makers(data, base), jobs.programs(data)
    )  # fmt: skip
    for job in (job for stage in stages for job in stage):
        if wanted(job):
            reference = measure(job, base / "run")
            found.append((job, reference, Survived(job.name)))
            tell(
                f"{job.name}: {reference.seconds:.1f} s, {reference.events} events of writing, {len(reference.contents)} files"
            )
        if job.name in needed:
            fresh(job, made / job.name)
            ended = start(job, made / job.name, None)
            if ended.status:
                raise RuntimeError(f"{job.name} ended with status {ended.status}:\n{ended.told[-3000:]}")
    return found


def kill_all(found: Measured, base: Path, kills: int, seed: int, tell: Callable[[str], None], minutes: float = 1e9) -> None:
    """Kill until there were `kills` kills, job after job; those that start other programs every tenth time only."""
    number, end = 0, time.monotonic() + 60 * minutes
    while sum(survived.kills for _, _, survived in found) < kills and time.monotonic() < end:
        for job, reference, survived in found:
            if (job.name in jobs.SLOW and number % 10) or sum(other.kills for _, _, other in found) >= kills:
                continue
            before = len(survived.faults)
            survive(job, reference, base / "run", random.Random(f"{seed} {job.name} {number}"), survived)
            for fault in survived.faults[before:]:
                tell(f"FAULT {fault}")
        number += 1
        tell(f"{sum(survived.kills for _, _, survived in found)} kills")


def build_parser() -> argparse.ArgumentParser:
    """Build the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200, metavar="N", help="in all (200)")
    parser.add_argument("--mutants", type=int, default=10_000, metavar="N", help="of each reader (10000)")
    parser.add_argument("--seed", type=int, default=0, help="of all that is drawn (0)")
    parser.add_argument("--jobs", nargs="*", metavar="NAME", help="these alone")
    parser.add_argument("--readers", nargs="*", metavar="NAME", help="these alone")
    parser.add_argument("--minutes", type=float, default=1e9, metavar="M", help="of killing at most")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="where mutants go that a reader did not survive")
    return parser


def main(arguments: Sequence[str]) -> int:
    """Try what is asked for, and tell."""
    args, begun, faults = build_parser().parse_args(arguments), time.monotonic(), 0
    torch.set_num_threads(1)

    def tell(text: str) -> None:
        print(f"[{time.monotonic() - begun:7.1f} s] {text}", flush=True)

    if args.kills:
        base = Path(tempfile.mkdtemp(prefix="soak"))
        try:
            found = measure_all(base, lambda job: not args.jobs or job.name in args.jobs, tell)
            kill_all(found, base, args.kills, args.seed, tell, args.minutes)
        finally:
            shutil.rmtree(base, ignore_errors=True)
        rows = [[s.job, s.kills, s.at_events, s.ended_first, len(s.faults)] for _, _, s in found]
        print(table(["job", "kills", "of them within writing", "ended before", "faults"], rows), flush=True)
        faults += sum(row[-1] for row in rows)
    rows = []
    for reader in READERS if args.mutants else ():
        if not args.readers or reader.name in args.readers:
            tried = try_reader(reader, args.mutants, args.seed, keep=args.keep)
            rows.append(describe_tried(tried))
            faults += len(tried.faults)
            tell(" ".join(map(str, rows[-1])))
            for number, fault in list(tried.faults.items())[:3]:
                tell(ascii(f"FAULT {reader.name} {number}: {fault}"))
    if rows:
        print(table(["reader", "mutants", "read", "refused", "faults", "slowest (s)"], rows))
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
