"""An exponential moving average of a network's weights."""

import copy

import torch
from torch import nn


class ExponentialMovingAverage:
    """A frozen copy of a network whose weights follow it: average = decay * average + (1 - decay) * weight.

    Attributes:
        network: the averaged copy, in eval mode, without gradients.
        decay: 0..1.
    """

    def __init__(self, network: nn.Module, *, decay: float = 0.995):
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        self.decay = decay

    @torch.no_grad()
    def update(self, network: nn.Module, *, copying: bool = False) -> None:
        """Move the average towards `network`'s weights, or set it to them where `copying` (before the average begins)."""
        averages, weights = list(self.network.parameters()), [weight.detach() for weight in network.parameters()]
        if copying:
            torch._foreach_copy_(averages, weights)
        else:
            torch._foreach_lerp_(averages, weights, 1.0 - self.decay)
        for average, buffer in zip(self.network.buffers(), network.buffers(), strict=True):
            average.copy_(buffer)
