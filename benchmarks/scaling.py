"""What several processes cost beside one, in seconds of processor time: `python -m benchmarks.scaling [--processes 1 2]`.

On a machine that others use, times on the clock say little. A training of three epochs and one of a single epoch are run for
each number of processes, in turn; the difference, of two epochs, is free of starting Python and of reading the data set.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tools import make_dataset
from utils.log import table

SETTINGS = (
    *("MODEL.DEVICE", "cpu", "MODEL.TRANSFORMER_TYPE", "vit_tiny_patch16_224_TransOSS", "MODEL.PRETRAIN_CHOICE", "none"),
    *("INPUT.SIZE_TRAIN", "[128,64]", "INPUT.SIZE_TEST", "[128,64]", "DATALOADER.SAMPLER", "softmax_triplet"),
    *("DATALOADER.NUM_INSTANCE", "4", "DATALOADER.NUM_WORKERS", "0", "SOLVER.IMS_PER_BATCH", "32", "TEST.REPORT", "False"),
    *("SOLVER.EVAL_PERIOD", "1000", "SOLVER.CHECKPOINT_PERIOD", "1000", "SOLVER.SAVE_MINUTES", "0", "MODEL.MIE", "True"),
)
"""A small network on pictures of half the usual size."""


def run_training(data: Path, processes: int, epochs: int, more: Sequence[str]) -> tuple[float, float]:
    """Seconds of processor time and of the clock of a training, of all its processes."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"] if processes > 1 else []
    with tempfile.TemporaryDirectory() as folder:
        words = [*SETTINGS, "DATASETS.ROOT_DIR", str(data), "OUTPUT_DIR", folder, "SOLVER.MAX_EPOCHS", str(epochs), *more]
        before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        subprocess.run([sys.executable, *launcher, "train.py", *words], check=True, stderr=subprocess.DEVNULL)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, time.perf_counter() - begun


def main(arguments: Sequence[str]) -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling", description=__doc__.splitlines()[0])
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2], metavar="N", help="numbers of processes (1 2)")
    parser.add_argument("--ships", type=int, default=24, metavar="N", help="of the training set (24)")
    args = parser.parse_args(arguments)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        make_dataset.main(["--output", str(data), "--train-ships", str(args.ships), "--test-ships", "4", "--workers", "1"])
        for processes in args.processes:
            for more in ([], ["SOLVER.SHARD", "True"]) if processes > 1 else ([],):
                (short, _), (long, clock) = (run_training(data, processes, epochs, more) for epochs in (1, 3))
                rows.append(
                    [processes, "shards" if more else "whole", f"{short:.1f}", f"{(long - short) / 2:.1f}", f"{clock:.0f}"]
                )
    heads = ["processes", "network", "CPU s of 1 epoch", "CPU s of each more", "clock s of 3"]
    print(table(heads, rows))


if __name__ == "__main__":
    main(sys.argv[1:])
