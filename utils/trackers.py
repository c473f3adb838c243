"""TensorBoard, Weights & Biases and MLflow beside metrics.jsonl: the same numbers, each by its own library, if it is installed.

They write into the run's folder and send nothing, unless WANDB_MODE or MLFLOW_TRACKING_URI, which are these programs' own, say
otherwise.
"""

import importlib.util
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from utils import distributed
from utils.errors import UsageError
from utils.reading import parse_yaml

PROJECT = "mos"
"""What W&B calls a project and MLflow an experiment."""

Line = Mapping[str, Any]
"""A line of metrics.jsonl: `kind`, `epoch`, perhaps `step` and `protocol`, and numbers."""


class TensorBoardTracker:
    """Event files in `<folder>/tensorboard`."""

    def __init__(self, folder: Path, settings: Mapping[str, Any]):
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(folder / "tensorboard"))
        self.writer.add_text("config", "\n".join(f"    {key}: {value}" for key, value in settings.items()))

    def numbers(self, values: Mapping[str, float], step: int) -> None:
        """Add a point to each curve."""
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def picture(self, path: Path, step: int) -> None:
        """Show a picture."""
        self.writer.add_image(path.parent.name, np.asarray(Image.open(path).convert("RGB")), step, dataformats="HWC")

    def close(self) -> None:
        """Write what is left."""
        self.writer.close()


class WandbTracker:
    """A run of Weights & Biases, offline in `<folder>/wandb`; `wandb sync` sends it."""

    def __init__(self, folder: Path, settings: Mapping[str, Any]):
        import wandb

        self.library, mode = wandb, os.environ.get("WANDB_MODE", "offline")
        self.run = wandb.init(project=PROJECT, name=folder.name, dir=str(folder), mode=mode, config=dict(settings))

    def numbers(self, values: Mapping[str, float], step: int) -> None:
        """Add a point to each curve."""
        self.run.log(dict(values), step=step)

    def picture(self, path: Path, step: int) -> None:
        """Show a picture."""
        self.run.log({path.parent.name: self.library.Image(str(path))}, step=step)

    def close(self) -> None:
        """Write what is left."""
        self.run.finish()


class MlflowTracker:
    """A run of MLflow, in `<folder>/mlruns`."""

    def __init__(self, folder: Path, settings: Mapping[str, Any]):
        import mlflow

        self.library = mlflow
        mlflow.set_tracking_uri(os.environ.get("MLFLOW_TRACKING_URI", (folder / "mlruns").resolve().as_uri()))
        mlflow.set_experiment(PROJECT)
        mlflow.start_run(run_name=folder.name)
        mlflow.log_dict(dict(settings), "config.json")

    def numbers(self, values: Mapping[str, float], step: int) -> None:
        """Add a point to each curve."""
        self.library.log_metrics(dict(values), step=step)

    def picture(self, path: Path, step: int) -> None:
        """Keep a picture."""
        self.library.log_artifact(str(path), path.parent.name)

    def close(self) -> None:
        """End the run."""
        self.library.end_run()


TRACKERS = {"tensorboard": TensorBoardTracker, "wandb": WandbTracker, "mlflow": MlflowTracker}
"""Words of SOLVER.TRACKERS, which are names of libraries."""


@contextmanager
def open_trackers(names: Sequence[str], folder: Path, config: str, *, steps: int) -> Iterator[Callable[[Line], None]]:
    """What takes each line of metrics.jsonl to the trackers, on rank 0, for the length of a block.

    Args:
        names: of `TRACKERS`.
        folder: of the run.
        config: the configuration as YAML, which they show beside the curves.
        steps: of an epoch.

    Raises:
        UsageError: a library is not installed.
    """
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise UsageError(f"SOLVER.TRACKERS names {name}, which is not installed; pip install {name}, or leave it out")
    settings = _flat(parse_yaml(config)[0] or {}) if names else {}
    trackers = [TRACKERS[name](folder, settings) for name in names] if distributed.is_main() else []
    try:
        yield lambda line: _tell(trackers, line, folder, steps)
    finally:
        for tracker in trackers:
            tracker.close()


def _flat(content: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted key -> value."""
    flat = {}
    for section, value in content.items():
        flat |= {f"{section}.{key}": item for key, item in value.items()} if isinstance(value, dict) else {section: value}
    return flat


def _tell(trackers: Sequence[Any], line: Line, folder: Path, steps: int) -> None:
    """The numbers of a line, at the count of all steps before it; with the line of an epoch the grid that was drawn in it."""
    step = (line["epoch"] - 1) * steps + line["step"] if "step" in line else line["epoch"] * steps
    start = "/".join(line[key] for key in ("kind", "protocol") if key in line)
    numbers = {
        f"{start}/{name}": float(value)
        for name, value in line.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and name not in ("epoch", "step")
    }
    grid = folder / "grids" / f"epoch_{line['epoch']:04d}.png"
    for tracker in trackers:
        tracker.numbers(numbers, step)
        if line["kind"] == "epoch" and grid.is_file():
            tracker.picture(grid, step)
