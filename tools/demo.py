"""From nothing to a table of results: data, re-identification, generated pictures, and the test that fuses them.

What an untrained network makes of the same chips stands beside it.
"""

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from configs import load_cfg
from model.build import build_model
from utils.checkpoint import save
from utils.cli import run
from utils.errors import TrainingError
from utils.log import setup_logging, table

REID_CONFIG = "configs/demo_reid.yml"
BRIDGE_CONFIG = "configs/demo_bbdm.yml"
FEW_CHIPS = ["SOLVER.MAX_EPOCHS", "150", "SOLVER.EVAL_PERIOD", "50", "SOLVER.CHECKPOINT_PERIOD", "150"]
"""Settings of both for a few dozen training chips: an epoch is only a step or three."""


def main(arguments: Sequence[str]) -> None:
    """Run every command of the demo and print one table."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.demo",
        description="Data, training, generation, fused test: the whole path on two CPU cores, in minutes.",
        epilog="examples:\n  python -m tools.demo\n  python -m tools.demo --data <folder that holds HOSS/>",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", type=Path, help="folder that holds HOSS/; by default procedural ships are drawn")
    parser.add_argument("--output", type=Path, default=Path("logs/demo"), help="folder for everything that is made (logs/demo)")
    args = parser.parse_args(arguments)
    setup_logging()
    start = time.perf_counter()
    output = args.output / ("real" if args.data else "procedural")
    data = args.data or _draw_data(output / "data")
    common = ["--config_file", REID_CONFIG, "DATASETS.ROOT_DIR", str(data)]
    periods = FEW_CHIPS if args.data else []
    reid = output / "reid"
    _command("train.py", *common, *periods, "OUTPUT_DIR", str(reid))
    samples = _generate(output, data, periods)
    fused = ["DATASETS.QUERY_ADD_DIR", str(samples), "DATASETS.GALLERY_ADD_DIR", str(samples)]
    _command("test.py", *common, *fused, "OUTPUT_DIR", str(reid), "TEST.WEIGHT", str(reid / "best_model_mAP.pth"))
    untrained = _untrained_weights(output / "untrained", common)
    _command("test.py", *common, "OUTPUT_DIR", str(untrained.parent), "TEST.WEIGHT", str(untrained))
    print(f"\n{_summary(reid / 'results.json', untrained.parent / 'results.json')}")
    print(f"\n{time.perf_counter() - start:.0f} s in all; results: {reid / 'results.json'}")


def _draw_data(folder: Path) -> Path:
    if not (folder / "HOSS").is_dir():
        _command("-m", "tools.make_dataset", "--output", str(folder))
    return folder


def _generate(output: Path, data: Path, periods: Sequence[str]) -> Path:
    """Train the bridge and sample pseudo-SAR pictures of every optical test chip; returns their folder."""
    common = ["--config_file", BRIDGE_CONFIG, "DATASETS.ROOT_DIR", str(data), *periods]
    bridge, samples = output / "bridge", output / "samples"
    _command("-m", "bbdm.train", *common, "OUTPUT_DIR", str(bridge))
    weights = bridge / f"bridge_{load_cfg(BRIDGE_CONFIG, common[2:]).SOLVER.MAX_EPOCHS}.pth"
    shutil.rmtree(samples, ignore_errors=True)  # of an earlier demo, made by other weights
    _command("-m", "bbdm.sample", *common, "OUTPUT_DIR", str(samples), "BBDM.WEIGHT", str(weights))
    return samples


def _untrained_weights(folder: Path, common: Sequence[str]) -> Path:
    """The network of the demo as training finds it."""
    cfg = load_cfg(common[1], common[2:])
    torch.manual_seed(cfg.SOLVER.SEED)
    save(folder / "untrained.pth", build_model(cfg).state_dict())
    return folder / "untrained.pth"


def _command(*arguments: str) -> None:
    """Run a command of the project as a user would, and stop where it fails."""
    print(f"\n$ python {shlex.join(arguments)}", flush=True)
    # A core is left to the worker that reads chips: threads that wait for one another lose more than it costs.
    environment = os.environ | {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) - 1))}
    done = subprocess.run([sys.executable, *arguments], cwd=Path(__file__).parent.parent, env=environment, check=False)
    if done.returncode:
        raise TrainingError(f"the command above ended with status {done.returncode}; the demo stops here")


def _summary(trained: Path, untrained: Path) -> str:
    """The table of results, with the untrained network and chance beside them."""
    ours, baseline = (json.loads(path.read_text(encoding="utf-8"))["protocols"] for path in (trained, untrained))
    rows, verdicts = [], []
    for name, kinds in ours.items():
        plain, nothing = kinds["plain"], baseline[name]["plain"]
        low, high = plain["R1_interval"]
        fused = kinds["fused"]
        rows.append(
            [
                name,
                f"{100 * plain['mAP']:.1f}",
                f"{100 * plain['R1']:.1f}",
                f"{100 * low:.1f}-{100 * high:.1f}",
                f"{100 * fused['mAP']:.1f} / {100 * fused['R1']:.1f}" if fused else "-",
                f"{100 * nothing['R1']:.1f}",
                f"{100 * plain['chance']:.1f}",
                plain["queries_counted"],
            ]
        )
        learned = low > nothing["R1"]
        verdicts.append(
            f"{name}: R1 is {plain['R1'] / plain['chance']:.0f} times chance; its 95 % interval "
            f"{'lies above' if learned else 'does not lie above'} the untrained network's R1"
        )
    headers = ["protocol", "mAP", "R1", "95 %", "fused mAP / R1", "untrained R1", "chance", "queries"]
    return "\n".join([table(headers, rows), "", *verdicts])


if __name__ == "__main__":
    run(main)
