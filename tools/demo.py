"""From nothing to a table of results: data, re-identification, generated pictures, and the test that fuses them.

What an untrained network makes of the same chips stands beside it.
"""

import argparse
import json
import os
import shlex
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from configs.parser import answer_help


def build_parser() -> argparse.ArgumentParser:
    """Build the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.demo",
        description="Data, training, generation, fused test: the whole path on two CPU cores, in minutes.",
        epilog="examples:\n  python -m tools.demo\n  python -m tools.demo --quick\n"
        "  python -m tools.demo --data <folder that holds HOSS/>",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", type=Path, help="folder that holds HOSS/; by default procedural ships are drawn")
    parser.add_argument("--quick", action="store_true", help="a sixth of the ships and little training: under 3 minutes")
    parser.add_argument("--output", type=Path, default=Path("logs/demo"), help="folder for everything that is made (logs/demo)")
    return parser


if __name__ == "__main__":
    answer_help(build_parser)

import torch

from configs import load_cfg
from model.build import build_model
from processor.ranking.results import results_path
from utils.checkpoint import save, sha256
from utils.children import run_child
from utils.cli import run
from utils.errors import TrainingError
from utils.lock import own_folder
from utils.log import make_output_dir, setup_logging, table

REID_CONFIG = "configs/demo_reid.yml"
BRIDGE_CONFIG = "configs/demo_bbdm.yml"
FEW_CHIPS = ["SOLVER.MAX_EPOCHS", "150", "SOLVER.EVAL_PERIOD", "50", "SOLVER.CHECKPOINT_PERIOD", "150"]
"""Settings of both for a few dozen training chips: an epoch is only a step or three."""

QUICK_SHIPS = ["--train-ships", "40", "--test-ships", "14"]
QUICK = ["SOLVER.MAX_EPOCHS", "24", "SOLVER.EVAL_PERIOD", "12", "SOLVER.CHECKPOINT_PERIOD", "24"]
QUICK_BRIDGE = ["SOLVER.MAX_EPOCHS", "1", "BBDM.GRID_PERIOD", "1", "SOLVER.CHECKPOINT_PERIOD", "1", "BBDM.SAMPLE_NUM", "2"]
"""Settings of --quick: the whole path, too short to learn much across sensors."""

GO_ON = ["SOLVER.RESUME", "auto"]


def main(arguments: Sequence[str]) -> None:
    """Run every command of the demo and print one table."""
    args = build_parser().parse_args(arguments)
    setup_logging()
    kind = ("real" if args.data else "procedural") + ("_quick" if args.quick else "")
    output = make_output_dir(str(args.output / kind))
    with own_folder(output):
        _run(output, args.data, quick=args.quick)


def _run(output: Path, chips: Path | None, *, quick: bool) -> None:
    """The commands, in a folder that this demo holds; what an earlier one has done there is not done again."""
    start = time.perf_counter()
    data = chips or _draw_data(output / "data", QUICK_SHIPS if quick else [])
    common = ["--config_file", REID_CONFIG, "DATASETS.ROOT_DIR", str(data)]
    periods = QUICK if quick else FEW_CHIPS if chips else []
    bridge = QUICK_BRIDGE if quick else periods
    reid = output / "reid"
    _command("train.py", *common, *periods, "OUTPUT_DIR", str(reid), *GO_ON)
    samples = _generate(output, data, bridge)
    fused = ["DATASETS.QUERY_ADD_DIR", str(samples), "DATASETS.GALLERY_ADD_DIR", str(samples)]
    results = _test(*common, *fused, weights=reid / "best_model_mAP.pth")
    untrained = _test(*common, weights=_untrained_weights(output / "untrained", common))
    gap = _gap(output, data, common, reid / "best_model_mAP.pth", samples) if (data / "spare").is_dir() else ""
    print(f"\n{_summary(results, untrained)}")
    print(f"{gap}\n{time.perf_counter() - start:.0f} s in all; results: {results}")


def _test(*options: str, weights: Path) -> Path:
    """Test weights in their own folder; returns the results."""
    _command("test.py", *options, "OUTPUT_DIR", str(weights.parent), "TEST.WEIGHT", str(weights))
    return results_path(weights.parent, path=weights, sha256=sha256(weights))


def _draw_data(folder: Path, options: Sequence[str]) -> Path:
    if not (folder / "HOSS").is_dir():
        _command("-m", "tools.make_dataset", "--output", str(folder), *options)
    return folder


def _generate(output: Path, data: Path, periods: Sequence[str]) -> Path:
    """Train the bridge and sample pseudo-SAR pictures of every optical test chip; returns their folder."""
    common = ["--config_file", BRIDGE_CONFIG, "DATASETS.ROOT_DIR", str(data), *periods]
    bridge, samples = output / "bridge", output / "samples"
    _command("-m", "bbdm.train", *common, "OUTPUT_DIR", str(bridge), *GO_ON)
    weights = bridge / f"bridge_{load_cfg(BRIDGE_CONFIG, common[2:]).SOLVER.MAX_EPOCHS}.pth"
    if _made_by(samples) != sha256(weights):
        shutil.rmtree(samples, ignore_errors=True)  # of an earlier demo
    _command("-m", "bbdm.sample", *common, "OUTPUT_DIR", str(samples), "BBDM.WEIGHT", str(weights))
    return samples


def _gap(output: Path, data: Path, common: Sequence[str], weights: Path, samples: Path) -> str:
    """How much of what perfect pictures would gain the demo's pictures and a common space do, as a table and a verdict."""
    path = output / "gap.json"
    options = ["--store", str(samples), "--kinds", "lda", "--json", str(path), "TEST.WEIGHT", str(weights)]
    _command("-m", "tools.oracle", *common[:2], *options[:6], *common[2:], *options[6:])
    found = json.loads(path.read_text(encoding="utf-8"))["protocols"]
    names = {"plain": "plain", "fused": "fused, tau tuned", "common space: lda": "common space lda"}
    names["oracle: a spare SAR view"] = "perfect pictures"
    rows = {name: {row["row"]: row for row in own} for name, own in found.items()}
    table_rows = [
        [told, *(f"{100 * own[name]['mAP']:.1f} / {100 * own[name]['R1']:.1f}" for own in rows.values())]
        for name, told in names.items()
    ]
    lines = [table(["mAP / R1", *rows], table_rows), "", "closed of the gap between plain and perfect pictures, 95 %:"]
    for protocol, own in rows.items():
        shares = (f"{told} {_share(own[name])}" for name, told in (("fused", "pictures"), ("common space: lda", "the space")))
        lines.append(f"{protocol}: {', '.join(shares)}")
    paying = [name for name, own in rows.items() if own["fused"]["gain_interval"][0] > 0]
    verdict = f"pay in {', '.join(paying)}" if paying else "are not shown to pay"
    return "\n".join(["", *lines, f"verdict: this bridge's pictures {verdict}", ""])


def _share(row: Mapping[str, Any]) -> str:
    if row["gap_closed"] is None:
        return "- (no gap is shown)"
    low, high = row["gap_closed_interval"]
    return f"{100 * row['gap_closed']:.0f} % [{100 * low:.0f}, {100 * high:.0f}]"


def _made_by(samples: Path) -> str | None:
    """The SHA-256 of the weights that samples were made by; None where nothing tells."""
    try:
        return json.loads((samples / "manifest.json").read_text(encoding="utf-8"))["weights_sha256"]
    except (OSError, ValueError, LookupError, TypeError):
        return None


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
    status = run_child(arguments, folder=Path(__file__).parent.parent, environment=environment)
    if status:
        raise TrainingError(f"the command above ended with status {status}; start the demo again to go on from there")


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
