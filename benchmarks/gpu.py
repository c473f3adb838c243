"""Every job on a GPU, beside a plain restatement of the released way, in one run.

    python -m benchmarks.gpu [--only JOB ...] [--seconds 450] [--output logs/benchmarks]

Needs the checkout and its packages; writes gpu.md and gpu.json. Weights are random and chips are made up: what is measured is
speed, memory and agreement. Jobs that the seconds do not suffice for are listed as not run. `--tiny` tries the script on a CPU.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from bbdm.model import build_network
from benchmarks.gpu_bridge import f4_sampling, f4_training, pixel_sampling, pixel_training
from benchmarks.gpu_reid import extraction, ranking, reid_loop, reid_training, reranking, testing
from benchmarks.gpu_setup import ROOT, Bench
from benchmarks.measuring import Row, machine_line, matrix_rates, print_rows, with_ratios, write_rows
from configs import load_cfg
from tests.chip_files import write_hoss


def golden(bench: Bench) -> Iterator[Row]:
    """The golden vectors, computed on the device."""
    start = time.perf_counter()
    command = [sys.executable, "-m", "tests.golden", "--device", str(bench.device)]
    lines = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout.splitlines()
    good, bad = (sum(line.startswith(word) for line in lines) for word in ("ok", "FAIL"))
    failed = "; ".join(line for line in lines if line.startswith("FAIL"))
    note = f"{good} files within tolerance, {bad} not{': ' if failed else ''}{failed}"
    yield Row("golden vectors", "float32, TF32 off", time.perf_counter() - start, note=note[:900])


def promises(bench: Bench) -> Iterator[Row]:
    """What must hold on a GPU as on a CPU: equal bits when asked for, resuming elsewhere, one sentence when memory is short."""
    root, device = write_hoss(bench.folder / "small", train_ships=8), str(bench.device)
    fixed = ["train.py", "--config_file", "configs/demo_reid.yml", "DATASETS.ROOT_DIR", root, "SOLVER.IMS_PER_BATCH", "16"]
    fixed += ["SOLVER.EVAL_PERIOD", "1", "SOLVER.CHECKPOINT_PERIOD", "1", "SOLVER.WARMUP_EPOCHS", "1"]

    def training(name: str, epochs: int, where: str, *more: str) -> subprocess.Popen:
        own = ["SOLVER.MAX_EPOCHS", epochs, "MODEL.DEVICE", where, "OUTPUT_DIR", bench.folder / name, *more]
        command = [sys.executable, *map(str, [*fixed, *own])]
        return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def outcome(process: subprocess.Popen) -> str:
        told = process.communicate()[0].strip().splitlines()
        return "done" if process.returncode == 0 else f"exit {process.returncode}: {told[-1] if told else ''}"[:300]

    start = time.perf_counter()
    twins = [training(name, 2, device, "SOLVER.DETERMINISTIC", "True") for name in ("one", "two")]
    greedy = None if bench.tiny else memory_hog(bench, root)
    outcomes = [outcome(twin) for twin in twins]
    one, two = (
        torch.load(bench.folder / name / "transformer_2.pth", map_location="cpu", weights_only=True) for name in ("one", "two")
    )
    equal = all(torch.equal(one[key], two[key]) for key in one)
    yield Row(
        "SOLVER.DETERMINISTIC twice", device, time.perf_counter() - start, note=f"{outcomes}, weights equal to the bit: {equal}"
    )
    if greedy:
        yield Row("too large a batch", device, None, note=outcome(greedy))
    there = training("one", 3, "cpu", "SOLVER.RESUME", str(bench.folder / "one" / "last.pth"))
    yield Row("resumed on a CPU", "cpu", None, note=outcome(there))
    back = training("one", 4, device, "SOLVER.RESUME", str(bench.folder / "one" / "last.pth"))
    yield Row("resumed on the GPU", device, None, note=outcome(back))


def memory_hog(bench: Bench, root: Path) -> subprocess.Popen:
    """Sampling of 4,096 pictures together, which no card holds."""
    fixed = ["BBDM.MULTIPLIERS", "[1,1]", "BBDM.BLOCKS", "1", "DATASETS.ROOT_DIR", str(root), "MODEL.DEVICE", str(bench.device)]
    fixed += [
        "BBDM.SAMPLE_BATCH",
        "4096",
        "BBDM.SAMPLE_STEP",
        "3",
        "OUTPUT_DIR",
        str(bench.folder / "hog"),
    ]
    weights = bench.folder / "bridge.pth"
    torch.save(build_network(load_cfg(ROOT / "configs/bbdm_hoss.yml", fixed)).state_dict(), weights)
    command = ["-m", "bbdm.sample", "--config_file", "configs/bbdm_hoss.yml", *fixed, "BBDM.WEIGHT", str(weights)]
    return subprocess.Popen([sys.executable, *command], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


JOBS = {
    "golden": golden,
    "promises": promises,
    "extraction": extraction,
    "reid": reid_training,
    "loop": reid_loop,
    "test": testing,
    "ranking": ranking,
    "f4": f4_training,
    "f4-sampling": f4_sampling,
    "pixel": pixel_training,
    "pixel-sampling": pixel_sampling,
    "reranking": reranking,
}
"""Name -> what yields its rows, in the order in which they are run."""


def main() -> None:
    """Run the jobs and write the table after each of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=JOBS, default=list(JOBS), help="jobs to run (default: all)")
    parser.add_argument("--seconds", type=float, default=450, help="after which no job is begun (default 450)")
    parser.add_argument("--output", type=Path, default=ROOT / "logs" / "benchmarks", help="folder of gpu.md and gpu.json")
    parser.add_argument("--tiny", action="store_true", help="try the script itself, on a CPU")
    arguments = parser.parse_args()
    device = torch.device("cpu" if arguments.tiny else "cuda:0")
    torch.backends.cudnn.allow_tf32 = False
    os.environ["OMP_NUM_THREADS"] = os.environ.get("OMP_NUM_THREADS", "4")
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(device, Path(folder), arguments.tiny, time.monotonic() + arguments.seconds)
        bench.rates = matrix_rates(device, 512 if arguments.tiny else 8192)
        rows = [Row("matrix product", way, 1 / (rate / 1e12), note="TFLOP/s in items/s") for way, rate in bench.rates.items()]
        for name in arguments.only:
            rows += run_job(name, bench)
            write_rows(arguments.output / "gpu.json", with_ratios(rows), machine_line(device))
            text = f"{machine_line(device)}\n\n{print_rows(with_ratios(rows))}\n"
            (arguments.output / "gpu.md").write_text(text, encoding="utf-8")
    print(text)


def run_job(name: str, bench: Bench) -> list[Row]:
    """The rows of a job; what goes wrong is a row too, so that the other jobs are run."""
    if bench.left < 15:
        return [Row(name, "", None, note="not run: no time left")]
    start, rows = time.perf_counter(), []
    try:
        for row in JOBS[name](bench):
            rows.append(row)
            print(print_rows([row], "plain").splitlines()[-1], flush=True)
    except Exception as error:
        rows.append(Row(name, "", None, note=f"failed: {type(error).__name__}: {' '.join(str(error).split())[:400]}"))
        print(rows[-1], flush=True)
    print(f"{name}: {time.perf_counter() - start:.0f} s, {bench.left:.0f} s left", flush=True)
    return rows


if __name__ == "__main__":
    main()
