"""A batch that several processes share, as if one process had it whole: its features, its statistics, its random draws.

Each process has as many rows of a batch as the others, and rank order is the order in which one process would have them. With a
single process every function does nothing.

Gradients: the wrapper of the network takes the mean of what the processes bring. A loss that each takes over its own rows comes
out right by that alone. A loss that all take over gathered rows brings, through `gather_rows`, to each process the gradients of
all, so that their mean is right too.

Legend: B rows of this process, W processes.
"""

from collections.abc import Callable

import torch
import torch.distributed as dist
from timm.layers import DropPath
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from utils import distributed
from utils.seed import shared_generator


class _Gather(torch.autograd.Function):
    """Rows of all processes; what each does with them comes back as a gradient, and is added up."""

    @staticmethod
    def forward(ctx, rows: Tensor) -> Tensor:
        shares = [torch.empty_like(rows) for _ in range(distributed.world_size())]
        dist.all_gather(shares, rows.contiguous())
        return torch.cat(shares)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        gradient = gradient.contiguous().clone()
        dist.all_reduce(gradient)
        return gradient.chunk(distributed.world_size())[distributed.rank()]


class _Sum(torch.autograd.Function):
    """The sum over processes, likewise."""

    @staticmethod
    def forward(ctx, value: Tensor) -> Tensor:
        total = value.contiguous().clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return _Sum.forward(ctx, gradient)


def gather_rows(rows: Tensor) -> Tensor:
    """(B, ...) of this process -> (W B, ...) of all, in rank order, with gradients."""
    return rows if distributed.world_size() == 1 else _Gather.apply(rows)


def gather_pairs(rows: Tensor) -> Tensor:
    """The same of images of pairs: the first images of this process's pairs, then the second ones, as of all."""
    return rows if distributed.world_size() == 1 else torch.cat([gather_rows(half) for half in rows.chunk(2)])


def own_rows(rows: Tensor, halves: int = 1) -> Tensor:
    """(W B, ...) of all processes -> (B, ...) of this one.

    Args:
        rows: of all.
        halves: 2 where one process would have the first images of all pairs, then the second ones, as each has of its own.
    """
    halves = halves if len(rows) % (halves * distributed.world_size()) == 0 else 1
    parts = [half.chunk(distributed.world_size())[distributed.rank()] for half in rows.chunk(halves)]
    return torch.cat(parts) if halves > 1 else parts[0]


def draw_rows(
    draw: Callable[[int, torch.Generator | None], Tensor], rows: int, device: torch.device, halves: int = 1
) -> Tensor:
    """What one process would have drawn for the rows of this one.

    Args:
        draw: number of rows and generator (None: torch's own) -> that many rows, on `device`.
        rows: of this process, B.
        device: where they are drawn.
        halves: see `own_rows`.
    """
    if distributed.world_size() == 1:
        return draw(rows, None)
    return own_rows(draw(rows * distributed.world_size(), shared_generator(device)), halves)


class GlobalBatchNorm(_BatchNorm):
    """BatchNorm whose statistics are of the rows of all processes. (torch's SyncBatchNorm is for GPUs only.)"""

    def _check_input_dim(self, input: Tensor) -> None:
        pass

    def forward(self, input: Tensor) -> Tensor:
        """Normalise (B, C) or (B, C, H, W)."""
        if not self.training or distributed.world_size() == 1:
            return super().forward(input)
        values, processes = input.float(), distributed.world_size()
        dims = [0, *range(2, values.dim())]
        shape = [1, -1, *[1] * (values.dim() - 2)]
        mean = _Sum.apply(values.mean(dims)) / processes
        centred = values - mean.view(shape)
        variance = _Sum.apply(centred.square().mean(dims)) / processes
        with torch.no_grad():
            count = values.numel() / values.shape[1] * processes
            self.num_batches_tracked += 1
            momentum = 1 / self.num_batches_tracked.item() if self.momentum is None else self.momentum
            self.running_mean.lerp_(mean, momentum)
            self.running_var.lerp_(variance * (count / (count - 1)), momentum)
        scaled = centred * (variance + self.eps).rsqrt().view(shape)
        if self.affine:
            scaled = scaled * self.weight.view(shape) + self.bias.view(shape)
        return scaled.to(input.dtype)


class GlobalDropPath(DropPath):
    """Stochastic depth whose choices for an image do not depend on how many processes share the batch."""

    halves = 1

    def forward(self, x: Tensor) -> Tensor:
        """Drop the path (B, ...) of some images."""
        if not self.training or not self.drop_prob or distributed.world_size() == 1:
            return super().forward(x)
        kept = 1 - self.drop_prob

        def draw(rows: int, generator: torch.Generator | None) -> Tensor:
            return x.new_empty((rows, *[1] * (x.dim() - 1))).bernoulli_(kept, generator=generator)

        mask = draw_rows(draw, len(x), x.device, self.halves)
        return x * (mask.div_(kept) if kept > 0 and self.scale_by_keep else mask)


def share_batch(model: nn.Module, *, halves: int = 1) -> None:
    """Let the layers of `model` that look at a whole batch, or draw for it, do so over all processes, in place.

    A layer keeps its tensors and its name; with one process nothing changes.
    """
    if distributed.world_size() == 1:
        return
    for module in model.modules():
        if type(module) in (nn.BatchNorm1d, nn.BatchNorm2d):
            module.__class__ = GlobalBatchNorm
        elif type(module) is DropPath:
            module.__class__ = GlobalDropPath
            module.halves = halves
