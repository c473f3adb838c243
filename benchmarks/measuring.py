"""Rows of a benchmark, how long a call takes, and how fast the machine multiplies matrices."""

import json
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import date
from pathlib import Path

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from utils.log import table

DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Row:
    """One measurement.

    Attributes:
        job: what is done; rows of one job are compared.
        way: how; the first row of a job is the released way, where there is one.
        seconds: of one call, the median; None where it could not be done.
        items: images, samples or queries of a call.
        share: of the matrix rate that the way computes at, 0..1; None where it is not counted.
        memory: peak of the device's memory, GB.
        faster: how many times as many items a second as in the first row of the job.
        note: what else a reader should know.
    """

    job: str
    way: str
    seconds: float | None
    items: int = 1
    share: float | None = None
    memory: float | None = None
    faster: float | None = None
    note: str = ""


def with_ratios(rows: Sequence[Row]) -> list[Row]:
    """The rows with `faster` filled in."""
    first: dict[str, Row] = {}
    compared = []
    for row in rows:
        base = first.setdefault(row.job, row)
        both = base.seconds and row.seconds
        compared.append(replace(row, faster=base.seconds / base.items * row.items / row.seconds if both else None))
    return compared


def print_rows(rows: Sequence[Row], style: str = "pipe") -> str:
    """A table of rows."""

    def cells(row: Row) -> list[str]:
        seconds = [f"{row.seconds * 1000:.1f}", f"{row.items / row.seconds:.4g}"] if row.seconds else ["", ""]
        share = "" if row.share is None else f"{100 * row.share:.0f} %"
        memory = "" if row.memory is None else f"{row.memory:.2f}"
        faster = "" if row.faster is None else f"{row.faster:.2f}x"
        return [row.job, row.way, *seconds, share, memory, faster, row.note]

    headers = ["job", "way", "ms a call", "items/s", "of matrix rate", "peak GB", "faster", "note"]
    return table(headers, [cells(row) for row in rows], style)


def write_rows(path: Path, rows: Sequence[Row], machine: str) -> None:
    """Rows and machine as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"machine": machine, "rows": [asdict(row) for row in rows]}, indent=1), encoding="utf-8")


def machine_line(device: torch.device) -> str:
    """What was measured on, and with what."""
    name = (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"{platform.machine()}, {torch.get_num_threads()} threads"
    )
    return f"{name}, torch {torch.__version__}, CUDA {torch.version.cuda}, Python {platform.python_version()}, {date.today()}"


def wait(device: torch.device) -> None:
    """Until the device has done all that it was asked for."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def time_call(call: Callable[[], object], device: torch.device, *, seconds: float = 1.0, warm: int = 2) -> float:
    """Median seconds of a call: three times at least, and as often as `seconds` allow, after `warm` calls that do not count."""
    for _ in range(warm):
        call()
    wait(device)
    times: list[float] = []
    while len(times) < 3 or sum(times) < seconds:
        start = time.perf_counter()
        call()
        wait(device)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def time_steps(step: Callable[[], object], device: torch.device, *, count: int = 20, warm: int = 3) -> float:
    """Seconds of a step among `count` in a row, with which the device may lag behind the host, as it does in training."""
    for _ in range(warm):
        step()
    wait(device)
    start = time.perf_counter()
    for _ in range(count):
        step()
    wait(device)
    return (time.perf_counter() - start) / count


def peak_memory(device: torch.device) -> float | None:
    """GB at most since `forget_peak`."""
    return torch.cuda.max_memory_allocated(device) / 1e9 if device.type == "cuda" else None


def forget_peak(device: torch.device) -> None:
    """Free what nothing holds, and begin to look for the peak anew."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def matrix_rates(device: torch.device, side: int = 8192) -> dict[str, float]:
    """Operations a second of a square matrix product in each type, and in TF32; on random numbers."""
    rates = {}
    for name, dtype in DTYPES.items():
        if device.type == "cpu" and name == "fp16":
            continue
        a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
        rates[name] = 2 * side**3 / time_call(lambda a=a, b=b: a @ b, device, seconds=0.3)
    if device.type == "cuda":
        a, b = (torch.randn(side, side, device=device) for _ in range(2))
        torch.backends.cuda.matmul.allow_tf32 = True
        rates["TF32"] = 2 * side**3 / time_call(lambda: a @ b, device, seconds=0.3)
        torch.backends.cuda.matmul.allow_tf32 = False
    return rates


def operations(call: Callable[[], object]) -> int:
    """Floating-point operations of the matrix products and convolutions of a call, which is made once."""
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def size_of(network: nn.Module) -> str:
    """Parameters, in millions."""
    return f"{sum(parameter.numel() for parameter in network.parameters()) / 1e6:.0f} M parameters"
