"""Networks that no single device holds: each process keeps a part of every tensor (FSDP2, torch's `fully_shard`).

Parameters, gradients, and with them the optimisers' states, are shards; those of a unit are put together while it computes. On
disk everything is whole and laid out as ever, so that a sharded training goes on unsharded, by any number of processes, and the
reverse. With a single process nothing is sharded.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from utils import distributed
from utils.errors import UsageError


def build_sharding(cfg, network: nn.Module, units: Iterable[nn.Module], device_type: str) -> bool:
    """Shard `network` as SOLVER.SHARD says, in place; returns whether it is sharded now.

    Args:
        cfg: the configuration.
        network: has the same buffers on every process; its parameters become those of rank 0.
        units: parts whose tensors are put together at a time, inner ones before those that hold them; each is called as a
            module, and none of its tensors is used from outside meanwhile.
        device_type: 'cpu' or 'cuda'.

    Raises:
        UsageError: float16, whose loss scale each process would choose from its own part; batches in parts.
    """
    if not cfg.SOLVER.SHARD or distributed.world_size() == 1:
        return False
    if cfg.SOLVER.IMS_PER_PASS:
        raise UsageError("SOLVER.SHARD True does not go with SOLVER.IMS_PER_PASS; set that 0, and ACTIVATION_CHECKPOINTS True")
    if cfg.SOLVER.AMP == "fp16":
        raise UsageError("SOLVER.SHARD True does not go with SOLVER.AMP fp16; take bf16 or off")
    for tensor in (*network.parameters(), *network.buffers()):
        dist.broadcast(tensor.detach(), src=0)
    mesh = init_device_mesh(device_type, (distributed.world_size(),))
    for unit in units:
        fully_shard(unit, mesh=mesh)
    return True


def whole(value: Any) -> Any:
    """A tensor, or containers of some, with every sharded one put together on the CPU; call it on every process.

    Only the first process, which writes files, gets whole tensors; the others keep their parts.
    """
    if isinstance(value, DTensor):
        full = value.full_tensor()
        return full.cpu() if distributed.is_main() else value.to_local()
    if isinstance(value, Mapping):
        return {key: whole(inner) for key, inner in value.items()} if _is_sharded(value) else value
    if isinstance(value, list | tuple):
        return type(value)(whole(inner) for inner in value) if _is_sharded(value) else value
    return value


def _is_sharded(value: Any) -> bool:
    """Whether a container holds a shard; others stay the objects that they are."""
    inner = value.values() if isinstance(value, Mapping) else value
    return any(isinstance(part, DTensor) or (isinstance(part, Mapping | list | tuple) and _is_sharded(part)) for part in inner)


def part_of(value: Tensor, like: Tensor) -> Tensor:
    """This process's part of a whole tensor, if `like` is sharded and of its shape."""
    if not isinstance(like, DTensor) or value.shape != like.shape:
        return value
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)


def load_whole(part: Any, state: Any) -> None:
    """`part.load_state_dict(state)`, where the tensors of `state` are whole and those of a module may be shards."""
    if isinstance(part, nn.Module):
        own = part.state_dict()
        state = {name: part_of(value, own[name]) if name in own else value for name, value in state.items()}
    part.load_state_dict(state)


@contextmanager
def put_together(network: nn.Module) -> Iterator[None]:
    """Hold a sharded network whole on every process until a block ends, in which each may call it as often as it likes."""
    units = [module for module in network.modules() if isinstance(module, FSDPModule)]
    for unit in units:
        unit.set_reshard_after_forward(False, recurse=False)
        unit.unshard()
    try:
        yield
    finally:
        for unit in units:
            unit.set_reshard_after_forward(True, recurse=False)
            unit.reshard()
