"""What the benchmarks measure on: a device, made-up chips, networks with random weights."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from bbdm.model import BridgeModel, build_bridge, build_condition, build_empty_first_stage, build_network
from benchmarks.measuring import time_steps
from configs import load_cfg
from datasets.records import Batch
from tests.chip_files import write_chip
from utils.device import find_precision

ROOT = Path(__file__).parent.parent


@dataclass
class Bench:
    """Where and how large.

    Attributes:
        device: that is measured.
        folder: for chips, weights and runs.
        tiny: sizes that a CPU manages in a minute.
        deadline: of `time.monotonic`.
        rates: operations a second of a matrix product, by type.
    """

    device: torch.device
    folder: Path
    tiny: bool
    deadline: float
    rates: dict[str, float] = field(default_factory=dict)

    @property
    def left(self) -> float:
        """Seconds."""
        return self.deadline - time.monotonic()

    @property
    def precisions(self) -> dict[str, str]:
        """Way -> SOLVER.AMP."""
        return {"float32": "off", "bf16": "bf16"} | ({"fp16": "fp16"} if self.device.type == "cuda" else {})

    def steps(self, step: Callable[[], object], *, count: int = 20, warm: int = 3) -> float:
        """Seconds of a step among `count` in a row."""
        return time_steps(step, self.device, **({"count": 1, "warm": 1} if self.tiny else {"count": count, "warm": warm}))

    def share(self, work: float, seconds: float, way: str) -> float | None:
        """Of the matrix rate of a way that begins with the name of a type."""
        rate = self.rates.get(way.removeprefix("released: ").split()[0])
        return work / seconds / rate if rate else None

    def reid_cfg(self, *overrides: str):
        """MOS as released, without start weights."""
        tiny = ("MODEL.TRANSFORMER_TYPE", "vit_tiny_patch16_224_TransOSS") if self.tiny else ()
        fixed = (
            "MODEL.PRETRAIN_CHOICE",
            "none",
            "MODEL.DEVICE",
            str(self.device),
            "DATALOADER.NUM_WORKERS",
            "2" if self.tiny else "16",
        )
        return load_cfg(ROOT / "configs/hoss_transoss.yml", [*fixed, *tiny, *overrides])

    def bridge(self, config: str, amp: str, *, layout: torch.memory_format, training: bool = False) -> BridgeModel:
        """A bridge with random weights."""
        tiny = ("BBDM.WIDTH", "32", "BBDM.FIRST_STAGE_WIDTH", "32", "BBDM.IMAGE_SIZE", "[64,64]") if self.tiny else ()
        cfg = load_cfg(ROOT / "configs" / config, ["BBDM.PRETRAINED", "", *tiny])
        torch.manual_seed(0)
        stage = None if cfg.BBDM.SPACE == "pixel" else build_empty_first_stage(cfg).eval().requires_grad_(False)
        network, precision = build_network(cfg), find_precision(amp, self.device)
        for part in (network, stage) if stage else (network,):
            part.to(self.device, memory_format=layout)
        network.train(training).requires_grad_(training)
        if not training:
            precision.cast(network)
            if stage:
                precision.cast(stage)
        return BridgeModel(build_bridge(cfg).to(self.device), network, stage, precision, build_condition(cfg))

    def pictures(self, batch: int, layout: torch.memory_format) -> torch.Tensor:
        """(batch, 3, 256, 256) in [-1, 1]."""
        side = 64 if self.tiny else 256
        return (2 * torch.rand(batch, 3, side, side, device=self.device) - 1).contiguous(memory_format=layout)

    def reid_batch(self, size: int) -> Batch:
        """Made-up chips of size / 4 ships on the device, half of them of either modality."""
        places = torch.arange(size, device=self.device)
        images, sizes = torch.randn(size, 3, 256, 128, device=self.device), torch.rand(size, 3, device=self.device)
        return Batch(images, sizes, modalities=places % 2, labels=places // 4, indices=places.cpu())


def chips(bench: Bench) -> Path:
    """A data set of made-up chips, about as large as HOSS's: 1,024 to train on, 1,200 to test on."""
    root = bench.folder / "chips"
    if not root.exists():
        folders, ships = root / "HOSS", (16, 8) if bench.tiny else (128, 200)
        for ship in range(sum(ships)):
            for view, kind in ((view, kind) for view in range(4 if ship < ships[0] else 3) for kind in ("RGB", "SAR")):
                test = "query" if view == 0 else "bounding_box_test"
                folder = folders / ("bounding_box_train" if ship < ships[0] else test)
                write_chip(folder / f"{ship + 1:04d}_s01c{view}_{kind}.tif", 10 * ship + view, height=200, width=50)
    return root
