"""The one place that knows of several processes. Every function is a no-op for a single one.

Processes are started by torchrun, which sets RANK, WORLD_SIZE and LOCAL_RANK. Devices talk over NCCL, CPUs over gloo.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def rank() -> int:
    """This process's number, 0 .. world_size() - 1."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """How many processes work together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def local_rank() -> int:
    """This process's number on its machine, from torchrun's environment."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def is_launched() -> bool:
    """Whether torchrun started this process."""
    return "LOCAL_RANK" in os.environ


def launched_processes() -> int:
    """How many processes torchrun started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1")) if is_launched() else 1


def is_main() -> bool:
    """Whether this process writes the files and draws the progress bar; asked before the processes have joined, too."""
    if dist.is_initialized() or not is_launched():
        return rank() == 0
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """Make `device` the current one and join the other processes that torchrun started, if any, until the block ends."""
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if launched_processes() == 1:
        yield
        return
    if device.type == "cuda":
        dist.init_process_group("cpu:gloo,cuda:nccl", device_id=device)
    else:
        dist.init_process_group("gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


def fails_first() -> bool:
    """Whether this process is the first of its job that fails, and so the one that says why; the others fail of its absence.

    They ask torchrun's own store, which outlives them and is there before they have joined.
    """
    if launched_processes() == 1 or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return True
    try:
        host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = dist.TCPStore(host, port, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=5))
        return store.add(f"mos/failed/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", 1) == 1
    except (LookupError, ValueError, RuntimeError):
        return True


def barrier() -> None:
    """Wait until every process has come here."""
    if dist.is_initialized():
        dist.barrier()


def mean(value: Tensor) -> Tensor:
    """The mean of a tensor over all processes."""
    if not dist.is_initialized():
        return value
    total = value.clone()
    dist.all_reduce(total)
    return total / world_size()


def maximum(values: Sequence[float]) -> list[float]:
    """The greatest over all processes of each of some numbers on the CPU; no process waits for its GPU."""
    if not dist.is_initialized():
        return list(values)
    tensor = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
    return tensor.tolist()


def gather(value: Any) -> list[Any]:
    """A picklable object of every process, in rank order, on every process."""
    if not dist.is_initialized():
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def interleave(shares: list[list[Any]]) -> list[Any]:
    """What processes made of blocks that they took in turn (`blocks[rank::world_size]`), in the order of the blocks."""
    return [shares[place % len(shares)][place // len(shares)] for place in range(sum(map(len, shares)))]


def broadcast(value: Any) -> Any:
    """Rank 0's picklable object, on every process."""
    if not dist.is_initialized():
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]


def share_buffers(model: torch.nn.Module) -> None:
    """Give every process rank 0's buffers, such as the running statistics of BatchNorm, which each keeps of its own batches."""
    if dist.is_initialized():
        for buffer in model.buffers():
            dist.broadcast(buffer, src=0)


def wrap(model: torch.nn.Module, device: torch.device) -> torch.nn.Module:
    """The model as the loop calls it: with gradients averaged over processes where there are several."""
    if not dist.is_initialized():
        return model
    device_ids = [device.index] if device.type == "cuda" else None
    return torch.nn.parallel.DistributedDataParallel(model, device_ids=device_ids)


def unwrap(model: torch.nn.Module) -> torch.nn.Module:
    """The model inside `wrap`."""
    return model.module if isinstance(model, torch.nn.parallel.DistributedDataParallel) else model
