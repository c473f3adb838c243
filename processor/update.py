"""From the losses of one or several batches to one step of the optimisers."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from utils import distributed
from utils.sharding import part_of


class Update:
    """Steps the optimisers with the gradients of a loss, or with the mean gradients of several.

    Args:
        network: what is trained, inside `distributed.wrap` where there are several processes.
        optimizers: of the network, and of what is learned beside it.
        scaler: of gradients, for float16.
        others: learned parameters outside the network, whose wrapper would not average their gradients over processes.
        accumulation: batches to a step.
        largest_norm: that the network's gradient is clipped to; 0: not at all.

    Attributes:
        steps: taken so far.
        waiting: batches whose gradients wait for the next step.
    """

    def __init__(
        self,
        network: nn.Module,
        optimizers: Sequence[Optimizer],
        scaler: torch.amp.GradScaler,
        *,
        others: Iterable[nn.Parameter] = (),
        accumulation: int = 1,
        largest_norm: float = 0.0,
    ):
        self.network = network
        self.optimizers = optimizers
        self.scaler = scaler
        self.others = tuple(others)
        self.accumulation = accumulation
        self.largest_norm = largest_norm
        self.steps = 0
        self.waiting = 0

    def passes(self, *, last: bool | None = None) -> AbstractContextManager:
        """The context of a batch's passes, in which processes exchange gradients only if a step follows.

        `last` says so of a part of a batch; None: the batch goes through the network in one piece.
        """
        exchanges = self.waiting + 1 == self.accumulation if last is None else last
        silent = isinstance(self.network, nn.parallel.DistributedDataParallel) and not exchanges
        return self.network.no_sync() if silent else nullcontext()

    def __call__(self, loss: Tensor) -> bool:
        """Add the gradients of a batch's loss; returns whether they completed a step."""
        self.backward(loss)
        return self.complete()

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a batch's loss, a number, to those that wait."""
        self.scaler.scale(loss / self.accumulation).backward()

    def complete(self) -> bool:
        """Count a batch whose gradients are there, and step if it is the last one of its step; returns whether it was."""
        self.waiting += 1
        if self.waiting < self.accumulation:
            return False
        for parameter in self.others:
            parameter.grad = distributed.mean(parameter.grad)
        if self.largest_norm:
            for optimizer in self.optimizers:
                self.scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(self.network.parameters(), self.largest_norm)
        for optimizer in self.optimizers:
            self.scaler.step(optimizer)
        self.scaler.update()
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        self.steps, self.waiting = self.steps + 1, 0
        return True

    def state_dict(self) -> dict[str, Any]:
        """Optimisers, scaler, counts, and the gradients that wait: of all processes, so call it on each."""
        named = distributed.unwrap(self.network).named_parameters()
        gradients = {name: parameter.grad for name, parameter in named if parameter.grad is not None}
        return {
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "scaler": self.scaler.state_dict(),
            "gradients": {name: _mean(gradient) for name, gradient in gradients.items()},
            "steps": self.steps,
            "waiting": self.waiting,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken, on another device too.

        Raises:
            LookupError, TypeError, ValueError, AttributeError: the state is of something else.
        """
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            # Whether an update is fused depends on the device, so it stays the optimiser's own.
            groups = zip(saved["param_groups"], optimizer.param_groups, strict=True)
            own = [{**group, "fused": present.get("fused")} for group, present in groups]
            optimizer.load_state_dict({**saved, "state": _parts_of(saved["state"], optimizer), "param_groups": own})
        if state["scaler"]:  # empty in a run without one, and this one then starts anew
            self.scaler.load_state_dict(dict(state["scaler"]))
        for name, gradient in state["gradients"].items():
            parameter = distributed.unwrap(self.network).get_parameter(name)
            parameter.grad = part_of(gradient.to(parameter.device), parameter)
        self.steps, self.waiting = int(state["steps"]), int(state["waiting"])


def _mean(gradient: Tensor) -> Tensor:
    """The mean of a gradient over processes, which a sharded one is already."""
    return gradient if isinstance(gradient, DTensor) else distributed.mean(gradient)


def _parts_of(states: Mapping[int, Mapping[str, Any]], optimizer: Optimizer) -> dict[int, dict[str, Any]]:
    """The states of an optimiser's parameters, of which a process with shards takes its part."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    return {
        number: {key: part_of(value, parameters[number]) if isinstance(value, Tensor) else value for key, value in own.items()}
        for number, own in states.items()
    }
